"""A bucket, an index and a worker's versions."""

import copy
import shutil
import threading
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest
from local_encoder import LocalEncoder
from redis import Redis

from audiofuse.core.audio.recording import open_recording
from audiofuse.core.audio.windows import OpenSound
from audiofuse.core.bundles.document import Rollout
from audiofuse.core.bundles.registry import Watch, open_registry
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import Reason, Rejected
from audiofuse.core.index.index import Index, Point, connect_embedded
from audiofuse.core.settings import Settings
from audiofuse.core.storage.store import FolderStore
from audiofuse.workers.indexing.items.collaborators import BucketSide, IndexSide, Limits
from audiofuse.workers.indexing.items.sync import Syncer
from audiofuse.workers.indexing.stages import BatchedIndex
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

OLD, SAME_EARS, OTHER_EARS = "old-000000", "same-111111", "other-222222"

_EARS = {OLD: "same", SAME_EARS: "same", OTHER_EARS: "other"}  # their audio fingerprints

SOUNDS = Path(__file__).parents[4] / "examples" / "sounds"


class World:
    """A bucket, an index and a worker's versions, with three encoders to choose from."""

    def __init__(self, root: Path, redis: Redis, encoders: dict[str, Encoder]) -> None:
        (root / "bucket").mkdir()
        self.store = FolderStore(root / "bucket")
        self.index = Index(connect_embedded(), "audiofuse")
        self.registry = open_registry(Settings(home=root / "home"))
        self.letters = DeadLetters(redis, "audiofuse")
        self.sent: list[tuple[str, Lane]] = []
        self.decoded: list[str] = []
        self.loads: list[str] = []
        self.let_go: list[str] = []
        self.may_load = threading.Event()
        self._redis = redis
        self._encoders = encoders
        self.index.create(OLD, encoders[OLD])
        followers = Followers(redis, "audiofuse")
        self.follower = Follower(Watch(self.registry), followers, "worker a:1")
        self.versions = Versions(self.follower, OLD)
        self.versions.put(self._equip(OLD))
        self.versions.look()
        self.waiting = WaitingKeys(redis, "audiofuse")
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
        generation, same = self.index.generation(version), _EARS[version]
        points = BatchedIndex(self.index, generation)
        letters = VersionDeadLetters(
            DeadLetters(self._redis, "audiofuse", version),
            version,
            lambda: self.versions.wanted[0] == version,
        )

        def open_sound(_: str, path: Path, limit_s: float) -> AbstractContextManager[OpenSound]:
            self.decoded.append(version)
            return open_recording(path, limit_s)

        index = IndexSide(
            points, generation, letters, partial(self.versions.stored_elsewhere, version, same)
        )
        bucket = BucketSide(self.store, Limits(60, 10**7), open_sound, pause=lambda _: None)
        syncers = {lane: Syncer(bucket, index, LocalEncoder(encoder)) for lane in Lane}
        make = partial(self.index.create, version, encoder)
        let_go = partial(self.let_go.append, version)
        return Loaded(generation, same, points, syncers, make, let_go)


@pytest.fixture(scope="module")
def encoders(tiny_encoder: Encoder) -> dict[str, Encoder]:
    """Return three encoders, of which two have the same ears and other words."""
    other = Encoder.random(tiny_encoder.config, seed=1)
    same = copy.deepcopy(other)
    same.model.audio_tower.load_state_dict(tiny_encoder.model.audio_tower.state_dict())
    return {OLD: tiny_encoder, SAME_EARS: same, OTHER_EARS: other}


@pytest.fixture
def world(
    tmp_path: Path, redis: Redis, encoders: dict[str, Encoder], monkeypatch: pytest.MonkeyPatch
) -> World:
    """Return a world with the old version live, which does not wait for bursts to end."""
    monkeypatch.setattr("audiofuse.workers.indexing.items.sync.BURST_S", 0.0)
    return World(tmp_path, redis, encoders)
