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
from audiofuse.core.model.config import Grid
from audiofuse.core.storage.store import FolderStore
from audiofuse.workers.indexing.items import sync
from audiofuse.workers.indexing.items.collaborators import BucketSide, IndexSide, Limits
from audiofuse.workers.indexing.items.sync import Syncer
from audiofuse.workers.queue.dead_letters import DeadLetters

GRID = Grid()


class World:
    """A bucket folder, an index in memory, letters, and the syncer between them."""

    def __init__(self, root: Path, encoder: Encoder, redis: Redis) -> None:
        self.root = root
        self.encoder = encoder
        self.index = Index(connect_embedded(), "audiofuse")
        self.generation: Generation = self.index.create("tiny-000000", encoder, GRID)
        limits = Limits(duration_s=60, object_bytes=10_000_000)
        self.letters = DeadLetters(redis, root.name)
        self.pauses: list[float] = []
        self.syncer = Syncer(
            BucketSide(FolderStore(root), limits, pause=self._pause),
            IndexSide(self.index, self.generation, self.letters, grid=GRID),
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

    def moments(self, key: str) -> dict[int, str]:
        """Return the states of a key's moments, whether they are shown or not, by number."""
        id_ = str(point_id(self.root.name, key))
        found = self.index.scroll(self.generation.moments, ["item", "number", "state"])
        mine = [point.payload for point in found if point.payload["item"] == id_]
        return {each["number"]: each["state"] for each in mine}

    def shown(self, key: str) -> list[int]:
        """Return the numbers of the moments that the item's point names and that are there."""
        payload = self.payload(key) or {"moments": 0, "moments_state": ""}
        there = self.moments(key).items()
        return sorted(n for n, state in there if state == payload["moments_state"])

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
