"""A question's way to its hits, and what there is without a question.

``loaded`` (the encoders that are loaded: questions to vectors), ``hits`` (what is found),
``recordings`` (their moments), ``ranking`` (one question's hits), ``answering`` (those of many that
ask at once), ``relevance`` (how probable each is), ``live`` (which generation is searched, by which
encoder), ``search`` (all of the above), ``catalogue`` (items page by page, what they have in
common, which of them are alike), ``maps`` (items on a plane, by ``layout``), ``labels`` (what items
may be called).
"""
