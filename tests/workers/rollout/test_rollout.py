"""A rollout: steps that are taken once, a backfill that may be killed, gates, one atomic switch."""

import base64
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from pydantic import SecretStr
from redis import Redis
from typer.testing import CliRunner

from audiofuse.core.bundles.bundle import load_bundle, save_bundle
from audiofuse.core.bundles.document import Phase, Rollout
from audiofuse.core.bundles.registry import Registry, open_registry
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import AudiofuseError, BundleError, ConfigurationError, Reason, Rejected
from audiofuse.core.evaluation.clips import read_manifest
from audiofuse.core.index import embedded
from audiofuse.core.index.engine import Engine
from audiofuse.core.index.index import Generation, open_index
from audiofuse.core.items import is_audio, sidecar_keys
from audiofuse.core.search.loaded import LoadedEncoders
from audiofuse.core.search.search import Searcher
from audiofuse.core.settings import PREFIX, Settings, environment
from audiofuse.core.storage.store import open_store
from audiofuse.workers.commands.rollout import rollout_cli
from audiofuse.workers.indexing.sync import Limits, Syncer
from audiofuse.workers.queue.dead_letters import DeadLetters
from audiofuse.workers.repair.agreement import Agreement, rejected_alone
from audiofuse.workers.rollout import gates
from audiofuse.workers.rollout.operator import Operator, Rollouts
from audiofuse.workers.service import app as service

SOUNDS = Path(__file__).parents[3] / "examples" / "sounds"
KEYS = ("owl.wav", "duck-quack.wav", "dog-bark.wav", "cowbell.flac", "door-close.mp3", "bell.opus")
SMALL = 32_000  # bytes

Serving = Callable[[FastAPI], AbstractContextManager[str]]


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for nobody: these workers look at the document each time."""
    monkeypatch.setattr("audiofuse.workers.rollout.operator.SEEN_S", 0.0)
    monkeypatch.setattr("audiofuse.workers.repair.agreement.FOLLOW_S", 0.5)
    monkeypatch.setattr("audiofuse.workers.repair.agreement.LOOK_S", 0.05)
    monkeypatch.setattr("audiofuse.workers.repair.agreement.POLL_S", 0.0)
    monkeypatch.setattr("audiofuse.workers.repair.backfill.POLL_S", 0.05)


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
        store, index, index.generation(version), _encoder(settings.home / "encoders" / version),
        Limits(60, 10**7), letters=DeadLetters(redis, store.bucket, version),
    )  # fmt: skip


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


def _start(settings: Settings, version: str) -> Operator:
    operator = Operator(settings)
    folder = operator.registry.fetch(version)
    operator.start(version, lambda: load_bundle(folder))
    return operator


def _unseen(points: int, total: int) -> None:
    del points, total


def _points(settings: Settings, version: str) -> dict[str, str]:
    index = open_index(settings)
    points = index.scroll(index.generation(version), ["key", "encoder"])
    return {point.payload["key"]: point.payload["encoder"] for point in points}


def _live(settings: Settings) -> str:
    live = open_index(settings).live()
    assert live
    return live.version


def test_a_version_is_built_promoted_rolled_back_and_the_old_one_dropped(
    settings: Settings, versions: tuple[str, str], workers: Workers
) -> None:
    """The alias moves in single steps, both generations stay whole, and the end leaves one."""
    old, new = versions
    operator = _start(settings, new)
    assert operator.build(_unseen)
    assert _points(settings, new) == dict.fromkeys(KEYS, new)
    for step, live in ((operator.promote, new), (operator.rollback, old), (operator.promote, new)):
        assert _live(settings) != live
        step(*([()] if step == operator.promote else []))
        assert _live(settings) == live
    operator.drop()
    assert open_index(settings).generations() == [Generation(f"audiofuse-{new}", new)]
    with pytest.raises(ConfigurationError, match="another name"):
        _start(settings, old)
    steps = [each.what.split()[0] for each in Operator(settings).rollout.history]
    assert steps == ["start", "promote", "rollback", "promote", "drop"]
    assert sorted(workers.taken) == sorted(KEYS)


def test_a_killed_backfill_goes_on_where_it_was(
    settings: Settings, versions: tuple[str, str], workers: Workers
) -> None:
    """Whoever resumes queues only what is lacking, and what was deleted meanwhile goes."""
    _, new = versions
    operator = _start(settings, new)
    syncer = _syncer(settings, new)
    for key in KEYS[:4]:
        syncer.sync(key)
    Path(settings.bucket, KEYS[0]).unlink()
    del operator  # it is killed
    again = Operator(settings)
    again.resume(lambda: pytest.fail("the collection exists"))
    assert again.build(_unseen)
    assert set(workers.taken) == {KEYS[0], *KEYS[4:]}
    assert _points(settings, new).keys() == {*KEYS[1:]}


def test_resume_makes_the_collection_that_a_killed_start_did_not(
    settings: Settings, versions: tuple[str, str], registry: Registry, workers: Workers
) -> None:
    """A start that was killed right after its document was written is finished by resume."""
    del workers
    live, new = versions
    registry.write(Rollout(live=live).start(new, "me"), None)
    operator = Operator(settings)
    assert operator.points(new) == 0
    operator.resume(lambda: load_bundle(registry.fetch(new)))
    assert operator.build(_unseen)
    assert operator.points(new) == len(KEYS)


def test_pause_stops_the_backfill_wherever_it_runs(
    settings: Settings, versions: tuple[str, str], workers: Workers
) -> None:
    """Another operator's pause or abort ends a build that runs, and resume goes on."""
    _, new = versions
    operator = _start(settings, new)

    def pause(points: int, total: int) -> None:
        del points, total
        if Operator(settings).rollout.phase is Phase.BUILDING:
            Operator(settings).pause()

    assert not operator.build(pause)
    assert Operator(settings).rollout.phase is Phase.PAUSED
    assert len(workers.taken) < len(KEYS)
    again = Operator(settings)
    again.resume(lambda: load_bundle(again.registry.fetch(new)))
    assert again.build(_unseen)
    Operator(settings).abort()
    assert not again.build(_unseen)


def test_what_is_not_published_is_not_started(
    settings: Settings, versions: tuple[str, str], registry: Registry
) -> None:
    """Neither an unknown version, nor any while the live one could not be rolled back to."""
    live, new = versions
    with pytest.raises(ConfigurationError, match="tiny-000000 is not published"):
        _start_unpublished(settings, "tiny-000000")
    shutil.rmtree(registry.fetch(live))
    with pytest.raises(ConfigurationError, match=f"{live} is not published"):
        _start_unpublished(settings, new)
    assert registry.rollout() == (None, None)


def _start_unpublished(settings: Settings, version: str) -> None:
    Operator(settings).start(version, lambda: pytest.fail("its sizes are asked for"))


def test_the_next_command_finishes_a_step_that_was_killed(
    settings: Settings, versions: tuple[str, str], registry: Registry
) -> None:
    """If only the document says what is live, or dropped, the next command makes it so."""
    old, new = versions
    operator = _start(settings, new)
    rollout, tag = registry.rollout()
    assert rollout
    registry.write(rollout.promote("me"), tag)
    assert _live(settings) == old
    assert Operator(settings).rollout.live == new
    assert _live(settings) == new
    rollout, tag = registry.rollout()
    assert rollout
    registry.write(rollout.drop("me"), tag)
    Operator(settings)
    assert [each.version for each in operator.index.generations()] == [new]


def test_two_operators_cannot_both_win(settings: Settings, versions: tuple[str, str]) -> None:
    """A step builds on what was looked at: the second of two does nothing, and says so."""
    old, new = versions
    _start(settings, new)
    first, second = Operator(settings), Operator(settings)
    first.promote(("quality",))
    with pytest.raises(AudiofuseError, match="somebody else took a step"):
        second.abort()
    state = Operator(settings).rollout
    assert (state.live, state.other, state.phase) == (new, old, Phase.PROMOTED)
    assert [each.gate for each in state.overrides] == ["quality"]
    assert _live(settings) == new


def test_racing_operators_end_in_what_the_document_says(
    settings: Settings, versions: tuple[str, str], registry: Registry
) -> None:
    """However steps of six operators interleave, the alias ends as the document does."""
    _, new = versions
    index = _start(settings, new).index
    steps: list[str] = []

    def go_to_and_fro() -> None:
        rollouts = Rollouts(registry, index)
        for _ in range(10):
            seen = rollouts.look()
            promoted = seen.rollout.phase is Phase.PROMOTED
            step = seen.rollout.rollback("me") if promoted else seen.rollout.promote("me")
            try:
                rollouts.take(seen, step)
            except AudiofuseError:
                continue
            steps.append(step.live)

    threads = [threading.Thread(target=go_to_and_fro) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rollout, _ = registry.rollout()
    assert rollout
    assert _live(settings) == rollout.live
    assert len(rollout.history) == 1 + len(steps)


def test_an_aborted_version_leaves_nothing(
    settings: Settings, versions: tuple[str, str], workers: Workers, redis: Redis
) -> None:
    """Its collection goes, and what it alone rejected is forgotten, but nothing else."""
    del workers
    old, new = versions
    operator = _start(settings, new)
    letters = {
        version: DeadLetters(redis, open_store(settings).bucket, version) for version in versions
    }
    etag = operator.agreement(old)._store.head(KEYS[0]).etag
    _reject(letters[new], KEYS[0], etag)
    _reject(letters[old], "other.wav", "1")
    operator.abort()
    assert [*letters[old].keys()] == ["other.wav"]
    assert [each.version for each in operator.index.generations()] == [old]
    assert (_live(settings), operator.rollout.phase) == (old, Phase.NONE)


def _reject(letters: DeadLetters, key: str, etag: str) -> None:
    verdict = Rejected(Reason.NOT_FINITE, "a fault of the test")
    verdict.etag = etag
    letters.add(key, verdict)


@pytest.fixture
def agreement(settings: Settings, versions: tuple[str, str]) -> Agreement:
    """Return the agreement of the bucket with the new version, which has every sound but one."""
    _, new = versions
    operator = _start(settings, new)
    syncer = _syncer(settings, new)
    for key in KEYS[1:]:
        syncer.sync(key)
    return operator.agreement(new)


def test_coverage_is_exact(settings: Settings, agreement: Agreement, versions: Any) -> None:
    """One sound that is missing, outdated or orphaned closes the gate; none opens it."""
    syncer = _syncer(settings, versions[1])
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
    agreement: Agreement, settings: Settings, versions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change that comes while the bucket is compared does not close the gate."""
    monkeypatch.setattr("audiofuse.workers.repair.agreement.FOLLOW_S", 20.0)
    syncer = _syncer(settings, versions[1])
    later = threading.Timer(0.5, lambda: syncer.sync(KEYS[0]))
    later.start()
    gate = gates.coverage(agreement)
    assert gate.passed, gate
    assert "1 were on their way" in gate.found


def test_a_rejected_object_is_counted_apart(
    agreement: Agreement, redis: Redis, settings: Settings, versions: tuple[str, str]
) -> None:
    """What is rejected is no gap; that only the new encoder rejected it closes another gate."""
    store = open_store(settings)
    info = store.head(KEYS[0])
    assert info
    letters = DeadLetters(redis, store.bucket, versions[1])
    _reject(letters, KEYS[0], info.etag)
    _reject(DeadLetters(redis, store.bucket, versions[0]), KEYS[1], info.etag)
    coverage = gates.coverage(agreement)
    assert coverage.passed
    assert "1 rejected" in coverage.found
    rollout = Operator(settings).rollout
    gate = gates.dead_letters([*rejected_alone(agreement, rollout)])
    assert not gate.passed
    assert gate.found == f"1 rejected by it alone; {KEYS[0]}: not_finite"
    later = rollout.model_copy(update={"started": time.time() + 1})
    assert gates.dead_letters([*rejected_alone(agreement, later)]).passed


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
    for weights in broken.parameters():
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
        away = "http://127.0.0.1:9"
        assert gates.services([url], live).passed
        assert gates.services([url, away], live).found == f"1 of 2 have loaded it, not {away}"
        assert not gates.services([url], new).passed


def test_promote_needs_every_gate_or_a_recorded_word(
    settings: Settings,
    versions: tuple[str, str],
    workers: Workers,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The command prints each gate, and promotes once those that are closed are forced by name."""
    del workers
    _, new = versions
    assert _start(settings, new).build(_unseen)
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(PREFIX + "SEARCH_URL", "http://127.0.0.1:9")
    run = CliRunner().invoke
    refused = run(rollout_cli, ["promote", "--force", "quality"])
    assert isinstance(refused.exception, AudiofuseError)
    assert str(refused.exception).endswith(": services")
    assert "6 agree, 0 differ" in refused.output
    assert _live(settings) != new
    assert "no such gate" not in refused.output
    assert run(rollout_cli, ["promote", "--force", "speed"]).exit_code == 2
    done = run(rollout_cli, ["promote", "--force", "quality", "--force", "services"])
    assert done.exit_code == 0, done.output
    assert _live(settings) == new
    state = json.loads(run(rollout_cli, ["status", "--json"]).output)
    assert [each["gate"] for each in state["overrides"]] == ["quality", "services"]
    assert state["points"] == dict.fromkeys(versions, len(KEYS))
    assert "FORCED" in done.output
    assert "@" in run(rollout_cli, ["status"]).output
    for command in ("rollback", "abort"):
        assert run(rollout_cli, [command]).exit_code == 0
    assert isinstance(run(rollout_cli, ["drop"]).exception, ConfigurationError)
