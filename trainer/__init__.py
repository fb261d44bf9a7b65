"""Training encoders: ``cli`` is the command, with its ``options``; ``__main__`` starts it.

Rooms: ``data``, ``training``, ``study``.
"""
