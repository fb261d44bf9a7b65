"""What looks at a whole deployment.

``local`` (all of it on one machine), ``progress`` (how far it is in step with its bucket),
``exporter`` (its metrics), ``status``, ``doctor`` (what is wrong, and what to do), ``plan`` (what
so many sounds need), ``snapshots`` (of its index).
"""
