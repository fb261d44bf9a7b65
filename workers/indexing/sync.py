"""sync(key): look at the bucket as it is now and make index and dead letters agree.

    look at object and sidecar ── gone ─────────────────> remove the point ─┐
            │                                                               │
            ├── as the point says ──────────────────────> nothing to do     │
            ├── same sound, other words ── re-fuse ─────┐                   │
            └── new sound ── fetch, decode, hear, fuse ─┴> upsert ──────────┴─> look again

An event is only a hint that something changed: the outcome depends on the bucket alone, so
duplicate, late and reordered events all lead to the same index.

Why workers need no lock between them. A sync looks at the bucket, then reads point and letters, and
ends in one of two ways: what it read agreed with the look, or it wrote, looked again, and found the
state that it had written. If it found another it begins anew; if it is killed its message comes
again and another sync begins. Now take the last write of all to a key, and the look with which its
sync, or the one begun instead, ended. If that look came after the last change of the bucket, what
was written is the last state. If it came before, then so did the write; but the message of that
change led to a sync that began later, read what was written, and would have written again if it
disagreed. So the last write agrees with the bucket, and nothing depends on time or order.

What the argument takes for granted: that no write arrives after the look of the sync that sent it
(``fates.py`` looks again at what seemed to fail), and that a worker that stood still until another
had its messages is not killed between the write with which it goes on and its look. Whatever comes
of that, reconcile finds.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch

from audiofuse.core.audio.recording import Opener, Samples, open_recording
from audiofuse.core.encoder.encoder import Fused
from audiofuse.core.encoder.fusion import AudioEmbedding
from audiofuse.core.errors import ObjectChanged, Reason, Rejected, Unavailable
from audiofuse.core.index.index import VERSION_KEY, Generation, Point
from audiofuse.core.items import (
    MAX_SIDECAR_BYTES,
    Item,
    Metadata,
    describes,
    is_audio,
    point_id,
    sidecar_keys,
    sidecar_stem,
    user_metadata_hash,
)
from audiofuse.core.query import normalise
from audiofuse.core.storage.store import Store, content_hash
from audiofuse.workers.queue.dead_letters import DeadLetter
from audiofuse.workers.telemetry.metrics import Stage, stage
from audiofuse.workers.telemetry.names import Outcome

log = logging.getLogger(__name__)

MAX_LOOKS = 10  # an object that changes this often while it is worked on is left for later
BURST_S = 1.0  # a sound that was indexed so recently is not heard again before: more may follow


@dataclass(frozen=True)
class Limits:
    """What is too much for one item."""

    duration_s: float
    object_bytes: int


@dataclass(frozen=True)
class Synced:
    """The outcome, and what was wrong beside the audio: a broken sidecar, by its key.

    ``age_s`` is how long after its last modification the item could be found, if it was written.
    """

    outcome: Outcome
    problems: Mapping[str, Rejected] = field(default_factory=dict)
    age_s: float | None = None


class Sound(NamedTuple):
    """What was heard of an item, and the payload fields that come from its bytes."""

    heard: AudioEmbedding
    facts: dict[str, Any]


class AudioEncoder(Protocol):
    """What hears and fuses: an ``Encoder``, or the device that many threads share."""

    @property
    def device(self) -> torch.device:
        """Where vectors are."""

    @property
    def fuses_stored_audio(self) -> bool:
        """See ``Encoder``."""

    def encode_audio(self, windows: Iterable[Samples]) -> AudioEmbedding:
        """See ``Encoder``."""

    def fuse(self, heard: AudioEmbedding, metadata: Sequence[str]) -> Fused:
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


class Letters(Protocol):
    """Where verdicts are recorded: ``DeadLetters``."""

    def get(self, keys: Iterable[str]) -> dict[str, DeadLetter]:
        """See ``DeadLetters``."""

    def add(self, key: str, verdict: Rejected) -> None:
        """See ``DeadLetters``."""

    def clear(self, keys: Iterable[str]) -> None:
        """See ``DeadLetters``."""


class NoDeadLetters:
    """Letters for whoever is interested in the index alone."""

    def get(self, keys: Iterable[str]) -> dict[str, DeadLetter]:
        """Find none."""
        del keys
        return {}

    def add(self, key: str, verdict: Rejected) -> None:
        """Keep nothing."""

    def clear(self, keys: Iterable[str]) -> None:
        """Forget nothing."""


Guard = Callable[[str, Iterator[Samples]], Iterator[Samples]]
Verdicts = dict[str, Rejected]

FACTS = ("duration_s", "sample_rate", "channels", "content_hash")


class Syncer:
    """Syncs items of one bucket into one generation. Many threads may use it at once."""

    def __init__(  # noqa: PLR0913, PLR0917 - everything that a message meets on its way
        self,
        store: Store,
        index: Points,
        generation: Generation,
        encoder: AudioEncoder,
        limits: Limits,
        open_sound: Opener = open_recording,
        guard: Guard = lambda _, windows: windows,
        letters: Letters | None = None,
        pause: Callable[[float], object] = time.sleep,
        elsewhere: Callable[[str], Point | None] = lambda _: None,
    ) -> None:
        """Make ``generation`` of ``index``, and ``letters``, agree with ``store``, by ``encoder``.

        ``open_sound`` decodes, in this process or another; ``guard`` is told the key and the
        windows while they are decoded. ``pause`` waits for some seconds between the sounds of a
        burst; what it returns is true if the worker stops. ``elsewhere`` returns the point of
        another generation, by id, if its audio vectors are what this encoder would hear.
        """
        self.store = store
        self.letters = letters or NoDeadLetters()
        self._index = index
        self._generation = generation
        self._encoder = encoder
        self._limits = limits
        self._open_sound = open_sound
        self._guard = guard
        self._pause = pause
        self._elsewhere = elsewhere

    def sync(self, key: str) -> Synced:
        """Make the index agree with the bucket about one audio key.

        Raises ``Rejected`` when the object cannot be indexed; that is recorded then, and its point,
        if any, is gone. Raises ``Unavailable`` when bucket or index cannot answer, and what
        ``letters`` raise.
        """
        for _ in range(MAX_LOOKS):
            try:
                return self._sync_as_seen(key)
            except ObjectChanged as change:
                log.debug("%s: looking again, %s", key, change)
        raise Unavailable(f"{key} keeps changing; it is looked at again later")

    def give_up(self, key: str, verdict: Rejected) -> None:
        """Record that a bug keeps the object out of the index; a point of another state goes.

        Raises ``Unavailable`` when that cannot be done now.
        """
        item, known = self._look(key), self._known(key)
        verdict.etag = item.audio.etag if item else ""
        if known and not (item and item.agrees_with(known.payload)):
            self._index.remove(self._generation, [known.id])
        self.letters.add(key, verdict)
        if self._look(key) != item:
            raise Unavailable(f"{key} changed while it was given up")

    def _sync_as_seen(self, key: str) -> Synced:
        item, known = self._look(key), self._known(key)
        point, verdicts = self._work(item, known)
        wrote = self._record(key, item, verdicts)
        if point is not known:
            self._write(key, point)
            wrote = True
        if wrote and self._look(key) != item:
            raise ObjectChanged("it changed while it was written")
        if key in verdicts:
            raise verdicts[key]
        changed_ms = _changed_ms(known, item) if item and point is not known else None
        age_s = time.time() - changed_ms / 1000 if changed_ms else None
        return Synced(_outcome(known, point), verdicts, age_s)

    def _work(self, item: Item | None, known: Point | None) -> tuple[Point | None, Verdicts]:
        """Return the point to be, ``known`` itself if that is it, and what is wrong, by key."""
        if item is None:
            return None, {}
        if known and item.agrees_with(known.payload):
            return known, _known_problem(known, item)
        metadata, verdicts = self._read_metadata(item)
        try:
            sound = (
                self._heard_before(known, item)
                or self._heard_before(self._elsewhere(self._id(item.key)), item)
                or self._encode_audio(item, known)
            )
            return self._fuse(item, metadata, sound, verdicts), verdicts
        except Rejected as verdict:
            verdict.etag = item.audio.etag
            return None, {**verdicts, item.key: verdict}

    def _write(self, key: str, point: Point | None) -> None:
        if point:
            self._index.upsert(self._generation, [point])
        else:
            self._index.remove(self._generation, [self._id(key)])

    def _record(self, key: str, item: Item | None, verdicts: Verdicts) -> bool:
        """Make the letters of an item those that it deserves; tell whether they were not."""
        letters = self.letters.get([key, *sidecar_keys(key)])
        own = {key, item.sidecar.key if item and item.sidecar else ""}
        outdated = [
            name
            for name in letters.keys() - verdicts.keys()
            if name in own or not self._is_sidecar_of_another(name, key)
        ]
        self.letters.clear(outdated)
        new = {  # a sound is in ``verdicts`` only if it was judged just now
            name: each
            for name, each in verdicts.items()
            if name == key or not _says(letters.get(name), each)
        }
        for name, verdict in new.items():
            self.letters.add(name, verdict)
        return bool(outdated or new)

    def _is_sidecar_of_another(self, sidecar_key: str, key: str) -> bool:
        others = (other for other in sounds_of(self.store, sidecar_key) if other != key)
        items = filter(None, map(self._look, others))
        return any(item.sidecar and item.sidecar.key == sidecar_key for item in items)

    def _look(self, key: str) -> Item | None:
        with stage(Stage.LOOK):
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

    def _read_metadata(self, item: Item) -> tuple[Metadata, Verdicts]:
        """Read the words; a broken sidecar costs only itself."""
        metadata, problems = Metadata(), Verdicts()
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
        return Sound(AudioEmbedding(stored), {name: known.payload[name] for name in FACTS})

    def _encode_audio(self, item: Item, known: Point | None) -> Sound:
        self._wait_for_burst(known)
        if item.audio.size > self._limits.object_bytes:
            detail = f"{item.audio.size} bytes; the limit is {self._limits.object_bytes}"
            raise Rejected(Reason.TOO_LARGE, detail)
        with (
            self.store.open(item.audio) as path,
            self._open_sound(path, self._limits.duration_s) as recording,
        ):
            heard = self._encoder.encode_audio(self._guard(item.key, recording.windows()))
            facts = (
                round(recording.duration_s, 3),
                recording.sample_rate,
                recording.channels,
                content_hash(path),
            )
        return Sound(heard, dict(zip(FACTS, facts, strict=True)))

    def _wait_for_burst(self, known: Point | None) -> None:
        """Hear the first of many changes at once, and then the last: they come in bursts."""
        age_s = time.time() - known.payload["indexed_at"] / 1000 if known else BURST_S
        if not 0 <= age_s < BURST_S:
            return
        if self._pause(BURST_S - age_s):
            raise Unavailable("the worker stops")
        raise ObjectChanged("it may have changed while more changes were awaited")

    def _fuse(self, item: Item, metadata: Metadata, sound: Sound, problems: Verdicts) -> Point:
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
            "sidecar_problem": next((problem.detail for problem in problems.values()), ""),
            "user_metadata_hash": user_metadata_hash(item.audio.user_metadata),
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


def sounds_of(store: Store, sidecar_key: str) -> Iterator[str]:
    """Yield the keys of the sounds that a sidecar may describe, some of which may not exist."""
    stem = sidecar_stem(sidecar_key)
    if is_audio(stem):
        yield stem
    for info in store.list(stem + "."):
        if describes(sidecar_key, info.key):
            yield info.key


def _known_problem(known: Point, item: Item) -> Verdicts:
    """Return what was wrong with the sidecar when the point was made of it."""
    detail = known.payload.get("sidecar_problem", "")
    if not detail or not item.sidecar:
        return {}
    problem = Rejected(Reason.BAD_SIDECAR, detail)
    problem.etag = item.sidecar.etag
    return {item.sidecar.key: problem}


def _says(letter: DeadLetter | None, verdict: Rejected) -> bool:
    told = letter and (letter.reason, letter.detail, letter.etag)
    return told == (verdict.reason, verdict.detail, verdict.etag)


def _changed_ms(known: Point | None, item: Item) -> int | None:
    """Return when that changed which the point did not say; ``None`` if no part of it tells."""
    payload = known.payload if known else {}
    times = []
    if payload.get("modified") != item.audio.modified_ms:
        times.append(item.audio.modified_ms)
    if item.sidecar and payload.get("sidecar_etag") != item.sidecar.etag:
        times.append(item.sidecar.modified_ms)
    return max(times, default=None)


def _outcome(known: Point | None, point: Point | None) -> Outcome:
    if point is None:
        return Outcome.REMOVED if known else Outcome.ABSENT
    if known is None:
        return Outcome.CREATED
    if point is known:
        return Outcome.UNCHANGED
    same_sound = known.payload["etag"] == point.payload["etag"]
    return Outcome.REFUSED if same_sound else Outcome.UPDATED
