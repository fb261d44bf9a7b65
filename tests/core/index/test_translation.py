"""Groups of the embedded engine, held against those of qdrant_client's own, on random points."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from audiofuse.core.index import translation
from audiofuse.core.index.engine import Engine
from audiofuse.core.index.index import connect_embedded

VECTORS = {"item": models.VectorParams(size=4, distance=models.Distance.COSINE)}
Groups = list[tuple[str | int, list[tuple[str, float]]]]


def _points(random: np.random.Generator) -> list[models.PointStruct]:
    """Return some hundred points in groups of very different sizes, some of them in none."""
    names: list[Any] = [None, *(f"recording {number}" for number in range(random.integers(1, 40)))]
    chance = random.dirichlet(np.full(len(names), 0.3))
    return [
        models.PointStruct(
            id=str(UUID(int=number)),
            vector={"item": random.standard_normal(4).tolist()},
            payload={"kind": int(number % 3)} | ({"item": name} if name else {}),
        )
        for number, name in enumerate(random.choice(names, random.integers(1, 400), p=chance))
    ]


def _groups(client: QdrantClient, collection: str, **asked: Any) -> Groups:
    found = client.query_points_groups(collection, using="item", with_payload=False, **asked)
    return [
        (each.id, [(str(hit.id), round(hit.score, 4)) for hit in each.hits])
        for each in found.groups
    ]


@pytest.mark.parametrize("at_once", [1, 7, translation.AT_ONCE])
def test_groups_are_those_of_the_client(
    rest: QdrantClient, alias: str, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """The same groups, in the same order, with the same points, however often it takes to ask."""
    monkeypatch.setattr(translation, "AT_ONCE", at_once)
    reference = connect_embedded()
    for seed in range(8):
        random = np.random.default_rng(seed)
        points = _points(random)
        collection = f"{alias}-{seed}"
        for client in (reference, rest):
            client.create_collection(collection, VECTORS)
            client.upsert(collection, points, wait=True)
        for field in ("item", "kind"):
            rest.create_payload_index(collection, field, _kind(field))
        for _ in range(6):
            is_kind = models.FieldCondition(key="kind", match=models.MatchValue(value=1))
            asked = {
                "query": random.standard_normal(4).tolist(),
                "group_by": str(random.choice(["item", "kind"])),
                "limit": int(random.integers(1, 30)),
                "group_size": int(random.integers(1, 6)),
                "query_filter": models.Filter(must=[is_kind]) if random.random() < 0.5 else None,
            }
            assert _groups(rest, collection, **asked) == _groups(reference, collection, **asked)


def _kind(field: str) -> models.PayloadSchemaType:
    return models.PayloadSchemaType.KEYWORD if field == "item" else models.PayloadSchemaType.INTEGER


def _write(client: QdrantClient, collection: str, items: Sequence[Any]) -> None:
    client.create_collection(collection, VECTORS)
    points = [
        models.PointStruct(
            id=str(UUID(int=number)),
            vector={"item": [1.0, float(number), 0.0, 0.0]},
            payload={"item": item, "start_s": number},
        )
        for number, item in enumerate(items)
    ]
    client.upsert(collection, points, wait=True)


def test_groups_have_what_was_asked_for(rest: QdrantClient, alias: str) -> None:
    """Payload fields and vectors come with each hit, and none unasked."""
    _write(rest, alias, ["rain", "rain", "wind"])
    (rain, _) = rest.query_points_groups(
        alias, "item", [1.0, 0.0, 0.0, 0.0], using="item", group_size=1,
        with_payload=["start_s"], with_vectors=["item"],
    ).groups  # fmt: skip
    (hit,) = rain.hits
    assert (rain.id, hit.payload, hit.vector) == ("rain", {"start_s": 0}, {"item": [1, 0, 0, 0]})


def test_what_cannot_be_grouped_is_refused(engine: Engine) -> None:
    """A field of several values, a look-up: an error, never an answer that lacks something."""
    engine.create_collection("c", VECTORS)
    vector = {"item": [1.0, 0.0, 0.0, 0.0]}
    several = models.PointStruct(id=str(UUID(int=1)), vector=vector, payload={"item": ["a", "b"]})
    engine.upsert("c", [several])
    asked = models.QueryGroupsRequest(query=vector["item"], using="item", group_by="item")
    with pytest.raises(ValueError, match="text or integers"):
        engine.query_points_groups("c", asked)
    with pytest.raises(ValueError, match="without look-up"):
        engine.query_points_groups("c", asked.model_copy(update={"with_lookup": "x"}))
