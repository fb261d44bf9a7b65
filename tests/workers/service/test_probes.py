"""Whether the service is alive and ready: told whatever the index does."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from redis import Redis

from audiofuse.core.errors import Unavailable
from audiofuse.core.search.hits import Found
from audiofuse.core.search.search import Searcher
from audiofuse.core.settings import Settings
from audiofuse.workers.queue.followers import Followers
from audiofuse.workers.service.admission.questions import AT_ONCE, WAITING
from audiofuse.workers.service.app import create_app
from audiofuse.workers.service.probes import Announcer

Eventually = Callable[..., Any]


def test_it_tells_whether_it_is_alive_and_ready(
    client: TestClient, searcher: Searcher, version: Path, monkeypatch: pytest.MonkeyPatch,
    eventually: Eventually,
) -> None:  # fmt: skip
    """It is ready for versions that are loaded, while the index answers; alive it is anyway."""
    eventually(lambda: client.get("/readyz").is_success)
    assert client.get("/readyz").json()["loaded"] == [version.name]
    eventually(lambda: client.get("/readyz", params={"version": version.name}).is_success)
    assert client.get("/readyz", params={"version": "other-111111"}).status_code == 503
    monkeypatch.setattr(searcher._index, "live", _away)
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["index"]) == (503, "away")
    answer = client.get("/healthz")
    assert answer.status_code == 200
    assert answer.json() == {"status": "alive", "encoders": {version.name: "cpu by torch"}}


def _away(*_: object, **__: object) -> None:
    raise Unavailable("Qdrant does not answer at http://10.1.2.3:6333: secret-host")


def test_a_stalled_index_holds_up_no_probe(
    searcher: Searcher, serving: Callable[[FastAPI], AbstractContextManager[str]],
    monkeypatch: pytest.MonkeyPatch, eventually: Eventually, tmp_path: Path,
) -> None:  # fmt: skip
    """While as many questions hang as may, it is alive at once, and says that it is not ready."""
    go_on, hanging = threading.Event(), threading.Semaphore(0)

    def hang(*_: object) -> Found:
        hanging.release()
        go_on.wait(100)
        return Found(None, [])

    monkeypatch.setattr(searcher, "search", hang)
    monkeypatch.setattr(searcher._index, "live", hang)
    number = AT_ONCE + WAITING
    with (
        serving(create_app(searcher, Settings(home=tmp_path))) as url,
        httpx.Client(base_url=url, timeout=100, limits=httpx.Limits(max_connections=500)) as client,
        ThreadPoolExecutor(number) as asking,
    ):
        try:
            open_ = [asking.submit(client.get, "/v1/search?q=a") for _ in range(number)]
            for _ in range(AT_ONCE):
                assert hanging.acquire(timeout=60)
            took = []
            for _ in range(10):
                started = time.monotonic()
                assert client.get("/healthz").status_code == 200
                took.append(time.monotonic() - started)
            assert min(took) < 0.1
            assert client.get("/readyz").json()["index"] == "away"
            refused = eventually(lambda: _refused(client.get("/v1/search?q=a")))
            assert refused.headers["retry-after"] == "1"
        finally:
            go_on.set()
        assert {each.result().status_code for each in open_} == {200}


def _refused(answer: httpx.Response) -> httpx.Response | None:
    return answer if answer.status_code == 503 else None


def test_a_rollout_hears_which_document_the_service_follows(redis: Redis) -> None:
    """It is behind until all is loaded that the document names; once it ends nobody waits."""
    followers = Followers(redis, "audiofuse")
    announcer = Announcer(followers, "search here:1")
    announcer.tell()
    assert followers.behind("new") == ["search here:1"]
    announcer.prepared("new")
    announcer.tell()
    assert followers.behind("new") == []
    assert followers.behind("newer") == ["search here:1"]
    announcer.end()
    announcer.tell()
    assert followers.behind("newer") == []


def test_a_broker_that_is_away_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """Searching goes on without it, and the log is not filled."""
    away = Redis.from_url("redis://127.0.0.1:9", socket_connect_timeout=1)
    announcer = Announcer(Followers(away, "audiofuse"), "search here:1")
    for _ in range(3):
        announcer.tell()
    assert caplog.text.count("rollouts do not know of this service") == 1
