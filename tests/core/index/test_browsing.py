"""Looking through points without a vector, the same on every kind of Qdrant."""

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import product
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from audiofuse.core.errors import QueryError
from audiofuse.core.index.browsing import Order
from audiofuse.core.index.index import Generation, Index, Point
from audiofuse.core.query import EVERYTHING, Filter

SIZES = SimpleNamespace(dim=2, audio_dim=2)
DURATIONS = (5.0, 5.0, 5.0, 0.25, 61.123, 5.0, 5.0, 7.5, 0.25, 5.0, 5.0)
NEWEST, LONGEST = Order("modified", descending=True), Order("duration_s", descending=True)
SHORTEST = Order("duration_s")
SOMEBODY = UUID(int=1)


def _payload(number: int, duration_s: float) -> dict[str, Any]:
    return {
        "key": f"{'field' if number % 2 else 'studio'}/{number}.wav",
        "duration_s": duration_s,
        "modified": int(datetime(2026, 1, 1 + number // 4, tzinfo=UTC).timestamp() * 1000),
        "labels": ["Dog"] if number % 3 else ["Rain", "Wind"],
        "content_hash": f"{number // 2:064x}",
    }


@pytest.fixture
def generation(index: Index) -> Generation:
    """Return a generation of eleven points, of which seven last equally long."""
    generation = index.create("late-aaa", SIZES)
    index.upsert(
        generation,
        [
            Point(str(UUID(int=7919 * (number + 1) % 101)), _payload(number, s), (1, 0), (1, 0))
            for number, s in enumerate(DURATIONS)
        ],
    )
    return generation


def _pages(
    index: Index, generation: Generation, order: Order | None, limit: int, where: Filter
) -> Iterator[list[Point]]:
    after = ""
    while True:
        page = index.page(generation, ["key"], where, order, limit, after)
        yield page.points
        after = page.following
        if not after:
            return


def test_pages_have_each_point_once(index: Index, generation: Generation) -> None:
    """However many share a value, and wherever pages end, together they are all, in order."""
    for order, limit in product((None, NEWEST, LONGEST, SHORTEST), (1, 2, 3, 5, 11, 20)):
        pages = list(_pages(index, generation, order, limit, EVERYTHING))
        walked = [point for page in pages for point in page]
        assert len({point.id for point in walked}) == len(walked) == len(DURATIONS)
        assert all(len(page) == limit for page in pages[:-1])
        values = [point.payload[order.field] if order else point.id for point in walked]
        assert values == sorted(values, reverse=bool(order and order.descending))


def test_pages_are_of_what_passes_a_filter(index: Index, generation: Generation) -> None:
    """A filter holds for every part of a page, among points of one value and beyond it."""
    where = Filter(labels=("Dog",), outside=("studio/",))
    walked = [p for page in _pages(index, generation, LONGEST, 2, where) for p in page]
    assert sorted(each.payload["key"] for each in walked) == [
        "field/1.wav", "field/5.wav", "field/7.wav",
    ]  # fmt: skip


def test_a_page_goes_on_from_a_page_only(index: Index, generation: Generation) -> None:
    """What is the end of no page is refused as the question's fault."""
    for after in (f"nan~{SOMEBODY}", "5.0~nobody", f"~{SOMEBODY}", "5.0"):
        with pytest.raises(QueryError):
            index.page(generation, ["key"], EVERYTHING, LONGEST, 2, after)


def test_values_are_counted(index: Index, generation: Generation) -> None:
    """The commonest come first, each with its number; of what passes a filter only."""
    assert index.facet(generation, "labels") == {"Dog": 7, "Rain": 4, "Wind": 4}
    assert list(index.facet(generation, "labels", limit=1)) == ["Dog"]
    short = Filter(max_duration_s=1.0)
    assert index.facet(generation, "labels", short) == {"Rain": 1, "Wind": 1, "Dog": 1}


def test_the_same_content_is_found(index: Index, generation: Generation) -> None:
    """Points can be asked for by the hash of their object's bytes."""
    same = index.page(generation, ["key"], Filter(content_hash=f"{1:064x}")).points
    assert sorted(each.payload["key"] for each in same) == ["field/3.wav", "studio/2.wav"]


def test_chance_gives_each_point_once(index: Index, generation: Generation) -> None:
    """Points by chance pass the filter, and none comes twice."""
    found = index.sample(generation, ["key"], Filter(prefix="field/"), 20)
    assert sorted(each.payload["key"] for each in found) == [
        f"field/{number}.wav" for number in (1, 3, 5, 7, 9)
    ]
