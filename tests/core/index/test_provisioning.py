"""Making collections: at once by many, after a kill, and of an older release."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from uuid import uuid4

import pytest
from qdrant_client import QdrantClient, models

from audiofuse.core.errors import Unavailable
from audiofuse.core.index.collection import AUDIO, Generation, Point
from audiofuse.core.index.index import GenerationGone, Index, connect
from audiofuse.core.index.provisioning import (
    MOMENT_INDEXES,
    PAYLOAD_INDEXES,
    WINDOWS_KEY,
    Layout,
    provision,
)

AT_ONCE, VERSIONS = 36, 4


class Sizes:
    """A very small encoder's widths."""

    dim, audio_dim = 4, 3


def _schema(client: QdrantClient, generation: Generation) -> dict[str, str]:
    schema = client.get_collection(generation.collection).payload_schema
    return {field: each.data_type.value for field, each in schema.items()}


EXPECTED = {
    field: getattr(schema, "type", schema).value for field, schema in PAYLOAD_INDEXES.items()
}


def test_every_field_that_is_filtered_has_an_index(rest: QdrantClient, alias: str) -> None:
    """A new collection has all payload indexes before its first point, keys' prefixes included."""
    generation = Index(rest, alias).create("late-aaa", Sizes())
    assert _schema(rest, generation) == EXPECTED
    params: Any = rest.get_collection(generation.collection).payload_schema["key"].params
    assert params.prefix


def test_a_start_that_was_killed_is_finished_by_the_next(
    rest: QdrantClient, alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Indexes that a kill left out are made by whoever makes sure of the generation next."""
    index = Index(rest, alias)
    make = rest.create_payload_index
    made = []

    def die(collection: str, **asked: Any) -> None:
        if len(made) == len(MOMENT_INDEXES) + 2:
            raise KeyboardInterrupt
        made.append(make(collection, **asked))

    monkeypatch.setattr(rest, "create_payload_index", die)
    with pytest.raises(KeyboardInterrupt):
        index.create("late-aaa", Sizes())
    monkeypatch.undo()
    assert len(_schema(rest, index.generation("late-aaa"))) == 2
    generation = index.create("late-aaa", Sizes())
    assert _schema(rest, generation) == EXPECTED
    assert index.live() == generation


def test_a_key_without_prefixes_gets_them(rest: QdrantClient, alias: str) -> None:
    """An index of another kind than today's, as an older release made it, is made anew."""
    index = Index(rest, alias)
    generation = index.create("late-aaa", Sizes())
    rest.create_payload_index(generation.collection, "key", models.PayloadSchemaType.KEYWORD)
    index.create("late-aaa", Sizes())
    params: Any = rest.get_collection(generation.collection).payload_schema["key"].params
    assert params.prefix


def test_what_is_as_it_should_be_is_left_alone(
    rest: QdrantClient, alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that finds all in order changes nothing: no server is made to index anew."""
    index = Index(rest, alias)
    generation = index.create("late-aaa", Sizes())
    for change in ("create_payload_index", "update_collection", "create_collection"):
        monkeypatch.setattr(rest, change, None)
    assert index.create("late-aaa", Sizes()) == generation


def test_all_of_many_that_start_at_once_succeed(
    client: QdrantClient, processes: Callable[[int], list[QdrantClient]], alias: str
) -> None:
    """Whoever finds that another was first goes on with what that one made."""
    together = threading.Barrier(AT_ONCE)

    def start(client: QdrantClient) -> Generation:
        together.wait()
        return Index(client, alias).create("late-aaa", Sizes())

    with ThreadPoolExecutor(AT_ONCE) as pool:
        made = set(pool.map(start, processes(AT_ONCE)))
    assert made == {Index(client, alias).live()}


def test_of_two_encoders_that_begin_one_goes_live(
    client: QdrantClient, processes: Callable[[int], list[QdrantClient]], alias: str
) -> None:
    """Any number of versions may begin on an empty deployment; the first stays live."""
    together = threading.Barrier(VERSIONS)

    def start(number: int, client: QdrantClient) -> Generation | None:
        together.wait()
        index = Index(client, alias)
        index.create(f"late-{number}", Sizes())
        return index.live()

    with ThreadPoolExecutor(VERSIONS) as pool:
        (live,) = set(pool.map(start, range(VERSIONS), processes(VERSIONS)))
    assert live == Index(client, alias).live()
    assert {each.name for each in client.get_collections().collections} >= {live.collection}
    assert not client.collection_exists(f"{alias}.begins")


def test_who_looked_before_another_went_live_moves_nothing(
    client: QdrantClient, alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look that is outdated by the time of the promote costs the other encoder nothing."""
    first = Index(client, alias).create("late-aaa", Sizes())
    index = Index(client, alias)
    looks: list[Generation | None] = [None, first]
    monkeypatch.setattr(index, "live", lambda: looks.pop(0))
    index.create("late-bbb", Sizes())
    assert Index(client, alias).live() == first


def test_a_start_that_was_killed_while_it_began_blocks_nobody(
    client: QdrantClient, alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it left behind is taken away after a while, and the next start goes live."""
    monkeypatch.setattr("audiofuse.core.index.index.BEGINNING_S", 0.1)
    client.create_collection(
        f"{alias}.begins", models.VectorParams(size=1, distance=models.Distance.DOT)
    )
    index = Index(client, alias)
    with pytest.raises(Unavailable, match="about to go live"):
        index.create("late-aaa", Sizes())
    assert index.create("late-aaa", Sizes()) == index.live()


def test_each_loses_the_race_to_make_it_without_harm(
    client: QdrantClient, alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collection that is made between the look and the making is used as if found."""
    index = Index(client, alias)
    generation = index.create("late-aaa", Sizes())
    answers = iter([False])
    exists = client.collection_exists
    monkeypatch.setattr(
        client, "collection_exists", lambda name: next(answers, None) is not False and exists(name)
    )
    assert index.create("late-aaa", Sizes()) == generation


class Recorder:
    """A server that has collections of an older release, and writes down what is changed."""

    def __init__(self, **params: Any) -> None:
        self.params = params
        self.changes: list[dict[str, Any]] = []

    def collection_exists(self, _: str) -> bool:
        """Say that it is there."""
        return True

    def get_collection(self, _: str) -> Any:
        """Tell of it; its payload indexes are as they should be."""
        schema = {
            field: SimpleNamespace(
                data_type=models.PayloadSchemaType(getattr(wanted, "type", wanted).value),
                params=wanted,
            )
            for field, wanted in {**MOMENT_INDEXES, **PAYLOAD_INDEXES}.items()
        }
        params = models.CollectionParams(**self.params)
        config = SimpleNamespace(params=params, metadata={WINDOWS_KEY: []})
        return SimpleNamespace(payload_schema=schema, config=config)

    def update_collection(self, _: str, **change: Any) -> None:
        """Write it down."""
        self.changes.append(change)


def _vectors(hnsw: models.HnswConfigDiff | None) -> dict[str, models.VectorParams]:
    dot = models.Distance.DOT
    return {AUDIO: models.VectorParams(size=3, distance=dot, hnsw_config=hnsw)}


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        (None, [0]),
        (models.HnswConfigDiff(on_disk=True), [0]),
        (models.HnswConfigDiff(m=16), [0]),
        (models.HnswConfigDiff(m=0), []),
    ],
)
def test_the_graph_of_audio_vectors_is_given_up(
    before: models.HnswConfigDiff | None, expected: list[int]
) -> None:
    """A collection of an older release stops building what nobody searches, and is asked once."""
    server: Any = Recorder(vectors=_vectors(before))
    provision(server, Generation("c", "v"), Sizes(), Layout(), None)
    graphs = [change["vectors_config"][AUDIO].hnsw_config.m for change in server.changes]
    assert graphs == 2 * expected  # of moments and of items


@pytest.mark.parametrize(
    ("replicas", "before", "expected"),
    [(None, None, []), (1, 1, []), (2, 1, [2]), (3, 1, [2]), (3, 3, []), (5, 2, [3])],
)
def test_a_write_is_for_most_replicas(
    replicas: int | None, before: int | None, expected: list[int]
) -> None:
    """Collections that took one replica's word are told that most must have a write."""
    vectors = _vectors(models.HnswConfigDiff(m=0))
    server: Any = Recorder(
        vectors=vectors, replication_factor=replicas, write_consistency_factor=before
    )
    provision(server, Generation("c", "v"), Sizes(), Layout(), None)
    written = [change["collection_params"].write_consistency_factor for change in server.changes]
    assert written == 2 * expected  # of moments and of items


def test_a_refused_promote_changes_nothing(client: QdrantClient, alias: str) -> None:
    """Where what is to go live is gone, what was live is live still."""
    index = Index(client, alias)
    live = index.create("late-aaa", Sizes())
    index.create("late-bbb", Sizes())
    index.drop(index.generation("late-bbb"))
    with pytest.raises(GenerationGone):
        index.promote(index.generation("late-bbb"))
    assert index.live() == live


def test_writes_have_one_order_and_comparisons_ask_most(
    client: QdrantClient, alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With replicas, what sync and comparisons take for granted is asked for by name."""
    index = Index(client, alias)
    generation = index.create("late-aaa", Sizes())
    asked: dict[str, dict[str, Any]] = {}

    def remember(name: str) -> None:
        ask = getattr(client, name)

        def remembering(*arguments: Any, **options: Any) -> Any:
            asked[name] = options
            return ask(*arguments, **options)

        monkeypatch.setattr(client, name, remembering)

    for name in ("upsert", "delete", "retrieve", "scroll"):
        remember(name)
    if rest := index._rest:  # these two go the plain way, where there is a server
        ask = rest._ask

        def send(kind: Any, method: str, where: str, body: Any, *more: Any, **how: Any) -> Any:
            query = dict(parse_qsl(urlsplit(where).query))
            asked[{"PUT": "upsert", "POST": "retrieve"}[method]] = query | {"wait": "wait" in query}
            return ask(kind, method, where, body, *more, **how)

        monkeypatch.setattr(rest, "_ask", send)
    point = Point(str(uuid4()), {"key": "rain.wav"}, (1.0, 0.0, 0.0, 0.0), (1.0, 0.0, 0.0))
    index.upsert(generation, [point])
    index.get(generation, [point.id])
    index.remove(generation, [point.id])
    list(index.scroll(generation, ["key"]))
    for name in ("upsert", "delete"):
        assert asked[name]["ordering"] == "strong"
        assert asked[name]["wait"] is True
    for name in ("retrieve", "scroll"):
        assert asked[name]["consistency"] == "majority"


def test_a_server_that_is_away_makes_nothing() -> None:
    """Making sure of a generation waits for the server like all else."""
    with pytest.raises(Unavailable):
        Index(connect("http://127.0.0.1:1"), "audiofuse").create("late-aaa", Sizes())
