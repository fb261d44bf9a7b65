"""Who is let in, how many at once, and how whoever is not is told.

``guard`` (keys, rates, sizes, headers), ``questions`` and ``streams`` (how many at once),
``problems`` (errors as problem+json), ``measured`` (metrics).
"""
