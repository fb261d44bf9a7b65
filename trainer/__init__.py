"""Training encoders: ``cli`` is the command, with its ``options``; ``__main__`` starts it.

Of its commands ``calibrate`` tells what scores mean, and by ``improving`` an archive teaches its
encoder.

Rooms: ``data``, ``training``, ``study``, ``improvement``.
"""
