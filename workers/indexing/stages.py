"""What many threads ask of index and store: made batches of, bounded, and watched."""

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from audiofuse.core.batcher import Batcher
from audiofuse.core.errors import ObjectChanged, Rejected, Unavailable
from audiofuse.core.index.index import AUDIO, Generation, Index, Point
from audiofuse.core.items import ObjectInfo
from audiofuse.core.storage.refusals import Denied
from audiofuse.core.storage.store import Store
from audiofuse.workers.indexing.breaker import Breaker
from audiofuse.workers.indexing.watchdog import CALL_S, Watchdog, fetch_bound_s
from audiofuse.workers.telemetry import metrics
from audiofuse.workers.telemetry.metrics import Stage, stage
from audiofuse.workers.telemetry.tracing import span

POINTS_AT_ONCE = 128


class Budget:
    """Lets threads take from a bounded amount of something, and wait while too much is taken.

    Whoever came first takes first: what is large is not overtaken for ever by what is small.
    """

    def __init__(self, amount: float) -> None:
        """Bound what is taken at once to ``amount``, in any unit."""
        self._amount = amount
        self._taken = 0.0
        self._line: deque[object] = deque()  # a ticket for each thread that waits
        self._changed = threading.Condition()

    def take(self, amount: float) -> None:
        """Take in one's turn, as soon as it fits; what exceeds the whole is taken alone."""
        ticket = object()
        with self._changed:
            self._line.append(ticket)
            self._changed.wait_for(lambda: self._line[0] is ticket and self._fits(amount))
            self._line.popleft()
            self._taken += amount
            self._changed.notify_all()  # the next may fit as well

    def give_back(self, amount: float) -> None:
        """Let others have what was taken."""
        with self._changed:
            self._taken -= amount
            self._changed.notify_all()

    def _fits(self, amount: float) -> bool:
        return not self._taken or self._taken + amount <= self._amount


class BatchedIndex:
    """One generation of the index for many threads: what they ask at once is asked in batches."""

    def __init__(
        self, index: Index, generation: Generation, watchdog: Watchdog | None = None
    ) -> None:
        """Make batches of the calls on ``generation`` of ``index``, each watched."""
        self._index = index
        self._generation = generation
        self._watchdog = watchdog or Watchdog()
        self._get = {
            vectors: Batcher[str, Point | None](
                partial(self._get_all, vectors=vectors), POINTS_AT_ONCE
            )
            for vectors in (False, True)
        }
        self._upsert = Batcher[Point, None](self._upsert_all, POINTS_AT_ONCE)
        self._remove = Batcher[str, None](self._remove_all, POINTS_AT_ONCE)

    def get(
        self, generation: Generation, ids: Sequence[str], *, vectors: bool = False
    ) -> dict[str, Point]:
        """Return the points that exist among ``ids``, by id; with their audio vectors if told to.

        Item vectors nobody asks for here.
        """
        if self._are_moments(generation):
            with self._call(Stage.GET):
                return self._index.get(generation, ids, vectors=[AUDIO] if vectors else False)
        found = {id_: self._get[vectors](id_) for id_ in ids}
        return {id_: point for id_, point in found.items() if point}

    def upsert(self, generation: Generation, points: Iterable[Point]) -> None:
        """Write whole points; when this returns they are searchable."""
        if self._are_moments(generation):
            written = list(points)
            with self._call(Stage.UPSERT):
                self._index.upsert(generation, written)
            metrics.MOMENTS.inc(len(written))
            return
        with span("upsert"):
            for point in points:
                self._upsert(point)

    def remove(self, generation: Generation, ids: Sequence[str]) -> None:
        """Delete points; ids without a point are no error."""
        self._check(generation)
        for id_ in ids:
            self._remove(id_)

    def count_moments(self, generation: Generation, item_id: str, state: str | None = None) -> int:
        """Return how many moments an item has, or has in a state."""
        self._check(generation)
        with self._call(Stage.GET):
            return self._index.count_moments(generation, item_id, state)

    def seal_moments(
        self, generation: Generation, item_id: str, state: str, payload: Mapping[str, Any]
    ) -> None:
        """Give those of an item's moments that are in a state a payload besides."""
        self._check(generation)
        with self._call(Stage.UPSERT):
            self._index.seal_moments(generation, item_id, state, payload)

    def remove_moments(self, generation: Generation, item_id: str, beyond: int = 0) -> None:
        """Delete an item's moments whose numbers are at least ``beyond``."""
        self._check(generation)
        with self._call(Stage.REMOVE):
            self._index.remove_moments(generation, item_id, beyond)

    def _check(self, generation: Generation) -> None:
        if generation != self._generation:
            msg = f"asked for {generation}, made for {self._generation}"
            raise ValueError(msg)

    def _are_moments(self, generation: Generation) -> bool:
        """Whether moments are asked for: these come in batches, and are asked at once."""
        if generation == self._generation.moments:
            return True
        self._check(generation)
        return False

    def _get_all(self, ids: list[str], *, vectors: bool) -> list[Point | None]:
        with self._call(Stage.GET):
            points = self._index.get(self._generation, ids, vectors=[AUDIO] if vectors else False)
        return [points.get(id_) for id_ in ids]

    def _upsert_all(self, points: list[Point]) -> list[None]:
        with self._call(Stage.UPSERT):
            self._index.upsert(self._generation, points)
        return [None] * len(points)

    def _remove_all(self, ids: list[str]) -> list[None]:
        with self._call(Stage.REMOVE):
            self._index.remove(self._generation, ids)
        return [None] * len(ids)

    @contextmanager
    def _call(self, name: Stage) -> Iterator[None]:
        with stage(name), self._watchdog.step(f"{name} of the index", CALL_S):
            yield


class BoundedStore:
    """A store that many threads download from: what lies on disk at once is bounded.

    When object after object of a bucket is denied, the smallest that could be read there before is
    read again: if it still can be, those are denied alone; if not, or if there is none, the bucket
    denies everything, which is ``Unavailable``.
    """

    def __init__(
        self,
        store: Store,
        disk_bytes: int,
        watchdog: Watchdog | None = None,
        take_back: Callable[[Collection[str]], None] = lambda _: None,
    ) -> None:
        """Open files of ``store``, together at most ``disk_bytes``, but always one; watched.

        ``take_back`` is given the keys that were ``Denied`` before it was known that all are.
        """
        self.bucket = store.bucket
        self.place = store.place
        self.where = store.where
        self.parts = store.parts
        self.head = store.head
        self.list = store.list
        self.part = store.part
        self._store = store
        self._judges = defaultdict[str, _Judge](lambda: _Judge(store, take_back))  # by bucket
        self._disk = Budget(disk_bytes)
        self._watchdog = watchdog or Watchdog()

    def read(self, info: ObjectInfo) -> bytes:
        """Return the object's bytes; see ``Store``."""
        with self._judging(info):
            return self._store.read(info)

    @contextmanager
    def open(self, info: ObjectInfo) -> Iterator[Path]:
        """Open the object as a local file; see ``Store``."""
        self._disk.take(info.size)
        try:
            with ExitStack() as opened:
                watched = self._watchdog.step(f"fetching {info.key}", fetch_bound_s(info.size))
                with span("fetch"), stage(Stage.FETCH), watched, self._judging(info):
                    path = opened.enter_context(self._store.open(info))
                yield path
        finally:
            self._disk.give_back(info.size)

    def _judging(self, info: ObjectInfo) -> AbstractContextManager[None]:
        return self._judges[self.place(info.key)[0]].judging(info)


class _Judge:
    """Tells objects of one bucket that are denied from a bucket that denies everything."""

    def __init__(self, store: Store, take_back: Callable[[Collection[str]], None]) -> None:
        self._store = store
        self._breaker = Breaker(take_back, self._denies_everything)
        self._proof: ObjectInfo | None = None  # the smallest object that could be read so far

    @contextmanager
    def judging(self, info: ObjectInfo) -> Iterator[None]:
        """Tell an object that is denied from a bucket that denies everything."""
        try:
            yield
        except Denied as verdict:
            if self._breaker.failed(info.key, verdict):
                why = f"the bucket denies object after object: {verdict.detail}"
                raise Unavailable(why) from verdict
            raise
        self._breaker.passed()
        if self._proof is None or info.size <= self._proof.size:
            self._proof = info

    def _denies_everything(self) -> bool:
        if self._proof is None:
            return True
        try:
            with self._store.open(self._proof):
                return False
        except Denied:
            return True
        except (ObjectChanged, Rejected):
            self._proof = None
            return True
