"""A question's way to its hits.

``loaded`` (the encoders that are loaded: questions to vectors), ``search`` (vectors to hits).
"""
