"""How good an encoder is.

``clips`` (labelled sounds and queries), ``benchmarks`` (published ones, which are ``clotho`` and
``audiocaps``, both by ``tables``), ``evaluation`` (rankings and their scores), ``intervals`` (how
certain a score is).
"""
