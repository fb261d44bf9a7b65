"""The index: the same over memory, a folder, and the REST dialect of the embedded server."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
from fastapi import FastAPI
from qdrant_client import QdrantClient
from qdrant_client.http.exceptions import UnexpectedResponse

from core.embedded import create_app
from core.errors import ConfigurationError, Unavailable
from core.index import (
    SCROLL_PAGE,
    Generation,
    GenerationGone,
    Index,
    Point,
    connect,
    connect_embedded,
)

API_KEY = "a key of the test"


@dataclass(frozen=True)
class Sizes:
    """A very small encoder's widths."""

    dim: int = 4
    audio_dim: int = 3


@pytest.fixture(scope="module")
def embedded_url(
    serving: Callable[[FastAPI], AbstractContextManager[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """Serve an embedded index over HTTP, as the local deployment does."""
    client = connect_embedded(tmp_path_factory.mktemp("qdrant"))
    with serving(create_app(client, API_KEY)) as url:
        yield url
    client.close()


@pytest.fixture(params=["memory", "folder", "server"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[QdrantClient]:
    """Return each kind of client that an index may be given."""
    if request.param == "server":
        client = connect(request.getfixturevalue("embedded_url"), API_KEY)
    else:
        client = connect_embedded(tmp_path / "q" if request.param == "folder" else None)
    yield client
    client.close()


@pytest.fixture
def index(client: QdrantClient) -> Index:
    """Return an index under an alias that no other test uses."""
    return Index(client, f"test-{uuid4().hex[:8]}")


def _point(number: int, **payload: object) -> Point:
    return Point(
        str(uuid4()), {"key": str(number), **payload}, (1.0, 0.0, 0.0, number), (7.0, 0.0, number)
    )


def test_the_first_generation_goes_live(index: Index) -> None:
    """The alias names the first generation, and creating another does not move it."""
    assert index.live() is None
    first = index.create("late-aaa", Sizes())
    assert index.live() == first
    second = index.create("late-bbb", Sizes())
    assert second.collection != first.collection
    assert index.live() == first


def test_creating_again_keeps_the_points(index: Index) -> None:
    """A second worker that makes sure of the generation loses nothing of the first's work."""
    generation = index.create("late-aaa", Sizes())
    index.upsert(generation, [_point(1)])
    assert index.create("late-aaa", Sizes()) == generation
    assert index.count(generation) == 1


def test_points_come_back_as_written(index: Index) -> None:
    """Payload and the audio vector's length survive; ids without a point are left out."""
    generation = index.create("late-aaa", Sizes())
    point = _point(2, extra={"nested": [1, None, "é"]})
    index.upsert(generation, [point])
    got = index.get(generation, [point.id, str(uuid4())], vectors=True)
    assert list(got) == [point.id]
    assert got[point.id].payload == point.payload
    assert list(got[point.id].audio) == pytest.approx(point.audio)


def test_search_ranks_by_cosine(index: Index) -> None:
    """The nearest item vector is first, with its cosine as score and its audio vector along."""
    generation = index.create("late-aaa", Sizes())
    index.upsert(generation, [_point(number) for number in (0, 1, 9)])
    hits = index.search(generation, [0, 0, 0, 2], top=2)
    assert [hit.payload["key"] for hit in hits] == ["9", "1"]
    assert hits[0].score == pytest.approx(9 / 82**0.5, abs=1e-5)
    assert list(hits[0].audio) == pytest.approx([7, 0, 9])


def test_removed_points_are_gone(index: Index) -> None:
    """Removing is idempotent, and the others stay."""
    generation = index.create("late-aaa", Sizes())
    points = [_point(number) for number in range(3)]
    index.upsert(generation, points)
    for _ in range(2):
        index.remove(generation, [points[0].id])
    assert {point.payload["key"] for point in index.scroll(generation, ["key"])} == {"1", "2"}


def test_scrolling_meets_every_point_once(index: Index) -> None:
    """All points are walked over page by page, with the asked fields only."""
    generation = index.create("late-aaa", Sizes())
    index.upsert(generation, [_point(number, etag="x") for number in range(SCROLL_PAGE + 200)])
    payloads = [point.payload for point in index.scroll(generation, ["key"])]
    assert sorted(int(payload["key"]) for payload in payloads) == list(range(SCROLL_PAGE + 200))
    assert payloads[0].keys() == {"key"}


def test_eight_threads_lose_nothing(index: Index) -> None:
    """Threads that write at once all have their points, though the engine is not thread-safe."""
    generation = index.create("late-aaa", Sizes())

    def write() -> None:
        for number in range(25):
            index.upsert(generation, [_point(number)])

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert index.count(generation) == 200


def test_a_foreign_collection_is_not_searched(client: QdrantClient) -> None:
    """An alias that names a collection which is not ours is a configuration error."""
    index = Index(client, f"foreign-{uuid4().hex[:8]}")
    client.create_collection(f"{index._alias}-mine", vectors_config={})
    index.promote(Generation(f"{index._alias}-mine", ""))
    with pytest.raises(ConfigurationError, match="no audiofuse made"):
        index.live()


def test_points_survive_reopening(tmp_path: Path) -> None:
    """A folder that is closed and opened again holds the points and the alias."""
    for expected in (0, 1):
        client = connect_embedded(tmp_path)
        index = Index(client, "audiofuse")
        generation = index.create("late-aaa", Sizes())
        assert index.count(generation) == expected
        index.upsert(generation, [_point(1)])
        client.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # theirs
def test_a_folder_has_one_owner(tmp_path: Path) -> None:
    """Opening an embedded index that is open elsewhere is a clear error."""
    client = connect_embedded(tmp_path)
    with pytest.raises(ConfigurationError, match=str(tmp_path)):
        connect_embedded(tmp_path)
    client.close()


def test_a_wrong_key_is_refused(embedded_url: str) -> None:
    """Whoever lacks the API key cannot read, let alone write."""
    with pytest.raises(UnexpectedResponse, match="403"):
        Index(connect(embedded_url, "wrong"), "audiofuse").live()


def test_an_absent_server_is_unavailable() -> None:
    """Nobody listening is a reason to try later."""
    with pytest.raises(Unavailable, match="does not answer"):
        Index(connect("http://127.0.0.1:1"), "audiofuse").live()


def test_promoting_moves_the_alias_there_and_back(index: Index) -> None:
    """The alias names what was promoted last; one that does not exist cannot be promoted."""
    first, second = (index.create(version, Sizes()) for version in ("late-aaa", "late-bbb"))
    index.promote(second)
    assert index.live() == second
    index.promote(first)
    assert index.live() == first
    with pytest.raises(GenerationGone):
        index.promote(index.generation("late-ccc"))
    assert index.live() == first


def test_a_dropped_generation_is_gone_and_nothing_else(index: Index, client: QdrantClient) -> None:
    """Only the collection of this exact name goes; what is asked of it says that it is gone."""
    first, second = (index.create(version, Sizes()) for version in ("late-aaa", "late-aaab"))
    client.create_collection(f"{index._alias}-late", vectors_config={})
    assert index.generations() == [first, second]
    index.upsert(second, [_point(1)])
    for _ in range(2):
        index.drop(index.generation("late-aaa"))
    assert index.generations() == [second]
    assert client.collection_exists(f"{index._alias}-late")
    for ask in (index.count, index.health, lambda each: index.search(each, [1, 0, 0, 0], 1)):
        with pytest.raises(GenerationGone):
            ask(first)
    with pytest.raises(GenerationGone):
        index.upsert(first, [_point(2)])
    assert index.count(second) == 1


def test_a_generation_tells_how_it_stands(index: Index) -> None:
    """It counts its points, and is optimised once nothing is left to do."""
    generation = index.create("late-aaa", Sizes())
    index.upsert(generation, [_point(1), _point(2)])
    health = index.health(generation)
    assert (health.points, health.status, health.optimised) == (2, "green", True)
