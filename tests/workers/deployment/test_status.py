"""What ``audiofuse status`` says of a deployment that is not well."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from fastapi import FastAPI
from redis import Redis
from typer.testing import CliRunner

from audiofuse.core.errors import Reason, Rejected, Unavailable
from audiofuse.core.index.embedded import create_app
from audiofuse.core.index.engine import Engine
from audiofuse.workers.commands.main import cli
from audiofuse.workers.deployment.local import free_port
from audiofuse.workers.queue.dead_letters import DeadLetters
from audiofuse.workers.queue.followers import Followers
from audiofuse.workers.queue.outages import OutageReport, Outages
from audiofuse.workers.queue.waiting import WaitingKeys

Serving = Callable[[FastAPI], AbstractContextManager[str]]


def test_status_tells_what_is_set_aside_and_rejected(
    redis: Redis, valkey_url: str, serving: Serving, engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Foreign messages, bad objects, waiting keys and outages are shown, each by itself."""
    bucket = Path("sounds").absolute()
    bucket.mkdir()
    redis.lpush("audiofuse:broken", "no message of ours")
    DeadLetters(redis, "audiofuse").add("dog.wav", Rejected(Reason.SILENT, "nothing is in it"))
    WaitingKeys(redis, "audiofuse").add("next-222222", "owl.wav")
    report = OutageReport(Outages(redis, "audiofuse"), "worker a:1")
    Followers(redis, "audiofuse").follow("worker a:1", None, "cuda by torch")
    report.meets(Unavailable("the bucket is away: [Errno 111]"))
    key = "a key of the test"
    with serving(create_app(engine, key)) as url:
        for name, value in {
            "BUCKET": str(bucket), "BROKER_URL": valkey_url,
            "QDRANT_URL": url, "QDRANT_API_KEY": key,
        }.items():  # fmt: skip
            monkeypatch.setenv(f"AUDIOFUSE_{name}", value)
        state = json.loads(CliRunner().invoke(cli, ["status", "--json"]).stdout)
        table = CliRunner().invoke(cli, ["status"], env={"COLUMNS": "200"}).stdout
    assert state["queue"] == {"live": 0, "backfill": 0, "unacknowledged": 0}
    assert state["broken"] == 1
    assert (state["items"], state["dead_letters"]) == (0, 1)
    assert "broken, not ours" in table
    assert "nothing is in it" in table
    assert state["waiting"] == {"next-222222": 1}
    assert "keys that wait for next-222222" in table
    assert [outage["worker"] for outage in state["outages"]] == ["worker a:1"]
    assert "worker a:1 waits since" in table
    assert "the bucket is away: [Errno 111]" in table
    assert state["devices"] == {"worker a:1": "cuda by torch"}
    assert "cuda by torch" in table


def test_status_without_an_index_tells_the_rest(
    redis: Redis, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the index is away the queue is shown all the same, and the exit code is 1."""
    bucket = Path("sounds").absolute()
    bucket.mkdir()
    redis.lpush("audiofuse:broken", "no message of ours")
    for name, value in {
        "BUCKET": str(bucket), "BROKER_URL": valkey_url,
        "QDRANT_URL": f"http://127.0.0.1:{free_port()}",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"AUDIOFUSE_{name}", value)
    done = CliRunner().invoke(cli, ["status", "--json"])
    state = json.loads(done.stdout)
    assert (state["broken"], state["items"]) == (1, None)
    assert "does not answer" in state["index_away"]
    assert done.exit_code == 1
    assert "unknown" in CliRunner().invoke(cli, ["status"]).stdout
