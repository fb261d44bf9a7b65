"""Whatever workers do at the same time, index and dead letters end as the bucket is.

Several workers sync a few keys while the bucket changes. All of them stand still before each call
to bucket, index or letters; who goes on is drawn by a seed, as is who dies there. So each seed is
one interleaving that can be played again.
"""

import os
import random
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis import Redis

from audiofuse.core.audio.windows import Samples
from audiofuse.core.encoder.embeddings import EncodedItem, Floats
from audiofuse.core.errors import Reason, Rejected, Unavailable
from audiofuse.core.index.index import Generation, Index, connect_embedded
from audiofuse.core.items import Metadata, point_id, sidecar_keys
from audiofuse.core.storage.store import FolderStore
from audiofuse.workers.indexing import retries, sync
from audiofuse.workers.indexing.collaborators import BucketSide, IndexSide, Limits
from audiofuse.workers.indexing.retries import RetryPolicy
from audiofuse.workers.indexing.sync import Syncer
from audiofuse.workers.queue.dead_letters import DeadLetters
from audiofuse.workers.telemetry.names import Lane

SOUNDS = ("a.wav", "a.flac")  # so that they may share a sidecar
SIDECARS = ("a.json", "a.wav.json")
SEEDS = 600
CHANGES = 5
STEPS_BETWEEN = 20  # changes, at most: a sync takes about ten
WORKERS = 3
KILLS = 2
CALLS_AT_MOST = 10_000  # of one schedule; more means that it never rests
HASTES = (1.0, 0.1, 1e-4)
FAULT = 0.01  # how likely a call kills its worker, or fails, before it is done or after
BAD = b"no sound"


class Numbers:
    """An encoder that costs nothing: a sound is a number, and so are the words."""

    dim = audio_dim = 2
    fuses_stored_audio = True

    def encode(self, sound: str, windows: Iterable[Samples], text: str) -> EncodedItem:
        """Hear the number."""
        return self.fuse(sound, np.array([float(next(iter(windows))[0]), 1.0], np.float32), text)

    def fuse(self, sound: str, audio: Floats, text: str) -> EncodedItem:
        """Point where the sound's and the words' numbers do."""
        del sound
        vector = audio + np.array([0, zlib.crc32(text.encode()) % 97], np.float32)
        norm = np.linalg.norm(vector)
        return EncodedItem(audio, vector / norm, float(norm))


class Recording:
    """A file that holds a number in digits."""

    sample_rate, channels, duration_s = 8000, 1, 1.0

    def __init__(self, path: Path) -> None:
        self._content = path.read_bytes()

    def windows(self) -> Iterator[Samples]:
        """Yield the number."""
        if not self._content.isdigit():
            raise Rejected(Reason.NOT_AUDIO, "no number")
        yield np.array([int(self._content)], np.float32)


@contextmanager
def open_number(path: Path, _: float) -> Iterator[Recording]:
    """Open a number as a sound."""
    yield Recording(path)


class Killed(BaseException):
    """The worker's process is gone."""


class Actor(threading.local):
    """What a thread of a schedule knows of itself."""

    turn: "Turn"


class Turn(threading.Semaphore):
    """What a thread waits for; ``haste`` is how likely it is the next that goes on."""

    haste = 1.0
    stalls = False
    wakes: Callable[[], object] = staticmethod(lambda: True)


class Schedule:
    """Lets one thread go on at a time, to its next call; draws which, and which of them dies.

    Some stand still until most others have nothing to do: that is what finds errors.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.kills = KILLS
        self._here = Actor()
        self._paused = threading.Semaphore(0)
        self._ready: list[Turn] = []

    def run(self, *actors: Callable[[], None]) -> None:
        """Run all actors to their ends; raise what any of them raises."""
        errors: list[BaseException] = []
        for actor in actors:
            threading.Thread(target=self._act, args=(actor, errors), daemon=True).start()
            self._paused.acquire()  # one after the other, so that their order is always the same
        for _ in range(CALLS_AT_MOST):
            if errors or not self._ready:
                break
            awake = [turn for turn in self._ready if turn.wakes()]
            (chosen,) = self.random.choices(awake, [turn.haste for turn in awake])
            if chosen.stalls and self.random.random() < 0.2:
                chosen.haste = self.random.choice(HASTES)
            self._ready.remove(chosen)
            chosen.release()
            self._paused.acquire()
        if errors or self._ready:
            raise errors[0] if errors else AssertionError("it never rests")

    def _act(self, actor: Callable[[], None], errors: list[BaseException]) -> None:
        self._here.turn = Turn(0)
        try:
            self.step()
            actor()
        except BaseException as error:  # noqa: BLE001 - raised by ``run``
            errors.append(error)
        self._paused.release()

    def step(self) -> None:
        """Stand still until it is this thread's turn."""
        self._ready.append(self._here.turn)
        self._paused.release()
        self._here.turn.acquire()

    def may_stall(self) -> None:
        """Let this thread stand still now and then."""
        self._here.turn.stalls = True

    def rest(self, until: Callable[[], object]) -> None:
        """Stand still until something is true."""
        self._here.turn.wakes = until
        self.step()
        self._here.turn.wakes = lambda: True

    def may_fail(self) -> None:
        """Die or fail, seldom."""
        if self.kills and self.random.random() < FAULT:
            self.kills -= 1
            raise Killed
        if self.random.random() < FAULT:
            raise Unavailable("it is away")

    def stepped(self, subject: object) -> Any:
        """Return ``subject`` with a stop before each call, at which a worker may also die."""
        return _Stepped(subject, self)


class _Stepped:
    def __init__(self, subject: object, schedule: Schedule) -> None:
        self._subject = subject
        self._schedule = schedule

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._subject, name)
        return self._stop_before(attribute) if callable(attribute) else attribute

    def _stop_before(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def stopped(*arguments: Any, **options: Any) -> Any:
            self._schedule.step()
            self._schedule.may_fail()
            answer = call(*arguments, **options)
            self._schedule.may_fail()
            return answer

        return stopped


class Sent:
    """The dispatcher of a world's workers."""

    def __init__(self, world: "World") -> None:
        self._world = world

    def sync(self, key: str, _: Lane, __: float | None = None) -> None:
        """Send a message."""
        self._world.messages.append(key)


@dataclass
class World:
    """A bucket, an index, letters, and the messages that nobody has acknowledged."""

    root: Path
    index: Index
    generation: Generation
    letters: DeadLetters
    messages: list[str] = field(default_factory=list)
    in_hand: int = 0
    changing: bool = True
    ticks: int = 0

    def reset(self) -> None:
        """Begin anew, with nothing."""
        for path in self.root.iterdir():
            path.unlink()
        ids = [str(point_id(self.root.name, key)) for key in SOUNDS]
        self.index.remove(self.generation, ids)
        self.letters.clear([*SOUNDS, *SIDECARS, "a.flac.json"])
        self.changing, self.ticks = True, 0

    def change(self, schedule: Schedule) -> None:
        """Change the bucket at random; one message or more tell of each change, some time later."""
        draw = schedule.random
        untold = []
        objects = draw.sample([*SOUNDS, *SIDECARS], draw.randint(1, 3))
        for _ in range(CHANGES):
            for _ in range(draw.randrange(STEPS_BETWEEN)):
                schedule.step()
            key = draw.choice(objects)
            self._change_object(key, draw)
            untold += [key] * draw.choice([1, 1, 2])
            if draw.random() < 0.5:
                self.messages += untold
                untold = []
        self.messages += untold
        self.changing = False

    def _change_object(self, key: str, draw: random.Random) -> None:
        path = self.root / key
        number = draw.randrange(1000)
        good = str(number) if key in SOUNDS else f'{{"title": "{number}"}}'
        content = draw.choice([good.encode(), good.encode(), BAD, BAD, None])
        if content is None:
            path.unlink(missing_ok=True)
            return
        path.write_bytes(content)
        self.ticks += 1
        os.utime(path, (1e9 + self.ticks, 1e9 + self.ticks))

    def work(self, schedule: Schedule, kind: type[Syncer]) -> None:
        """Be a worker process: settle messages until none is left; dead, be another one."""
        schedule.may_stall()
        stepped = schedule.stepped
        syncer = kind(
            BucketSide(stepped(FolderStore(self.root)), Limits(60, 1000), open_number),
            IndexSide(stepped(self.index), self.generation, stepped(self.letters)),
            Numbers(),
        )
        worker = RetryPolicy(dict.fromkeys(Lane, syncer), stepped(Sent(self)), threading.Event())
        while True:
            schedule.rest(lambda: self.messages or not (self.changing or self.in_hand))
            if not self.messages:
                return
            message = self.messages.pop(schedule.random.randrange(len(self.messages)))
            self.in_hand += 1
            try:
                assert worker.settle(message, Lane.LIVE)
            except Killed:
                self.messages.append(message)
            finally:
                self.in_hand -= 1

    def faults(self) -> list[str]:
        """Return everything in which index and letters differ from the bucket."""
        ids = {str(point_id(self.root.name, key)): key for key in SOUNDS}
        found = self.index.get(self.generation, list(ids), vectors=True)
        points = {ids[id_]: _told(point.payload, point.audio) for id_, point in found.items()}
        letters = {
            key: (letter.reason, letter.etag)
            for key, letter in self.letters.get([*SOUNDS, *SIDECARS, "a.flac.json"]).items()
        }
        expected_points, expected_letters = self._expected()
        faults = [f"{points}, not {expected_points}"] if points != expected_points else []
        if letters != expected_letters:
            faults.append(f"letters {letters}, not {expected_letters}")
        return faults

    def _expected(self) -> tuple[dict[str, Any], dict[str, Any]]:
        store, points, letters = FolderStore(self.root), {}, {}
        for key in SOUNDS:
            info = store.head(key)
            if info is None:
                continue
            title, sidecar_etag = "", ""
            for sidecar in filter(None, map(store.head, sidecar_keys(key))):
                sidecar_etag = sidecar.etag
                try:
                    title = Metadata.from_json(store.read(sidecar)).title
                except Rejected as problem:
                    letters[sidecar.key] = (problem.reason, sidecar.etag)
                break
            content = store.read(info)
            if content.isdigit():
                points[key] = (info.etag, sidecar_etag, title, info.modified_ms, int(content))
            else:
                letters[key] = (Reason.NOT_AUDIO, info.etag)
        return points, letters


def _told(payload: Any, audio: Any) -> tuple[Any, ...]:
    names = ("etag", "sidecar_etag", "title", "modified")
    return (*(payload[name] for name in names), round(audio[0]))


@pytest.fixture
def world(tmp_path: Path, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> World:
    """Return an empty world in which nobody waits."""
    monkeypatch.setattr(retries.log, "disabled", True)  # thousands of failures are on purpose
    monkeypatch.setattr(retries, "FIRST_BACKOFF_S", 0.0)
    monkeypatch.setattr(retries, "LATE_WRITE_S", 0.0)
    monkeypatch.setattr(retries, "TRIES_IN_HAND", 10**9)
    monkeypatch.setattr(sync, "BURST_S", 0.0)
    (tmp_path / "bucket").mkdir()
    index = Index(connect_embedded(), "audiofuse")
    generation = index.create("numbers", Numbers())
    return World(tmp_path / "bucket", index, generation, DeadLetters(redis, "audiofuse"))


def _play(world: World, seed: int, kind: type[Syncer]) -> list[str]:
    """Play one schedule; return what is wrong in the end."""
    schedule = Schedule(seed)
    world.reset()
    workers = [lambda: world.work(schedule, kind)] * WORKERS
    schedule.run(lambda: world.change(schedule), *workers)
    return world.faults()


def test_any_interleaving_ends_as_the_bucket_is(world: World) -> None:
    """Three workers, changes, deaths and lost requests in any order: the last state wins."""
    for seed in range(SEEDS):
        faults = _play(world, seed, Syncer)
        assert not faults, f"seed {seed}: {faults}"


class Careless(Syncer):
    """A syncer that does not look again after it wrote."""

    def _sync_as_seen(self, key: str) -> Any:
        item = self._look(key)
        self._look = lambda _: item  # type: ignore[method-assign]
        try:
            return super()._sync_as_seen(key)
        finally:
            del self._look


def test_the_second_look_is_what_it_takes(world: World) -> None:
    """Without it some of these schedules end wrong: they are worth their name."""
    assert any(_play(world, seed, Careless) for seed in range(SEEDS))
