"""A deployment with two published encoders, of which one is live, and workers in a thread."""

import base64
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import cache, partial
from pathlib import Path

import pytest
from fastapi import FastAPI
from local_encoder import LocalEncoder
from pydantic import SecretStr
from redis import Redis

from audiofuse.core.bundles.bundle import load_bundle, save_bundle
from audiofuse.core.bundles.registry import Registry, open_registry
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import Reason, Rejected
from audiofuse.core.index import embedded
from audiofuse.core.index.engine import Engine
from audiofuse.core.index.index import open_index
from audiofuse.core.settings import Settings
from audiofuse.core.storage.store import open_store
from audiofuse.workers.indexing.items.collaborators import BucketSide, IndexSide, Limits
from audiofuse.workers.indexing.items.sync import Syncer
from audiofuse.workers.queue.dead_letters import DeadLetters
from audiofuse.workers.rollout.operator import Operator

SOUNDS = Path(__file__).parents[3] / "examples" / "sounds"
KEYS = ("owl.wav", "duck-quack.wav", "dog-bark.wav", "cowbell.flac", "door-close.mp3", "bell.opus")

Serving = Callable[[FastAPI], AbstractContextManager[str]]


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look again at once."""
    monkeypatch.setattr("audiofuse.workers.repair.agreement.FOLLOW_S", 0.5)
    monkeypatch.setattr("audiofuse.workers.repair.agreement.LOOK_S", 0.05)
    monkeypatch.setattr("audiofuse.workers.repair.backfill.POLL_S", 0.0)
    monkeypatch.setattr("audiofuse.workers.repair.feed.POLL_S", 0.05)
    monkeypatch.setattr("audiofuse.workers.rollout.following.LOOK_S", 0.01)
    monkeypatch.setattr("audiofuse.workers.rollout.following.FOLLOWED_S", 0.05)


@pytest.fixture
def settings(
    redis: Redis, valkey_url: str, serving: Serving, engine: Engine, tmp_path: Path
) -> Iterator[Settings]:
    """Return settings of a deployment with some sounds and an empty index."""
    del redis
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    for path in (path for path in SOUNDS.rglob("*") if path.name in KEYS):
        shutil.copy(path, bucket)
    key = "a key of the test"
    with serving(embedded.create_app(engine, key)) as url:
        yield Settings(
            home=tmp_path / "home",
            bucket=str(bucket),
            broker_url=SecretStr(valkey_url),
            qdrant_url=url,
            qdrant_api_key=SecretStr(key),
        )


@pytest.fixture
def registry(settings: Settings) -> Registry:
    """Return the deployment's registry."""
    return open_registry(settings)


@pytest.fixture(scope="module")
def bundles(tiny_encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return the bundles of two encoders of the same shape."""
    folder = tmp_path_factory.mktemp("made")
    encoders = (tiny_encoder, Encoder.random(tiny_encoder.config, seed=1))
    return [save_bundle(encoder, folder, "tiny", "") for encoder in encoders]


@pytest.fixture
def versions(settings: Settings, registry: Registry, bundles: list[Path]) -> tuple[str, str]:
    """Return two published versions, of which the first is live, with every sound in it."""
    live, candidate = (registry.publish(bundle) for bundle in bundles)
    open_index(settings).create(live, load_bundle(bundles[0]))
    syncer = _syncer(settings, live)
    for key in KEYS:
        syncer.sync(key)
    return live, candidate


def _syncer(settings: Settings, version: str) -> Syncer:
    index, store = open_index(settings), open_store(settings)
    redis = Redis.from_url(_broker(settings), decode_responses=True)
    return Syncer(
        BucketSide(store, Limits(60, 10**7)),
        IndexSide(
            index,
            index.generation(version),
            letters=DeadLetters(redis, settings.index_name, version),
        ),
        LocalEncoder(_encoder(settings.home / "encoders" / version)),
    )


@cache
def _encoder(bundle: Path) -> Encoder:
    return load_bundle(bundle)


def _broker(settings: Settings) -> str:
    return settings.broker_url.get_secret_value()


class Workers:
    """Takes keys from both lanes and syncs them into each version that the document names."""

    def __init__(self, settings: Settings) -> None:
        """Work in a thread until stopped."""
        self.taken: list[str] = []
        self._settings = settings
        self._registry = open_registry(settings)
        self._redis = Redis.from_url(_broker(settings), decode_responses=True)
        self._syncers: dict[str, Syncer] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        """End, and say what went wrong, if anything did."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            message = self._redis.rpop("audiofuse:live") or self._redis.rpop("audiofuse:backfill")
            if message is None:
                time.sleep(0.01)
                continue
            key = json.loads(base64.b64decode(json.loads(message)["body"]))[1]["key"]
            rollout, _ = self._registry.rollout()
            assert rollout
            for version in rollout.versions:
                self._syncer(version).sync(key)
            self.taken.append(key)

    def _syncer(self, version: str) -> Syncer:
        if version not in self._syncers:
            self._syncers[version] = _syncer(self._settings, version)
        return self._syncers[version]


@pytest.fixture
def workers(settings: Settings) -> Iterator[Workers]:
    """Run workers."""
    running = Workers(settings)
    yield running
    running.stop()


@pytest.fixture
def start(settings: Settings) -> Callable[[str], Operator]:
    """Return what starts the rollout of a version."""

    def command(version: str) -> Operator:
        operator = Operator(settings)
        folder = operator.registry.fetch(version)
        operator.start(version, lambda: load_bundle(folder))
        return operator

    return command


@pytest.fixture
def syncer_of(settings: Settings) -> Callable[[str], Syncer]:
    """Return what makes a syncer for a version."""
    return partial(_syncer, settings)


@pytest.fixture
def reject() -> Callable[[DeadLetters, str, str], None]:
    """Return what rejects an object in the state of an etag."""
    return _reject


def _reject(letters: DeadLetters, key: str, etag: str) -> None:
    verdict = Rejected(Reason.NOT_FINITE, "a fault of the test")
    verdict.etag = etag
    letters.add(key, verdict)
