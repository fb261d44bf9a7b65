"""A bucket, an index and dead letters, on which nothing works by itself."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from audiofuse.core.errors import Reason, Rejected
from audiofuse.core.index.index import Generation, Index, Point, connect_embedded
from audiofuse.core.items import moment_id, point_id, sidecar_keys
from audiofuse.core.model.config import Grid
from audiofuse.core.moments.stored import moments_named
from audiofuse.core.storage.store import FolderStore, Store
from audiofuse.workers.queue.dead_letters import DeadLetters
from audiofuse.workers.repair.comparison import compare

INDEX_NAME = "audiofuse"


@dataclass(frozen=True)
class Sizes:
    """The widths of vectors that nobody compares here."""

    dim: int = 2
    audio_dim: int = 2


class World:
    """A bucket folder, an index in memory, and dead letters; nothing works on them by itself."""

    def __init__(self, root: Path, redis: Redis) -> None:
        self.root = root
        self.store: Store = FolderStore(root)
        self.new = World
        self.index = Index(connect_embedded(), INDEX_NAME)
        self.generation: Generation | None = self.index.create("tiny-000000", Sizes(), Grid())
        self.sizes = Sizes()
        self.redis = redis
        self.letters = DeadLetters(redis, INDEX_NAME)
        self.ticks = 0

    def put(self, *keys: str) -> None:
        """Write objects, each with a modification time of its own."""
        for key in keys:
            path = self.root / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
            self.ticks += 1
            os.utime(path, (1e9 + self.ticks, 1e9 + self.ticks))

    def index_as_seen(self, *keys: str, duration_s: float = 5.0) -> None:
        """Write the points that syncing the keys would write, with their moments."""
        assert self.generation is not None
        points = []
        for key in keys:
            audio = self.store.head(key)
            assert audio is not None
            sidecar = next(filter(None, map(self.store.head, sidecar_keys(key))), None)
            payload: dict[str, Any] = {
                "bucket": self.store.bucket,
                "key": key,
                "etag": audio.etag,
                "sidecar_etag": sidecar.etag if sidecar else "",
                "modified": audio.modified_ms,
                "indexed_at": audio.modified_ms + 1000,
                "duration_s": duration_s,
            }
            count, state = moments_named(payload, Grid())
            payload |= {"moments": count, "moments_state": state}
            points.append(Point(str(point_id(self.store.bucket, key)), payload, (1, 0), (1, 0)))
            if count:
                self.write_moments(key, range(count), state)
        self.index.upsert(self.generation, points)

    def write_moments(self, key: str, numbers: Iterable[int], state: str) -> None:
        """Write moments of a key, whatever its point says."""
        assert self.generation is not None
        item = str(point_id(self.store.bucket, key))
        about = {"bucket": self.store.bucket, "key": key, "item": item, "state": state}
        self.index.upsert(
            self.generation.moments,
            [
                Point(moment_id(item, number), about | {"number": number}, (1, 0), (1, 0))
                for number in numbers
            ],
        )

    def reject(self, key: str, reason: Reason = Reason.SILENT) -> None:
        """Write the letter of an object that was rejected in its present state."""
        info = self.store.head(key)
        assert info is not None
        verdict = Rejected(reason, "a fault of the test")
        verdict.etag = info.etag
        self.letters.add(key, verdict)

    def delete(self, key: str) -> None:
        """Delete an object."""
        (self.root / key).unlink()

    def differences(self, prefix: str = "") -> list[str]:
        """Return what differs, sorted; each key must come once."""
        found = self.found(prefix)
        assert len(set(found)) == len(found)
        return sorted(found)

    def found(self, prefix: str = "") -> list[str]:
        """Return the keys of all that differs under a prefix, as they come."""
        with compare(self.store, self.index, self.generation, self.letters, prefix) as comparison:
            return list(comparison.keys())

    def counts(self) -> dict[str, int]:
        """Return how many sounds there are of each finding."""
        with compare(self.store, self.index, self.generation, self.letters) as comparison:
            return comparison.run.found


@pytest.fixture
def world(tmp_path: Path, redis: Redis) -> World:
    """Return a bucket of two sounds, one with words, and an index that agrees with it."""
    (tmp_path / "bucket").mkdir()
    world = World(tmp_path / "bucket", redis)
    world.put("owl.wav", "night/crow + 100%é.wav", "night/crow + 100%é.wav.json", "notes.txt")
    world.index_as_seen("owl.wav", "night/crow + 100%é.wav")
    return world
