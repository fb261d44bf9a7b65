"""Training encoders: ``cli`` is the command, with its ``options``.

Rooms: ``data``, ``training``, ``study``.
"""
