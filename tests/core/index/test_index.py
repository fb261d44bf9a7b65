"""The index: the same over memory, the REST dialect of the embedded engine, and a server."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from qdrant_client import QdrantClient, models

from audiofuse.core.errors import ConfigurationError
from audiofuse.core.index.collection import HIT_FIELDS, HITS_AT_ONCE, ITEM
from audiofuse.core.index.index import (
    SCROLL_PAGE,
    Generation,
    GenerationGone,
    Index,
    Nearest,
    Point,
)
from audiofuse.core.query import Filter

SOME_VECTORS = {"v": models.VectorParams(size=2, distance=models.Distance.COSINE)}


@dataclass(frozen=True)
class Sizes:
    """A very small encoder's widths."""

    dim: int = 4
    audio_dim: int = 3


def _second(number: int) -> datetime:
    return datetime.fromtimestamp(number, UTC)


def _point(number: int, **payload: object) -> Point:
    vectors = (1.0, 0.0, 0.0, number), (7.0, 0.0, number)
    return Point(str(uuid4()), {"key": str(number)} | payload, *vectors)


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
    (hits,) = index.search(generation, [Nearest([0, 0, 0, 2], limit=2)])
    assert [hit.payload["key"] for hit in hits] == ["9", "1"]
    assert hits[0].score == pytest.approx(9 / 82**0.5, abs=1e-5)
    assert list(hits[0].audio) == pytest.approx([7, 0, 9])


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({}, "123"),
        ({"keywords": ("rain",)}, "12"),
        ({"keywords": ("rain", "wind")}, "2"),
        ({"keywords": ("Rain",)}, ""),
        ({"labels": ("Water",)}, "3"),
        ({"min_duration_s": 2.0}, "23"),
        ({"min_duration_s": 2.0, "max_duration_s": 2.0}, "2"),
        ({"since": _second(2)}, "23"),
        ({"since": _second(1), "until": _second(3)}, "12"),
        ({"bucket": "b"}, "3"),
        ({"prefix": "field/r"}, "12"),
        ({"prefix": "ield"}, ""),
        ({"has_text": True}, "12"),
        ({"has_text": False, "prefix": "field/"}, ""),
    ],
)
def test_only_what_passes_the_filter_is_searched(
    index: Index, conditions: dict[str, Any], expected: str
) -> None:
    """Every condition leaves out what does not meet it, and all of them must be met."""
    generation = index.create("late-aaa", Sizes())
    facts = {
        1: ("field/rain.wav", ["rain"], [], "a", "yes"),
        2: ("field/rain2.wav", ["wind", "rain"], [], "a", "yes"),
        3: ("home/tap.wav", [], ["Water"], "b", "no"),
    }
    points = [
        _point(
            number, key=key, keywords=keywords, labels=labels, bucket=bucket, has_text=text,
            duration_s=float(number), modified=number * 1000,
        )
        for number, (key, keywords, labels, bucket, text) in facts.items()
    ]  # fmt: skip
    index.upsert(generation, points)
    (hits,) = index.search(generation, [Nearest([1, 0, 0, 0], 10, where=Filter(**conditions))])
    assert "".join(sorted(f"{hit.payload['duration_s']:.0f}" for hit in hits)) == expected


def test_a_page_begins_where_the_one_before_ended(index: Index) -> None:
    """Hits are passed over, named ids are left out, and item vectors come where they are asked."""
    generation = index.create("late-aaa", Sizes())
    points = [_point(number) for number in range(4)]
    index.upsert(generation, points)
    besides = Filter(besides=(points[3].id,))
    page = Nearest([0, 0, 0, 1], 1, 1, besides, vectors=[ITEM])
    (hit,), others = index.search(generation, [page, Nearest([1, 0, 0, 0], 9)])
    assert len(others) == 4
    assert hit.payload["key"] == "1"
    assert list(hit.item) == pytest.approx([0.5**0.5, 0, 0, 0.5**0.5])


def test_a_hit_says_all_but_what_may_be_large(index: Index) -> None:
    """``extra``, which may be large, comes with the item and where it is asked for."""
    generation = index.create("late-aaa", Sizes())
    payload = dict.fromkeys(HIT_FIELDS, "x") | {"extra": {"large": "x" * 1000}}
    point = _point(1, **payload)
    index.upsert(generation, [point])
    ((hit,),) = index.search(generation, [Nearest([1, 0, 0, 0], 9)])
    assert hit.payload.keys() == point.payload.keys() - {"extra"}
    fields = [*HIT_FIELDS, "extra"]
    ((whole,),) = index.search(generation, [Nearest([1, 0, 0, 0], 9, fields=fields)])
    assert whole.payload == point.payload
    assert index.get(generation, [point.id])[point.id].payload == point.payload
    some = index.get(generation, [point.id], fields=["key"], vectors=["audio"])[point.id]
    assert (some.payload, list(some.item), len(some.audio)) == ({"key": "x"}, [], 3)


def test_large_questions_are_not_answered_together(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is asked at once is answered in portions of so many hits, in the order of asking."""
    generation = index.create("late-aaa", Sizes())
    index.upsert(generation, [_point(number) for number in range(4)])
    portions = []
    ask = index._query

    def count(of: Generation, requests: Sequence[models.QueryRequest]) -> list[list[Point]]:
        portions.append([each.limit for each in requests])
        return ask(of, requests)

    monkeypatch.setattr(index, "_query", count)
    limits = [3, HITS_AT_ONCE - 3, 1, 2 * HITS_AT_ONCE, 2]
    found = index.search(generation, [Nearest([1, 0, 0, 0], limit) for limit in limits])
    assert portions == [[3, HITS_AT_ONCE - 3], [1], [2 * HITS_AT_ONCE], [2]]
    assert [len(hits) for hits in found] == [3, 4, 1, 4, 2]


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


def test_scrolling_may_be_for_a_folder_only(index: Index) -> None:
    """Points that do not pass the filter are not even sent."""
    generation = index.create("late-aaa", Sizes())
    index.upsert(generation, [_point(n, key=key) for n, key in enumerate(("a/1", "a/2", "b/1"))])
    found = index.scroll(generation, ["key"], Filter(prefix="a/"))
    assert {point.payload["key"] for point in found} == {"a/1", "a/2"}


def test_eight_threads_lose_nothing(index: Index) -> None:
    """Threads that write at once all have their points."""
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


def test_a_foreign_collection_is_not_searched(
    index: Index, client: QdrantClient, alias: str
) -> None:
    """An alias that names a collection which is not ours is a configuration error."""
    client.create_collection(f"{alias}-mine", vectors_config=SOME_VECTORS)
    index.promote(Generation(f"{alias}-mine", ""))
    with pytest.raises(ConfigurationError, match="no audiofuse made"):
        index.live()


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


def test_a_dropped_generation_is_gone_and_nothing_else(
    index: Index, client: QdrantClient, alias: str
) -> None:
    """Only the collection of this exact name goes; what is asked of it says that it is gone."""
    first, second = (index.create(version, Sizes()) for version in ("late-aaa", "late-aaab"))
    client.create_collection(f"{alias}-late", vectors_config=SOME_VECTORS)
    assert index.generations() == [first, second]
    index.upsert(second, [_point(1)])
    for _ in range(2):
        index.drop(index.generation("late-aaa"))
    assert index.generations() == [second]
    assert client.collection_exists(f"{alias}-late")
    for ask in (
        index.count,
        index.health,
        lambda each: index.search(each, [Nearest([1, 0, 0, 0], 1)]),
    ):
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
