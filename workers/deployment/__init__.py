"""What looks at a whole deployment.

``local`` (all of it on one machine), ``exporter`` (its metrics), ``status``, ``snapshots`` (of its
index).
"""
