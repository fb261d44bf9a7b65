"""sync(key): look at the bucket as it is now and make index and dead letters agree.

    look at object and sidecar ── gone ───────────────────────> remove the point ─┐
            │                                                                     │
            ├── as the point says ────────────────────────────> nothing to do     │
            ├── same sound, other words ── re-fuse ───────────┐                   │
            └── new sound ── fetch, decode, encode, fuse ─────┴> upsert ──────────┴─> look again

A recording's moments are written before its point, which names them (``moments``), and what it does
not name is taken away after it.

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

What the argument takes for granted:

- All writes to a point have one order, and a sync reads what was written before it began. With
  replicas that is not so by itself: therefore the index writes with strong ordering, which sends
  all writes to a point through one replica, and a sync reads by majority, where a write counts once
  a majority has it (``core/index``, deploy/capacity.md).
- No write arrives after the look of the sync that sent it; ``retries.py`` looks again at what
  seemed to fail.
- A worker that stood still until another had its messages is not killed between the write with
  which it goes on and its look. Whatever comes of that, reconcile finds.

Moments are many points, written for as long as a recording is heard, so two more things must hold.
None is found that is not of the item as its point says: a moment tells of which state it is, the
point names one state and a count, and a draft has a state that no point names. And a sync that
finds the point as it should be does not end before it has counted its moments, all of them and
those in its state: so for the argument above point and moments are one. Two workers may still write
over each other's, one of them what is outdated; whoever wrote last looks, begins anew, and counts
too few or too many. What this does not reach are moments of an item that is to have none: to count
them would cost every short sound a request. They are looked for where this sync wrote some or the
point before had some, where the object is gone or rejected, and in the backfill lane, by which
reconcile repairs (``thorough``). So some stay only if a worker was killed while it heard what has
been replaced by a short sound since; nobody is shown them, and reconcile finds them. Before each
portion it writes a worker looks whether the object is still the same.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from audiofuse.core.errors import ObjectChanged, Reason, Rejected, Unavailable
from audiofuse.core.index.index import Generation, Point
from audiofuse.core.items import (
    MAX_SIDECAR_BYTES,
    Item,
    Metadata,
    describes,
    is_audio,
    point_id,
    sidecar_keys,
    sidecar_stem,
)
from audiofuse.core.storage.store import Store, content_hash
from audiofuse.workers.indexing.items.collaborators import (
    BucketSide,
    IndexSide,
    ItemEncoder,
    Points,
)
from audiofuse.workers.indexing.items.moments import ItemMoments
from audiofuse.workers.indexing.items.points import (
    FACTS,
    StoredSound,
    Verdicts,
    changed_ms,
    described,
    is_up_to_date,
    known_problems,
    make_point,
    outcome,
)
from audiofuse.workers.queue.dead_letters import DeadLetter
from audiofuse.workers.telemetry.metrics import Stage, stage
from audiofuse.workers.telemetry.names import Outcome

log = logging.getLogger(__name__)

MAX_LOOKS = 10  # an object that changes this often while it is worked on is left for later
# Seconds for which a sound that was just indexed is not encoded again: more changes may follow.
# Raised, a changed sound is found later; lowered, a burst of changes costs more work.
BURST_S = 1.0


@dataclass(frozen=True)
class Synced:
    """The outcome, and what was wrong beside the audio: a broken sidecar, by its key.

    ``age_s`` is how long after its last modification the item could be found, if it was written.
    """

    outcome: Outcome
    problems: Mapping[str, Rejected] = field(default_factory=dict)
    age_s: float | None = None


class Syncer:
    """Syncs items of one bucket into one generation. Many threads may use it at once."""

    def __init__(self, bucket: BucketSide, index: IndexSide, encoder: ItemEncoder) -> None:
        """Make ``index`` agree with ``bucket``, by ``encoder``."""
        self.store = bucket.store
        self.letters = index.letters
        self._bucket = bucket
        self._encoder = encoder
        self._points = index.points
        self._generation = index.generation
        self._version = index.generation.version
        self._elsewhere = index.elsewhere
        self._grid = index.grid
        self._thorough = index.thorough

    def sync(self, key: str) -> Synced:
        """Make the index agree with the bucket about one audio key.

        Raises ``Rejected`` when the object cannot be indexed; that is recorded then, and its point,
        if any, is gone. Raises ``Unavailable`` when bucket or index cannot answer, and what
        ``letters`` raise.
        """
        moments = self._moments(key)
        for _ in range(MAX_LOOKS):
            try:
                return self._sync_as_seen(key, moments)
            except ObjectChanged as change:
                log.debug("%s: looking again, %s", key, change)
        raise Unavailable(f"{key} keeps changing; it is looked at again later")

    def give_up(self, key: str, verdict: Rejected) -> None:
        """Record that a bug keeps the object out of the index; a point of another state goes.

        Raises ``Unavailable`` when that cannot be done now.
        """
        item, known = self._look(key), self._known(key)
        verdict.etag = item.audio.etag if item else ""
        if known is None or not (item and item.agrees_with(known.payload)):
            self._write(key, None)
            self._moments(key).tidy(known, None, thorough=True)
        self.letters.add(key, verdict)
        if self._look(key) != item:
            raise Unavailable(f"{key} changed while it was given up")

    def _moments(self, key: str) -> ItemMoments:
        return ItemMoments(self._points, self._generation, self._id(key), self._grid)

    def _sync_as_seen(self, key: str, moments: ItemMoments) -> Synced:
        item, known = self._look_or_record(key), self._known(key)
        point, verdicts = self._work(item, known, moments)
        wrote = self._record(key, item, verdicts)
        if point is not known:
            self._write(key, point)
            wrote = True
        if point is None or point is not known:
            wrote = moments.tidy(known, point, thorough=self._thorough) or wrote
        if wrote and self._look(key) != item:
            raise ObjectChanged("it changed while it was written")
        if key in verdicts:
            raise verdicts[key]
        changed = changed_ms(known, item) if item and point is not known else None
        age_s = time.time() - changed / 1000 if changed else None
        return Synced(outcome(known, point), verdicts, age_s)

    def _work(
        self, item: Item | None, known: Point | None, moments: ItemMoments
    ) -> tuple[Point | None, Verdicts]:
        """Return the point to be, ``known`` itself if that is it, and what is wrong, by key.

        The moments that it names are there when this returns.
        """
        if item is None:
            return None, {}
        if (
            known
            and is_up_to_date(known, item)
            and moments.agree(known.payload, thorough=self._thorough)
        ):
            return known, known_problems(known, item)
        metadata, verdicts = self._read_metadata(item)
        payload = described(item, metadata, verdicts, self._version)
        try:
            return self._point(item, known, payload, metadata.text, moments), verdicts
        except Rejected as verdict:
            verdict.etag = item.audio.etag
            return None, {**verdicts, item.key: verdict}

    def _write(self, key: str, point: Point | None) -> None:
        if point:
            self._points.upsert(self._generation, [point])
        else:
            self._points.remove(self._generation, [self._id(key)])

    def _record(self, key: str, item: Item | None, verdicts: Verdicts) -> bool:
        """Make the dead letters of an item those that it deserves; tell whether they were not."""
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
        try:
            items = filter(None, map(self._look, others))
            return any(item.sidecar and item.sidecar.key == sidecar_key for item in items)
        except Rejected:
            return True  # perhaps of the one that cannot be looked at

    def _look(self, key: str) -> Item | None:
        with stage(Stage.LOOK):
            audio = self.store.head(key)
            if audio is None:
                return None
            sidecars = (self.store.head(sidecar_key) for sidecar_key in sidecar_keys(key))
            bucket, _ = self.store.place(key)
            return Item(bucket, audio, next(filter(None, sidecars), None))

    def _look_or_record(self, key: str) -> Item | None:
        """Look; record that not even that is possible. The point stays: it may well be right."""
        try:
            return self._look(key)
        except Rejected as verdict:
            self.letters.add(key, verdict)
            raise

    def _id(self, key: str) -> str:
        return str(point_id(*self.store.place(key)))

    def _known(self, key: str) -> Point | None:
        id_ = self._id(key)
        return self._points.get(self._generation, [id_]).get(id_)

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

    def _point(
        self,
        item: Item,
        known: Point | None,
        payload: dict[str, Any],
        text: str,
        moments: ItemMoments,
    ) -> Point:
        """Encode an item's sound, or fuse anew what is stored of it; ``payload`` says the rest."""
        stored = self._reusable(item, known)
        if stored:
            payload |= stored.facts
            name = _sound_of(item)
            fuse = partial(self._encoder.fuse_windows, name, text=text)
            if moments.fuse_anew(payload, stored.moments, fuse):
                payload |= moments.named(payload)
                encoded = self._encoder.fuse(name, stored.audio, text)
                return make_point(self._id(item.key), payload, encoded)
        return self._encode(item, known, payload, text, moments)

    def _reusable(self, item: Item, known: Point | None) -> StoredSound | None:
        """Return what is stored of the same sound, here or elsewhere: no download, no decoding.

        Vectors are fetched only here: most messages need none.
        """
        if not self._encoder.fuses_stored_audio:
            return None
        is_here = known is not None and known.payload["etag"] == item.audio.etag
        here = (self._points, self._generation) if is_here else None
        places = filter(None, (here, self._elsewhere()))
        return next(filter(None, (_stored(item, self._id(item.key), *at) for at in places)), None)

    def _encode(
        self,
        item: Item,
        known: Point | None,
        payload: dict[str, Any],
        text: str,
        moments: ItemMoments,
    ) -> Point:
        self._wait_for_burst(known)
        bucket = self._bucket
        if item.audio.size > bucket.limits.object_bytes:
            detail = f"{item.audio.size} bytes; the limit is {bucket.limits.object_bytes}"
            raise Rejected(Reason.TOO_LARGE, detail)
        with (
            self.store.open(item.audio) as path,
            bucket.open_sound(item.key, path, bucket.limits.duration_s) as recording,
        ):
            cutting = moments.cutting(payload, partial(self._check_unchanged, item))
            encoded = self._encoder.encode(_sound_of(item), recording.windows(), text, cutting)
            facts = (
                round(recording.duration_s, 3),
                recording.sample_rate,
                recording.channels,
                content_hash(path),
            )
        payload |= dict(zip(FACTS, facts, strict=True))
        moments.seal(payload)
        return make_point(self._id(item.key), payload | moments.named(payload), encoded)

    def _check_unchanged(self, item: Item) -> None:
        if self._look(item.key) != item:
            raise ObjectChanged("it changed while it was heard")

    def _wait_for_burst(self, known: Point | None) -> None:
        """Encode the first of many changes at once, and then the last: they come in bursts."""
        age_s = time.time() - known.payload["indexed_at"] / 1000 if known else BURST_S
        if not 0 <= age_s < BURST_S:
            return
        if self._bucket.pause(BURST_S - age_s):
            raise Unavailable("the worker stops")
        raise ObjectChanged("it may have changed while more changes were awaited")


def _stored(item: Item, id_: str, points: Points, generation: Generation) -> StoredSound | None:
    """Return what a generation holds of the sound of an item as it is now, as the point ``id_``."""
    point = points.get(generation, [id_], vectors=True).get(id_)
    if point is None or point.payload["etag"] != item.audio.etag:
        return None
    return StoredSound(
        np.array(point.audio, np.float32),
        {name: point.payload[name] for name in FACTS},
        partial(points.get, generation.moments, vectors=True),
    )


def _sound_of(item: Item) -> str:
    """Return what names the sound of an item in this state."""
    return f"{item.key} {item.audio.etag}"


def sounds_of(store: Store, sidecar_key: str) -> Iterator[str]:
    """Yield the keys of the sounds that a sidecar may describe, some of which may not exist."""
    stem = sidecar_stem(sidecar_key)
    if is_audio(stem):
        yield stem
    for info in store.list(stem + "."):
        if describes(sidecar_key, info.key):
            yield info.key


def _says(letter: DeadLetter | None, verdict: Rejected) -> bool:
    said = letter and (letter.reason, letter.detail, letter.etag)
    return said == (verdict.reason, verdict.detail, verdict.etag)
