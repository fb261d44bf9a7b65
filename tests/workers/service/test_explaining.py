"""Why an object is found or not, asked over HTTP."""

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from redis import Redis

from audiofuse.core.index.index import Index, connect_embedded
from audiofuse.core.search.search import Searcher
from audiofuse.core.settings import Settings
from audiofuse.core.storage.store import FolderStore
from audiofuse.workers.deployment.local import free_port
from audiofuse.workers.queue.lanes import Lanes
from audiofuse.workers.repair.explain import Explainer
from audiofuse.workers.service.app import create_app


@pytest.fixture
def by_broker(searcher: Searcher, bucket: Path) -> Callable[..., TestClient]:
    """Return what gives a client of a service with this broker, whose index is empty."""

    def client(redis: Redis, **settings: str) -> TestClient:
        lanes, index = Lanes(redis, "audiofuse"), Index(connect_embedded(), "audiofuse")
        explainer = Explainer(FolderStore(bucket), index, redis, lanes, "audiofuse")
        app = create_app(
            searcher, Settings.model_validate({"bucket": str(bucket)} | settings), None, explainer
        )
        return TestClient(app, raise_server_exceptions=False)

    return client


def test_an_object_is_explained(by_broker: Callable[..., TestClient], redis: Redis) -> None:
    """Its state and why, and what it is in the bucket; null where there is nothing."""
    asked = by_broker(redis)
    told = asked.get("/v1/explain", params={"key": "music/gong.ogg"}).json()
    assert (told["state"], told["held"], told["letters"]) == ("missing", [], [])
    assert "reconcile" in told["why"]
    assert (told["object"]["key"], told["sidecar"]["key"]) == ("music/gong.ogg", "music/gong.json")
    absent = asked.get("/v1/explain", params={"key": "none.wav"}).json()
    assert (absent["state"], absent["object"]) == ("absent", None)
    assert "/v1/explain" in asked.get("/openapi.json").json()["paths"]


def test_a_broker_that_is_away_is_no_bug(
    by_broker: Callable[..., TestClient], problem: Callable[[httpx.Response, int, str], str]
) -> None:
    """Who asks is told to come back; a key that none can be is refused."""
    asked = by_broker(Redis(port=free_port(), decode_responses=True))
    problem(asked.get("/v1/explain", params={"key": ""}), 422, "bad-question")
    problem(asked.get("/v1/explain", params={"key": "a.wav"}), 503, "unavailable")


def test_only_the_scope_repair_gets_explanations(
    by_broker: Callable[..., TestClient], redis: Redis,
    problem: Callable[[httpx.Response, int, str], str], bearer: Callable[[str], dict[str, str]],
) -> None:  # fmt: skip
    """They have verdicts, whose details may name what searching does not show."""
    kiosk, full = "k" * 16, "f" * 16
    asked = by_broker(redis, api_keys=f"kiosk:{kiosk}:search,archive:{full}:repair")
    params = {"key": "music/gong.ogg"}
    refused = asked.get("/v1/explain", params=params, headers=bearer(kiosk))
    assert "repair" in problem(refused, 403, "not-allowed")
    assert asked.get("/v1/explain", params=params, headers=bearer(full)).status_code == 200
