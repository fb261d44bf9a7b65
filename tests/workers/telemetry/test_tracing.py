"""Traces: one from the event to the point, through the queue; nothing while they are off."""

import base64
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bundles import saved_bundle
from devices import device_in_threads
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from redis import Redis

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import ConfigurationError
from audiofuse.core.index.index import Index, connect_embedded
from audiofuse.core.settings import Settings
from audiofuse.core.storage.store import FolderStore
from audiofuse.workers.indexing.app import SyncTask
from audiofuse.workers.indexing.decoding.pool import Decoders
from audiofuse.workers.indexing.exchange.client import DeviceClient
from audiofuse.workers.indexing.exchange.slab import Slab
from audiofuse.workers.indexing.items.collaborators import BucketSide, IndexSide, Limits
from audiofuse.workers.indexing.items.sync import Syncer
from audiofuse.workers.indexing.retries import RetryPolicy
from audiofuse.workers.indexing.stages import BatchedIndex, BoundedStore
from audiofuse.workers.intake.handover import Handover
from audiofuse.workers.queue.broker import Dispatcher, create_celery
from audiofuse.workers.telemetry.metrics import Process
from audiofuse.workers.telemetry.names import Lane, Source
from audiofuse.workers.telemetry.tracing import carry, happened, span, start_tracing, trace_with

SOUND = Path(__file__).parents[3] / "examples" / "sounds" / "animals" / "owl.wav"

Eventually = Callable[..., Any]


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """Return where spans are kept during the test."""
    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    trace_with(provider)
    yield kept
    trace_with(None)


@pytest.fixture
def settle(
    tiny_encoder: Encoder, dispatcher: Dispatcher, tmp_path: Path
) -> Iterator[Callable[[str, Lane], bool]]:
    """Return what works on messages about a bucket with one sound, as a worker does."""
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "owl.wav").write_bytes(SOUND.read_bytes())
    store = BoundedStore(FolderStore(tmp_path / "bucket"), 10**9)
    index = Index(connect_embedded(), "test")
    generation = index.create("tiny-1", tiny_encoder)
    decoders = Decoders(1, 30, tell=lambda s, _: happened("decode", s))
    points = BatchedIndex(index, generation)
    bundle = saved_bundle(tiny_encoder, tmp_path, "tiny", "")
    settings, where = Settings(encoder=bundle, device="cpu", batch_s=10), tmp_path / "device"
    with device_in_threads(settings, where), closing(DeviceClient(where, Slab(1), int)) as device:
        syncer = Syncer(
            BucketSide(
                store, Limits(60, 10**7), lambda _, path, most_s: decoders.open(path, most_s)
            ),
            IndexSide(points, generation),
            device.on(bundle.name, device.use(bundle.name).result(60), Lane.LIVE),
        )
        yield RetryPolicy(dict.fromkeys(Lane, syncer), dispatcher, threading.Event()).settle
    decoders.close()


def test_one_trace_leads_from_the_event_to_the_point(
    spans: InMemorySpanExporter,
    settle: Callable[[str, Lane], bool],
    dispatcher: Dispatcher,
    redis: Redis,
) -> None:
    """The worker goes on with the trace that the intake began; each stage is a span in it."""
    record = {"eventName": "s3:ObjectCreated:Put", "s3": {"bucket": {"name": "bucket"}}}
    record["s3"]["object"] = {"key": "owl.wav"}  # type: ignore[index]
    Handover("bucket", dispatcher, Source.SQS).hand_over([json.dumps({"Records": [record]})])
    message = json.loads(redis.rpop("audiofuse:live"))  # type: ignore[arg-type]
    assert json.loads(base64.b64decode(message["body"]))[1] == {"key": "owl.wav"}
    task = create_celery(Settings()).register_task(SyncTask())
    task.worker = SimpleNamespace(settle=settle)
    task.push_request(**message["headers"], delivery_info={"routing_key": Lane.LIVE})
    assert task.run("owl.wav") == "created"
    found = {each.name: each for each in spans.get_finished_spans()}
    parents = {name: _parent(each, found) for name, each in found.items()}
    assert parents == {
        "event": "",
        "sync": "event",
        "fetch": "sync",
        "encode": "sync",
        "decode": "encode",
        "upsert": "sync",
    }
    assert len({each.context.trace_id for each in found.values() if each.context}) == 1
    assert dict(found["event"].attributes or {}) == {"source": "sqs", "key": "owl.wav"}
    assert dict(found["sync"].attributes or {}) == {
        "key": "owl.wav",
        "lane": "live",
        "outcome": "created",
    }


def _parent(child: ReadableSpan, spans: dict[str, ReadableSpan]) -> str:
    names = {each.context.span_id: name for name, each in spans.items() if each.context}
    return names[child.parent.span_id] if child.parent else ""


def test_without_a_collector_nothing_is_traced(dispatcher: Dispatcher, redis: Redis) -> None:
    """By default a span is nothing, and no message carries anything."""
    start_tracing(Settings(), Process.WORKER)
    with span("event", key="a.wav") as nothing:
        dispatcher.sync("a.wav", Lane.LIVE)
    assert nothing is None
    assert carry() == {}
    assert "traceparent" not in json.loads(redis.rpop("audiofuse:live"))["headers"]  # type: ignore[arg-type]


def test_traces_without_the_extra_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for traces and has not installed what sends them is told what to install."""
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigurationError, match=r"audiofuse\[otel\]"):
        start_tracing(Settings(traces_url="http://127.0.0.1:1/v1/traces"), Process.WORKER)
