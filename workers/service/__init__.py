"""The HTTP service: what is asked, by whom, how much at once, and how it is answered.

``app`` (put together), ``routes`` (questions), ``models`` (their JSON), ``questions`` (how many at
once), ``audio`` (links to sounds), ``encoders`` (query towers as files), ``probes`` (alive, ready),
``problems`` (errors), ``guard`` (keys, rates, sizes), ``measured`` (metrics), ``page`` (the search
page in ``web``), ``client`` (asking it from elsewhere).
"""
