"""What ``audiofuse doctor`` finds, and what it says to do."""

import json
import math
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from bundles import saved_bundle
from fastapi import FastAPI
from redis import Redis
from typer.testing import CliRunner

from audiofuse.core.bundles.document import Rollout
from audiofuse.core.bundles.registry import open_registry
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import Unavailable
from audiofuse.core.index.embedded import create_app
from audiofuse.core.index.engine import Engine
from audiofuse.core.settings import Settings
from audiofuse.workers.commands.main import cli
from audiofuse.workers.deployment import doctor
from audiofuse.workers.deployment.doctor import Check, Verdict
from audiofuse.workers.deployment.local import free_port
from audiofuse.workers.queue.followers import Followers
from audiofuse.workers.queue.outages import OutageReport, Outages

KEY = "a key of the test"


def _found(settings: Settings) -> dict[str, Check]:
    return {each.name: each for each in doctor.examine(settings)}


@pytest.fixture
def running(
    valkey_url: str, engine: Engine, tmp_path: Path, tiny_encoder: Encoder,
    serving: Callable[[FastAPI], AbstractContextManager[str]],
) -> Iterator[Settings]:  # fmt: skip
    """Return the settings of a deployment with one sound, nothing indexed yet."""
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "rain.wav").touch()
    bundle = saved_bundle(tiny_encoder, tmp_path, "tiny", "")
    with serving(create_app(engine, KEY)) as url:
        yield Settings.model_validate({
            "bucket": str(tmp_path / "bucket"), "encoder": bundle, "broker_url": valkey_url,
            "qdrant_url": url, "qdrant_api_key": KEY, "search_url": url,
        })  # fmt: skip


def test_a_deployment_that_is_well_has_little_to_do(redis: Redis, running: Settings) -> None:
    """Every part is asked as it runs; an outage of a worker is what is wrong with it."""
    Followers(redis, "audiofuse").follow("worker a:1", None, "cpu by onnxruntime")
    found = _found(running)
    assert not [each for each in found.values() if each.verdict is Verdict.WRONG]
    for name in ("encoder", "storage", "clock", "workers", "search", "settings"):
        assert found[name].verdict is Verdict.WELL, found[name]
    assert found["workers"].found == "1 runs"
    assert (found["index"].verdict, "empty" in found["index"].found) == ("warning", True)
    report = OutageReport(Outages(redis, "audiofuse"), "worker a:1")
    report.meets(Unavailable("the bucket is away"))
    waits = _found(running)["workers"]
    assert (waits.verdict, waits.advice) == (Verdict.WRONG, "the bucket is away")


def test_what_is_not_there_is_wrong_and_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any server each is named with the setting to look at, and the exit code is 1."""
    nowhere = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("AUDIOFUSE_BROKER_URL", f"redis://:secret-of-ours@{nowhere}")
    monkeypatch.setenv("AUDIOFUSE_QDRANT_URL", f"http://{nowhere}")
    monkeypatch.setenv("AUDIOFUSE_BUCKET", "/does/not/exist")
    monkeypatch.setenv("AUDIOFUSE_BUKET", "a typo")
    done = CliRunner().invoke(cli, ["doctor", "--json"])
    found = {each["name"]: each for each in json.loads(done.stdout)}
    assert {name for name, each in found.items() if each["verdict"] == "wrong"} == {
        "encoder", "storage", "broker", "index",
    }  # fmt: skip
    assert "AUDIOFUSE_BROKER_URL" in found["broker"]["advice"]
    assert "AUDIOFUSE_BUCKET meant" in found["settings"]["advice"]
    assert "/does/not/exist" in found["storage"]["found"]
    assert done.exit_code == 1
    assert "secret-of-ours" not in CliRunner().invoke(cli, ["doctor"]).stdout


def test_a_machine_that_is_too_small_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many threads, too little memory, disk and descriptors each have their advice."""
    monkeypatch.setattr(doctor, "usable_cpus", lambda: 2)
    monkeypatch.setattr(doctor, "cpu_quota", lambda: 1.5)
    monkeypatch.setattr(doctor, "memory_limit", lambda: 5e8)
    monkeypatch.setattr(doctor, "LITTLE_DISK", math.inf)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    found = _found(Settings(search_url=f"http://127.0.0.1:{free_port()}"))
    for name in ("cores", "memory", "disk", "open files", "search"):
        assert found[name].verdict is Verdict.WARNING, found[name]
        assert found[name].advice
    assert found["cores"].found.endswith("a quota of 1.5, OMP_NUM_THREADS=64")


def test_which_encoder_is_live_is_told_and_whether_a_rollout_is_open(tmp_path: Path) -> None:
    """Where nothing is being changed nothing is said of it."""
    settings = Settings(registry=str(tmp_path), search_url=f"http://127.0.0.1:{free_port()}")
    registry = open_registry(settings)
    registry.write(Rollout(live="old"), None)
    assert _found(settings)["encoder"].found == "old is live"
    rollout, tag = registry.rollout()
    assert rollout
    registry.write(rollout.start("new", "somebody"), tag)
    assert _found(settings)["encoder"].found == "old is live, and a rollout is building"
