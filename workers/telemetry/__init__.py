"""What processes tell.

``names`` (shared by queue and metrics), ``metrics``, ``logs``, ``tracing``.
"""
