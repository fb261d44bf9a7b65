"""How the bucket and one generation agree, while both change, and how they are brought to agree.

Comparing takes a while, and there is always something on its way. So what differs is followed key
by key: whatever agrees with the bucket once after the comparison, or did in it, is complete.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from itertools import islice

from redis import RedisError

from audiofuse.core.bundles.document import POLL_S, Rollout
from audiofuse.core.errors import Unavailable
from audiofuse.core.index.index import Generation, Index, Point
from audiofuse.core.items import point_id, sidecar_keys
from audiofuse.core.storage.store import Store
from audiofuse.workers.queue.dead_letters import PAGE, DeadLetter, DeadLetters
from audiofuse.workers.repair.backfill import LaneFeed
from audiofuse.workers.repair.reconcile import Comparison, compare

log = logging.getLogger(__name__)

FOLLOWED = 1000  # keys that differ and may just be on their way
FOLLOW_S = 30.0  # for so long
LOOK_S = 0.5
RETRY_S = 5.0


class Agreement:
    """Compares a bucket with one generation."""

    def __init__(
        self, store: Store, index: Index, generation: Generation, letters: DeadLetters
    ) -> None:
        """Compare ``store`` with ``generation`` of ``index``; ``letters`` explain what it lacks."""
        self.letters = letters
        self._store = store
        self._index = index
        self._generation = generation

    def compare(self) -> AbstractContextManager[Comparison]:
        """Compare everything; what differs may just be on its way."""
        return compare(self._store, self._index, self._generation, self.letters)

    def lagging(self, keys: Iterable[str]) -> list[str]:
        """Return which keys still differ after a while; all, if they are too many to follow."""
        found = list(keys)
        deadline = time.monotonic() + FOLLOW_S
        while 0 < len(found) <= FOLLOWED and time.monotonic() < deadline:
            found = [key for key in found if not self._agrees(key)]
            time.sleep(LOOK_S if found else 0)
        return found

    def holds(self, version: str, letter: DeadLetter) -> bool:
        """Whether the generation of another version has the object in the state of a letter."""
        point = self._point(self._index.generation(version), letter.key)
        return point is not None and point.payload["etag"] == letter.etag

    def _point(self, generation: Generation, key: str) -> Point | None:
        id_ = str(point_id(self._store.bucket, key))
        return self._index.get(generation, [id_]).get(id_)

    def _agrees(self, key: str) -> bool:
        """Whether the point is as the object and its sidecar are now."""
        audio = self._store.head(key)
        point = self._point(self._generation, key)
        if audio is None:
            return point is None
        if point is None:
            letter = self.letters.get([key]).get(key)
            return letter is not None and letter.etag == audio.etag
        heads = map(self._store.head, sidecar_keys(key))
        sidecar = next(filter(None, heads), None)
        indexed = [point.payload[name] for name in ("etag", "sidecar_etag", "modified")]
        return indexed == [audio.etag, sidecar.etag if sidecar else "", audio.modified_ms]


def build(agreement: Agreement, handover: LaneFeed, is_wanted: Callable[[], bool]) -> bool:
    """Queue what a generation lacks until it lacks nothing; false if that is not wanted any more.

    While something is away this waits for it. ``is_wanted`` is asked every second or so.
    """
    while True:
        try:
            if not is_wanted():
                return False
            for _ in _now_and_then(_backfill(agreement, handover)):
                if not is_wanted():
                    return False
        except (Unavailable, RedisError) as error:
            log.warning("again in %.0f s: %s", RETRY_S, error)
            time.sleep(RETRY_S)
        else:
            return True


def _backfill(agreement: Agreement, handover: LaneFeed) -> Iterator[None]:
    """Compare, queue and wait until all is done; comes up for air between."""
    while True:
        with agreement.compare() as comparison:
            keys = list(islice(comparison.keys(), FOLLOWED + 1))
            yield from handover.queue(comparison.keys())
        yield from handover.follow()
        if not agreement.lagging(keys):
            return
        yield


def _now_and_then(steps: Iterator[None]) -> Iterator[None]:
    """Take all steps, and come up for air after each second of them."""
    due = 0.0
    for _ in steps:
        if time.monotonic() > due:
            yield
            due = time.monotonic() + POLL_S


def rejected_alone(agreement: Agreement, rollout: Rollout) -> Iterator[DeadLetter]:
    """Yield the letters that the other version gave since the start to what the live one holds."""
    keys = agreement.letters.keys()  # newest first
    while some := list(islice(keys, PAGE)):
        letters = agreement.letters.get(some).values()
        recent = [each for each in letters if each.at >= rollout.started]
        for letter in recent:
            if letter.encoder == rollout.other and agreement.holds(rollout.live, letter):
                yield letter
        if len(recent) < len(letters):
            return
