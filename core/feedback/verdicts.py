"""A verdict: what a listener says of one hit, for one question."""

import time
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from audiofuse.core.query import MAX_QUERY_CHARACTERS

MAX_CALLER_CHARACTERS = 200


class Opinion(StrEnum):
    """What may be said of a hit."""

    FITS = "fits"
    MISSES = "misses"
    SOUGHT = "sought"  # it fits, and is the very sound that was looked for


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
