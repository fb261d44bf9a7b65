"""What training was worth.

``assessment`` (scores on slices), ``results``, ``report`` (a page), ``paper`` (the paper's grid).
"""
