"""What a point says of its item, and what a sync learns from the point that was there before."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from audiofuse.core.encoder.embeddings import EncodedItem, Floats
from audiofuse.core.errors import Reason, Rejected
from audiofuse.core.index.index import VERSION_KEY, Point
from audiofuse.core.items import Item, Metadata, user_metadata_hash
from audiofuse.core.query import normalise
from audiofuse.workers.telemetry.names import Outcome

FACTS = ("duration_s", "sample_rate", "channels", "content_hash")
UNREADABLE = f"{Reason.UNREADABLE}: "  # how a problem begins that may go without a new sidecar

Verdicts = dict[str, Rejected]


class StoredSound(NamedTuple):
    """What is stored of a sound: its audio vector, and the payload fields of its bytes.

    ``moments`` returns what is stored there of its moments, by id, with vectors.
    """

    audio: Floats
    facts: dict[str, Any]
    moments: Callable[[Sequence[str]], dict[str, Point]]


def described(item: Item, metadata: Metadata, problems: Verdicts, version: str) -> dict[str, Any]:
    """Return what an item's payload says before its sound is heard."""
    return {
        "bucket": item.bucket,
        "key": item.key,
        "etag": item.audio.etag,
        "sidecar_etag": item.sidecar_etag,
        "sidecar_problem": next(map(_problem, problems.values()), ""),
        "user_metadata_hash": user_metadata_hash(item.audio.user_metadata),
        "modified": item.audio.modified_ms,
        "size": item.audio.size,
        "title": metadata.title,
        "description": metadata.description,
        "keywords": list(metadata.keywords),
        "labels": list(metadata.labels),
        "extra": dict(metadata.extra),
        "has_text": "yes" if normalise(metadata.text) else "no",
        VERSION_KEY: version,
    }


def make_point(id_: str, payload: Mapping[str, Any], encoded: EncodedItem) -> Point:
    """Return the point of an item that is heard; ``Rejected`` if its vector is not finite."""
    vector = encoded.item.tolist()
    if not all(map(math.isfinite, vector)):
        raise Rejected(Reason.NOT_FINITE, "the encoder gives no finite vector for it")
    written = {"item_norm": encoded.norm, "indexed_at": int(time.time() * 1000)}
    return Point(id_, {**payload, **written}, item=vector, audio=encoded.audio.tolist())


def _problem(verdict: Rejected) -> str:
    return (UNREADABLE if verdict.reason is Reason.UNREADABLE else "") + verdict.detail


def is_up_to_date(known: Point, item: Item) -> bool:
    """Whether a point says all that there is to say of its item.

    A sidecar that could not be read is tried again: what kept it from us may be mended.
    """
    unread = known.payload.get("sidecar_problem", "").startswith(UNREADABLE)
    return item.agrees_with(known.payload) and not unread


def known_problems(known: Point, item: Item) -> Verdicts:
    """Return what was wrong with the sidecar when the point was made of it, by its key."""
    detail = known.payload.get("sidecar_problem", "")
    if not detail or not item.sidecar:
        return {}
    problem = Rejected(Reason.BAD_SIDECAR, detail)
    problem.etag = item.sidecar.etag
    return {item.sidecar.key: problem}


def changed_ms(known: Point | None, item: Item) -> int | None:
    """Return when that changed which the point did not say; ``None`` if no part of it tells."""
    payload: Mapping[str, Any] = known.payload if known else {}
    times = []
    if payload.get("modified") != item.audio.modified_ms:
        times.append(item.audio.modified_ms)
    if item.sidecar and payload.get("sidecar_etag") != item.sidecar.etag:
        times.append(item.sidecar.modified_ms)
    return max(times, default=None)


def outcome(known: Point | None, point: Point | None) -> Outcome:
    """Return what it is called that ``known`` was replaced by ``point``; they may be the same."""
    if point is None:
        return Outcome.REMOVED if known else Outcome.ABSENT
    if known is None:
        return Outcome.CREATED
    if point is known:
        return Outcome.UNCHANGED
    same_sound = known.payload["etag"] == point.payload["etag"]
    return Outcome.REFUSED if same_sound else Outcome.UPDATED
