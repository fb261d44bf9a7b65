"""What many threads ask at once becomes one call, and what they take is bounded."""

import threading
import time
from collections.abc import Callable, Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import RedisError

from audiofuse.core.batcher import Batcher
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import AudiofuseError, Unavailable
from audiofuse.core.index.index import Index, Point, connect_embedded
from audiofuse.core.items import ObjectInfo, point_id
from audiofuse.core.settings import Settings
from audiofuse.core.storage.mounts import Mounted, MountedStore
from audiofuse.core.storage.refusals import Denied
from audiofuse.core.storage.store import FolderStore
from audiofuse.workers.indexing.breaker import KEYS
from audiofuse.workers.indexing.stages import BatchedIndex, BoundedStore, Budget


def _ask_all(combiner: Batcher[int, int], questions: range) -> list[Any]:
    """Ask from a thread for each question; return answers and errors."""

    def ask(question: int) -> object:
        try:
            return combiner(question)
        except Exception as error:  # noqa: BLE001 - it is compared
            return error

    with ThreadPoolExecutor(len(questions)) as threads:
        return list(threads.map(ask, questions))


def test_each_asker_gets_its_own_answer() -> None:
    """Questions that wait are asked together, and nobody gets another one's answer."""
    calls: list[int] = []

    def double(numbers: list[int]) -> list[int]:
        calls.append(len(numbers))
        time.sleep(0.01)
        return [2 * number for number in numbers]

    assert _ask_all(Batcher(double, 16), range(64)) == [2 * number for number in range(64)]
    assert sum(calls) == 64
    assert max(calls) <= 16
    assert len(calls) < 32


def test_a_bad_question_fails_alone() -> None:
    """An error that one question may have caused reaches that one only."""

    def refuse_seven(numbers: list[int]) -> list[int]:
        time.sleep(0.01)
        if 7 in numbers:
            raise ValueError("seven")
        return numbers

    answers = _ask_all(Batcher(refuse_seven, 64), range(16))
    assert isinstance(answers[7], ValueError)
    assert answers[:7] + answers[8:] == [number for number in range(16) if number != 7]


@pytest.mark.parametrize("error", [Unavailable("away"), RedisError("away")])
def test_what_is_away_is_away_for_all(error: Exception) -> None:
    """When the other side is away everybody learns it, and it is not asked for each alone."""
    calls = []

    def away(numbers: list[int]) -> list[int]:
        calls.append(numbers)
        time.sleep(0.01)
        raise error

    answers = _ask_all(Batcher(away, 64, (AudiofuseError, RedisError)), range(32))
    assert answers == [error] * 32
    assert len(calls) < 32


def test_points_of_many_threads_are_written_and_found(tiny_encoder: Encoder) -> None:
    """The combined index does what the index does, for each thread."""
    index = Index(connect_embedded(), "audiofuse")
    generation = index.create("tiny-000000", tiny_encoder)
    combined = BatchedIndex(index, generation)

    def sync(number: int) -> int:
        id_ = str(point_id("bucket", str(number)))
        payload = {"number": number}
        vectors = [1.0] * tiny_encoder.dim, [1.0] * tiny_encoder.audio_dim
        combined.upsert(generation, [Point(id_, payload, *vectors)])
        if number % 2:
            combined.remove(generation, [id_])
        found = combined.get(generation, [id_], vectors=True)
        return len(found[id_].audio) if found else 0

    with ThreadPoolExecutor(16) as threads:
        lengths = list(threads.map(sync, range(32)))
    assert lengths == [tiny_encoder.audio_dim, 0] * 16
    assert index.count(generation) == 16


def test_a_budget_bounds_what_is_taken(eventually: Callable[..., Any]) -> None:
    """Who asks for more than is left waits; what is larger than all is given alone."""
    budget = Budget(10)
    budget.take(8)
    taken = threading.Event()

    def take() -> None:
        budget.take(25)
        taken.set()

    threading.Thread(target=take, daemon=True).start()
    eventually(lambda: budget._line)
    assert not taken.is_set()
    budget.give_back(8)
    assert taken.wait(5)


def test_downloads_wait_for_disk(tmp_path: Path, eventually: Callable[..., Any]) -> None:
    """While lent files fill the disk that is allowed, the next one is not fetched."""
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"12345678")
    store = BoundedStore(FolderStore(tmp_path), 10)
    a, b = map(store.head, "ab")
    assert a
    assert b
    opened = threading.Event()

    def open_b() -> None:
        with store.open(b) as path:
            assert path.read_bytes() == b"12345678"
            opened.set()

    thread = threading.Thread(target=open_b)
    with store.open(a):
        thread.start()
        assert not opened.wait(0.05)
    eventually(opened.is_set)
    thread.join()


class Denying(FolderStore):
    """A bucket that denies its objects, but for those that it is told to."""

    denied: Container[str] = ()

    @contextmanager
    def open(self, info: ObjectInfo) -> Iterator[Path]:
        """Open what is not denied."""
        if info.key in self.denied:
            raise Denied(f"get_object s3://b/{info.key}: AccessDenied")
        with super().open(info) as path:
            yield path


class Reader:
    """Reads objects of a bucket with a sound for each number, and tells what came of it."""

    def __init__(self, root: Path) -> None:
        for number in range(4 * KEYS):
            (root / f"{number}.wav").write_bytes(bytes(number + 1))
        self.store = Denying(root)
        self.given_back: list[set[str]] = []
        self.bounded = BoundedStore(
            self.store, 10**9, take_back=lambda keys: self.given_back.append(set(keys))
        )

    def read(self, *numbers: int) -> list[str]:
        """Open sounds, one after the other; return the kinds of what is raised."""
        return [self._read(f"{number}.wav") for number in numbers]

    def _read(self, key: str) -> str:
        info = self.store.head(key)
        assert info
        try:
            with self.bounded.open(info):
                return "read"
        except AudiofuseError as error:
            return type(error).__name__


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    """Return what reads from a bucket that denies nothing yet."""
    return Reader(tmp_path)


def test_a_bucket_that_denies_every_object_is_an_outage(reader: Reader) -> None:
    """A role that lost its permission costs no object: those judged before are taken back."""
    assert reader.read(0, 1) == ["read"] * 2
    reader.store.denied = {f"{number}.wav" for number in range(99)}
    denied, outage = range(2, KEYS + 1), range(KEYS + 1, 2 * KEYS)
    assert reader.read(*denied) == ["Denied"] * (KEYS - 1)
    assert reader.given_back == []
    assert reader.read(*outage) == ["Unavailable"] * (KEYS - 1)
    counted = {f"{number}.wav" for number in range(2, KEYS + 2)}
    assert reader.given_back == [counted]
    reader.store.denied = ()
    assert reader.read(*denied, *outage) == ["read"] * 2 * (KEYS - 1)
    assert reader.given_back == [counted] * 2  # whoever was about to judge them has done so


def test_many_objects_that_are_denied_are_no_outage_while_others_can_be_read(
    reader: Reader,
) -> None:
    """A policy on a prefix, a key of its own for some: each of them has its verdict."""
    assert reader.read(0) == ["read"]
    reader.store.denied = {f"{number}.wav" for number in range(1, 99)}
    assert reader.read(*range(1, 4 * KEYS)) == ["Denied"] * (4 * KEYS - 1)
    assert reader.given_back == []


def test_a_worker_that_could_read_nothing_yet_takes_it_for_an_outage(reader: Reader) -> None:
    """Nothing tells the objects from the bucket, until something can be read."""
    reader.store.denied = {f"{number}.wav" for number in range(1, 99)}
    assert reader.read(*range(1, 2 * KEYS)) == ["Denied"] * (KEYS - 1) + ["Unavailable"] * KEYS
    assert reader.read(0) == ["read"]
    assert reader.read(*range(1, 2 * KEYS)) == ["Denied"] * (2 * KEYS - 1)


def test_another_generation_is_refused(tiny_encoder: Encoder) -> None:
    """What is combined for one generation never reaches another."""
    index = Index(connect_embedded(), "audiofuse")
    combined = BatchedIndex(index, index.create("tiny-000000", tiny_encoder))
    with pytest.raises(ValueError, match="made for"):
        combined.get(index.generation("other-111111"), ["x"])


def test_one_bucket_that_denies_everything_is_not_vouched_for_by_another(tmp_path: Path) -> None:
    """What can be read elsewhere says nothing of its objects: they wait."""
    stores = {name: tmp_path / name for name in ("a", "b")}
    for root in stores.values():
        root.mkdir()
        for number in range(KEYS):
            (root / f"{number}.wav").write_bytes(b"x")
    denying = Denying(stores["a"])
    denying.denied = {f"{number}.wav" for number in range(KEYS)}
    mounts = {"a": denying, "b": FolderStore(stores["b"])}
    several = MountedStore({name: Mounted(name, Settings(), it) for name, it in mounts.items()})
    bounded = BoundedStore(several, 10**9)
    raised = []
    for name in ("b/0.wav", *(f"a/{number}.wav" for number in range(KEYS))):
        info = bounded.head(name)
        assert info
        try:
            bounded.read(info)
        except AudiofuseError as error:
            raised.append(type(error).__name__)
    assert raised == ["Denied"] * (KEYS - 1) + ["Unavailable"]
