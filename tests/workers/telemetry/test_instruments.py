"""What is measured, where it happens: freshness, splits, failures; and that no label grows."""

import json
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from local_encoder import LocalEncoder
from prometheus_client import generate_latest
from pydantic import SecretStr
from redis import Redis

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import ConfigurationError
from audiofuse.core.index.index import Index, connect_embedded
from audiofuse.core.settings import Settings, environment
from audiofuse.core.storage.store import FolderStore
from audiofuse.workers.deployment.local import Part, free_port
from audiofuse.workers.indexing.items.collaborators import BucketSide, IndexSide, Limits
from audiofuse.workers.indexing.items.sync import Syncer
from audiofuse.workers.indexing.retries import RetryPolicy
from audiofuse.workers.intake.handover import Handover
from audiofuse.workers.queue.broker import Dispatcher
from audiofuse.workers.queue.dead_letters import DeadLetters
from audiofuse.workers.telemetry.metrics import (
    BATCH_CAPACITY,
    BATCH_SPLITS,
    CLOCK_SKEW,
    FRESHNESS,
    REGISTRIES,
    Process,
    Split,
    known_source,
    searchable,
    serve_metrics,
)
from audiofuse.workers.telemetry.names import Lane, Source

OWL = Path(__file__).parents[3] / "examples" / "sounds" / "animals" / "owl.wav"

Eventually = Callable[..., Any]


def _series() -> int:
    return sum(
        len(family.samples) for registry in REGISTRIES.values() for family in registry.collect()
    )


def test_no_label_knows_a_key(
    dispatcher: Dispatcher, redis: Redis, tiny_encoder: Encoder, tmp_path: Path
) -> None:
    """A thousand odd keys, in events and in work, make no series more than the first did."""
    letters = DeadLetters(redis, "audiofuse")
    handover = Handover("bucket", dispatcher, Source.WEBHOOK)
    index = Index(connect_embedded(), "test")
    generation = index.create("tiny-1", tiny_encoder)
    (tmp_path / "bucket").mkdir()
    store = FolderStore(tmp_path / "bucket")
    syncer = Syncer(
        BucketSide(store, Limits(60, 10**6)),
        IndexSide(index, generation, letters=letters),
        LocalEncoder(tiny_encoder),
    )
    fates = RetryPolicy(dict.fromkeys(Lane, syncer), dispatcher, threading.Event())
    known_source(Source.WEBHOOK)
    before = _series()
    for number in range(1000):
        key = f"{number} ü'\"\n{{x=1}}.wav"
        event = {
            "eventName": f"s3:Object{number}:Put",
            "eventSource": f"source {number}",
            "s3": {"bucket": {"name": f"bucket{number % 2 or ''}"}, "object": {"key": key}},
        }
        handover.hand_over([json.dumps({"Records": [event]}), f"broken {number}"])
        fates.settle(key, Lane.LIVE)
    assert _series() == before
    told = b"".join(generate_latest(registry) for registry in REGISTRIES.values())
    assert "ü".encode() not in told


def test_a_clock_that_is_behind_is_counted() -> None:
    """An item from the future counts as fresh at once, and as a clock that is wrong."""
    before = FRESHNESS.labels(Lane.BACKFILL)._sum.get(), CLOCK_SKEW._value.get()
    searchable(Lane.BACKFILL, -5.0)
    assert (FRESHNESS.labels(Lane.BACKFILL)._sum.get(), CLOCK_SKEW._value.get()) == (
        before[0],
        before[1] + 1,
    )


def test_an_address_that_is_taken_is_told() -> None:
    """A process that cannot tell its metrics where it should does not start."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigurationError, match="METRICS_LISTEN"):
            serve_metrics(Settings(metrics_listen=address), Process.RECONCILE)


def test_freshness_is_that_of_what_changed(tiny_encoder: Encoder, tmp_path: Path) -> None:
    """An item is as old as the part of it that changed; what goes away does not tell when."""
    (tmp_path / "bucket").mkdir()
    sound, sidecar = tmp_path / "bucket" / "owl.wav", tmp_path / "bucket" / "owl.json"
    shutil.copyfile(OWL, sound)
    index = Index(connect_embedded(), "test")
    generation = index.create("tiny-1", tiny_encoder)
    store = FolderStore(tmp_path / "bucket")
    syncer = Syncer(
        BucketSide(store, Limits(60, 10**7)),
        IndexSide(index, generation),
        LocalEncoder(tiny_encoder),
    )

    def age_s() -> float | None:
        return syncer.sync("owl.wav").age_s

    hour_ago, minute_ago = time.time() - 3600, time.time() - 60
    os.utime(sound, (hour_ago, hour_ago))
    assert age_s() == pytest.approx(3600, abs=30)
    assert age_s() is None  # nothing changed
    sidecar.write_text('{"title": "An owl"}')
    os.utime(sidecar, (minute_ago, minute_ago))
    assert age_s() == pytest.approx(60, abs=30)
    sidecar.unlink()
    assert age_s() is None
    sound.unlink()
    assert age_s() is None


def test_a_batch_that_does_not_fit_is_counted_as_split(
    tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that does not suffice halves the batch, which is told, and so is what it may hold."""
    from audiofuse.core.encoder.runtime import OutOfMemory
    from audiofuse.workers.indexing.device.device import Device

    whole = type(tiny_encoder).encode_windows

    def encode_audio(encoder: Encoder, windows: list[Any]) -> Any:
        if len(windows) > 1:
            raise OutOfMemory("CUDA out of memory")
        return whole(encoder, windows)

    monkeypatch.setattr(type(tiny_encoder), "encode_windows", encode_audio)
    splits = BATCH_SPLITS.labels(Split.OUT_OF_MEMORY)
    before = splits._value.get()
    device = Device(tiny_encoder, 40.0)
    second = np.full(32_000, 0.1, np.float32)
    sound = device.begin("", Lane.LIVE)
    for _ in range(2):
        device.give(sound, second)
    device.end(sound)
    sound.answer.result(60)
    device.close()
    assert splits._value.get() == before + 1
    assert 0 < BATCH_CAPACITY._value.get() < 40


def test_the_memory_of_a_gpu_is_told() -> None:
    """Where there is a GPU its memory is told: allocated, reserved, total."""
    import torch

    from audiofuse.workers.indexing.device.encoders import tell_device

    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    tell_device("cuda", "cuda", "torch")
    told = generate_latest(REGISTRIES[Process.WORKER]).decode()
    for memory in ("allocated", "reserved", "total"):
        assert f'audiofuse_device_memory_bytes{{memory="{memory}"}}' in told


def test_a_comparison_that_cannot_be_made_is_counted(
    tmp_path: Path, eventually: Eventually
) -> None:
    """The process that reconciles tells when it could not, because the broker was away."""
    (tmp_path / "bucket").mkdir()
    address = f"127.0.0.1:{free_port()}"
    settings = Settings(
        bucket=str(tmp_path / "bucket"), metrics_listen=address,
        broker_url=SecretStr("redis://127.0.0.1:1/0"), qdrant_url="http://127.0.0.1:1",
    )  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "audiofuse.workers.commands.main",
        "reconcile",
        "--every",
        "1h",
    ]
    process = Part("reconcile", command, os.environ | environment(settings), tmp_path / "log")
    try:
        eventually(lambda: " 1.0" in _line(address, "audiofuse_reconcile_failures_total"))
        assert 'process="reconcile"' in _line(address, "audiofuse_build_info")
    finally:
        process.stop()


def _line(address: str, name: str) -> str:
    """Return the line of a metric with one series; nothing while nobody answers."""
    try:
        told = httpx.get(f"http://{address}/metrics").text
    except httpx.TransportError:
        return ""
    return next(line for line in told.splitlines() if line.startswith(name))
