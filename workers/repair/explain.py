"""Why an object is found or not, and the audit of a whole bucket, whose sums agree.

Nothing is remembered for it: bucket, index, letters and queue are asked as they are now. So what an
event said cannot be told, only what came of it.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import Any

from redis import Redis

from audiofuse.core.errors import Rejected
from audiofuse.core.index.index import Generation, GenerationGone, Index, Point, open_index
from audiofuse.core.items import ObjectInfo, agrees, is_audio, point_id, sidecar_keys
from audiofuse.core.moments.stored import moments_named, names_moments
from audiofuse.core.settings import Settings
from audiofuse.core.storage.store import Store, open_store
from audiofuse.workers.queue.broker import connect_redis, open_lanes
from audiofuse.workers.queue.dead_letters import PAGE, DeadLetter, DeadLetters
from audiofuse.workers.queue.lanes import Lanes
from audiofuse.workers.repair.comparison import Track, compare, unseen
from audiofuse.workers.repair.findings import Finding

RECONCILE = "audiofuse reconcile queues what no event told"


class State(StrEnum):
    """What an object is to the live index."""

    INDEXED = "indexed"
    OUTDATED = "outdated"
    MISSING = "missing"
    REJECTED = "rejected"
    ORPHANED = "orphaned"
    ABSENT = "absent"  # neither in the bucket nor in the index
    NO_SOUND = "no_sound"  # nothing is expected of it


@dataclass(frozen=True)
class Held:
    """What a version's index holds of an object; times are Unix times in ms.

    ``moments`` are how many it is to have, ``moments_there`` how many there are of any state. It
    ``agrees`` if object, sidecar and moments do: there are those that it is to have and no others.
    """

    version: str
    is_live: bool
    agrees: bool
    modified: int
    indexed_at: int
    moments: int
    moments_there: int
    moments_agree: bool


@dataclass(frozen=True)
class Explanation:
    """All that is known of one object: ``why`` it is found or not, in a sentence.

    ``held`` by which versions, ``moments_left`` without a point of the live one, which are never
    shown, ``letters`` of itself and its sidecars, ``waiting`` messages in the queue, of which one
    may be its own; ``None`` where that is not told.
    """

    key: str
    id: str
    state: State
    why: str
    object: ObjectInfo | None
    sidecar: ObjectInfo | None
    unreadable: str
    held: list[Held]
    moments_left: int
    letters: list[DeadLetter]
    waiting: int | None


@dataclass(frozen=True)
class Audit:
    """Every sound of a bucket by what became of it.

    ``expected`` are the sounds in the bucket: ``indexed``, ``outdated``, ``missing`` and rejected.
    ``points`` are those of the live index: ``indexed``, ``outdated`` and ``orphaned``, whose
    objects are gone. ``gone_meanwhile`` are letters that were met and then went.
    """

    version: str | None
    expected: int
    indexed: int
    outdated: int
    missing: int
    rejected: dict[str, int]
    orphaned: int
    points: int
    gone_meanwhile: int = 0

    @property
    def agrees(self) -> bool:
        """Whether the sums do."""
        rejected = sum(self.rejected.values()) + self.gone_meanwhile
        return self.expected == self.indexed + self.outdated + self.missing + rejected


class Explainer:
    """Asks bucket, index, letters and queue. Raises ``Unavailable`` and what Redis does."""

    def __init__(self, store: Store, index: Index, redis: Redis, lanes: Lanes, name: str) -> None:
        """Explain the objects of ``store`` by the index of this name."""
        self._store = store
        self._index = index
        self._lanes = lanes
        self._letters = DeadLetters(redis, name)

    def explain(self, key: str, *, tells_waiting: bool = True) -> Explanation:
        """Tell what is known of a key, whether there is such an object or not."""
        found, sidecar, unreadable = self._look(key)
        held = list(self._held(key, found, sidecar))
        letters = [*self._letters.get([key, *sidecar_keys(key)]).values()]
        waiting = self._waiting() if tells_waiting else None
        own = next((each for each in letters if each.key == key), None)
        live = next((each for each in held if each.is_live), None)
        left = 0 if live else self._left(key)
        state = _state(key, found, live, own, left)
        return Explanation(
            key, str(point_id(*self._store.place(key))), state, _why(state, own, waiting, left),
            found, sidecar, unreadable, held, left, letters, waiting,
        )  # fmt: skip

    def _waiting(self) -> int:
        return sum(each.ready + each.unacknowledged for each in self._lanes.backlogs().values())

    def _look(self, key: str) -> tuple[ObjectInfo | None, ObjectInfo | None, str]:
        """Return an object, its sidecar, and why they cannot be looked at."""
        try:
            found = self._store.head(key)
            sidecars = filter(None, map(self._store.head, sidecar_keys(key)))
            return found, next(sidecars, None) if is_audio(key) else None, ""
        except Rejected as verdict:
            return None, None, verdict.detail

    def _held(
        self, key: str, found: ObjectInfo | None, sidecar: ObjectInfo | None
    ) -> Iterator[Held]:
        live, id_ = self._index.live(), str(point_id(*self._store.place(key)))
        for generation in self._index.generations():
            try:
                point = self._index.get(generation, [id_]).get(id_)
            except GenerationGone:
                continue
            if point:
                count, there, agree = self._moments(generation, point)
                yield Held(
                    generation.version,
                    generation == live,
                    found is not None and _agrees(point.payload, found, sidecar) and agree,
                    point.payload["modified"],
                    point.payload["indexed_at"],
                    count, there, agree,
                )  # fmt: skip

    def _moments(self, generation: Generation, point: Point) -> tuple[int, int, bool]:
        """Return how many moments an item is to have, how many there are, and if they are those."""
        count, state = named = moments_named(point.payload, self._index.grid(generation))
        try:
            there = self._index.count_moments(generation, point.id)
            own = self._index.count_moments(generation, point.id, state) if count else 0
        except GenerationGone:  # an older release made it
            there = own = 0
        return count, there, names_moments(point.payload, named) and there == own == count

    def _left(self, key: str) -> int:
        """Return how many moments the live index has of an object of which it has no point."""
        live = self._index.live()
        try:
            id_ = str(point_id(*self._store.place(key)))
            return self._index.count_moments(live, id_) if live else 0
        except GenerationGone:  # an older release made it
            return 0

    def audit(self, prefix: str = "", track: Track = unseen) -> Audit:
        """Compare everything, and count it."""
        live = self._index.live()
        with compare(self._store, self._index, live, self._letters, prefix, track) as comparison:
            found = comparison.run.found
            reasons = Counter[str]()
            keys = comparison.keys(Finding.REJECTED)
            while some := list(islice(keys, PAGE)):
                letters = self._letters.get(some).values()
                reasons.update(str(letter.reason) for letter in letters)
            orphans = comparison.keys(Finding.ORPHANED)
            with_point = self._with_point(live, orphans)
        bucket = (Finding.AGREED, Finding.OUTDATED, Finding.MISSING, Finding.REJECTED)
        return Audit(
            version=live.version if live else None,
            expected=comparison.run.count(bucket),
            indexed=found[Finding.AGREED],
            outdated=found[Finding.OUTDATED],
            missing=found[Finding.MISSING],
            rejected=dict(reasons.most_common()),
            orphaned=with_point,
            points=found[Finding.AGREED] + found[Finding.OUTDATED] + with_point,
            gone_meanwhile=found[Finding.REJECTED] - reasons.total(),
        )

    def _with_point(self, live: Generation | None, keys: Iterator[str]) -> int:
        """Count the keys that have a point: others are orphaned for their letter alone."""
        count = 0
        while live and (some := list(islice(keys, PAGE))):
            ids = [str(point_id(*self._store.place(key))) for key in some]
            count += len(self._index.get(live, ids))
        return count


def open_explainer(settings: Settings) -> Explainer:
    """Return what explains the objects of the bucket that the settings name."""
    redis, lanes = connect_redis(settings), open_lanes(settings)
    return Explainer(open_store(settings), open_index(settings), redis, lanes, settings.index_name)


def _agrees(payload: Any, found: ObjectInfo, sidecar: ObjectInfo | None) -> bool:
    return payload["key"] == found.key and agrees(
        payload, found.etag, sidecar.etag if sidecar else "", found.modified_ms,
        found.user_metadata,
    )  # fmt: skip


def _state(
    key: str,
    found: ObjectInfo | None,
    live: Held | None,
    letter: DeadLetter | None,
    moments_left: int,
) -> State:
    if not is_audio(key):
        return State.NO_SOUND
    if found is None:
        return State.ORPHANED if live or moments_left else State.ABSENT
    if live and live.agrees:
        return State.INDEXED
    if letter and letter.etag == found.etag:
        return State.REJECTED
    return State.OUTDATED if live else State.MISSING


def _why(state: State, letter: DeadLetter | None, waiting: int | None, moments_left: int) -> str:
    queued = f"{waiting} messages wait, perhaps its own" if waiting else "nothing waits"
    queued = "perhaps its message waits" if waiting is None else queued
    left = f"{moments_left} moments of it are" if moments_left else "its point is"
    rejected = f"it was rejected as it is: {letter.reason}, {letter.detail}" if letter else ""
    return {
        State.INDEXED: "it is in the live index, as the bucket has it",
        State.OUTDATED: f"the live index has another state of it; {queued}; {RECONCILE}",
        State.MISSING: f"nobody has indexed or rejected it yet; {queued}; {RECONCILE}",
        State.REJECTED: rejected,
        State.ORPHANED: f"its object is gone, {left} not; {queued}; {RECONCILE}",
        State.ABSENT: "there is no such object, and none is in the index",
        State.NO_SOUND: "by its name it is no sound, so that nothing is expected of it",
    }[state]
