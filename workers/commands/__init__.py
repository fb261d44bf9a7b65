"""The command line ``audiofuse``.

``main`` (all commands), ``search``, ``dead``, ``rollout``, ``options`` (shared), ``display``
(tables and bars).
"""
