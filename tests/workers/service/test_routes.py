"""What the service answers over HTTP: searches, items, vectors, and its own description."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import SecretStr

from audiofuse.core.search import labels
from audiofuse.core.search.labels import MOST_LABELS
from audiofuse.core.search.search import Searcher
from audiofuse.core.settings import Settings
from audiofuse.workers.service.app import create_app

NOBODY = "6ba7b810-9dad-51d1-80b4-00c04fd430c8"
KeysOf = Callable[[httpx.Response], list[str]]

# A question may be well-formed and mean nothing: "?!" has no words, text is no sound.
SCHEMATHESIS = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", 401, 403, 404, 422]
"""


def test_a_search_answers_in_json(client: TestClient, version: Path) -> None:
    """Hits come with their parts, what is public of their payload, and where to hear them."""
    found = client.get("/v1/search", params={"q": "a gong", "limit": 2}).json()
    assert found["encoder"] == version.name
    assert len(found["hits"]) == 2
    hit = found["hits"][0]
    assert hit.keys() == {
        "id", "key", "score", "audio", "metadata", "relevance", "copies", "moments", "audio_url",
        "location", "payload",
    }  # fmt: skip
    assert hit["audio"] + hit["metadata"] == pytest.approx(hit["score"])
    assert {"title", "keywords", "labels", "duration_s", "modified"} <= hit["payload"].keys()
    assert not hit["payload"].keys() & {"item_norm", "user_metadata_hash", "sidecar_etag"}


def test_what_else_a_sidecar_says_comes_when_it_is_asked_for(client: TestClient) -> None:
    """It may be long: hits have it on demand, one item always."""

    def hit(**options: Any) -> dict[str, Any]:
        found = client.get("/v1/search", params={"q": "a gong", "keyword": "gong", **options})
        return dict(found.json()["hits"][0])

    plain, whole = hit(), hit(extra="true")
    assert "extra" not in plain["payload"]
    assert whole["payload"] == plain["payload"] | {"extra": whole["payload"]["extra"]}
    item = client.get(f"/v1/items/{plain['id']}").json()
    assert item["payload"] == whole["payload"]


def test_every_way_to_ask_gives_the_same_ranking(client: TestClient, keys_of: KeysOf) -> None:
    """Query parameters and JSON are one language; similar and POST's like are one question."""
    options = {"q": "a gong", "limit": 3, "prefix": "music/", "balance": 0.4}
    by_get = client.get("/v1/search", params=options)
    assert keys_of(by_get) == keys_of(client.post("/v1/search", json=options))
    id_ = by_get.json()["hits"][0]["id"]
    similar = keys_of(client.get(f"/v1/similar/{id_}"))
    assert similar == keys_of(client.post("/v1/search", json={"like": id_}))
    assert len(similar) == 3


def test_filters_are_said_in_the_address(client: TestClient, keys_of: KeysOf) -> None:
    """Tags may be repeated, days bound the modification, and text may be asked for or not."""

    def ask(**options: Any) -> list[str]:
        return sorted(keys_of(client.get("/v1/search", params={"q": "a", **options})))

    today = time.strftime("%Y-%m-%d", time.gmtime())
    assert ask(keyword=["gong", "metal"]) == ["music/gong.ogg"]
    assert ask(has_text="no", prefix="music/") == ["music/cowbell.flac"]
    assert ask(since="2020-01-01", until=today, label="Gong") == ["music/gong.ogg"]
    assert ask(until="2020-01-01") == []
    assert len(ask(until="9999-12-31", min_duration=0.01, max_duration=100)) == 4
    assert ask(bucket="another") == []


def test_a_sound_is_searched_by(client: TestClient, bucket: Path, keys_of: KeysOf) -> None:
    """The body is a sound file, decoded in another process; itself is what it finds first."""
    content = (bucket / "music/gong.ogg").read_bytes()
    answer = client.post("/v1/search/sound", params={"limit": 2}, content=content)
    assert keys_of(answer)[0] == "music/gong.ogg"
    assert answer.json()["hits"][0]["score"] == pytest.approx(1, abs=1e-3)
    with_words = client.post("/v1/search/sound", params={"q": "a gong"}, content=content)
    assert len(keys_of(with_words)) == 4


def test_an_item_of_another_deployment_is_asked_by_its_vector(
    client: TestClient, keys_of: KeysOf, problem: Callable[..., str]
) -> None:
    """What one service tells of an item, another finds the like with; only of its own version."""
    id_ = client.get("/v1/search", params={"q": "a gong"}).json()["hits"][0]["id"]
    told = client.get(f"/v1/items/{id_}/vector").json()

    def ask(**changes: Any) -> httpx.Response:
        return client.post("/v1/search", json={"like": id_, "vector": told | changes})

    assert keys_of(ask()) == keys_of(client.get(f"/v1/similar/{id_}"))
    by_moment = client.get(f"/v1/items/{id_}/vector", params={"at_s": 0.1}).json()
    assert by_moment == told  # a sound of one window is its moment
    assert "another-123456" in problem(ask(encoder="another-123456"), 422, "bad-question")
    assert "numbers" in problem(ask(vector=[1.0]), 422, "bad-question")
    alone = client.post("/v1/search", json={"q": "a gong", "vector": told})
    assert "like" in problem(alone, 422, "bad-question")
    assert client.get(f"/v1/items/{NOBODY}/vector").status_code == 404


def test_items_are_told(client: TestClient, version: Path) -> None:
    """One of them, and a text's vector in their space."""
    hit = client.get("/v1/search", params={"q": "a gong"}).json()["hits"][0]
    item = client.get(f"/v1/items/{hit['id']}").json()
    assert (item["key"], item["payload"]["title"]) == (hit["key"], hit["payload"]["title"])
    several = client.post("/v1/items", json={"ids": [hit["id"], NOBODY, hit["id"]]}).json()["items"]
    assert several == [
        item | {"payload": {k: v for k, v in item["payload"].items() if k != "extra"}}
    ]
    embedded = client.get("/v1/embed", params={"q": "a gong"}).json()
    assert embedded["encoder"] == version.name
    assert sum(x * x for x in embedded["vector"]) == pytest.approx(1, abs=1e-5)


def test_every_route_is_described(client: TestClient) -> None:
    """OpenAPI names each route with a summary, an example where words are asked, and problems."""
    described = client.get("/openapi.json").json()
    assert {
        "/v1/search", "/v1/search/sound", "/v1/similar/{id}", "/v1/items", "/v1/items/{id}",
        "/v1/items/{id}/timeline",
        "/v1/facets", "/v1/duplicates", "/v1/export", "/v1/embed", "/v1/zip",
        "/v1/encoders/{version}/query.zip", "/healthz", "/readyz",
    } <= described["paths"].keys()  # fmt: skip
    for path, methods in described["paths"].items():
        for method, route in methods.items():
            assert route.get("description"), (path, method)
            if path.startswith("/v1"):
                assert any(code.startswith("4") for code in route["responses"]), path
    assert re.search(r'"a dog barking"', json.dumps(described))
    references = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(described)))
    assert references <= described["components"]["schemas"].keys()


@pytest.fixture
def whole(bucket: Path, version: Path, valkey_url: str) -> Settings:
    """Return settings with which every route can be answered."""
    return Settings(bucket=str(bucket), encoder=version, broker_url=SecretStr(valkey_url))


def test_items_are_told_what_they_may_be_called(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, problem: Callable[..., str]
) -> None:
    """One, or several at once: the nearest first, at most five; an unknown one is left out."""
    monkeypatch.setattr(labels, "NEAR", -1.0)  # a tiny encoder has nothing near
    first, second = (hit["id"] for hit in _found(client)[:2])
    told = client.post("/v1/labels", json={"ids": [second, NOBODY, first]}).json()
    assert [each["id"] for each in told["items"]] == [second, first]
    scores = [label["score"] for label in told["items"][1]["labels"]]
    assert scores == sorted(scores, reverse=True)
    assert len(set(_names(told["items"][1]))) == MOST_LABELS
    (alone,) = client.get(f"/v1/items/{first}/labels").json()["items"]
    assert _names(alone) == _names(told["items"][1])
    problem(client.get(f"/v1/items/{NOBODY}/labels"), 404, "not-found")


def _names(item: dict[str, Any]) -> list[str]:
    return [each["label"] for each in item["labels"]]


def _found(client: TestClient) -> list[dict[str, Any]]:
    return list(client.get("/v1/search", params={"q": "a sound"}).json()["hits"])


@pytest.mark.timeout(500)
def test_nothing_is_found_by_its_own_description(
    searcher: Searcher, whole: Settings, tmp_path: Path,
    serving: Callable[[FastAPI], AbstractContextManager[str]],
) -> None:  # fmt: skip
    """What schemathesis makes of our OpenAPI, sense and nonsense, is answered as described."""
    (tmp_path / "schemathesis.toml").write_text(SCHEMATHESIS)
    program = Path(sys.executable).with_name("schemathesis")
    options = ["--exclude-path", "/readyz"]  # whose 503 is an answer
    options += ["--max-examples", "10", "--seed", "1", "--no-color"]
    with serving(create_app(searcher, whole)) as url:
        done = subprocess.run(
            [program, "run", f"{url}/openapi.json", *options],
            cwd=tmp_path, capture_output=True, text=True, check=False, timeout=450,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
