"""Training encoders: ``cli`` is the command; rooms: ``data``, ``training``, ``study``."""
