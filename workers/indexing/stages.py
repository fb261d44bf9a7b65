"""What many threads ask of index and store: combined there, and bounded here."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from audiofuse.core.batcher import Batcher
from audiofuse.core.index.index import Generation, Index, Point
from audiofuse.core.items import ObjectInfo
from audiofuse.core.storage.store import Store
from audiofuse.workers.indexing.device.budget import Budget
from audiofuse.workers.telemetry.metrics import Stage, stage
from audiofuse.workers.telemetry.tracing import span

POINTS_AT_ONCE = 128


class BatchedIndex:
    """One generation of the index for many threads: what they ask at once is asked in batches."""

    def __init__(self, index: Index, generation: Generation) -> None:
        """Combine the calls on ``generation`` of ``index``."""
        self._index = index
        self._generation = generation
        self._get = Batcher[str, Point | None](self._get_all, POINTS_AT_ONCE)
        self._upsert = Batcher[Point, None](self._upsert_all, POINTS_AT_ONCE)
        self._remove = Batcher[str, None](self._remove_all, POINTS_AT_ONCE)

    def get(
        self, generation: Generation, ids: Sequence[str], *, vectors: bool = False
    ) -> dict[str, Point]:
        """Return the points that exist among ``ids``, by id; vectors always come along."""
        del vectors
        self._check(generation)
        found = {id_: self._get(id_) for id_ in ids}
        return {id_: point for id_, point in found.items() if point}

    def upsert(self, generation: Generation, points: Iterable[Point]) -> None:
        """Write whole points; when this returns they are searchable."""
        self._check(generation)
        with span("upsert"):
            for point in points:
                self._upsert(point)

    def remove(self, generation: Generation, ids: Sequence[str]) -> None:
        """Delete points; ids without a point are no error."""
        self._check(generation)
        for id_ in ids:
            self._remove(id_)

    def _check(self, generation: Generation) -> None:
        if generation != self._generation:
            msg = f"asked for {generation}, made for {self._generation}"
            raise ValueError(msg)

    def _get_all(self, ids: list[str]) -> list[Point | None]:
        with stage(Stage.GET):
            points = self._index.get(self._generation, ids, vectors=True)
        return [points.get(id_) for id_ in ids]

    def _upsert_all(self, points: list[Point]) -> list[None]:
        with stage(Stage.UPSERT):
            self._index.upsert(self._generation, points)
        return [None] * len(points)

    def _remove_all(self, ids: list[str]) -> list[None]:
        with stage(Stage.REMOVE):
            self._index.remove(self._generation, ids)
        return [None] * len(ids)


class BoundedStore:
    """A store that many threads download from: what lies on disk at once is bounded."""

    def __init__(self, store: Store, disk_bytes: int) -> None:
        """Lend files of ``store``, together at most ``disk_bytes``, but always one."""
        self.bucket = store.bucket
        self.head = store.head
        self.read = store.read
        self.list = store.list
        self._store = store
        self._disk = Budget(disk_bytes)

    @contextmanager
    def open(self, info: ObjectInfo) -> Iterator[Path]:
        """Lend the object as a local file; see ``Store``."""
        self._disk.take(info.size)
        try:
            with ExitStack() as opened:
                with span("fetch"), stage(Stage.FETCH):
                    path = opened.enter_context(self._store.open(info))
                yield path
        finally:
            self._disk.give_back(info.size)
