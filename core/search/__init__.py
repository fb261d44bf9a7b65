"""A question's way to its hits, and what there is without a question.

``loaded`` (the encoders that are loaded: questions to vectors), ``search`` (vectors to hits),
``catalogue`` (items page by page, what they have in common, which of them are alike), ``maps``
(items on a plane, by ``layout``).
"""
