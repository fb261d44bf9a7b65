"""A question's way to its hits.

``towers`` (questions to vectors), ``search`` (vectors to hits).
"""
