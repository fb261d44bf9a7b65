"""The HTTP service: what is asked and how it is answered.

``app`` (put together), ``routes`` (questions), ``catalogue`` and ``maps`` (what there is, without a
question), ``repair`` (what there is not, and why), ``models`` (their JSON), ``audio`` (links to
sounds, parts of them), ``archive`` (many sounds as one file), ``encoders`` (query towers as files),
``probes`` (alive, ready), ``page`` (the search page in ``web``), ``client`` (asking it from
elsewhere). Who may ask, and how much, is ``admission``; what is put into the bucket, ``uploads``.
"""
