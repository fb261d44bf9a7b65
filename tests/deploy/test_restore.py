"""Backup and restore: what lies in S3 alone rebuilds queue, index and search."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from bundles import saved_bundle
from local_encoder import LocalEncoder
from pydantic import SecretStr
from redis import Redis

from audiofuse.core.bundles.document import Rollout
from audiofuse.core.bundles.registry import open_registry
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import Rejected
from audiofuse.core.index.index import Index, Point, connect_embedded, open_index
from audiofuse.core.items import is_audio
from audiofuse.core.settings import Settings
from audiofuse.core.storage.boto import s3_client
from audiofuse.core.storage.store import open_store
from audiofuse.workers.deployment.local import LocalDeployment, free_port
from audiofuse.workers.indexing.items.collaborators import BucketSide, IndexSide, Limits
from audiofuse.workers.indexing.items.sync import Syncer
from audiofuse.workers.queue.broker import connect_redis, open_lanes
from audiofuse.workers.queue.dead_letters import DeadLetters

Eventually = Callable[..., Any]
SOUNDS = Path(__file__).parents[2] / "examples" / "sounds"
CONTENT = {
    "owl.wav": (SOUNDS / "animals/owl.wav").read_bytes(),
    "owl.wav.json": b'{"title": "Tawny owl", "keywords": ["night"], "recorder": {"take": 3}}',
    "a/crow.flac": (SOUNDS / "animals/crow.flac").read_bytes(),
    "a/caf\u00e9 100%.opus": (SOUNDS / "water/bubbles.opus").read_bytes(),
    "bell.ogg": (SOUNDS / "music/gong.ogg").read_bytes(),
    "bell.json": b'{"title": 5}',
    "empty.wav": b"",
}
FOUND = {"owl.wav", "a/crow.flac", "a/caf\u00e9 100%.opus", "bell.ogg"}


@pytest.fixture
def in_s3(aws_settings: Settings, tiny_encoder: Encoder, tmp_path: Path) -> Settings:
    """Return settings of a bucket with sounds, and a registry with the encoder: all there is."""
    bucket = aws_settings.bucket.removeprefix("s3://")
    s3 = s3_client(aws_settings)
    s3.create_bucket(Bucket=f"{bucket}-encoders")
    for key, body in CONTENT.items():
        s3.put_object(Bucket=bucket, Key=key, Body=body)
    settings = aws_settings.model_copy(
        update={
            "registry": f"s3://{bucket}-encoders/of/ours",
            "webhook_token": SecretStr("0123456789abcdef"),
            "webhook_listen": f"127.0.0.1:{free_port()}",
        }
    )
    registry = open_registry(settings)
    version = registry.publish(saved_bundle(tiny_encoder, tmp_path / "made", "tiny", "card"))
    registry.write(Rollout(live=version), None)
    return settings


State = tuple[dict[str, Point], dict[str, tuple[str, str]]]


def _state(index: Index, letters: DeadLetters) -> State:
    """Return the points with vectors and the dead letters, each by key."""
    live = index.live()
    assert live
    ids = [point.id for point in index.scroll(live, ["key"])]
    points = index.get(live, ids, vectors=True).values()
    return (
        {point.payload["key"]: point for point in points},
        {letter.key: (letter.reason, letter.detail) for letter in letters.latest(100)},
    )


def _synced(settings: Settings, encoder: Encoder, redis: Redis) -> State:
    """Sync each sound here; return what that makes."""
    store, index = open_store(settings), Index(connect_embedded(), "before")
    letters = DeadLetters(redis, settings.index_name)
    generation = index.create("tiny-aaa", encoder)
    syncer = Syncer(
        BucketSide(store, Limits(60, 10**7)),
        IndexSide(index, generation, letters=letters, grid=encoder.config.moments.grid),
        LocalEncoder(encoder),
    )
    for key in filter(is_audio, CONTENT):
        with suppress(Rejected):
            syncer.sync(key)
    return _state(index, letters)


def _rebuilt(settings: Settings, home: Path, eventually: Eventually) -> State:
    """Run a deployment that begins with nothing until it has done all; return its state."""
    with LocalDeployment(settings.model_copy(update={"home": home})) as deployment:
        index = open_index(deployment.settings)
        lanes = open_lanes(deployment.settings)
        letters = DeadLetters(connect_redis(deployment.settings), deployment.settings.index_name)

        def done() -> bool:
            points, rejected = _state(index, letters)
            waiting = sum(lanes.lengths().values())
            return points.keys() == FOUND and len(rejected) == 2 and not waiting

        eventually(index.live, 60)
        eventually(done, 60)
        return _state(index, letters)


def _kept(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Return what must come back: all but the time, numbers as near as batches compute them."""
    return {
        name: pytest.approx(value, rel=1e-5) if isinstance(value, float) else value
        for name, value in payload.items()
        if name not in {"indexed_at", "encoder"}
    }


def test_the_bucket_alone_rebuilds_everything(
    in_s3: Settings, tiny_encoder: Encoder, redis: Redis, tmp_path: Path, eventually: Eventually
) -> None:
    """From an empty Qdrant, an empty Valkey and no bundle on any disk all comes back as it was.

    That is: points with ids, vectors and words, and what was rejected with its reason.
    """
    before, rejected = _synced(in_s3, tiny_encoder, redis)
    after, rejected_again = _rebuilt(in_s3, tmp_path / "home", eventually)
    assert rejected == rejected_again
    assert {reason for reason, _ in rejected.values()} == {"empty", "bad_sidecar"}
    for key, point in before.items():
        assert after[key].id == point.id
        kept = _kept(point.payload)
        assert {name: after[key].payload[name] for name in kept} == kept
        assert list(after[key].item) == pytest.approx(list(point.item), abs=1e-5)
        assert list(after[key].audio) == pytest.approx(list(point.audio), rel=1e-4, abs=1e-5)
