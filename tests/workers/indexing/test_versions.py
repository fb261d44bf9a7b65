"""Several encoder versions in one worker: every item into each, and what may go wrong with one."""

import copy
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from audiofuse.core.audio.recording import OpenSound, open_recording
from audiofuse.core.bundles.bundle import audio_fingerprint
from audiofuse.core.bundles.document import Rollout
from audiofuse.core.bundles.registry import Watch, open_registry
from audiofuse.core.encoder.encoder import Encoder, Fused
from audiofuse.core.errors import Reason, Rejected, Unavailable
from audiofuse.core.index.index import Index, Point, connect_embedded
from audiofuse.core.items import point_id
from audiofuse.core.retrying import BackOff
from audiofuse.core.settings import Settings
from audiofuse.core.storage.store import FolderStore
from audiofuse.workers.indexing.device.device import Device
from audiofuse.workers.indexing.stages import BatchedIndex
from audiofuse.workers.indexing.sync import Limits, Syncer
from audiofuse.workers.indexing.versions import (
    Loaded,
    MultiVersionSyncer,
    VersionDeadLetters,
    Versions,
)
from audiofuse.workers.queue.dead_letters import DeadLetters
from audiofuse.workers.telemetry.names import Lane, Outcome

SOUNDS = Path(__file__).parents[3] / "examples" / "sounds"
OLD, SAME_EARS, OTHER_EARS = "old-000000", "same-111111", "other-222222"
Eventually = Callable[..., Any]


class World:
    """A bucket, an index and a worker's versions, with three encoders to choose from."""

    def __init__(self, root: Path, redis: Redis, encoders: dict[str, Encoder]) -> None:
        (root / "bucket").mkdir()
        self.store = FolderStore(root / "bucket")
        self.index = Index(connect_embedded(), "audiofuse")
        self.registry = open_registry(Settings(home=root / "home"))
        self.letters = DeadLetters(redis, "bucket")
        self.sent: list[tuple[str, Lane]] = []
        self.decoded: list[str] = []
        self.loads: list[str] = []
        self.may_load = threading.Event()
        self._redis = redis
        self._encoders = encoders
        self.index.create(OLD, encoders[OLD])
        self.versions = Versions(Watch(self.registry), self._load, self._equip(OLD))

    def put(self, key: str, source: str) -> None:
        """Write an object."""
        shutil.copy(SOUNDS / source, self.store.root / key)

    def settle(self, key: str, lane: Lane = Lane.LIVE) -> Outcome:
        """Work on a message."""
        every = MultiVersionSyncer(
            self.versions, lane, self.store, self.letters, self,  # type: ignore[arg-type]
            lambda _: None,
        )  # fmt: skip
        return every.sync(key).outcome

    def give_up(self, key: str) -> None:
        """Give a message up."""
        every = MultiVersionSyncer(self.versions, Lane.LIVE, self.store, self.letters, self)  # type: ignore[arg-type]
        every.give_up(key, Rejected(Reason.BUG, "a bug"))

    def sync(self, key: str, lane: Lane) -> None:
        """Take what is left to do, as a dispatcher."""
        self.sent.append((key, lane))

    def open(self, version: str, *, load: bool = True) -> None:
        """Start a rollout of a version; with ``load`` it is loaded."""
        self.index.create(version, self._encoders[version])
        self.write(Rollout(live=OLD).start(version, "me"))
        self.versions.look()
        if load:
            self.may_load.set()
            self.versions._get(version)

    def write(self, rollout: Rollout) -> None:
        """Write the document."""
        self.registry.write(rollout, self.registry.rollout()[1])

    def points(self, version: str) -> dict[str, Point]:
        """Return a version's points by key, with vectors."""
        generation = self.index.generation(version)
        ids = [point.id for point in self.index.scroll(generation, ["key"])]
        found = self.index.get(generation, ids, vectors=True) if ids else {}
        return {point.payload["key"]: point for point in found.values()}

    def item_alone(self, version: str, key: str) -> list[float]:
        """Return the item vector that a version gives by itself."""
        encoder = self._encoders[version]
        with open_recording(self.store.root / key, 60) as recording:
            vectors = encoder.fuse(encoder.encode_audio(recording.windows()), [""]).vectors
        return list(vectors[0].tolist())

    def _load(self, version: str) -> Loaded:
        self.may_load.wait()
        self.loads.append(version)
        return self._equip(version)

    def _equip(self, version: str) -> Loaded:
        encoder = self._encoders[version]
        generation, same = self.index.generation(version), audio_fingerprint(encoder)
        device, points = Device(encoder, 40), BatchedIndex(self.index, generation)
        letters = VersionDeadLetters(
            DeadLetters(self._redis, "bucket", version),
            version,
            lambda: self.versions.wanted[0] == version,
        )

        def open_sound(path: Path, limit_s: float) -> AbstractContextManager[OpenSound]:
            self.decoded.append(version)
            return open_recording(path, limit_s)

        syncers = {
            lane: Syncer(
                self.store, points, generation, device.on(lane), Limits(60, 10**7), open_sound,
                letters=letters, pause=lambda _: None,
                elsewhere=lambda id_: self.versions.heard_elsewhere(version, same, id_),
            )
            for lane in Lane
        }  # fmt: skip
        return Loaded(generation, same, device, points, syncers)

    def close(self) -> None:
        """End the devices' threads."""
        for loaded in self.versions.loaded:
            loaded.device.close()


@pytest.fixture(scope="module")
def encoders(tiny_encoder: Encoder) -> dict[str, Encoder]:
    """Return three encoders, of which two have the same ears and other words."""
    other = Encoder.random(tiny_encoder.config, seed=1)
    same = copy.deepcopy(other)
    same.audio_tower.load_state_dict(tiny_encoder.audio_tower.state_dict())
    return {OLD: tiny_encoder, SAME_EARS: same, OTHER_EARS: other}


@pytest.fixture
def world(
    tmp_path: Path, redis: Redis, encoders: dict[str, Encoder], monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    """Return a world with the old version live, which does not wait for bursts to end."""
    monkeypatch.setattr("audiofuse.workers.indexing.sync.BURST_S", 0.0)
    world = World(tmp_path, redis, encoders)
    yield world
    world.close()


def test_ears_are_the_audio_tower_and_nothing_else(encoders: dict[str, Encoder]) -> None:
    """Another text tower leaves the fingerprint, one other weight of the audio tower does not."""
    assert (
        audio_fingerprint(encoders[OLD])
        == audio_fingerprint(encoders[SAME_EARS])
        != audio_fingerprint(encoders[OTHER_EARS])
    )
    changed = copy.deepcopy(encoders[OLD])
    next(changed.audio_tower.parameters()).data.view(-1)[0] += 1e-6
    assert audio_fingerprint(changed) != audio_fingerprint(encoders[OLD])


def test_every_change_reaches_every_version(world: World) -> None:
    """Put, replaced and deleted: both generations follow, each by its own encoder."""
    world.open(OTHER_EARS)
    world.put("a.wav", "animals/owl.wav")
    assert world.settle("a.wav") is Outcome.CREATED
    for version in (OLD, OTHER_EARS):
        point = world.points(version)["a.wav"]
        assert point.payload["encoder"] == version
        assert list(point.item) == pytest.approx(world.item_alone(version, "a.wav"), abs=1e-5)
    (world.store.root / "a.json").write_text(json.dumps({"title": "Tawny owl"}))
    assert world.settle("a.wav") is Outcome.REFUSED
    for version in (OLD, OTHER_EARS):
        assert world.points(version)["a.wav"].payload["title"] == "Tawny owl"
    (world.store.root / "a.wav").unlink()
    assert world.settle("a.wav") is Outcome.REMOVED
    assert world.points(OLD) == world.points(OTHER_EARS) == {}
    assert world.sent == []


def test_equal_ears_take_what_was_heard(world: World) -> None:
    """A version that hears the same decodes nothing, and its vectors are as if it had."""
    world.put("a.wav", "animals/owl.wav")
    world.settle("a.wav")
    world.open(SAME_EARS)
    assert world.settle("a.wav", Lane.BACKFILL) is Outcome.UNCHANGED
    assert world.decoded == [OLD]
    point = world.points(SAME_EARS)["a.wav"]
    assert list(point.item) == pytest.approx(world.item_alone(SAME_EARS, "a.wav"), abs=1e-5)
    world.put("a.wav", "animals/duck-quack.wav")
    world.settle("a.wav")
    assert SAME_EARS not in world.decoded
    point = world.points(SAME_EARS)["a.wav"]
    assert list(point.item) == pytest.approx(world.item_alone(SAME_EARS, "a.wav"), abs=1e-5)


def test_what_waits_for_an_encoder_is_left_to_the_backfill_lane(world: World) -> None:
    """While a version is loaded the live one goes on, and no message is lost for the other."""
    world.put("a.wav", "animals/owl.wav")
    world.open(OTHER_EARS, load=False)
    assert world.settle("a.wav") is Outcome.CREATED
    assert world.sent == [("a.wav", Lane.BACKFILL)]
    assert "a.wav" in world.points(OLD)
    assert world.settle("a.wav", Lane.BACKFILL) is Outcome.LATER
    assert world.sent == [("a.wav", Lane.BACKFILL)] * 2
    world.may_load.set()
    world.versions._get(OTHER_EARS)
    assert world.settle("a.wav", Lane.BACKFILL) is Outcome.UNCHANGED
    assert len(world.sent) == 2
    assert "a.wav" in world.points(OTHER_EARS)


def test_a_dropped_generation_is_no_error(world: World) -> None:
    """Written into what was dropped meanwhile, the document is read again, and that was all."""
    world.open(OTHER_EARS)
    world.write(Rollout(live=OLD).start(OTHER_EARS, "me").abort("me"))
    world.index.drop(world.index.generation(OTHER_EARS))
    world.put("a.wav", "animals/owl.wav")
    assert world.settle("a.wav") is Outcome.CREATED
    assert world.versions.wanted == (OLD,)


def test_a_generation_that_is_not_made_yet_is_waited_for(world: World) -> None:
    """As long as the document names it the message is tried again."""
    world.open(OTHER_EARS)
    world.index.drop(world.index.generation(OTHER_EARS))
    world.put("a.wav", "animals/owl.wav")
    with pytest.raises(Unavailable):
        world.settle("a.wav")


def test_verdicts_are_the_live_ones_unless_the_other_rejects_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What both reject is the live one's letter; what one rejects alone is its own."""
    world.open(OTHER_EARS)
    (world.store.root / "a.wav").write_bytes(b"no sound")
    with pytest.raises(Rejected):
        world.settle("a.wav")
    assert [(each.encoder, each.count) for each in world.letters.latest(9)] == [(OLD, 1)]
    fuse = Encoder.fuse

    def broken(self: Encoder, *arguments: Any) -> Any:
        fused = fuse(self, *arguments)
        bad = self is world._encoders[OTHER_EARS]
        return Fused(fused.vectors * float("nan"), fused.norms) if bad else fused

    monkeypatch.setattr(Encoder, "fuse", broken)
    world.put("a.wav", "animals/owl.wav")
    assert world.settle("a.wav") is Outcome.CREATED
    (letter,) = world.letters.latest(9)
    assert (letter.encoder, letter.reason) == (OTHER_EARS, "not_finite")
    assert world.points(OTHER_EARS) == {}
    monkeypatch.undo()
    assert world.settle("a.wav") is Outcome.UNCHANGED
    assert world.letters.count() == 0
    assert "a.wav" in world.points(OTHER_EARS)


def test_a_bug_in_the_other_version_costs_only_that(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The live generation has the item, and the letter tells which version met the bug."""
    world.open(OTHER_EARS)
    world.put("a.wav", "animals/owl.wav")
    monkeypatch.setattr(world._encoders[OTHER_EARS], "encode_windows", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        world.settle("a.wav")
    world.give_up("a.wav")
    (letter,) = world.letters.latest(9)
    assert (letter.encoder, letter.reason) == (OTHER_EARS, "bug")
    assert "a.wav" in world.points(OLD)


def test_versions_come_and_go_with_the_document(world: World, eventually: Eventually) -> None:
    """A named version is loaded in the background; one that is not is let go of when unused."""
    thread = threading.Thread(target=world.versions.keep_loaded, daemon=True)
    thread.start()
    world.open(OTHER_EARS, load=False)
    with world.versions.lease() as lent:
        assert lent[OTHER_EARS] is None
    world.may_load.set()
    eventually(lambda: len(world.versions.loaded) == 2)
    with world.versions.lease() as lent:
        assert [*lent] == [OLD, OTHER_EARS]
        world.write(Rollout(live=OLD))
        world.versions.look()
        loaded = lent[OTHER_EARS]
        assert loaded
        assert loaded.device._thread.is_alive()
    eventually(lambda: len(world.versions.loaded) == 1)
    eventually(lambda: not loaded.device._thread.is_alive())
    assert world.loads == [OTHER_EARS]


def test_a_load_that_fails_is_tried_again(
    world: World, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registry that is away for a while, or anything else, only delays the other version."""
    monkeypatch.setattr("audiofuse.workers.indexing.versions.LOADING_AGAIN", BackOff(0.01, 0.01))
    errors = [Unavailable("the registry is away"), MemoryError("too large")]

    def load(version: str) -> Loaded:
        if errors:
            raise errors.pop()
        return world._equip(version)

    monkeypatch.setattr(world.versions, "_load", load)
    threading.Thread(target=world.versions.keep_loaded, daemon=True).start()
    world.open(OTHER_EARS, load=False)
    eventually(lambda: len(world.versions.loaded) == 2)


def test_the_roles_change_with_the_document(world: World) -> None:
    """After a promote the new version's verdict counts, and the old one is still written."""
    world.open(OTHER_EARS)
    rollout, tag = world.registry.rollout()
    assert rollout
    world.registry.write(rollout.promote("me"), tag)
    world.versions.look()
    assert world.versions.wanted == (OTHER_EARS, OLD)
    world.put("a.wav", "animals/owl.wav")
    world.settle("a.wav")
    assert "a.wav" in world.points(OLD)
    assert "a.wav" in world.points(OTHER_EARS)
    assert world.index.count(world.index.generation(OLD)) == 1
    assert world.points(OLD)["a.wav"].id == str(point_id("bucket", "a.wav"))
