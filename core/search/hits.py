"""What is found: hits, and the moments of a recording that they name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from audiofuse.core.index.index import Point
from audiofuse.core.moments.moments import Moment


@dataclass(frozen=True)
class Hit:
    """An item found. ``score`` is the cosine; its parts ``audio`` and ``metadata`` add up to it.

    Of a recording with moments ``score`` is that of the best of them where it is better than that
    of the whole. ``moments`` are at most three, best first; none of a sound of one window.
    Mid fusion has no parts: they are ``None``. ``copies`` are the keys of other sounds with the
    same content, where the question asks for ``unique`` hits. ``relevance`` is how probably it is
    what is meant, from 0 to 1; ``None`` where that is not known: of a question that is not by words
    alone, and of an encoder without a calibration.
    """

    id: str
    key: str
    score: float
    audio: float | None
    metadata: float | None
    payload: Mapping[str, Any]
    copies: tuple[str, ...] = ()
    moments: tuple[Moment, ...] = ()
    relevance: float | None = None

    @classmethod
    def of(cls, item: Point, score: float, audio: float | None) -> "Hit":
        """Return an item with its score, and what audio gave to it."""
        metadata = None if audio is None else score - audio
        return cls(item.id, item.payload["key"], score, audio, metadata, item.payload)


@dataclass(frozen=True)
class Found:
    """Hits, best first, and the encoder version that found them; none before the first item.

    ``nothing``: whether none of what there is answers the question, so that hits are merely the
    nearest; ``None`` where that is not known.
    """

    encoder: str | None
    hits: list[Hit]
    nothing: bool | None = None


@dataclass(frozen=True)
class Timeline:
    """How near each window of a recording is to a question, in the order of time.

    A sound without moments is one window. ``encoder`` is the version that compared them.
    """

    encoder: str
    windows: list[Moment]


def unique(hits: Sequence[Hit]) -> list[Hit]:
    """Return the best hit of each content, with the keys of the others."""
    same: dict[str, list[Hit]] = {}
    for hit in hits:
        same.setdefault(hit.payload["content_hash"], []).append(hit)
    return [
        replace(best, copies=tuple(other.key for other in others))
        for best, *others in same.values()
    ]
