"""Many threads that ask at the same time: their questions made one call, their greed bounded."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

from redis import RedisError

from core.errors import AudiofuseError
from core.index import Generation, Index, Point
from core.items import ObjectInfo
from core.store import Store

Question = TypeVar("Question")
Answer = TypeVar("Answer")

POINTS_AT_ONCE = 128


class _Asked(Generic[Question, Answer]):
    """A question, the answer to come, and a bell for whoever waits for it."""

    def __init__(self, question: Question) -> None:
        self.question = question
        self.answer: Future[Answer] = Future()
        self.bell = threading.Event()


class Combiner(Generic[Question, Answer]):
    """Makes one call of what threads ask for while the call before is under way.

    It has no thread of its own that could die: who asks first leads, and then the next that waits.
    """

    def __init__(self, call: Callable[[list[Question]], Sequence[Answer]], at_most: int) -> None:
        """Combine up to ``at_most`` questions; ``call`` answers them in their order."""
        self._call = call
        self._at_most = at_most
        self._lock = threading.Lock()
        self._waiting: deque[_Asked[Question, Answer]] = deque()
        self._led = False  # false only while nobody waits

    def __call__(self, question: Question) -> Answer:
        """Return the answer to one question, or raise what it alone would raise."""
        mine = _Asked[Question, Answer](question)
        with self._lock:
            self._waiting.append(mine)
            if not self._led:
                self._led = True
                mine.bell.set()
        mine.bell.wait()
        if not mine.answer.done():
            self._lead()
        return mine.answer.result()

    def _lead(self) -> None:
        """Ask for the first that wait, oneself foremost; then let the next one lead."""
        with self._lock:
            count = min(len(self._waiting), self._at_most)
            together = [self._waiting.popleft() for _ in range(count)]
        self._ask(together)
        for asked in together:
            asked.bell.set()
        with self._lock:
            self._led = bool(self._waiting)
            if self._waiting:
                self._waiting[0].bell.set()

    def _ask(self, together: Sequence[_Asked[Question, Answer]]) -> None:
        try:
            answers = self._call([asked.question for asked in together])
        except Exception as error:  # noqa: BLE001 - it is raised where the question came from
            self._refuse(together, error)
        else:
            for asked, answer in zip(together, answers, strict=True):
                asked.answer.set_result(answer)

    def _refuse(self, together: Sequence[_Asked[Question, Answer]], error: Exception) -> None:
        """Give everybody the error, unless one may be at fault: then ask for each alone."""
        if len(together) == 1 or isinstance(error, AudiofuseError | RedisError):
            for asked in together:
                asked.answer.set_exception(error)
        else:
            for asked in together:
                self._ask([asked])


class CombinedIndex:
    """One generation of the index for many threads: what they ask at once is asked in batches."""

    def __init__(self, index: Index, generation: Generation) -> None:
        """Combine the calls on ``generation`` of ``index``."""
        self._index = index
        self._generation = generation
        self._get = Combiner[str, Point | None](self._get_all, POINTS_AT_ONCE)
        self._upsert = Combiner[Point, None](self._upsert_all, POINTS_AT_ONCE)
        self._remove = Combiner[str, None](self._remove_all, POINTS_AT_ONCE)

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
        points = self._index.get(self._generation, ids, vectors=True)
        return [points.get(id_) for id_ in ids]

    def _upsert_all(self, points: list[Point]) -> list[None]:
        self._index.upsert(self._generation, points)
        return [None] * len(points)

    def _remove_all(self, ids: list[str]) -> list[None]:
        self._index.remove(self._generation, ids)
        return [None] * len(ids)


class Budget:
    """Lets threads take from a bounded amount of something, and wait while too much is taken."""

    def __init__(self, amount: float) -> None:
        """Bound what is taken at once to ``amount``."""
        self._amount = amount
        self._taken = 0.0
        self._waiting = 0
        self._changed = threading.Condition()

    @property
    def exhausted(self) -> bool:
        """Whether somebody waits for more."""
        return self._waiting > 0

    def take(self, amount: float) -> None:
        """Take, as soon as that fits; what is larger than the whole is taken alone."""
        with self._changed:
            self._waiting += 1
            self._changed.wait_for(lambda: not self._taken or self._fits(amount))
            self._waiting -= 1
            self._taken += amount

    def give_back(self, amount: float) -> None:
        """Let others have what was taken."""
        with self._changed:
            self._taken -= amount
            self._changed.notify_all()

    def _fits(self, amount: float) -> bool:
        return self._taken + amount <= self._amount


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
            with self._store.open(info) as path:
                yield path
        finally:
            self._disk.give_back(info.size)
