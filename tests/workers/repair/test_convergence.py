"""Whatever workers do at the same time, index and dead letters end as the bucket is.

Several workers sync a few keys while the bucket changes. All of them stand still before each call
to bucket, index or letters; who goes on is drawn by a seed, as is who dies there. So each seed is
one interleaving that can be played again.
"""

import os
import random
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis import Redis
from schedules import Killed, Schedule

from audiofuse.core.audio.windows import Samples
from audiofuse.core.encoder.embeddings import EncodedItem, Floats, Fused
from audiofuse.core.errors import Reason, Rejected
from audiofuse.core.index.index import Generation, Index, Point, connect_embedded
from audiofuse.core.items import Metadata, moment_id, point_id, sidecar_keys
from audiofuse.core.model.config import Grid
from audiofuse.core.moments.stored import moments_named, names_moments
from audiofuse.core.moments.windows import Cutting, EncodedWindows
from audiofuse.core.storage.store import FolderStore
from audiofuse.workers.indexing import retries
from audiofuse.workers.indexing.items import sync
from audiofuse.workers.indexing.items.collaborators import BucketSide, IndexSide, Limits
from audiofuse.workers.indexing.items.moments import ItemMoments
from audiofuse.workers.indexing.items.sync import Syncer
from audiofuse.workers.indexing.retries import RetryPolicy
from audiofuse.workers.queue.dead_letters import DeadLetters
from audiofuse.workers.telemetry.names import Lane

SOUNDS = ("a.wav", "a.flac")  # so that they may share a sidecar
SIDECARS = ("a.json", "a.wav.json")
SEEDS = 600
CHANGES = 5
STEPS_BETWEEN = 20  # changes, at most: a sync takes about ten
WORKERS = 3
BAD = b"no sound"
GRID = Grid()


def duration_s(number: int) -> float:
    """Return how long a number is: every fourth has no moments, the others have two to four."""
    return 7.0 + 5 * (number % 4) if number % 4 else 2.0


class Numbers:
    """An encoder that costs nothing: a sound is a number, and so are the words."""

    dim = audio_dim = 2
    fuses_stored_audio = True

    def encode(
        self, sound: str, windows: Iterable[Samples], text: str, cutting: Cutting | None = None
    ) -> EncodedItem:
        """Hear the number, and hand its moments over in pairs."""
        heard = np.array([float(next(iter(windows))[0]), 1.0], np.float32)
        count = GRID.count(duration_s(int(heard[0])))
        for first in range(0, count, 2):
            audio = np.tile(heard, (min(2, count - first), 1))
            spans = np.array(
                [(5.0 * (first + row), 5.0 * (first + row + 1)) for row in range(len(audio))]
            )
            assert cutting
            cutting.take(EncodedWindows(first, spans, audio, self.fuse_windows(sound, audio, text)))
        return self.fuse(sound, heard, text)

    def fuse_windows(self, sound: str, audio: Floats, text: str) -> Fused:
        """Fuse each as an item."""
        items = [self.fuse(sound, row, text) for row in audio]
        norms = np.array([each.norm for each in items], np.float32)
        return Fused(np.array([each.item for each in items]), norms)

    def fuse(self, sound: str, audio: Floats, text: str) -> EncodedItem:
        """Point where the sound's and the words' numbers do."""
        del sound
        vector = audio + np.array([0, zlib.crc32(text.encode()) % 97], np.float32)
        norm = np.linalg.norm(vector)
        return EncodedItem(audio, vector / norm, float(norm))


class Recording:
    """A file that holds a number in digits."""

    sample_rate, channels, duration_s = 8000, 1, 0.0

    def __init__(self, path: Path) -> None:
        self._content = path.read_bytes()
        if self._content.isdigit():
            self.duration_s = duration_s(int(self._content))

    def windows(self) -> Iterator[Samples]:
        """Yield the number."""
        if not self._content.isdigit():
            raise Rejected(Reason.NOT_AUDIO, "no number")
        yield np.array([int(self._content)], np.float32)


@contextmanager
def open_number(_: str, path: Path, __: float) -> Iterator[Recording]:
    """Open a number as a sound."""
    yield Recording(path)


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
    left: int = 0  # moments that nobody is shown, of all schedules

    def reset(self) -> None:
        """Begin anew, with nothing."""
        for path in self.root.iterdir():
            path.unlink()
        ids = [str(point_id(self.root.name, key)) for key in SOUNDS]
        self.index.remove(self.generation, ids)
        for id_ in ids:
            self.index.remove_moments(self.generation, id_)
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
            IndexSide(stepped(self.index), self.generation, stepped(self.letters), grid=GRID),
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
        moments = [
            f"{key}: {each}"
            for id_, key in ids.items()
            if (each := self._moments(id_, found.get(id_)))
        ]
        letters = {
            key: (letter.reason, letter.etag)
            for key, letter in self.letters.get([*SOUNDS, *SIDECARS, "a.flac.json"]).items()
        }
        expected_points, expected_letters = self._expected()
        faults = [f"{points}, not {expected_points}"] if points != expected_points else moments
        if letters != expected_letters:
            faults.append(f"letters {letters}, not {expected_letters}")
        return faults

    def _moments(self, item_id: str, item: Point | None) -> str:
        """Return what is wrong with the moments of an item.

        Only where a sound without moments replaced another may some be left, which nobody is shown.
        """
        ids = [moment_id(item_id, number) for number in range(4)]
        found = self.index.get(self.generation.moments, ids, vectors=True).values()
        there = {each.payload["number"]: each for each in found}
        if item is None:
            return f"{there} are left of nothing" if there else ""
        count, state = item.payload["moments"], item.payload["moments_state"]
        if not count:
            self.left += len(there)
            return "one is shown" if any(m.payload["state"] == state for m in found) else ""
        audio = round(item.audio[0])
        right = [
            number
            for number, each in there.items()
            if (each.payload["state"], round(each.audio[0])) == (state, audio)
            and np.allclose(each.item, item.item, atol=1e-5)
        ]
        all_right = sorted(right) == sorted(there) == list(range(count))
        return "" if all_right else f"{there}, not {count} in {state}"

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
    generation = index.create("numbers", Numbers(), GRID)
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
    assert world.left < SEEDS / 20  # seldom, after a death


def test_counting_moments_is_what_it_takes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sync that believes what a point says of its moments leaves some of these wrong."""

    def believes(self: ItemMoments, payload: Any, **_: Any) -> bool:
        return names_moments(payload, moments_named(payload, self._grid))

    monkeypatch.setattr(ItemMoments, "agree", believes)
    assert any(_play(world, seed, Syncer) for seed in range(SEEDS))


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
