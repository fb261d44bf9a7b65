"""Snapshots: what is taken comes back, through a stand-in of a Qdrant server's REST interface.

The stand-in answers the requests of Qdrant's documentation in front of the embedded engine; what it
calls a snapshot is its own. No real server is asked here.
"""

import hashlib
import json
import pickle
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request, Response
from pydantic import SecretStr
from qdrant_client import models
from typer.testing import CliRunner

from audiofuse.core.bundles.registry import open_registry
from audiofuse.core.errors import AudiofuseError, ConfigurationError, Unavailable
from audiofuse.core.index.embedded import create_app
from audiofuse.core.index.engine import Engine
from audiofuse.core.index.index import AUDIO, ITEM, Index, Point, open_index
from audiofuse.core.items import moment_id, point_id
from audiofuse.core.model.config import Grid
from audiofuse.core.settings import Settings, environment
from audiofuse.workers.commands.main import cli
from audiofuse.workers.deployment.snapshots import Snapshots

Serving = Callable[[FastAPI], AbstractContextManager[str]]
KEY = "a key of the test"
VERSION = "owl-1"
NAME = "made.snapshot"


class Sizes:
    """A very small encoder's widths."""

    dim, audio_dim = 2, 2


class Server:
    """What a Qdrant server answers besides what the embedded engine does."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.made: dict[str, bytes] = {}
        self.peers: dict[str, Any] = {"1": {}}
        self.checksum: str | None = None  # told instead of the right one
        self.app = FastAPI()
        path = "/collections/{name}/snapshots"
        self.app.add_api_route(path, self.make, methods=["POST"])
        self.app.add_api_route(path + "/upload", self.take_in, methods=["POST"])
        self.app.add_api_route(path + "/{file}", self.give, methods=["GET"])
        self.app.add_api_route(path + "/{file}", self.forget, methods=["DELETE"])
        self.app.add_api_route("/cluster", self.cluster, methods=["GET"])
        self.app.mount("/", create_app(engine, KEY))

    def cluster(self) -> dict[str, Any]:
        """Tell of the nodes."""
        return {"result": {"status": "enabled", "peers": self.peers}}

    def make(self, name: str) -> dict[str, Any]:
        """Make a snapshot: metadata and all points."""
        points, _ = self.engine.scroll(name, None, 100, None, True, True)  # noqa: FBT003
        metadata = self.engine.get_collection(name)["config"]["metadata"]
        content = pickle.dumps((metadata, points))
        self.made[NAME] = content
        checksum = self.checksum or hashlib.sha256(content).hexdigest()
        return {"result": {"name": NAME, "size": len(content), "checksum": checksum}}

    def give(self, name: str, file: str) -> Response:
        """Send one."""
        del name
        return Response(self.made[file], media_type="application/octet-stream")

    def forget(self, name: str, file: str) -> dict[str, Any]:
        """Delete one."""
        del name, self.made[file]
        return {"result": True}

    async def take_in(self, name: str, request: Request) -> dict[str, Any]:
        """Replace a collection by what is sent, a form with one file."""
        boundary = request.headers["content-type"].partition("boundary=")[2].encode()
        head, _, rest = (await request.body()).partition(b"\r\n\r\n")
        assert b'name="snapshot"' in head
        metadata, points = pickle.loads(rest.rpartition(b"\r\n--" + boundary)[0])
        if self.engine.collection_exists(name):
            self.engine.delete_collection(name)
        vector = models.VectorParams(size=2, distance=models.Distance.DOT)
        self.engine.create_collection(name, {ITEM: vector, AUDIO: vector}, metadata)
        self.engine.upsert(name, [models.PointStruct(**each) for each in points])
        return {"result": True}


@pytest.fixture
def server(engine: Engine) -> Server:
    """Return a stand-in of a Qdrant server."""
    return Server(engine)


@pytest.fixture
def settings(server: Server, serving: Serving, tmp_path: Path) -> Iterator[Settings]:
    """Return settings that name it, and a registry."""
    with serving(server.app) as url:
        yield _settings(url, tmp_path)


def _settings(url: str, folder: Path) -> Settings:
    registry = folder / "encoders"
    registry.mkdir()
    return Settings(qdrant_url=url, qdrant_api_key=SecretStr(KEY), registry=str(registry))


@pytest.fixture
def index(settings: Settings) -> Index:
    """Return the server's index with two items in its live generation."""
    index = open_index(settings)
    _add(index, "owl.wav", "crow.wav")
    return index


def _add(index: Index, *keys: str) -> None:
    points = [Point(str(point_id("b", key)), {"key": key}, (1.0, 0.0), (0.5, 0.5)) for key in keys]
    generation = index.create(VERSION, Sizes(), Grid())
    index.upsert(generation, points)
    moments = [
        Point(moment_id(point.id, number), {"item": point.id}, point.item, point.audio)
        for point in points
        for number in range(2)
    ]
    index.upsert(generation.moments, moments)


def test_what_is_taken_comes_back_to_an_empty_server(settings: Settings, index: Index) -> None:
    """Of a lost generation every item and moment comes back with its vectors; it is live again."""
    live = index.live()
    assert live
    before = index.get(live, [str(point_id("b", "owl.wav"))], vectors=True)
    kept = Snapshots(settings).take()
    index.drop(live)
    assert index.live() is None
    assert Snapshots(settings).restore(kept.name) == live == index.live()
    assert index.get(live, [str(point_id("b", "owl.wav"))], vectors=True) == before
    assert (index.count(live), index.count(live.moments)) == (2, 4)
    assert index.grid(live) == Grid()


def test_a_snapshot_of_before_moments_comes_back_without(settings: Settings, index: Index) -> None:
    """One that an earlier release took is restored as it is; what there was of moments stays."""
    live = index.live()
    assert live
    kept = Snapshots(settings).take()
    Path(settings.registry, "snapshots", f"{kept.name}.moments").unlink()
    assert Snapshots(settings).restore(kept.name) == live
    assert index.count(live) == 2


def test_it_is_kept_beside_the_encoders_and_nowhere_else(
    settings: Settings, index: Index, server: Server
) -> None:
    """Once it is kept the server has no copy; the registry's versions are as they were."""
    assert index.live()
    kept = Snapshots(settings).take()
    assert server.made == {}
    assert Snapshots(settings).kept() == [kept]
    paths = [Path(settings.registry, "snapshots", kept.name + end) for end in ("", ".moments")]
    assert sum(path.stat().st_size for path in paths) == kept.size
    assert open_registry(settings).versions() == []


def test_what_was_indexed_since_is_replaced(settings: Settings, index: Index) -> None:
    """A restored collection is as it was when the snapshot was taken: reconcile does the rest."""
    kept = Snapshots(settings).take()
    _add(index, "late.wav")
    snapshots = Snapshots(settings)
    assert snapshots.count(snapshots.restore(kept.name)) == 2


def test_a_damaged_snapshot_is_not_kept(settings: Settings, index: Index, server: Server) -> None:
    """What does not have the checksum that the server told is refused, and leaves nothing."""
    assert index.live()
    server.checksum = "0" * 64
    with pytest.raises(Unavailable, match=f"{NAME} was damaged on its way"):
        Snapshots(settings).take()
    assert Snapshots(settings).kept() == []
    assert server.made == {}


def test_part_of_an_index_is_no_snapshot(settings: Settings, index: Index, server: Server) -> None:
    """Where nodes share a collection each has a part: refused, with what to do instead."""
    assert index.live()
    server.peers = {"1": {}, "2": {}}
    with pytest.raises(ConfigurationError, match="2 nodes share the index"):
        Snapshots(settings).take()


def test_what_cannot_be_done_is_said(settings: Settings) -> None:
    """Nothing live, a name that is none, a server that is away: one sentence each."""
    with pytest.raises(ConfigurationError, match="nothing is live"):
        Snapshots(settings).take()
    with pytest.raises(ConfigurationError, match="no snapshot 'owl-1/none' is kept"):
        Snapshots(settings).restore("owl-1/none")
    away = settings.model_copy(update={"qdrant_url": "http://127.0.0.1:9"})
    with pytest.raises(Unavailable, match=r"does not answer at http://127\.0\.0\.1:9"):
        Snapshots(away).take()


def test_the_embedded_engine_refuses(engine: Engine, serving: Serving, tmp_path: Path) -> None:
    """It takes none, and says so, with what to do instead."""
    with serving(create_app(engine, KEY)) as url:
        settings = _settings(url, tmp_path)
        _add(open_index(settings), "owl.wav")
        with pytest.raises(AudiofuseError, match="the embedded Qdrant takes no snapshots"):
            Snapshots(settings).take()


def test_the_commands_take_list_and_restore(
    settings: Settings, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what `take` and `list` print `restore` finds it, and tells how many items there are."""
    assert index.live()
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    taken = CliRunner().invoke(cli, ["snapshot", "take"]).stdout
    (listed,) = json.loads(CliRunner().invoke(cli, ["snapshot", "list", "--json"]).stdout)
    assert f"kept: {listed['name']} ({listed['size']} bytes)" in taken
    restored = CliRunner().invoke(cli, ["snapshot", "restore", listed["name"]]).stdout
    assert restored == f"{VERSION} has 2 items again\n"
