"""sync(key): look at the bucket as it is now and make the index agree.

    look at object and sidecar ── gone ─────────────────> remove the point
            │
            ├── as the point says ──────────────────────> nothing to do
            ├── same sound, other words ── re-fuse ─────┐
            └── new sound ── fetch, decode, hear, fuse ─┴> upsert ── look again

An event is only a hint that something changed: the outcome depends on the bucket alone, so
duplicate, late and reordered events all lead to the same index.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from core.audio import Samples, open_recording
from core.encoder import Fused
from core.errors import ObjectChanged, Reason, Rejected, Unavailable
from core.fusion import Heard
from core.index import VERSION_KEY, Generation, Point
from core.items import MAX_SIDECAR_BYTES, Item, Metadata, point_id, sidecar_keys
from core.query import normalise
from core.store import Store, content_hash

log = logging.getLogger(__name__)

MAX_LOOKS = 10  # an object that changes this often while it is worked on is left for later


class Outcome(StrEnum):
    """What a sync did to the index."""

    CREATED = "created"
    UPDATED = "updated"
    REFUSED = "re-fused"
    UNCHANGED = "unchanged"
    REMOVED = "removed"
    ABSENT = "absent"


@dataclass(frozen=True)
class Limits:
    """What is too much for one item."""

    duration_s: float
    object_bytes: int


@dataclass(frozen=True)
class Synced:
    """The outcome, and what was wrong beside the audio: a broken sidecar, by its key."""

    outcome: Outcome
    problems: Mapping[str, Rejected] = field(default_factory=dict)


class Sound(NamedTuple):
    """What was heard of an item, and the payload fields that come from its bytes."""

    heard: Heard
    facts: dict[str, Any]


class Ears(Protocol):
    """What hears and fuses: an ``Encoder``, or the device that many threads share."""

    @property
    def device(self) -> torch.device:
        """Where vectors are."""

    @property
    def fuses_stored_audio(self) -> bool:
        """See ``Encoder``."""

    def hear(self, windows: Iterable[Samples]) -> Heard:
        """See ``Encoder``."""

    def fuse(self, heard: Heard, metadata: Sequence[str]) -> Fused:
        """See ``Encoder``."""


class Points(Protocol):
    """What keeps points: an ``Index``, or one that combines what many threads ask of it."""

    def get(
        self, generation: Generation, ids: Sequence[str], *, vectors: bool = False
    ) -> dict[str, Point]:
        """See ``Index``."""

    def upsert(self, generation: Generation, points: Iterable[Point]) -> None:
        """See ``Index``."""

    def remove(self, generation: Generation, ids: Sequence[str]) -> None:
        """See ``Index``."""


class OpenSound(Protocol):
    """A sound file that is open: see ``core.audio.Recording``."""

    sample_rate: int
    channels: int

    @property
    def duration_s(self) -> float:
        """Seconds decoded so far."""

    def windows(self) -> Iterator[Samples]:
        """Yield the clip in windows."""


Opener = Callable[[Path, float], AbstractContextManager[OpenSound]]
Guard = Callable[[str, Iterator[Samples]], Iterator[Samples]]

FACTS = ("duration_s", "sample_rate", "channels", "content_hash")


class Syncer:
    """Syncs items of one bucket into one generation. Many threads may use it at once."""

    def __init__(  # noqa: PLR0913, PLR0917 - everything that a message meets on its way
        self,
        store: Store,
        index: Points,
        generation: Generation,
        encoder: Ears,
        limits: Limits,
        open_sound: Opener = open_recording,
        guard: Guard = lambda _, windows: windows,
    ) -> None:
        """Make ``generation`` of ``index`` agree with ``store``, by ``encoder``.

        ``open_sound`` decodes, in this process or another; ``guard`` is told the key and the
        windows while they are decoded.
        """
        self.store = store
        self._index = index
        self._generation = generation
        self._encoder = encoder
        self._limits = limits
        self._open_sound = open_sound
        self._guard = guard

    def sync(self, key: str) -> Synced:
        """Make the index agree with the bucket about one audio key.

        Raises ``Rejected`` when the object cannot be indexed; its point, if any, is gone then.
        Raises ``Unavailable`` when bucket or index cannot answer.
        """
        for _ in range(MAX_LOOKS):
            try:
                return self._sync_as_seen(key)
            except ObjectChanged as change:
                log.info("%s: looking again, %s", key, change)
        raise Unavailable(f"{key} keeps changing; it is looked at again later")

    def _sync_as_seen(self, key: str) -> Synced:
        item = self._look(key)
        known = self._known(key)
        if item is None:
            return self._remove(key, known)
        if known and _describes(known.payload, item):
            return Synced(Outcome.UNCHANGED)
        metadata, problems = self._read_metadata(item)
        try:
            sound = self._heard_before(known, item) or self._hear(item)
            point = self._fuse(item, metadata, sound)
        except Rejected as verdict:
            verdict.etag = item.audio.etag
            self._index.remove(self._generation, [self._id(key)])
            if self._look(key) != item:  # another worker may have indexed a better state meanwhile
                raise ObjectChanged("it changed while it was rejected") from verdict
            raise
        self._index.upsert(self._generation, [point])
        if self._look(key) != item:
            raise ObjectChanged("it changed while it was written")
        return Synced(_outcome(known, item), problems)

    def _look(self, key: str) -> Item | None:
        audio = self.store.head(key)
        if audio is None:
            return None
        sidecars = (self.store.head(sidecar_key) for sidecar_key in sidecar_keys(key))
        return Item(self.store.bucket, audio, next(filter(None, sidecars), None))

    def _id(self, key: str) -> str:
        return str(point_id(self.store.bucket, key))

    def _known(self, key: str) -> Point | None:
        id_ = self._id(key)
        return self._index.get(self._generation, [id_], vectors=True).get(id_)

    def _remove(self, key: str, known: Point | None) -> Synced:
        if known is None:
            return Synced(Outcome.ABSENT)
        self._index.remove(self._generation, [known.id])
        if self._look(key) is not None:
            raise ObjectChanged("it came back while it was removed")
        return Synced(Outcome.REMOVED)

    def _read_metadata(self, item: Item) -> tuple[Metadata, dict[str, Rejected]]:
        """Read the words; a broken sidecar costs only itself."""
        metadata, problems = Metadata(), {}
        if item.sidecar:
            try:
                metadata = self._read_sidecar(item)
            except Rejected as problem:
                problem.etag = item.sidecar.etag
                problems[item.sidecar.key] = problem
        return metadata.filled_from(item.audio.user_metadata), problems

    def _read_sidecar(self, item: Item) -> Metadata:
        assert item.sidecar is not None
        if item.sidecar.size > MAX_SIDECAR_BYTES:
            detail = f"{item.sidecar.size} bytes; a sidecar has at most {MAX_SIDECAR_BYTES}"
            raise Rejected(Reason.BAD_SIDECAR, detail)
        return Metadata.from_json(self.store.read(item.sidecar))

    def _heard_before(self, known: Point | None, item: Item) -> Sound | None:
        """Reuse the stored audio vector while the sound is the same: no download, no decoding."""
        if known is None or known.payload["etag"] != item.audio.etag:
            return None
        if not self._encoder.fuses_stored_audio:
            return None
        stored = torch.tensor([known.audio], device=self._encoder.device)
        return Sound(Heard(stored), {name: known.payload[name] for name in FACTS})

    def _hear(self, item: Item) -> Sound:
        if item.audio.size > self._limits.object_bytes:
            detail = f"{item.audio.size} bytes; the limit is {self._limits.object_bytes}"
            raise Rejected(Reason.TOO_LARGE, detail)
        with (
            self.store.open(item.audio) as path,
            self._open_sound(path, self._limits.duration_s) as recording,
        ):
            heard = self._encoder.hear(self._guard(item.key, recording.windows()))
            facts = (
                round(recording.duration_s, 3),
                recording.sample_rate,
                recording.channels,
                content_hash(path),
            )
        return Sound(heard, dict(zip(FACTS, facts, strict=True)))

    def _fuse(self, item: Item, metadata: Metadata, sound: Sound) -> Point:
        text = metadata.text
        fused = self._encoder.fuse(sound.heard, [text])
        vector, norm = fused.vectors[0].tolist(), float(fused.norms[0])
        if not all(map(math.isfinite, vector)):
            raise Rejected(Reason.NOT_FINITE, "the encoder gives no finite vector for it")
        payload = {
            "bucket": item.bucket,
            "key": item.key,
            "etag": item.audio.etag,
            "sidecar_etag": item.sidecar_etag,
            "modified": item.audio.modified_ms,
            "size": item.audio.size,
            "title": metadata.title,
            "description": metadata.description,
            "keywords": list(metadata.keywords),
            "labels": list(metadata.labels),
            "extra": dict(metadata.extra),
            "has_text": "yes" if normalise(text) else "no",
            "item_norm": norm,
            VERSION_KEY: self._generation.version,
            "indexed_at": int(time.time() * 1000),
            **sound.facts,
        }
        audio = sound.heard.pooled[0].tolist()
        return Point(self._id(item.key), payload, item=vector, audio=audio)


def _describes(payload: Mapping[str, Any], item: Item) -> bool:
    seen = (item.audio.etag, item.sidecar_etag, item.audio.modified_ms)
    return (payload["etag"], payload["sidecar_etag"], payload["modified"]) == seen


def _outcome(known: Point | None, item: Item) -> Outcome:
    if known is None:
        return Outcome.CREATED
    same_sound = known.payload["etag"] == item.audio.etag
    return Outcome.REFUSED if same_sound else Outcome.UPDATED
