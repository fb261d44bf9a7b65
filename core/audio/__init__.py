"""Sound files.

``recording`` decodes one window by window, ``containers`` tells how long one says it is.
"""
