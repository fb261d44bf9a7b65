"""Buckets of any size, on S3 and while they change, are compared in whole."""

import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from local_encoder import LocalEncoder

from audiofuse.core.index.index import SCROLL_PAGE, Generation, Point
from audiofuse.core.items import ObjectInfo
from audiofuse.core.model.config import Grid
from audiofuse.core.query import Filter
from audiofuse.core.settings import Settings
from audiofuse.core.storage.boto import s3_client
from audiofuse.core.storage.objects import OneBucket
from audiofuse.core.storage.store import open_store
from audiofuse.workers.repair.comparison import BATCH, compare
from audiofuse.workers.repair.findings import DIFFERENT

World = Any  # see conftest.py
SOUNDS = Path(__file__).parents[3] / "examples" / "sounds"


def test_large_buckets_are_compared_in_whole(world: World) -> None:
    """More objects, points and letters than one answer holds are all seen."""
    rejected = [f"rejected/{number}.wav" for number in range(BATCH + 1)]
    indexed = [f"indexed/{number}.wav" for number in range(SCROLL_PAGE + 1)]
    world.put(*rejected, *indexed, "one/new.wav")
    world.index_as_seen(*indexed)
    for key in rejected:
        world.reject(key)
    assert world.differences() == ["one/new.wav"]
    world.put("indexed/99.wav", "rejected/99.wav")  # the last of each
    assert world.differences() == ["indexed/99.wav", "one/new.wav", "rejected/99.wav"]


def test_changes_on_the_way_are_at_worst_named_in_vain(
    world: World, tiny_encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Objects that came, or that the bucket forgot to list, keep their points: sync looks again."""
    from audiofuse.workers.indexing.items.collaborators import BucketSide, IndexSide, Limits
    from audiofuse.workers.indexing.items.sync import Syncer
    from audiofuse.workers.telemetry.names import Outcome

    generation = world.generation = world.index.create("tiny-111111", tiny_encoder)
    limits = Limits(duration_s=60, object_bytes=10_000_000)
    syncer = Syncer(
        BucketSide(world.store, limits),
        IndexSide(world.index, generation),
        LocalEncoder(tiny_encoder),
    )
    for key in ("owl.wav", "night/crow + 100%é.wav"):
        (world.root / key).write_bytes((SOUNDS / "animals" / "owl.wav").read_bytes())
    syncer.sync("owl.wav")

    def listing(_: str) -> Iterator[ObjectInfo]:
        syncer.sync("night/crow + 100%é.wav")
        return iter(())

    monkeypatch.setattr(world.store, "list", listing)
    named = world.found()
    assert sorted(named) == ["night/crow + 100%é.wav", "owl.wav"]
    assert [syncer.sync(key).outcome for key in named] == [Outcome.UNCHANGED] * 2
    assert world.index.count(generation) == 2


def test_s3_and_index_are_compared(world: World, aws_settings: Settings) -> None:
    """A bucket behind S3, which lists by the bytes of keys, is compared as a folder is."""
    client, bucket = s3_client(aws_settings), aws_settings.bucket.removeprefix("s3://")
    world.store = open_store(aws_settings)
    keys = ["a.wav", "a/b.wav", "a-.wav", "ä.wav", "z z+%.wav", "😀.wav", "\uffee.wav", "A//b.wav"]
    for key in [*keys, "a.wav.json", "a-.json", "ä.json", "ä.wav.json"]:
        client.put_object(Bucket=bucket, Key=key, Body=key.encode())
    assert world.differences() == sorted(keys)
    world.index_as_seen(*keys)
    assert world.differences() == []
    client.put_object(Bucket=bucket, Key="a-.json", Body=b"other words")
    client.put_object(Bucket=bucket, Key="ä.json", Body=b"behind the one that wins")
    client.delete_object(Bucket=bucket, Key="😀.wav")
    client.delete_object(Bucket=bucket, Key="a.wav.json")
    assert world.differences() == ["a-.wav", "a.wav", "😀.wav"]


def test_memory_does_not_grow_with_the_bucket(world: World) -> None:
    """Five times as many objects and points take no more of Python's memory."""

    class Many(OneBucket):
        bucket = "bucket"

        def __init__(self, count: int) -> None:
            self.number = count

        def list(self, _: str) -> Iterator[ObjectInfo]:
            return (ObjectInfo(f"{n:09}.wav", "e1", 1, 1) for n in range(self.number))

        def grid(self, _: Generation) -> Grid:
            return Grid()

        def count(self, _: Generation, _where: Filter) -> int:
            return self.number

        def scroll(self, of: Generation, fields: Sequence[str], _where: Filter) -> Iterator[Point]:
            names = (f"{n:09}.wav" for n in range(1, 2 * self.number, 2))  # every other one is gone
            if of == generation.moments:
                return (Point("", {"key": n, "state": "s"}) for n in names for _ in range(2))
            short = {"duration_s": 5.0, "moments": 0, "moments_state": "", "indexed_at": 1}
            values = dict.fromkeys(fields, "bucket") | {"etag": "e1", "modified": 1} | short
            return (Point("", values | {"key": name}) for name in names)

    def peak(count: int) -> int:
        many: Any = Many(count)
        tracemalloc.start()
        with compare(many, many, world.generation, world.letters) as comparison:
            assert sum(1 for _ in comparison.keys(*DIFFERENT)) == 3 * count // 2
        reached = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return reached

    generation = world.generation
    assert peak(10_000) < 1.2 * peak(2_000)
