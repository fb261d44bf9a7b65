"""How good an encoder is.

``clips`` (labelled sounds and queries), ``evaluation`` (rankings and their scores), ``intervals``
(how certain a score is).
"""
