"""What a view of an index shows: nothing but what lies in its places, however it is read."""

from types import SimpleNamespace
from uuid import UUID

import pytest

from audiofuse.core.index.index import Generation, Index, Nearest, Point
from audiofuse.core.items import moment_id
from audiofuse.core.query import Filter, Place, Places

SIZES = SimpleNamespace(dim=2, audio_dim=2)
OBJECTS = (
    ("b", "field/rain.wav"), ("b", "field/deep/owl.wav"), ("b", "fieldnotes/owl.wav"),
    ("other", "field/secret.wav"), ("b", "field"), ("b", "studio/gong.wav"),
)  # fmt: skip
FIELD, STUDIO = Place("field/", "b"), Place("studio/")
IDS = [str(UUID(int=(number + 1) << 32)) for number in range(len(OBJECTS))]


@pytest.fixture
def generation(index: Index) -> Generation:
    """Return a generation of items in two buckets, each of which has two moments."""
    generation = index.create("late-aaa", SIZES)
    facts = [
        {"bucket": bucket, "key": key, "labels": ["Dog"], "moments": 2, "moments_state": "s"}
        for bucket, key in OBJECTS
    ]
    points = [Point(id_, said, (1, 0), (1, 0)) for id_, said in zip(IDS, facts, strict=True)]
    index.upsert(generation, points)
    windows = [
        Point(
            moment_id(each.id, number),
            {**each.payload, "item": each.id, "number": number, "state": "s"}, (1, 0), (1, 0),
        )
        for each in points
        for number in range(2)
    ]  # fmt: skip
    index.upsert(generation.moments, windows)
    return generation


@pytest.mark.parametrize(
    ("places", "seen"),
    [((FIELD,), {0, 1}), ((FIELD, STUDIO), {0, 1, 5}), ((), set()), (None, set(range(6)))],
)
def test_a_view_shows_its_places_only(
    index: Index, generation: Generation, places: Places, seen: set[int]
) -> None:
    """By filter, by id, by nearness, by chance and by counting, of items and of moments."""
    view, expected = index.within(places), {IDS[number] for number in seen}
    nearest = Nearest((1, 0), 10, fields=["key"])
    moments = [moment_id(id_, 1) for id_ in IDS]
    found = {
        "get": set(view.get(generation, IDS)),
        "get some": set(view.get(generation, IDS, fields=["labels"])),
        "search": {each.id for each in view.search(generation, [nearest])[0]},
        "scroll": {each.id for each in view.scroll(generation, ["key"])},
        "page": {each.id for each in view.page(generation, ["key"]).points},
        "sample": {each.id for each in view.sample(generation, ["key"], Filter(), 10)},
        "moments": set(view.nearest_moments(generation, nearest)),
        "windows": set(view.nearest_moments(generation, nearest, items=IDS)),
        "timeline": {id_ for id_ in IDS if view.scored_moments(generation, id_, "s", (1, 0), 9)},
        "counted": {id_ for id_ in IDS if view.count_moments(generation, id_)},
        "moments by id": {each[:-8] + "0" * 8 for each in view.get(generation.moments, moments)},
    }
    assert found == dict.fromkeys(found, expected)
    assert view.count(generation) == len(expected)
    assert view.facet(generation, "labels") == ({"Dog": len(expected)} if expected else {})
    assert index.count(generation) == len(OBJECTS)  # nobody else sees less


def test_a_view_narrows_every_filter(index: Index, generation: Generation) -> None:
    """Asking for what lies elsewhere finds nothing, and for a part of it that part."""
    view = index.within((FIELD,))
    asked = {"studio/": 0, "field/deep/": 1, "field": 2, "": 2}
    assert {each: view.count(generation, Filter(prefix=each)) for each in asked} == asked
    assert view.count(generation, Filter(bucket="other")) == 0
