"""What may be asked: questions and filters are checked before anybody works on them."""

from datetime import datetime
from typing import Any

import pytest

from audiofuse.core.errors import QueryError
from audiofuse.core.query import Filter, Question


@pytest.mark.parametrize(
    ("text", "limit"), [("", 5), ("?!", 5), ("x" * 1001, 5), ("a", 0), ("a", 1001)]
)
def test_a_bad_question_is_refused(text: str, limit: int) -> None:
    """No words, too many, or a senseless number of hits is a QueryError."""
    with pytest.raises(QueryError):
        Question(text, limit=limit)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "no words"),
        ({"text": "a", "balance": 1.1}, "balance"),
        ({"text": "a", "offset": -1}, "offset"),
        ({"text": "a", "offset": 9_999, "limit": 2}, "10000"),
        ({"text": "a", "offset": 199, "limit": 2, "unique": True}, "200"),
        ({"text": "a", "without": "!"}, "no words"),
        ({"text": "a", "min_relevance": 1.1}, "min_relevance"),
        ({"text": "a", "min_relevance": 0.5, "offset": 199, "limit": 2}, "200"),
        ({"text": "a", "min_relevance": 0.5, "without": "b"}, "words alone"),
        ({"text": "a", "min_relevance": 0.5, "balance": 0.2}, "words alone"),
        ({"like": "gong.ogg"}, "no item's id"),
        ({"like": "{6BA7B810-9DAD-51D1-80B4-00C04FD430C8}"}, "no item's id"),
    ],
)
def test_what_makes_no_question_is_said(options: dict[str, Any], told: str) -> None:
    """Each part of a question that cannot be meant is refused in words that name it."""
    with pytest.raises(QueryError, match=told):
        Question(**options)


@pytest.mark.parametrize(
    ("conditions", "told"),
    [
        ({"keywords": ("x",) * 21}, "keywords"),
        ({"labels": ("x" * 201,)}, "labels"),
        ({"prefix": "x" * 1025}, "prefix"),
        ({"since": datetime(2026, 1, 1)}, "time zone"),  # noqa: DTZ001 - that is the point
    ],
)
def test_what_makes_no_filter_is_said(conditions: dict[str, Any], told: str) -> None:
    """Too many or too long conditions, or a time without a zone, are refused by name."""
    with pytest.raises(QueryError, match=told):
        Filter(**conditions)
