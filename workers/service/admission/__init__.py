"""Who is let in, how many at once, and how whoever is not is told.

``entrance`` (what every request passes), ``keys`` (who may do what, and where), ``guard`` (rates,
sizes, headers), ``seen`` (what a caller may see of the index), ``questions`` and ``streams`` (how
many at once), ``problems`` (errors as problem+json), ``measured`` (metrics).
"""
