"""A bucket folder, an index in memory, and the syncer between them."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from local_encoder import LocalEncoder
from redis import Redis

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import Reason
from audiofuse.core.index.index import Generation, Index, connect_embedded
from audiofuse.core.items import point_id
from audiofuse.core.storage.store import FolderStore
from audiofuse.workers.indexing import sync
from audiofuse.workers.indexing.collaborators import BucketSide, IndexSide, Limits
from audiofuse.workers.indexing.sync import Syncer
from audiofuse.workers.queue.dead_letters import DeadLetters


class World:
    """A bucket folder, an index in memory, letters, and the syncer between them."""

    def __init__(self, root: Path, encoder: Encoder, redis: Redis) -> None:
        self.root = root
        self.encoder = encoder
        self.index = Index(connect_embedded(), "audiofuse")
        self.generation: Generation = self.index.create("tiny-000000", encoder)
        limits = Limits(duration_s=60, object_bytes=10_000_000)
        self.letters = DeadLetters(redis, root.name)
        self.pauses: list[float] = []
        self.syncer = Syncer(
            BucketSide(FolderStore(root), limits, pause=self._pause),
            IndexSide(self.index, self.generation, self.letters),
            LocalEncoder(encoder),
        )
        self.ticks = 0
        self.wait: Callable[[float], object] = self.pauses.append

    def _pause(self, seconds: float) -> object:
        return self.wait(seconds)

    def put(self, key: str, source: Path | bytes) -> None:
        """Write an object in one step, with a modification time of its own."""
        path, partial = self.root / key, self.root.with_suffix(".partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(source if isinstance(source, bytes) else source.read_bytes())
        self.ticks += 1
        os.utime(partial, (1e9 + self.ticks, 1e9 + self.ticks))
        partial.replace(path)

    def payload(self, key: str) -> dict[str, object] | None:
        """Return what the index holds of a key."""
        id_ = str(point_id(self.root.name, key))
        point = self.index.get(self.generation, [id_]).get(id_)
        return dict(point.payload) if point else None

    def verdicts(self) -> dict[str, Reason]:
        """Return what is recorded as wrong, by key."""
        return {letter.key: letter.reason for letter in self.letters.latest(10)}


@pytest.fixture
def world(
    tmp_path: Path, tiny_encoder: Encoder, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> World:
    """Return an empty world in which bursts are not waited for."""
    monkeypatch.setattr(sync, "BURST_S", 0.0)
    root = tmp_path / "bucket"
    root.mkdir()
    return World(root, tiny_encoder, redis)
