"""How good an encoder is.

``clips`` (labelled sounds and queries), ``benchmarks`` (published ones, which are ``clotho`` and
``audiocaps``, both by ``tables``), ``evaluation`` (rankings and their scores), ``intervals`` (how
certain a score is), ``scorecards`` (what each published version scored). And of moments: ``timed``
(queries with times, also ``castella``'s), ``composing`` (recordings made of clips),
``localisation`` (how well moments are found).
"""
