"""How a server is asked to keep a collection; what it makes of that only a server can tell."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from pydantic import SecretStr

from audiofuse.core.index import embedded
from audiofuse.core.index.engine import Engine
from audiofuse.core.index.index import Index, Nearest, Point, open_index
from audiofuse.core.settings import Settings


class Sizes:
    """An encoder's sizes."""

    dim, audio_dim = 4, 3


class Asked:
    """An index over HTTP that remembers what collections were asked for."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.bodies: list[dict[str, Any]] = []
        self.questions: list[dict[str, Any]] = []

    def open(self, **settings: Any) -> Index:
        """Open it with settings."""
        return open_index(
            Settings(qdrant_url=self.url, qdrant_api_key=SecretStr("key"), **settings)
        )


@pytest.fixture
def asked(
    serving: Callable[[FastAPI], AbstractContextManager[str]], tmp_path: Path
) -> Iterator[Asked]:
    """Run an index that remembers."""
    client = Engine(tmp_path / "index")
    app = embedded.create_app(client, "key")
    asked = Asked("")

    @app.middleware("http")
    async def remember(request: Request, call_next: Any) -> Any:
        if request.method == "PUT" and request.url.path.endswith("/audiofuse-v-1"):
            asked.bodies.append(await request.json())
        if "/points/query" in request.url.path:
            body = await request.json()
            asked.questions += body.get("searches", [body])
        return await call_next(request)

    with serving(app) as url:
        asked.url = url
        yield asked
    client.close()


def test_by_default_the_server_decides(asked: Asked) -> None:
    """Without a setting nothing is asked for but sizes and distances."""
    asked.open().create("v-1", Sizes())
    (body,) = asked.bodies
    assert body["vectors"]["item"] == {"size": 4, "distance": "Cosine"}
    assert not {"shard_number", "replication_factor", "write_consistency_factor"} & body.keys()


def test_audio_vectors_have_no_graph(asked: Asked) -> None:
    """They lie on disk and are never searched, so that a graph of them is not asked for."""
    asked.open().create("v-1", Sizes())
    (body,) = asked.bodies
    assert body["vectors"]["audio"] == {
        "size": 3,
        "distance": "Dot",
        "on_disk": True,
        "hnsw_config": {"m": 0},
    }


def test_a_cluster_is_asked_for_shards_and_replicas(asked: Asked) -> None:
    """The numbers are those of the settings; most of the replicas must have a write."""
    asked.open(qdrant_shards=6, qdrant_replicas=3).create("v-1", Sizes())
    (body,) = asked.bodies
    assert (body["shard_number"], body["replication_factor"]) == (6, 3)
    assert body["write_consistency_factor"] == 2


@pytest.mark.parametrize(
    ("vectors", "expected"),
    [
        ("float16", {"datatype": "float16"}),
        (
            "int8",
            {
                "on_disk": True,
                "quantization_config": {"scalar": {"type": "int8", "always_ram": True}},
            },
        ),
    ],
)
def test_item_vectors_may_be_smaller(asked: Asked, vectors: str, expected: dict[str, Any]) -> None:
    """Item vectors are kept as the setting says, audio vectors as ever; both are found as ever."""
    index = asked.open(qdrant_vectors=vectors)
    generation = index.create("v-1", Sizes())
    (body,) = asked.bodies
    assert body["vectors"]["item"] == {"size": 4, "distance": "Cosine"} | expected
    assert body["vectors"]["audio"].items() >= {"size": 3, "distance": "Dot"}.items()
    ids = [f"00000000-0000-0000-0000-00000000000{number}" for number in range(3)]
    index.upsert(
        generation,
        [Point(id_, {"key": id_}, (1.0, n, 0.0, 0.0), (1.0, n, 2.0)) for n, id_ in enumerate(ids)],
    )
    ((hit, *_),) = index.search(generation, [Nearest([0.0, 1.0, 0.0, 0.0], 2)])
    assert hit.id == ids[2]
    assert list(hit.audio) == pytest.approx([1.0, 2.0, 2.0])


@pytest.mark.parametrize("oversampling", [None, 2.0])
def test_more_are_looked_up_than_ranked(asked: Asked, oversampling: float | None) -> None:
    """Every question of nearest items or moments has the setting, or leaves it to the server."""
    index = asked.open(qdrant_vectors="int8", qdrant_oversampling=oversampling)
    generation = index.create("v-1", Sizes())
    vector = [0.0, 1.0, 0.0, 0.0]
    index.search(generation, [Nearest(vector, 2)])
    index.nearest_moments(generation, Nearest(vector, 2))
    index.scored_moments(generation, "an item", "a state", vector, 2)
    assert len(asked.questions) == 3
    wanted = {"rescore": True, "oversampling": oversampling}
    for question in asked.questions:
        params = question.get("params")
        if oversampling is None:
            assert params is None
        else:
            assert params["quantization"].items() >= wanted.items()
