"""Moments over HTTP and in the terminal: in hits, as hits, and over a whole recording."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import ConfigurationError
from audiofuse.core.index.index import Index, Point, connect_embedded
from audiofuse.core.items import moment_id, point_id
from audiofuse.core.search.loaded import LoadedEncoder, LoadedEncoders
from audiofuse.core.search.search import Searcher
from audiofuse.core.settings import PREFIX, Settings
from audiofuse.workers.commands.main import cli
from audiofuse.workers.service.app import create_app

LONG, SHORT = (str(point_id("b", key)) for key in ("long.wav", "short.wav"))
HEARD = 150  # the window that is just what is asked for: from 12:30 on
COUNT = 200


@pytest.fixture(scope="module")
def client(tiny_encoder: Encoder) -> Iterator[TestClient]:
    """Return a client of a service over a short sound, and a recording with one clear moment."""
    index = Index(connect_embedded(), "audiofuse")
    generation = index.create("tiny-000000", tiny_encoder)
    random = np.random.default_rng(0)
    query = LoadedEncoder(tiny_encoder).encode_text("a gong")

    def point(id_: str, key: str, vector: Any = None, **payload: Any) -> Point:
        facts = {
            "bucket": "b", "key": key, "title": "", "keywords": [], "labels": [],
            "has_text": "no", "duration_s": 5.0 * COUNT, "item_norm": 1.0, "content_hash": id_,
            "moments": 0, "moments_state": "",
        }  # fmt: skip
        item = random.standard_normal(tiny_encoder.dim) if vector is None else vector
        audio = random.random(tiny_encoder.audio_dim)
        return Point(id_, facts | payload, item.tolist(), audio.tolist())

    index.upsert(
        generation,
        [
            point(LONG, "long.wav", -query, moments=COUNT, moments_state="s"),
            point(SHORT, "short.wav", query + random.standard_normal(query.size)),
        ],
    )
    windows = [
        point(
            moment_id(LONG, number), "long.wav", query if number == HEARD else -query, item=LONG,
            number=number, start_s=5.0 * number, end_s=5.0 * (number + 1), state="s",
        )
        for number in range(COUNT)
    ]  # fmt: skip
    index.upsert(generation.moments, windows)
    searcher = Searcher(index, LoadedEncoders(_nowhere, {"tiny-000000": tiny_encoder}))
    with TestClient(create_app(searcher, Settings()), raise_server_exceptions=False) as client:
        yield client


def _nowhere(version: str) -> Encoder:
    raise ConfigurationError(f"no encoder {version} is published")


def _hits(client: TestClient, **options: Any) -> list[dict[str, Any]]:
    found = client.get("/v1/search", params={"q": "a gong"} | options)
    hits: list[dict[str, Any]] = found.raise_for_status().json()["hits"]
    return hits


def test_a_hit_says_where_it_is_heard(client: TestClient) -> None:
    """The recording is first for its one moment, which has its seconds and the hit's score."""
    first, second = _hits(client)
    assert (first["key"], second["key"], second["moments"]) == ("long.wav", "short.wav", [])
    best = first["moments"][0]
    assert (best["start_s"], best["end_s"]) == (5 * HEARD, 5 * HEARD + 5)
    assert (best["score"], first["score"]) == (pytest.approx(1, abs=1e-4),) * 2
    assert first["payload"]["moments"] == COUNT
    assert "moments_state" not in first["payload"]


def test_moments_are_listed_where_they_are_asked_for(client: TestClient) -> None:
    """A recording is several hits then, each with its one moment; pages go on among them."""
    hits = _hits(client, moments=True)
    assert [hit["key"] for hit in hits[:2]] == ["long.wav", "short.wav"]
    assert all(len(hit["moments"]) == 1 for hit in hits if hit["key"] == "long.wav")
    assert _hits(client, moments=True, offset=1, limit=1) == hits[1:2]
    assert client.get("/v1/search?q=a&moments=true&offset=200").status_code == 422


def test_a_timeline_has_every_window(client: TestClient) -> None:
    """As many windows as the recording has, with the best where it is heard."""
    answer = client.get(f"/v1/items/{LONG}/timeline", params={"q": "a gong"}).json()
    scores = [window["score"] for window in answer["windows"]]
    assert (len(scores), int(np.argmax(scores))) == (COUNT, HEARD)
    assert answer["encoder"] == "tiny-000000"
    (whole,) = client.get(f"/v1/items/{SHORT}/timeline?q=a gong").json()["windows"]
    assert (whole["start_s"], whole["end_s"]) == (0, 5.0 * COUNT)


def test_what_has_no_timeline_is_told(client: TestClient) -> None:
    """No such item is 404; no words, or a question of another kind, is 422."""
    nobody = "6ba7b810-9dad-51d1-80b4-00c04fd430c8"
    assert client.get(f"/v1/items/{nobody}/timeline?q=rain").status_code == 404
    assert client.get(f"/v1/items/{LONG}/timeline?q=...").status_code == 422
    assert client.get(f"/v1/items/{LONG}/timeline?q=rain&limit=3").status_code == 422


def test_more_is_found_like_a_moment(client: TestClient) -> None:
    """By both routes the moment is meant; a second beyond the end, or of no item, is refused."""
    at = {"at_s": 5 * HEARD + 1}
    (like,) = client.get(f"/v1/similar/{LONG}", params=at).json()["hits"]
    (same,) = client.post("/v1/search", json={"like": LONG} | at).json()["hits"]
    (whole,) = client.get(f"/v1/similar/{LONG}").json()["hits"]
    assert like["score"] == same["score"] == pytest.approx(-whole["score"], abs=1e-4)
    assert client.get(f"/v1/similar/{LONG}?at_s=1001").status_code == 422
    assert client.post("/v1/search", json={"q": "rain", "at_s": 3}).status_code == 422


def test_the_terminal_says_at_which_time(
    client: TestClient, serving: Callable[[FastAPI], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table has the moment's time as players show it; with --json all of it."""
    monkeypatch.setenv(PREFIX + "BUCKET", "/b")
    with serving(client.app) as url:
        monkeypatch.setenv(PREFIX + "SEARCH_URL", url)
        table = CliRunner().invoke(cli, ["search", "a gong"])
        listed = CliRunner().invoke(cli, ["search", "a gong", "--moments", "--json"])
        refused = CliRunner().invoke(cli, ["search", "a gong", "--at", "3"])
    assert "12:30" in table.output
    hits = json.loads(listed.output)["hits"]
    assert next(hit["moments"][0]["start_s"] for hit in hits if hit["id"] == LONG) == 5 * HEARD
    assert refused.exit_code
