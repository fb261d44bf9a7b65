"""How the bucket and one generation agree, while both change, and how they are brought to agree.

Comparing takes a while, and there is always something on its way. So what differs is followed key
by key: whatever agrees with the bucket once after the comparison, or did in it, is complete.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from functools import cached_property
from itertools import islice

from audiofuse.core.index.index import Generation, Index, Point
from audiofuse.core.items import Item, point_id, sidecar_keys
from audiofuse.core.model.config import Grid
from audiofuse.core.moments.stored import moments_named, names_moments
from audiofuse.core.storage.store import Store
from audiofuse.workers.queue.dead_letters import PAGE, DeadLetter, DeadLetters
from audiofuse.workers.repair.comparison import Comparison, compare

FOLLOWED = 1000  # keys that differ and may just be on their way; more are not looked at one by one
FOLLOW_S = 30.0  # for so long
LOOK_S = 0.5
CHANGED_AT_ONCE = 20  # keys that may have changed since they were listed, looked at together


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

    def unsettled(self, comparison: Comparison, keys: list[str]) -> list[str]:
        """Return which keys of a comparison neither agree by now, nor were judged since."""
        ids = [str(point_id(*self._store.place(key))) for key in keys]
        found_points = self._index.get(self._generation, ids).values()
        points = {point.payload["key"]: point for point in found_points}
        payloads = {key: point.payload for key, point in points.items()}
        letters = self.letters.get(keys)
        unsettled = set(comparison.unsettled(keys, payloads, letters))
        found = [
            key
            for key in keys
            if key in unsettled or not self._has_its_moments(key, points.get(key))
        ]
        unjudged = [key for key in found if key not in letters]
        changed = {key for key in unjudged[:CHANGED_AT_ONCE] if self._agrees(key)}
        return [key for key in found if key not in changed]

    def holds(self, version: str, letter: DeadLetter) -> bool:
        """Whether the generation of another version has the object in the state of a letter."""
        point = self._point(self._index.generation(version), letter.key)
        return point is not None and point.payload["etag"] == letter.etag

    def _point(self, generation: Generation, key: str) -> Point | None:
        id_ = str(point_id(*self._store.place(key)))
        return self._index.get(generation, [id_]).get(id_)

    def _agrees(self, key: str) -> bool:
        """Whether the point is as the object and its sidecar are now."""
        audio = self._store.head(key)
        point = self._point(self._generation, key)
        if point is None:
            letter = self.letters.get([key]).get(key) if audio else None
            is_right = letter.etag == audio.etag if audio and letter else audio is None
            return is_right and self._has_its_moments(key, None)
        if audio is None:
            return False
        sidecar = next(filter(None, map(self._store.head, sidecar_keys(key))), None)
        bucket, _ = self._store.place(key)
        is_right = Item(bucket, audio, sidecar).agrees_with(point.payload)
        return is_right and self._has_its_moments(key, point)

    def _has_its_moments(self, key: str, point: Point | None) -> bool:
        """Whether there are the moments that a key's point is to have.

        If it is to have none, none is counted: what may be left the next comparison finds.
        """
        if point is None:
            return not self._count(str(point_id(*self._store.place(key))))
        count, state = named = moments_named(point.payload, self._grid)
        if not names_moments(point.payload, named):
            return False
        return not count or self._count(point.id) == self._count(point.id, state) == count

    def _count(self, item_id: str, state: str | None = None) -> int:
        return self._index.count_moments(self._generation, item_id, state)

    @cached_property
    def _grid(self) -> Grid | None:
        return self._index.grid(self._generation)


def rejected_alone(
    agreement: Agreement, version: str, live: str, since: float
) -> Iterator[DeadLetter]:
    """Yield the letters that a version gave ``since`` a Unix time to what the live one holds."""
    keys = agreement.letters.keys()  # newest first
    while some := list(islice(keys, PAGE)):
        letters = agreement.letters.get(some).values()
        recent = [each for each in letters if each.at >= since]
        for letter in recent:
            if letter.encoder == version and agreement.holds(live, letter):
                yield letter
        if len(recent) < len(letters):
            return
