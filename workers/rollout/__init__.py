"""A new encoder version while the service runs.

``operator`` (the steps), ``gates`` (what must hold before promoting).
"""
