"""Several encoder versions in one worker: every item into each, and what may go wrong with one."""

import copy
import json
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial
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
from audiofuse.core.index.index import Generation, Index, Point, connect_embedded
from audiofuse.core.items import point_id
from audiofuse.core.retrying import BackOff
from audiofuse.core.settings import Settings
from audiofuse.core.storage.store import FolderStore
from audiofuse.workers.indexing.collaborators import BucketSide, IndexSide, Limits
from audiofuse.workers.indexing.device.device import Device
from audiofuse.workers.indexing.stages import BatchedIndex
from audiofuse.workers.indexing.sync import Syncer
from audiofuse.workers.indexing.versions import (
    Drain,
    Loaded,
    MultiVersionSyncer,
    VersionDeadLetters,
    Versions,
)
from audiofuse.workers.queue.dead_letters import DeadLetters
from audiofuse.workers.queue.followers import Follower, Followers
from audiofuse.workers.queue.waiting import WaitingKeys
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
        followers = Followers(redis, "bucket")
        self.follower = Follower(Watch(self.registry), followers, "worker a:1")
        self.versions = Versions(self.follower, OLD)
        self.versions.put(self._equip(OLD))
        self.versions.look()
        self.waiting = WaitingKeys(redis, "bucket")
        self.drain = Drain(self.versions, self.waiting, self)  # type: ignore[arg-type]

    def put(self, key: str, source: str) -> None:
        """Write an object."""
        shutil.copy(SOUNDS / source, self.store.root / key)

    def settle(self, key: str, lane: Lane = Lane.LIVE) -> Outcome:
        """Work on a message."""
        return self._every(lane).sync(key).outcome

    def give_up(self, key: str) -> None:
        """Give a message up."""
        self._every(Lane.LIVE).give_up(key, Rejected(Reason.BUG, "a bug"))

    def _every(self, lane: Lane) -> MultiVersionSyncer:
        return MultiVersionSyncer(self.versions, lane, self.store, self.letters, self.waiting)

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
            self.load(version)

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

    def load(self, version: str) -> None:
        """Load a version now."""
        self.versions.put(self.equip(version))

    def equip(self, version: str) -> Loaded:
        """Load a version, once that may be."""
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

        index = IndexSide(
            points, generation, letters, partial(self.versions.stored_elsewhere, version, same)
        )
        bucket = BucketSide(self.store, Limits(60, 10**7), open_sound, pause=lambda _: None)
        syncers = {lane: Syncer(bucket, index, device.on(lane)) for lane in Lane}
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


def test_the_fingerprint_is_of_the_audio_tower_and_nothing_else(
    encoders: dict[str, Encoder],
) -> None:
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


def test_what_waits_for_an_encoder_is_kept_once_and_handed_over_when_it_is_loaded(
    world: World,
) -> None:
    """However often a key is told of meanwhile, it waits once, and no message goes round."""
    world.put("a.wav", "animals/owl.wav")
    world.open(OTHER_EARS, load=False)
    assert world.settle("a.wav") is Outcome.CREATED
    for lane in (*Lane, *Lane):
        assert world.settle("a.wav", lane) is Outcome.UNCHANGED
    assert world.waiting.count(OTHER_EARS) == 1
    world.drain.step()
    assert world.sent == []
    world.may_load.set()
    world.load(OTHER_EARS)
    world.drain.step()
    assert world.sent == [("a.wav", Lane.BACKFILL)]
    assert world.settle("a.wav", Lane.BACKFILL) is Outcome.UNCHANGED
    assert "a.wav" in world.points(OTHER_EARS)
    assert world.waiting.count(OTHER_EARS) == 0


def test_the_live_version_that_is_not_loaded_is_waited_for(world: World) -> None:
    """After a promote that a worker has not followed yet its messages are not lost."""
    world.write(Rollout(live=OLD).start(OTHER_EARS, "me").promote("me"))
    world.versions.look()
    world.put("a.wav", "animals/owl.wav")
    assert world.settle("a.wav") is Outcome.LATER
    assert world.waiting.count(OTHER_EARS) == 1
    assert "a.wav" in world.points(OLD)


def test_what_is_added_while_it_is_handed_over_waits_on(world: World) -> None:
    """A key that failed again before it was removed is not forgotten."""
    world.waiting.add(OLD, "a.wav")
    send = world.sync

    def send_and_fail(key: str, lane: Lane) -> None:
        send(key, lane)
        world.waiting.add(OLD, key)

    world.sync = send_and_fail  # type: ignore[method-assign]
    world.drain.step()
    assert world.sent == [("a.wav", Lane.BACKFILL)]
    assert world.waiting.count(OLD) == 1


def test_a_version_that_still_fails_is_tried_with_one_key_at_a_time(world: World) -> None:
    """What waits for it does not fill the lane; once it works, more and more are handed over."""
    for number in range(40):
        world.waiting.add(OLD, f"{number}.wav")
    handed_over = []
    for fails in (True, True, True, False, False, False):
        before = len(world.sent)
        world.drain.step()
        handed_over.append(len(world.sent) - before)
        if fails:
            for key, _ in world.sent[before:]:
                world.waiting.add(OLD, key)
    assert handed_over[1:] == [1, 1, 1, 2, 4]


def test_a_dropped_generation_is_no_error(world: World) -> None:
    """Written into what was dropped meanwhile, an item is in the live version, and that is all."""
    world.open(OTHER_EARS)
    world.write(Rollout(live=OLD).start(OTHER_EARS, "me").abort("me"))
    world.index.drop(world.index.generation(OTHER_EARS))
    world.put("a.wav", "animals/owl.wav")
    assert world.settle("a.wav") is Outcome.CREATED
    world.versions.look()
    assert world.versions.wanted == (OLD,)
    world.drain.step()
    assert world.sent == []


@pytest.mark.parametrize("fault", ["gone", "away", "bug"])
def test_a_candidate_never_holds_the_live_version(
    world: World, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Whatever the candidate fails at, the live version's message is settled; its key waits."""
    world.open(OTHER_EARS)
    candidate = world.index.generation(OTHER_EARS)
    upsert = world.index.upsert

    def refuse(generation: Generation, points: Iterable[Point]) -> None:
        if generation == candidate:
            raise {"away": Unavailable("away"), "bug": KeyError("oops")}[fault]
        upsert(generation, points)

    if fault == "gone":
        world.index.drop(candidate)
    else:
        monkeypatch.setattr(world.index, "upsert", refuse)
    world.put("a.wav", "animals/owl.wav")
    assert world.settle("a.wav") is Outcome.CREATED
    assert world.waiting.count(OTHER_EARS) == 1
    assert world.letters.count() == 0
    monkeypatch.undo()
    world.index.create(OTHER_EARS, world._encoders[OTHER_EARS])
    world.drain.step()
    ((key, lane),) = world.sent
    world.settle(key, lane)
    assert "a.wav" in world.points(OTHER_EARS)


def test_a_bug_of_the_candidate_costs_one_object_only_that(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Met three times it is the object's letter, of the version that met it; so a backfill ends."""
    world.open(OTHER_EARS)
    world.put("a.wav", "animals/owl.wav")
    monkeypatch.setattr(world._encoders[OTHER_EARS], "encode_windows", lambda _: 1 / 0)
    every = world._every(Lane.BACKFILL)
    for _ in range(3):
        assert world.letters.count() == 0
        every.sync("a.wav")
    (letter,) = world.letters.latest(9)
    assert (letter.encoder, letter.reason) == (OTHER_EARS, "bug")
    assert "a.wav" in world.points(OLD)


def test_a_bug_that_every_object_meets_costs_none(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A candidate at which everything fails alike is an outage: the keys wait, without letters."""
    world.open(OTHER_EARS)
    monkeypatch.setattr(world._encoders[OTHER_EARS], "encode_windows", lambda _: 1 / 0)
    keys = [f"{number}.wav" for number in range(6)]
    every = world._every(Lane.LIVE)
    for key in keys:
        world.put(key, "animals/owl.wav")
    for _ in range(3):
        for key in keys:
            every.sync(key)
    assert world.letters.count() == 0
    assert world.waiting.count(OTHER_EARS) == 6


def test_a_worker_that_cannot_read_the_document_settles_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others may have promoted meanwhile: what it acknowledged would be missing in what is live."""
    world.put("a.wav", "animals/owl.wav")
    monkeypatch.setattr("audiofuse.workers.queue.followers.LEASE_S", -1.0)
    with pytest.raises(Unavailable, match="could not be read"):
        world.settle("a.wav")
    assert world.points(OLD) == {}


def test_what_was_worked_on_while_the_lease_ended_is_not_settled(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long decoding may outlast the lease: the message is tried again once it is read."""
    world.put("a.wav", "animals/owl.wav")
    upsert = world.index.upsert

    def write_while_the_lease_ends(*arguments: Any) -> None:
        upsert(*arguments)
        monkeypatch.setattr("audiofuse.workers.queue.followers.LEASE_S", -1.0)

    monkeypatch.setattr(world.index, "upsert", write_while_the_lease_ends)
    with pytest.raises(Unavailable, match="could not be read"):
        world.settle("a.wav")
    monkeypatch.setattr("audiofuse.workers.queue.followers.LEASE_S", 10.0)
    world.versions.look()
    assert world.settle("a.wav") is Outcome.UNCHANGED


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


def test_what_is_given_up_in_the_live_version_is_still_tried_in_the_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The letter is that of the version that met the bug, and only that one lacks the item."""
    world.open(OTHER_EARS)
    world.put("a.wav", "animals/owl.wav")
    monkeypatch.setattr(world._encoders[OLD], "encode_windows", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        world.settle("a.wav")
    world.give_up("a.wav")
    (letter,) = world.letters.latest(9)
    assert (letter.encoder, letter.reason) == (OLD, "bug")
    assert world.points(OLD) == {}
    assert "a.wav" in world.points(OTHER_EARS)


def test_versions_come_and_go_with_the_document(world: World, eventually: Eventually) -> None:
    """A named version is loaded in the background; one that is not is let go of when unused."""
    loading = partial(world.versions.keep_loaded, world.equip)
    thread = threading.Thread(target=loading, daemon=True)
    thread.start()
    world.open(OTHER_EARS, load=False)
    with world.versions.lease() as leased:
        assert leased[OTHER_EARS] is None
    world.may_load.set()
    eventually(lambda: len(world.versions.loaded) == 2)
    with world.versions.lease() as leased:
        assert [*leased] == [OLD, OTHER_EARS]
        world.write(Rollout(live=OLD))
        world.versions.look()
        loaded = leased[OTHER_EARS]
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

    threading.Thread(target=partial(world.versions.keep_loaded, load), daemon=True).start()
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
