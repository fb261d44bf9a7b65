"""The exporter: what it tells of queue, index and rollout, and that it waits for nobody."""

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest
from fastapi import FastAPI
from prometheus_client import Metric
from pydantic import SecretStr
from redis import Redis

from audiofuse.core.bundles.document import Rollout
from audiofuse.core.bundles.registry import Registry, open_registry
from audiofuse.core.errors import Unavailable
from audiofuse.core.evaluation.scorecards import MAP, Figure, Score, open_scorecards
from audiofuse.core.index.embedded import create_app
from audiofuse.core.index.engine import Engine
from audiofuse.core.index.index import Index, Point, open_index
from audiofuse.core.items import point_id
from audiofuse.core.settings import Settings
from audiofuse.workers.deployment.exporter import Deployment, Exporter, Part
from audiofuse.workers.queue.broker import Dispatcher
from audiofuse.workers.queue.lanes import Backlog, Lanes
from audiofuse.workers.telemetry.names import Lane

Serving = Callable[[FastAPI], AbstractContextManager[str]]
Told = dict[tuple[str, ...], float]


@dataclass(frozen=True)
class Sizes:
    """Vectors as short as can be."""

    dim: int = 2
    audio_dim: int = 2


@pytest.fixture
def settings(
    redis: Redis, valkey_url: str, serving: Serving, engine: Engine, tmp_path: Path
) -> Iterator[Settings]:
    """Return settings of a deployment with an empty bucket, queue and index."""
    del redis
    (tmp_path / "bucket").mkdir()
    key = "a key of the test"
    with serving(create_app(engine, key)) as url:
        yield Settings(
            home=tmp_path / "home", bucket=str(tmp_path / "bucket"),
            broker_url=SecretStr(valkey_url), qdrant_url=url, qdrant_api_key=SecretStr(key),
        )  # fmt: skip


def _told(metrics: Iterable[Metric]) -> dict[str, Told]:
    """Return the values of each metric, by its labels' values."""
    return {
        metric.name: {tuple(each.labels.values()): each.value for each in metric.samples}
        for metric in metrics
    }


def _fill(index: Index, version: str, count: int) -> None:
    generation = index.create(version, Sizes())
    points = [
        Point(
            str(point_id("bucket", f"{number}.wav")), {"has_text": "no" if number == 0 else "yes"},
            item=[1.0, 0.0], audio=[1.0, 0.0],
        )
        for number in range(count)
    ]  # fmt: skip
    index.upsert(generation, points)


def _write(registry: Registry, step: Callable[[Rollout | None], Rollout]) -> None:
    rollout, tag = registry.rollout()
    registry.write(step(rollout), tag)


def test_the_versions_of_a_rollout_have_their_roles(settings: Settings) -> None:
    """A candidate is covered as far as it has the live one's items, and swaps roles with it."""
    index, registry = open_index(settings), open_registry(settings)
    _fill(index, "old-1", 4)
    _write(registry, lambda _: Rollout(live="old-1").start("new-2", "me"))
    deployment = Deployment(settings)
    phases = _told(deployment.registry())
    assert phases["audiofuse_rollout_phase"][("building",)] == 1
    assert sum(phases["audiofuse_rollout_phase"].values()) == 1
    assert phases["audiofuse_version_info"] == {("old-1", "live"): 1, ("new-2", "candidate"): 1}
    step = phases["audiofuse_rollout_step_timestamp_seconds"][()]
    assert abs(step - time.time()) < 60
    assert _told(deployment.index())["audiofuse_items"] == {("old-1", "live"): 4}  # not made yet
    _fill(index, "new-2", 3)
    told = _told(deployment.index())
    assert told["audiofuse_items"] == {("old-1", "live"): 4, ("new-2", "candidate"): 3}
    assert told["audiofuse_items_without_text"][("new-2", "candidate")] == 1
    assert told["audiofuse_coverage_ratio"] == {
        ("old-1", "live"): 1,
        ("new-2", "candidate"): 0.75,
    }
    assert told["audiofuse_index_optimised"][("old-1", "live")] == 1
    _write(registry, lambda rollout: rollout.promote("me"))  # type: ignore[union-attr]
    index.promote(index.generation("new-2"))
    versions = _told(deployment.registry())["audiofuse_version_info"]
    assert versions == {("new-2", "live"): 1, ("old-1", "previous"): 1}
    told = _told(deployment.index())
    assert told["audiofuse_coverage_ratio"][("new-2", "live")] == 0.75


def test_versions_of_a_rollout_tell_what_both_were_asked(settings: Settings) -> None:
    """A score of the live one alone says nothing beside the candidate's, and is not told."""
    cards, registry = open_scorecards(settings), open_registry(settings)
    _write(registry, lambda _: Rollout(live="old-1").start("new-2", "me"))
    deployment = Deployment(settings)
    assert _told(deployment.registry())["audiofuse_quality_ratio"] == {}

    def score(data: str, value: float) -> Score:
        figures = {"hybrid": {MAP: Figure(value=value, low=0.1, high=0.9)}}
        return Score(asked="val", data=data, queries=9, sounds=8, figures=figures)

    cards.add("old-1", [score("both", 0.5), score("alone", 0.6)])
    cards.add("new-2", [score("both", 0.7)])
    told = _told(deployment.registry())["audiofuse_quality_ratio"]
    assert {labels: value for labels, value in told.items() if labels[-1] == "value"} == {
        ("old-1", "live", "hybrid", "value"): 0.5,
        ("new-2", "candidate", "hybrid", "value"): 0.7,
    }
    assert told["new-2", "candidate", "hybrid", "low"] == 0.1


def test_the_brokers_memory_is_told_and_its_limit_where_it_has_one(
    settings: Settings, redis: Redis
) -> None:
    """A broker may hold as much as there is unless it is told a limit."""
    deployment = Deployment(settings)
    told = _told(deployment.queue())
    assert told["audiofuse_broker_memory_used_bytes"][()] > 0
    assert told["audiofuse_broker_memory_limit_bytes"] == {}
    redis.config_set("maxmemory", 10**9)
    try:
        told = _told(deployment.queue())
        assert told["audiofuse_broker_memory_limit_bytes"] == {(): 10**9}
    finally:
        redis.config_set("maxmemory", 0)


def test_items_are_counted_by_bucket(settings: Settings, tmp_path: Path) -> None:
    """Of several buckets each has its own, also one without any; nothing before the first item."""
    listed = [{"name": name, "address": str(tmp_path)} for name in ("field", "studio", "new")]
    several = settings.model_copy(update={"bucket": "", "buckets": SecretStr(json.dumps(listed))})
    deployment, index = Deployment(several), open_index(settings)
    assert _told(deployment.index())["audiofuse_bucket_items"] == {}
    generation = index.create("old-1", Sizes())
    keys = ("field/a.wav", "field/b.wav", "studio/a.wav")
    index.upsert(
        generation,
        [
            Point(
                str(point_id(*key.split("/"))), {"bucket": key.split("/")[0], "key": key},
                item=[1.0, 0.0], audio=[1.0, 0.0],
            )
            for key in keys
        ],
    )  # fmt: skip
    told = _told(deployment.index())["audiofuse_bucket_items"]
    assert told == {("field",): 2, ("studio",): 1, ("new",): 0}


def test_nothing_is_said_of_what_is_not_there_yet(settings: Settings) -> None:
    """Before the first item there are no items to count, no coverage, and no comparison."""
    deployment = Deployment(settings)
    index, queue = _told(deployment.index()), _told(deployment.queue())
    assert index["audiofuse_items"] == {}
    assert "audiofuse_coverage_ratio" not in index
    assert "audiofuse_reconcile_items" not in queue
    assert set(queue["audiofuse_dead_letters"].values()) == {0}
    assert "audiofuse_version_info" not in _told(deployment.registry())


def test_a_backlog_is_counted_by_lane_with_the_age_of_its_oldest(
    redis: Redis, dispatcher: Dispatcher
) -> None:
    """Messages that wait and that workers hold both count, and the oldest of them is as old."""
    empty = Backlog(0, 0, 0.0)
    lanes = Lanes(redis, "audiofuse")
    assert lanes.backlogs() == dict.fromkeys(Lane, empty)
    for key in ("a.wav", "b.wav"):
        dispatcher.sync(key, Lane.LIVE)
    dispatcher.sync("c.wav", Lane.BACKFILL)
    redis.rpop("audiofuse:live")
    redis.zadd("audiofuse:held:live", {"tag": time.time() - 100})
    found = lanes.backlogs()
    assert (found[Lane.LIVE].ready, found[Lane.LIVE].unacknowledged) == (1, 1)
    assert found[Lane.LIVE].oldest_s == pytest.approx(100, abs=20)
    assert found[Lane.BACKFILL].ready == 1
    assert found[Lane.BACKFILL].oldest_s < 20


def test_a_part_that_hangs_holds_up_no_other() -> None:
    """What hangs, refuses or meets a bug is down; the rest is told in time, by no more threads."""
    go_on = threading.Event()

    def hang() -> list[Metric]:
        go_on.wait(30)
        return []

    def refuse() -> list[Metric]:
        raise Unavailable("not now")

    def stumble() -> list[Metric]:
        raise ValueError("a bug")

    exporter = Exporter(
        {Part.QUEUE: list, Part.INDEX: hang, Part.STORE: refuse, Part.REGISTRY: stumble}, 0.2
    )
    try:
        for _ in range(3):
            started = time.monotonic()
            up = _told(exporter.collect())["audiofuse_up"]
            assert time.monotonic() - started < 5
            assert up == {("queue",): 1, ("index",): 0, ("store",): 0, ("registry",): 0}
        waiting = [each for each in threading.enumerate() if each.name == Part.INDEX]
        assert len(waiting) == 1
    finally:
        go_on.set()
    time.sleep(0.1)
    assert _told(exporter.collect())["audiofuse_up"][("index",)] == 1
