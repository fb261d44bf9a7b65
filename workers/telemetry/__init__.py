"""What processes tell.

``names`` (shared by queue and metrics), ``metrics``, ``host`` (those of a host as one), ``logs``,
``tracing``.
"""
