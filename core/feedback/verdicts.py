"""A verdict: what a listener says of one hit, for one question."""

import time
from collections.abc import Iterable
from enum import StrEnum
from operator import attrgetter
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from audiofuse.core.query import MAX_QUERY_CHARACTERS, normalise

MAX_CALLER_CHARACTERS = 200


class Opinion(StrEnum):
    """What may be said of a hit."""

    FITS = "fits"
    MISSES = "misses"
    SOUGHT = "sought"  # it fits, and is the very sound that was looked for
    WITHDRAWN = (
        "withdrawn"  # nothing any more: what the same caller said of it before is taken back
    )


class Verdict(BaseModel):
    """What a caller says of an item as the answer to a question.

    ``caller`` is the name of an API key, "" where none is needed; ``text`` is the question's
    words; ``etag`` is the item's state that was judged, and ``encoder`` the version that found it;
    ``at`` is Unix time in seconds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    at: float = Field(default_factory=time.time)
    caller: Annotated[str, Field(max_length=MAX_CALLER_CHARACTERS)] = ""
    text: Annotated[str, Field(min_length=1, max_length=MAX_QUERY_CHARACTERS)]
    item: str
    key: str
    etag: str
    encoder: str
    opinion: Opinion


def standing(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Return what holds, oldest first: of a caller, a question and an item what was said last.

    What was taken back does not hold, nor does anything that the caller had said before.
    """
    in_order = sorted(verdicts, key=attrgetter("at"))
    last = {(each.caller, normalise(each.text), each.item): each for each in in_order}
    return sorted(
        (each for each in last.values() if each.opinion is not Opinion.WITHDRAWN),
        key=attrgetter("at"),
    )
