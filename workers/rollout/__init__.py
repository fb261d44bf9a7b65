"""A new encoder version while the service runs.

``operator`` (the steps), ``following`` (until all follow one), ``gates`` (what must hold before
promoting).
"""
