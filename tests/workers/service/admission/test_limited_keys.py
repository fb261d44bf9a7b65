"""A key with folders: to it every answer is as if there were nothing else."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from zipfile import ZipFile, is_zipfile

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr
from redis import Redis

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import ConfigurationError, Reason, Rejected
from audiofuse.core.index.index import Index, Point, connect_embedded
from audiofuse.core.items import moment_id, point_id
from audiofuse.core.query import Place
from audiofuse.core.search import labels
from audiofuse.core.search.loaded import LoadedEncoders
from audiofuse.core.search.search import Searcher
from audiofuse.core.settings import Settings
from audiofuse.core.storage.store import FolderStore
from audiofuse.workers.queue.dead_letters import DeadLetters
from audiofuse.workers.queue.lanes import Lanes
from audiofuse.workers.repair.explain import Explainer
from audiofuse.workers.service.admission.keys import Keys
from audiofuse.workers.service.app import create_app

LIMITED, EVERYWHERE = "limited-0123456789ab", "everywhere-0123456789"
SCOPES = "search+audio+export+feedback+repair+upload"
COPY, TRAP, LONG = "animals/copy.ogg", "musical/gong.ogg", "animals/long.ogg"
GONG, OWL = "music/gong.ogg", "animals/owl.wav"
NAMES = (GONG, OWL, COPY, TRAP, LONG)
ID = {name: str(point_id("sounds", name)) for name in NAMES}
ID["elsewhere"] = str(point_id("other", GONG))
LETTERS = {"music/cut.wav": Reason.DAMAGED, "animals/mute.wav": Reason.SILENT}
Ask = tuple[str, dict[str, Any]]  # a path, and what is sent with it


def _get(path: str, **params: Any) -> Ask:
    return path, {"params": params}


def _each(path: str, **params: Any) -> list[Ask]:
    return [_get(path.format(id=id_), **params) for id_ in ID.values()]


def _all(path: str, **options: Any) -> Ask:
    return path, {"json": {"ids": list(ID.values())} | options}


FILTERS: list[dict[str, Any]] = [
    {}, {"prefix": "animals/"}, {"prefix": "music"}, {"bucket": "other"}, {"label": "Owl"},
    {"has_text": "no"}, {"min_duration": 600},
]  # fmt: skip
# What is asked by each route, also by ids that its caller should not know.
ASKED: dict[str, list[Ask]] = {
    "GET /v1/search": [
        _get("/v1/search", q="a gong", **options)
        for options in (
            *FILTERS,
            {"unique": True},
            {"moments": True},
            {"balance": 0.2},
            {"offset": 1},
            {"limit": 1000, "extra": True},
        )
    ],
    "POST /v1/search": [
        ("/v1/search", {"json": {"like": id_} | more})
        for id_ in ID.values()
        for more in ({}, {"q": "a gong"}, {"at_s": 700})
    ],
    "POST /v1/search/sound": [],  # by `test_a_sound_finds_nothing_elsewhere`
    "GET /v1/similar/{id}": _each("/v1/similar/{id}") + _each("/v1/similar/{id}", at_s=700),
    "GET /v1/items": [
        *(_get("/v1/items", **options) for options in FILTERS),
        *(_get("/v1/items", sort=sort, limit=1) for sort in ("newest", "longest", "shortest")),
        *(_get("/v1/items", after=f"~{id_}") for id_ in ID.values()),
    ],
    "POST /v1/items": [_all("/v1/items")],
    "GET /v1/items/{id}": _each("/v1/items/{id}"),
    "GET /v1/items/{id}/vector": _each("/v1/items/{id}/vector")
    + _each("/v1/items/{id}/vector", at_s=700),
    "GET /v1/items/{id}/timeline": _each("/v1/items/{id}/timeline", q="a gong"),
    "GET /v1/items/{id}/labels": _each("/v1/items/{id}/labels"),
    "POST /v1/labels": [_all("/v1/labels")],
    "GET /v1/items/{id}/excerpt": _each("/v1/items/{id}/excerpt", start_s=0, end_s=0.1),
    "GET /v1/embed": [_get("/v1/embed", q="a gong")],
    "GET /v1/facets": [_get("/v1/facets", **options) for options in FILTERS],
    "GET /v1/duplicates": [_get("/v1/duplicates"), _get("/v1/duplicates", alike=0.5)],
    "GET /v1/export": [_get("/v1/export"), _get("/v1/export", after=ID[OWL])],
    "GET /v1/map": [],  # by `test_a_map_has_nothing_else`
    "POST /v1/zip": [_all("/v1/zip"), ("/v1/zip", {"json": {"ids": [ID[OWL], ID[TRAP]]}})],
    "POST /v1/sidecars": [
        ("/v1/sidecars", {"json": {"items": [{"id": id_, "labels": ["Dog"]}]}})
        for id_ in ID.values()
    ],
    "GET /v1/feedback": [_get("/v1/feedback")],
    "POST /v1/feedback": [
        ("/v1/feedback", {"json": {"q": "a", "verdicts": [{"item": id_, "opinion": "fits"}]}})
        for id_ in ID.values()
    ],
    "GET /v1/rejected": [
        _get("/v1/rejected", **options)
        for options in ({}, {"reason": "silent"}, {"prefix": "animals/"}, {"limit": 1})
    ],
    "POST /v1/rejected/retry": [("/v1/rejected/retry", {"json": {"keys": list(LETTERS)}})],
    "GET /v1/explain": [],  # by `test_other_names_are_not_explained`
    "GET /v1/uploads": [_get("/v1/uploads")],
    "PUT /v1/audio/{key}": [],  # by `test_nothing_is_written_elsewhere`
    "GET /v1/audio/{key}": [],  # links are signed, and come with what is found
    "GET /v1/encoders/{version}/query.zip": [],  # an encoder knows of no items
}


@dataclass(frozen=True)
class Worlds:
    """A service that has more than its key may see, and one that has no more than that."""

    limited: TestClient
    alone: TestClient


@pytest.fixture(scope="module")
def points(searcher: Searcher) -> list[Point]:
    """Return the service's items, and some that look like them but lie elsewhere."""
    live, index = searcher._index.live(), searcher._index
    assert live
    ids = [each.id for each in index.scroll(live, ["key"])]
    found = {each.payload["key"]: each for each in index.get(live, ids, vectors=True).values()}
    gong = found[GONG]

    def beside(key: str, bucket: str = "sounds", **more: Any) -> Point:
        payload = {**gong.payload, "key": key, "bucket": bucket, **more}
        return replace(gong, id=str(point_id(bucket, key)), payload=payload)

    elsewhere = beside(GONG, "other", labels=["Elsewhere"], duration_s=1e4)
    long = beside(LONG, moments=2, moments_state="s", duration_s=1000, labels=["Long"])
    return [*found.values(), beside(COPY), beside(TRAP), long, elsewhere]


def _searcher(points: list[Point], encoder: Encoder, searcher: Searcher) -> Searcher:
    index = Index(connect_embedded(), "audiofuse")
    generation = index.create("tiny-000000", encoder)
    index.upsert(generation, points)
    windows = [
        Point(
            moment_id(each.id, number),
            {
                **each.payload, "item": each.id, "number": number, "state": "s",
                "start_s": number * 500.0, "end_s": (number + 1) * 500.0,
            },
            each.item, each.audio,
        )
        for each in points
        if each.payload.get("moments")
        for number in range(2)
    ]  # fmt: skip
    if windows:
        index.upsert(generation.moments, windows)
    encoders = LoadedEncoders(_nowhere, {"tiny-000000": encoder})
    return Searcher(index, encoders, open_sound=searcher._open_sound)


def _nowhere(version: str) -> Encoder:
    raise ConfigurationError(f"no encoder {version} is published")


@pytest.fixture
def worlds(  # noqa: PLR0913, PLR0917 - two whole services
    points: list[Point], searcher: Searcher, tiny_encoder: Encoder, bucket: Path, redis: Redis,
    valkey_url: str, tmp_path: Path, bearer: Callable[[str], dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> Worlds:  # fmt: skip
    """Return both services, each asked with its key."""
    monkeypatch.setattr(labels, "class_places", _places)
    monkeypatch.setattr(labels, "NEAR", -1)

    def client(name: str, key: str, points: list[Point], rejected: Mapping[str, Reason]) -> Any:
        for letter, reason in rejected.items():
            DeadLetters(redis, name).add(letter, Rejected(reason, "it is no good"))
        listed = f"a:{LIMITED}:{SCOPES}@music/, b:{EVERYWHERE}:{SCOPES}"
        settings = Settings(
            bucket=str(bucket), api_keys=SecretStr(listed), uploads=True, feedback=True,
            registry=str(tmp_path / name), broker_url=SecretStr(valkey_url), index_name=name,
        )  # fmt: skip
        own = _searcher(points, tiny_encoder, searcher)
        explainer = Explainer(FolderStore(bucket), own._index, redis, Lanes(redis, name), name)
        app = create_app(own, settings, None, explainer)
        return TestClient(app, raise_server_exceptions=False, headers=bearer(key))

    inside = [
        each
        for each in points
        if each.payload["key"].startswith("music/") and each.payload["bucket"] == "sounds"
    ]
    own = {key: reason for key, reason in LETTERS.items() if key.startswith("music/")}
    return Worlds(
        client("whole", LIMITED, points, LETTERS), client("part", EVERYWHERE, inside, own)
    )


def _places(encoder: Any) -> Any:
    return np.eye(len(labels.class_sentences()), encoder.encode_text("a").size, dtype=np.float32)


def _answer(client: TestClient, route: str, ask: Ask) -> tuple[int, Any]:
    path, sent = ask
    answer = client.request(route.partition(" ")[0], path, **sent)
    return answer.status_code, _comparable(answer)


def _comparable(answer: httpx.Response) -> Any:
    """Return what is told, without signatures, times and last digits, which differ."""
    if is_zipfile(BytesIO(answer.content)):
        with ZipFile(BytesIO(answer.content)) as file:
            return {name: file.read(name) for name in file.namelist()}
    if answer.headers["content-type"] == "audio/wav":
        return answer.content
    lines = answer.text.splitlines()
    return [json.loads(line, object_hook=_without_chance, parse_float=_rounded) for line in lines]


def _rounded(number: str) -> float:
    return round(float(number), 4)


def _without_chance(told: dict[str, Any]) -> dict[str, Any]:
    told.pop("at", None)
    if told.get("audio_url"):
        told["audio_url"] = urlsplit(told["audio_url"]).path
    return told


def test_every_route_is_looked_at(worlds: Worlds) -> None:
    """Whoever adds a route says in the table above how it is asked."""
    app: Any = worlds.limited.app
    routes = {
        f"{method.upper()} {path}"
        for path, methods in app.openapi()["paths"].items()
        for method in methods
        if path.startswith("/v1/")
    }
    assert routes == set(ASKED)


def test_nothing_else_exists_to_a_limited_key(worlds: Worlds) -> None:
    """Whatever it asks by whatever route, it is told what it would be told if the rest were not."""
    for route, asks in ASKED.items():
        for ask in asks:
            told, expected = (
                _answer(client, route, ask) for client in (worlds.limited, worlds.alone)
            )
            assert told == expected, (route, ask)
    hits = worlds.limited.get("/v1/search", params={"q": "a gong"}).json()["hits"]
    assert len(hits) == 3  # and what is in its folder does


def test_a_sound_finds_nothing_elsewhere(worlds: Worlds, bucket: Path) -> None:
    """Also by the very sound of which there is a copy elsewhere."""
    content = (bucket / GONG).read_bytes()
    ask: Ask = ("/v1/search/sound?limit=200", {"content": content})
    told = _answer(worlds.limited, "POST", ask)
    assert told == _answer(worlds.alone, "POST", ask)
    assert told[0] == 200


def test_a_map_has_nothing_else(worlds: Worlds, eventually: Callable[..., Any]) -> None:
    """Each part has a map of its own, whatever others have looked at before."""
    app: Any = worlds.limited.app
    everybody = TestClient(app, headers={"Authorization": f"Bearer {EVERYWHERE}"})
    for client, count in ((everybody, 8), (worlds.limited, 3)):
        eventually(lambda client=client: client.get("/v1/map").json()["places"])
        told = client.get("/v1/map").json()
        assert (told["items"], len(told["places"])) == (count, count)


def test_other_names_are_not_explained(worlds: Worlds) -> None:
    """Whether there is such an object or not; and how much others have to do is not told."""
    for name in (OWL, "animals/none.wav", "music", "musical/none.wav"):
        answer = worlds.limited.get("/v1/explain", params={"key": name})
        assert (answer.status_code, answer.json()["detail"]) == (
            403, "this key may know nothing of such a name",
        )  # fmt: skip
    told = worlds.limited.get("/v1/explain", params={"key": GONG}).json()
    assert (told["state"], told["waiting"]) == ("indexed", None)


def test_nothing_is_written_elsewhere(worlds: Worlds, bucket: Path) -> None:
    """Neither sounds nor sidecars, of which one would say what somebody else's sound is."""
    for name in ("animals/new.wav", "animals/owl.json", "musical.json", "new.wav"):
        assert worlds.limited.put(f"/v1/audio/{name}", content=b"{}").status_code == 403
        assert not (bucket / name).exists()
    for name in ("music/../animals/new.json", "music//new.json"):
        assert worlds.limited.put(f"/v1/audio/{name}", content=b"{}").is_client_error
    assert worlds.limited.put("/v1/audio/music/new.json", content=b"{}").status_code == 201
    (bucket / "music/new.json").unlink()


def test_folders_of_keys_are_read_as_they_are_written() -> None:
    """Several, of a bucket, with signs that separate written as in URLs."""
    key = f"a:{LIMITED}:search@field/2026/+a%2Bb%2C/, b:{EVERYWHERE}:@c:d/"
    keys = Keys(SecretStr(key), lambda _: "sounds")
    first, second = (keys.caller(f"Bearer {each}") for each in (LIMITED, EVERYWHERE))
    assert first.places == (Place("field/2026/", "sounds"), Place("a+b,/", "sounds"))
    assert second.places == (Place("c:d/", "sounds"),)
    assert second.rights
    assert [first.reaches(each) for each in ("field/2026/a.wav", "field/2026", "a+b,/c.wav")] == [
        True, False, True,
    ]  # fmt: skip


@pytest.mark.parametrize("folders", ["", "field", "/", "a/+", "+", "%2F"])
def test_what_is_no_folder_stops_the_service(folders: str) -> None:
    """A key that is meant to be limited never reaches everything by a slip."""
    with pytest.raises(ConfigurationError, match="AUDIOFUSE_API_KEYS: a has"):
        Keys(SecretStr(f"a:{LIMITED}:search@{folders}"))
