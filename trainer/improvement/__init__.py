"""The archive teaches its encoder: from an index and its listeners' verdicts to a better version.

``archive`` (what is known: sounds with their words and verdicts), ``meaning`` (what questions mean,
and whether the verdicts agree), ``turns`` (who learns from what and is judged by what), ``heads``
(the part of an encoder that learns), ``teaching`` (how it learns), ``judging`` (old against new),
``calibrating`` (what new scores mean), ``scores`` (for their scorecards), ``tables`` (what came of
it, as people and programs read it), ``improve`` (all of it in order).
"""
