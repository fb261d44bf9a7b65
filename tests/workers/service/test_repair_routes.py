"""Repair over HTTP: what was rejected, why, and trying it again, on a real broker."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr
from redis import Redis

from audiofuse.core.errors import Reason, Rejected
from audiofuse.core.settings import Settings
from audiofuse.workers.queue.broker import open_lanes
from audiofuse.workers.queue.dead_letters import DeadLetters
from audiofuse.workers.service import repair
from audiofuse.workers.telemetry.names import Lane

Bearer = Callable[[str], dict[str, str]]
Problem = Callable[[httpx.Response, int, str], str]


@pytest.fixture
def letters(redis: Redis) -> DeadLetters:
    """Return the letters of three objects."""
    letters = DeadLetters(redis, "audiofuse", "tiny-000000")
    letters.add("music/gong.ogg", Rejected(Reason.DAMAGED, "it ends too early"))
    letters.add("music/cut.wav", Rejected(Reason.DAMAGED, "it ends too early"))
    letters.add("field/still.wav", Rejected(Reason.SILENT, "nothing is heard"))
    return letters


@pytest.fixture
def repairing(
    open_to: Callable[..., TestClient], bucket: Path, letters: DeadLetters, valkey_url: str
) -> Callable[..., TestClient]:
    """Return what gives a client of a service beside that broker."""
    del letters
    return lambda **options: open_to(
        bucket=str(bucket), broker_url=SecretStr(valkey_url), **options
    )


def _waiting(valkey_url: str) -> int:
    return open_lanes(Settings(broker_url=SecretStr(valkey_url))).waiting(Lane.LIVE)


def _keys(answer: dict[str, Any]) -> list[str]:
    return [each["key"] for each in answer["found"]]


def test_what_was_rejected_is_told(repairing: Callable[..., TestClient]) -> None:
    """Newest first, with reason and detail, by reason or prefix, and where the object is heard."""
    client = repairing()
    told = client.get("/v1/rejected").json()
    assert told["rejected"] == 3
    assert told["reasons"] == {"damaged": 2, "silent": 1}
    assert _keys(told) == ["field/still.wav", "music/cut.wav", "music/gong.ogg"]
    first = told["found"][0]
    assert (first["reason"], first["detail"]) == ("silent", "nothing is heard")
    assert client.get(told["found"][2]["audio_url"]).content[:4] == b"OggS"
    assert len(client.get("/v1/rejected", params={"reason": "damaged"}).json()["found"]) == 2
    assert _keys(client.get("/v1/rejected", params={"prefix": "field/"}).json()) == [
        "field/still.wav"
    ]
    older = client.get("/v1/rejected", params={"before": told["found"][1]["at"], "limit": 1})
    assert _keys(older.json()) == ["music/cut.wav"]


def test_only_what_is_rejected_is_tried_again(
    repairing: Callable[..., TestClient], valkey_url: str, letters: DeadLetters
) -> None:
    """A message for each, once; other keys are none of it, and letters stay."""
    before = _waiting(valkey_url)
    keys = ["music/cut.wav", "music/piano.wav", "music/cut.wav", "field/still.wav"]
    answer = repairing().post("/v1/rejected/retry", json={"keys": keys})
    assert answer.json() == {"queued": 2}
    assert _waiting(valkey_url) == before + 2
    assert letters.count() == 3


def test_only_the_scope_repair_may_see_and_retry(
    repairing: Callable[..., TestClient], problem: Problem, bearer: Bearer
) -> None:
    """Who may search and hear gets neither verdicts nor work done."""
    key = "may-search-and-hear-0123456789"
    client = repairing(api_keys=SecretStr(f"reader:{key}:search+audio"))
    problem(client.get("/v1/rejected", headers=bearer(key)), 403, "not-allowed")
    wanted = {"keys": ["music/cut.wav"]}
    problem(client.post("/v1/rejected/retry", json=wanted, headers=bearer(key)), 403, "not-allowed")


def test_nothing_is_queued_while_much_waits(
    repairing: Callable[..., TestClient], problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue that is long gets no longer from here; the letters are there tomorrow, too."""
    monkeypatch.setattr(repair, "MOST_WAITING", 0)
    answer = repairing().post("/v1/rejected/retry", json={"keys": ["music/cut.wav"]})
    problem(answer, 503, "busy")


def test_a_service_without_bucket_or_broker_says_so(
    open_to: Callable[..., TestClient], bucket: Path, problem: Problem
) -> None:
    """Searching needs neither, repair both."""
    problem(open_to().get("/v1/rejected"), 404, "not-found")
    away = open_to(bucket=str(bucket), broker_url=SecretStr("redis://127.0.0.1:9/0"))
    problem(away.get("/v1/rejected"), 503, "unavailable")
