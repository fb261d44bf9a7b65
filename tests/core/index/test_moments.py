"""Moments beside items: a second collection of the same generation, over every kind of Qdrant."""

from typing import Any
from uuid import UUID, uuid4

import pytest
from qdrant_client import QdrantClient

from audiofuse.core.index.index import Generation, GenerationGone, Index, Nearest, Point
from audiofuse.core.index.provisioning import MOMENT_INDEXES
from audiofuse.core.items import moment_id
from audiofuse.core.model.config import Grid
from audiofuse.core.query import Filter


class Sizes:
    """A very small encoder's widths."""

    dim, audio_dim = 4, 3


def _moments(item_id: str, count: int, state: str) -> list[Point]:
    return [
        Point(
            moment_id(item_id, number),
            {"item": item_id, "number": number, "state": state},
            (1.0, 0.0, 0.0, number),
            (7.0, 0.0, number),
        )
        for number in range(count)
    ]


def _kept(index: Index, generation: Generation) -> list[tuple[str, int]]:
    found = index.scroll(generation.moments, ["item", "number"])
    return [(point.payload["item"], point.payload["number"]) for point in found]


def _aliases(client: QdrantClient, alias: str) -> dict[str, str]:
    found = client.get_aliases().aliases
    return {a.alias_name: a.collection_name for a in found if a.alias_name.startswith(alias)}


def test_ids_of_moments_are_in_the_order_of_items_and_numbers() -> None:
    """Sorted, moments lie item by item, in the items' own order, and each in order of numbers."""
    items = sorted(str(uuid4()) for _ in range(20))
    in_order = [moment_id(item, number) for item in items for number in (0, 1, 255, 256, 7199)]
    assert in_order == sorted(in_order)
    assert len(set(in_order)) == len(in_order)
    assert all(str(UUID(each)) == each for each in in_order)


def test_a_walk_meets_an_items_moments_side_by_side(index: Index) -> None:
    """Whatever the order of writing, moments come item by item and in order."""
    generation = index.create("late-aaa", Sizes())
    items = sorted(str(uuid4()) for _ in range(3))
    for item in reversed(items):
        index.upsert(generation.moments, reversed(_moments(item, 5, "a")))
    assert _kept(index, generation) == [(item, number) for item in items for number in range(5)]


def test_a_generation_has_moments_beside_its_items(index: Index) -> None:
    """They are no items: neither are they counted among them nor listed as a generation."""
    generation = index.create("late-aaa", Sizes())
    index.upsert(generation.moments, _moments(str(uuid4()), 3, "a"))
    assert (index.count(generation), index.count(generation.moments)) == (0, 3)
    assert index.generations() == [generation]


def test_moments_beyond_a_number_are_removed(index: Index) -> None:
    """Only those of one item go, from the number on; then all of it; with none left, nothing."""
    generation = index.create("late-aaa", Sizes())
    mine, other = sorted(str(uuid4()) for _ in range(2))
    index.upsert(generation.moments, [*_moments(mine, 4, "a"), *_moments(other, 4, "a")])
    others = [(other, number) for number in range(4)]
    index.remove_moments(generation, mine, beyond=2)
    assert _kept(index, generation) == [(mine, 0), (mine, 1), *others]
    for _ in range(2):
        index.remove_moments(generation, mine)
    assert _kept(index, generation) == others


def test_moments_are_counted_by_item_and_state(index: Index) -> None:
    """What an earlier state left, or another item has, is not counted."""
    generation = index.create("late-aaa", Sizes())
    mine, other = (str(uuid4()) for _ in range(2))
    index.upsert(generation.moments, [*_moments(mine, 5, "old"), *_moments(other, 4, "new")])
    index.upsert(generation.moments, _moments(mine, 3, "new"))
    counts = [index.count_moments(generation, mine, state) for state in ("new", "old", "none")]
    assert counts == [3, 2, 0]


def test_an_older_generation_gets_its_moments(index: Index, client: QdrantClient) -> None:
    """Making sure of one that a release without moments made adds what is missing."""
    generation = index.create("late-aaa", Sizes())
    client.delete_collection(generation.moments.collection)
    with pytest.raises(GenerationGone):
        index.count_moments(generation, str(uuid4()), "a")
    index.create("late-aaa", Sizes())
    assert index.count_moments(generation, str(uuid4()), "a") == 0


def test_every_field_that_is_filtered_has_an_index(rest: QdrantClient, alias: str) -> None:
    """What a question may ask of a moment, and what finds an item's, is indexed from the start."""
    generation = Index(rest, alias).create("late-aaa", Sizes())
    schema = rest.get_collection(generation.moments.collection).payload_schema
    found = {field: each.data_type.value for field, each in schema.items()}
    wanted: dict[str, Any] = dict(MOMENT_INDEXES)
    assert found == {field: getattr(each, "type", each).value for field, each in wanted.items()}


def test_a_dropped_generation_takes_its_moments_along(
    index: Index, client: QdrantClient, alias: str
) -> None:
    """Nothing of it is left, also where a kill came between its two collections."""
    index.create("late-aaa", Sizes())
    generation = index.create("late-bbb", Sizes())
    client.delete_collection(generation.moments.collection)
    index.drop(generation)
    names = {each.name for each in client.get_collections().collections}
    assert {name for name in names if name.startswith(f"{alias}-late-bbb")} == set()


def test_moments_have_an_alias_that_follows(index: Index, client: QdrantClient, alias: str) -> None:
    """Programs without audiofuse find the moments of what is live by one name."""
    first, second = (index.create(version, Sizes()) for version in ("late-aaa", "late-bbb"))
    for generation in (first, second):
        index.promote(generation)
        assert _aliases(client, alias) == {
            alias: generation.collection,
            f"{alias}-moments": generation.moments.collection,
        }


def test_a_generation_without_moments_takes_their_alias_away(
    index: Index, client: QdrantClient, alias: str
) -> None:
    """The alias never names the moments of a generation that is not live."""
    index.create("late-aaa", Sizes())
    older = index.create("late-bbb", Sizes())
    client.delete_collection(older.moments.collection)
    index.promote(older)
    assert _aliases(client, alias) == {alias: older.collection}


@pytest.mark.parametrize("gone", ["items", "moments"])
def test_a_refused_switch_leaves_both_aliases(
    index: Index, client: QdrantClient, alias: str, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    """Whichever collection turns out to be gone, items and moments stay those of one generation."""
    index.create("late-aaa", Sizes())
    second = index.create("late-bbb", Sizes())
    before = _aliases(client, alias)
    client.delete_collection(second.collection if gone == "items" else second.moments.collection)
    # As it is where it went between the look and the switch.
    monkeypatch.setattr(client, "collection_exists", lambda _: True)
    with pytest.raises(GenerationGone):
        index.promote(second)
    assert _aliases(client, alias) == before


def _found(found: dict[str, list[Point]]) -> list[tuple[str, list[int]]]:
    return [(item, [each.payload["number"] for each in found[item]]) for item in found]


def test_the_nearest_moments_come_item_by_item(index: Index) -> None:
    """However many moments one item has, it is one answer, with its best moments, best first."""
    generation = index.create("late-aaa", Sizes())
    long, short, other = (str(uuid4()) for _ in range(3))
    for item, count in ((long, 50), (short, 3), (other, 1)):
        index.upsert(generation.moments, _moments(item, count, "a"))
    asked = Nearest([0.0, 0.0, 0.0, 1.0], 2, vectors=["audio"])
    found = index.nearest_moments(generation, asked, of_each=3)
    assert _found(found) == [(long, [49, 48, 47]), (short, [2, 1, 0])]
    assert list(found[short][0].audio) == pytest.approx([7, 0, 2])
    besides = Nearest([0.0, 0.0, 0.0, 1.0], 9, where=Filter(besides=(long,)))
    assert _found(index.nearest_moments(generation, besides)) == [(short, [2]), (other, [0])]
    assert _found(index.nearest_moments(generation, asked, items=[other])) == [(other, [0])]


def test_an_items_moments_are_scored_in_their_order(index: Index) -> None:
    """All of one item's in its state come in order of number; if too many, the nearest of them."""
    generation = index.create("late-aaa", Sizes())
    mine = str(uuid4())
    index.upsert(generation.moments, [*_moments(mine, 5, "a"), *_moments(str(uuid4()), 4, "a")])
    index.upsert(generation.moments, _moments(mine, 1, "b"))
    vector = [0.0, 0.0, 0.0, 1.0]
    found = index.scored_moments(generation, mine, "a", vector, 9)
    assert [point.payload["number"] for point in found] == [1, 2, 3, 4]
    assert found[0].score == pytest.approx(0.5**0.5, abs=1e-5)
    few = index.scored_moments(generation, mine, "a", vector, 2)
    assert [point.payload["number"] for point in few] == [3, 4]


def test_drafts_are_sealed_by_one_request(index: Index) -> None:
    """Moments of one item in one state get the fields; others stay as they are."""
    generation = index.create("late-aaa", Sizes())
    mine, other = sorted(str(uuid4()) for _ in range(2))
    index.upsert(generation.moments, [*_moments(mine, 3, "a~"), *_moments(other, 3, "a~")])
    index.upsert(generation.moments, _moments(mine, 1, "b~"))
    index.seal_moments(generation, mine, "a~", {"state": "a", "duration_s": 15.0})
    found = index.scroll(generation.moments, ["item", "state", "duration_s"])
    told = [(p.payload["item"], p.payload["state"], p.payload.get("duration_s")) for p in found]
    assert told == [
        (mine, "b~", None),
        (mine, "a", 15.0),
        (mine, "a", 15.0),
        *[(other, "a~", None)] * 3,
    ]
    assert [index.count_moments(generation, mine, state) for state in ("a", "b~", None)] == [
        2,
        1,
        3,
    ]


def test_a_generation_says_how_recordings_are_cut(index: Index) -> None:
    """What was noted last stands, none too; one that no release with moments made has none."""
    generation = index.create("late-aaa", Sizes())
    found = [index.grid(generation)]
    for grid in (Grid(), Grid(10, 5), None):
        index.create("late-aaa", Sizes(), grid)
        found.append(index.grid(generation))
    assert found == [None, Grid(), Grid(10, 5), None]
    assert index.grid(index.generation("late-bbb")) is None
    assert index.generations() == [generation]
