"""The HTTP service.

``app`` (put together), ``routes`` (questions), ``audio``, ``encoders``, ``models`` (JSON),
``problems`` (errors), ``guard`` (keys, rates, sizes), ``measured`` (metrics), ``page`` (the search
page in ``web``), ``client`` (asking it from elsewhere).
"""
