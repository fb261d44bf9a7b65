"""Training encoders: ``cli`` is the command, with its ``options``; ``__main__`` starts it.

``calibrate`` is one of its commands, which tells what scores mean.

Rooms: ``data``, ``training``, ``study``.
"""
