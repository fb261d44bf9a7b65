"""What ``audiofuse status`` says of a deployment that is not well."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from fastapi import FastAPI
from redis import Redis
from typer.testing import CliRunner

from audiofuse.core.errors import Reason, Rejected
from audiofuse.core.index.embedded import create_app
from audiofuse.core.index.engine import Engine
from audiofuse.workers.commands.main import cli
from audiofuse.workers.queue.dead_letters import DeadLetters

Serving = Callable[[FastAPI], AbstractContextManager[str]]


def test_status_tells_what_is_set_aside_and_rejected(
    redis: Redis, valkey_url: str, serving: Serving, engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Foreign messages are shown by themselves and are none of the queue's; so are bad objects."""
    bucket = Path("sounds").absolute()
    bucket.mkdir()
    redis.lpush("audiofuse:broken", "no message of ours")
    DeadLetters(redis, "sounds").add("dog.wav", Rejected(Reason.SILENT, "nothing is in it"))
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
