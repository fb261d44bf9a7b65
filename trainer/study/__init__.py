"""What training was worth.

``assessment`` (scores on slices), ``results`` (bundle's card and metrics), ``report`` (a page); the
paper's study: ``grid`` (its cells), ``paper`` (runs them), ``claims``, ``tables``.
"""
