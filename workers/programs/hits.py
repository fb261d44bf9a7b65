"""What a client returns: hits and items, which a notebook shows with players."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, Self
from urllib.parse import urljoin


@dataclass(frozen=True)
class Sound:
    """An item, as a hit or by itself.

    ``score`` is the cosine; ``audio`` and ``metadata`` add up to it, where fusion is a sum. All
    three are ``None`` where nothing was asked. ``relevance`` is how probably it is what is meant,
    from 0 to 1; ``None`` where that is not known. ``payload`` has what is known of it: title,
    description, keywords, labels, duration_s and so on. ``audio_url`` is where to hear it, for some
    minutes; ``None`` if the key may not.
    """

    id: str
    key: str
    payload: dict[str, Any]
    audio_url: str | None = None
    score: float | None = None
    audio: float | None = None
    metadata: float | None = None
    moments: list[dict[str, Any]] = field(default_factory=list)
    relevance: float | None = None

    @classmethod
    def told(cls, answer: dict[str, Any], base: str) -> Self:
        """Return what a service at ``base`` answered of an item."""
        url = answer.get("audio_url")
        return cls(
            id=answer["id"],
            key=answer["key"],
            payload=answer["payload"],
            audio_url=urljoin(base, url) if url else None,
            score=answer.get("score"),
            audio=answer.get("audio"),
            metadata=answer.get("metadata"),
            moments=answer.get("moments") or [],
            relevance=answer.get("relevance"),
        )

    @property
    def words(self) -> str:
        """Its title, or else its keywords and labels."""
        tags = [*self.payload.get("keywords", ()), *self.payload.get("labels", ())]
        return str(self.payload.get("title") or ", ".join(tags))

    def _repr_html_(self) -> str:
        """Show it in a notebook."""
        return Sounds([self])._repr_html_()


class Sounds(list[Sound]):
    """Sounds in their order; in a notebook a table with a player for each.

    ``nothing``: whether none of what there is answers the question, so that these are merely the
    nearest; ``None`` where that is not known. ``partial``: of a federation, which members have no
    part in it, and the reason of each.
    """

    nothing: bool | None = None
    partial: Sequence[dict[str, str]] = ()

    def _repr_html_(self) -> str:
        """Show them; whatever a sidecar says is text."""
        rows = "".join(map(_row, self))
        nearest = "<caption>nothing here sounds like that; the nearest are</caption>"
        return (
            f"<table>{nearest if self.nothing else ''}"
            "<thead><tr><th>score<th>relevance<th>sound<th>length<th>words<th></thead>"
            f"<tbody>{rows}</tbody></table>"
        )


@dataclass(frozen=True)
class Listed:
    """A page of sounds: how many there are in all, and the ``after`` of the next; empty: none."""

    sounds: Sounds
    count: int
    following: str


def _row(sound: Sound) -> str:
    score = "" if sound.score is None else f"{sound.score:.3f}"
    relevance = "" if sound.relevance is None else f"{sound.relevance:.0%}"
    player = (
        f'<audio controls preload="none" src="{escape(sound.audio_url)}"></audio>'
        if sound.audio_url
        else ""
    )
    cells = (
        score, relevance, escape(sound.key), f"{sound.payload.get('duration_s', 0):.1f} s",
        escape(sound.words), player,
    )  # fmt: skip
    return "<tr>" + "".join(f"<td>{cell}" for cell in cells)
