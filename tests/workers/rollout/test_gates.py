"""The gates that a new encoder passes before it goes live."""

import json
import shutil
import socket
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from redis import Redis

from audiofuse.core.bundles.bundle import load_bundle
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import BundleError
from audiofuse.core.evaluation.clips import read_manifest
from audiofuse.core.index.index import open_index
from audiofuse.core.items import is_audio, sidecar_keys
from audiofuse.core.search.loaded import LoadedEncoders
from audiofuse.core.search.search import Searcher
from audiofuse.core.settings import Settings
from audiofuse.core.storage.store import open_store
from audiofuse.workers.indexing.items.sync import Syncer
from audiofuse.workers.queue.dead_letters import DeadLetters
from audiofuse.workers.repair.agreement import Agreement, rejected_alone
from audiofuse.workers.rollout import gates
from audiofuse.workers.rollout.operator import Operator
from audiofuse.workers.service import app as service

Start = Callable[[str], Operator]
Make = Callable[[str], Syncer]
Reject = Callable[[DeadLetters, str, str], None]
Serving = Callable[[FastAPI], AbstractContextManager[str]]


SOUNDS = Path(__file__).parents[3] / "examples" / "sounds"
KEYS = ("owl.wav", "duck-quack.wav", "dog-bark.wav", "cowbell.flac", "door-close.mp3", "bell.opus")
SMALL = 32_000  # bytes


@pytest.fixture
def agreement(start: Start, syncer_of: Make, versions: tuple[str, str]) -> Agreement:
    """Return the agreement of the bucket with the new version, which has every sound but one."""
    _, new = versions
    operator = start(new)
    syncer = syncer_of(new)
    for key in KEYS[1:]:
        syncer.sync(key)
    return operator.agreement(new)


def test_coverage_is_exact(
    syncer_of: Make, settings: Settings, agreement: Agreement, versions: Any
) -> None:
    """One sound that is missing, outdated or orphaned closes the gate; none opens it."""
    syncer = syncer_of(versions[1])
    bucket = Path(settings.bucket)
    missing = gates.coverage(agreement)
    assert not missing.passed
    assert f"1 differ, 0 rejected, e.g. {KEYS[0]}" in missing.found
    syncer.sync(KEYS[0])
    assert gates.coverage(agreement).passed
    shutil.copy(bucket / KEYS[1], bucket / KEYS[2])
    assert not gates.coverage(agreement).passed
    syncer.sync(KEYS[2])
    (bucket / KEYS[3]).unlink()
    assert not gates.coverage(agreement).passed
    syncer.sync(KEYS[3])
    assert gates.coverage(agreement).passed


def test_what_is_on_its_way_is_waited_for(
    syncer_of: Make, agreement: Agreement, versions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change that comes while the bucket is compared does not close the gate."""
    monkeypatch.setattr("audiofuse.workers.repair.agreement.FOLLOW_S", 20.0)
    syncer = syncer_of(versions[1])
    later = threading.Timer(0.5, lambda: syncer.sync(KEYS[0]))
    later.start()
    gate = gates.coverage(agreement)
    assert gate.passed, gate
    assert "1 were on their way" in gate.found


def test_a_rejected_object_is_counted_apart(
    reject: Reject,
    agreement: Agreement,
    redis: Redis,
    settings: Settings,
    versions: tuple[str, str],
) -> None:
    """What is rejected is no gap; that only the new encoder rejected it closes another gate."""
    store = open_store(settings)
    info = store.head(KEYS[0])
    assert info
    letters = DeadLetters(redis, settings.index_name, versions[1])
    reject(letters, KEYS[0], info.etag)
    reject(DeadLetters(redis, settings.index_name, versions[0]), KEYS[1], info.etag)
    coverage = gates.coverage(agreement)
    assert coverage.passed
    assert "1 rejected" in coverage.found
    rollout = Operator(settings).rollout
    gate = gates.dead_letters(
        [*rejected_alone(agreement, rollout.other, rollout.live, rollout.started)]
    )
    assert not gate.passed
    assert gate.found == f"1 rejected by it alone; {KEYS[0]}: not_finite"
    later = time.time() + 1
    assert gates.dead_letters(
        [*rejected_alone(agreement, rollout.other, rollout.live, later)]
    ).passed


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a manifest of short sounds, found by their titles."""
    rows = []
    for audio in sorted(path for path in SOUNDS.rglob("*") if is_audio(path.name)):
        sidecar = next(filter(Path.exists, map(Path, sidecar_keys(str(audio)))), None)
        title = json.loads(sidecar.read_text()).get("title") if sidecar else None
        if title and audio.stat().st_size < SMALL:
            row = {"audio": str(audio), "identity": audio.name, "split": "val", "title": title}
            rows.append(json.dumps(row | {"queries": [{"text": title}]}))
    path = tmp_path_factory.mktemp("held-out") / "manifest.jsonl"
    path.write_text("\n".join(rows))
    return path


def test_quality_closes_the_gate_to_what_is_certainly_worse(
    manifest: Path, default_bundle: Path, tiny_encoder: Encoder
) -> None:
    """The shipped encoder may follow a random one and itself, a random one may not follow it."""
    clips, shipped = read_manifest(manifest), load_bundle(default_bundle)
    assert gates.quality(tiny_encoder, shipped, clips, "val").passed
    worse = gates.quality(shipped, tiny_encoder, clips, "val")
    assert not worse.passed
    assert "audio only mAP@10 -" in worse.found
    same = gates.quality(tiny_encoder, tiny_encoder, clips, "val")
    assert same.passed
    assert "hybrid mAP@10 +0.000 [+0.000, +0.000]" in same.found
    few = gates.quality(tiny_encoder, tiny_encoder, clips, "test")
    assert (few.passed, few.found) == (
        False, "not checked: too few sounds with queries in the split 'test'",
    )  # fmt: skip


def test_an_encoder_that_gives_no_vectors_is_not_started(tiny_encoder: Encoder) -> None:
    """What is not even finite for a click is refused before anything is built."""
    broken = Encoder.random(tiny_encoder.config, seed=0)
    gates.try_out(broken, "tiny-000000")
    for weights in broken.model.parameters():
        weights.data.fill_(float("nan"))
    with pytest.raises(BundleError, match="no finite vectors"):
        gates.try_out(broken, "tiny-000000")


def test_every_query_service_must_have_loaded_it(
    settings: Settings, versions: tuple[str, str], tiny_encoder: Encoder, serving: Serving
) -> None:
    """One that has another version, or does not answer, closes the gate and is named."""
    live, new = versions
    searcher = Searcher(
        open_index(settings), LoadedEncoders(lambda _: tiny_encoder, {live: tiny_encoder})
    )
    with serving(service.create_app(searcher, Settings())) as url:
        away, nobody = "http://127.0.0.1:9", "http://nobody.invalid:7700"
        assert gates.services([url], live).passed
        found = gates.services([url, away, nobody], live).found
        assert found == f"1 of 3 have loaded it, not {away} (127.0.0.1), not {nobody} ()"
        assert not gates.services([url], new).passed


def test_every_replica_behind_a_name_is_asked(
    settings: Settings,
    versions: tuple[str, str],
    tiny_encoder: Encoder,
    serving: Serving,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where a name stands for several services one that has not loaded it closes the gate."""
    live, _ = versions
    searcher = Searcher(
        open_index(settings), LoadedEncoders(lambda _: tiny_encoder, {live: tiny_encoder})
    )

    def addresses(*_: object, **__: object) -> list[Any]:
        return [(socket.AF_INET, 0, 0, "", (f"127.0.0.{number}", 0)) for number in (1, 99)]

    with serving(service.create_app(searcher, Settings())) as url:
        named = url.replace("127.0.0.1", "search")
        with monkeypatch.context() as patch:
            patch.setattr("audiofuse.workers.service.client.socket.getaddrinfo", addresses)
            asked = gates.replicas(named)
        monkeypatch.setattr(gates, "replicas", lambda _: asked)
        assert asked == ["127.0.0.1", "127.0.0.99"]
        gate = gates.services([named], live)
    assert (gate.passed, gate.found) == (
        False, f"1 of 2 have loaded it, not {named} (127.0.0.99)",
    )  # fmt: skip
