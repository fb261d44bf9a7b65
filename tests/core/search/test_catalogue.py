"""The catalogue over made points: groups of the same bytes and of like sound, folders, walks."""

from collections.abc import Callable
from typing import Any, TypeVar
from uuid import UUID

import pytest

from audiofuse.core.index.index import Generation, Index, Point, connect_embedded
from audiofuse.core.query import Filter
from audiofuse.core.search import catalogue
from audiofuse.core.search.catalogue import Catalogue

T = TypeVar("T")


class _Sizes:
    dim = audio_dim = 3


class _Live:
    """Stands for a searcher: one generation that is live."""

    def __init__(self, index: Index, generation: Generation) -> None:
        self._live = index, generation

    def with_index(self, work: Callable[[Index, Generation], T]) -> T:
        return work(*self._live)


def _point(number: int, key: str, audio: tuple[float, float, float], content: int) -> Point:
    payload: dict[str, Any] = {
        "key": key, "content_hash": f"{content:064x}", "duration_s": 5.0, "modified": 0,
    }  # fmt: skip
    return Point(str(UUID(int=number)), payload, (1.0, number / 100, 0.0), audio)


POINTS = (
    _point(1, "a/one.wav", (1.0, 0.0, 0.0), 1),
    _point(2, "a/two.wav", (2.0, 0.1, 0.0), 2),  # sounds like one
    _point(3, "a/b/three.wav", (0.0, 1.0, 0.0), 1),  # the bytes of one
    _point(4, "c/four.wav", (0.0, 1.0, 0.01), 4),  # sounds like three
    _point(5, "five.wav", (0.0, 0.0, 1.0), 1),
    _point(6, "six.wav", (0.0, 0.0, 0.0), 2),
)


@pytest.fixture
def made() -> Catalogue:
    """Return the catalogue of the points above."""
    index = Index(connect_embedded(), "audiofuse")
    generation = index.create("late-aaa", _Sizes())
    index.upsert(generation, POINTS)
    return Catalogue(_Live(index, generation))  # type: ignore[arg-type]


def _keys(groups: catalogue.Groups) -> list[list[str]]:
    return [[point.payload["key"] for point in group.points] for group in groups.groups]


def test_the_same_bytes_are_groups(made: Catalogue) -> None:
    """The largest group comes first, and pages go on where the one before ended."""
    first = made.same(limit=1)
    assert _keys(first) == [["a/one.wav", "a/b/three.wav", "five.wav"]]
    second = made.same(limit=1, after=first.following)
    assert (_keys(second), second.following) == ([["a/two.wav", "six.wav"]], "")


def test_what_sounds_alike_is_found_in_stretches(
    made: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stretch by stretch each pair comes once, with its likeness; silence is like nothing."""
    monkeypatch.setattr(catalogue, "STRETCH", 2)
    found, after, stretches = [], "", 0
    while stretches == 0 or after:
        groups = made.alike(least=0.95, after=after)
        found += _keys(groups)
        assert all(group.likeness[0] == 1 and min(group.likeness) > 0.95 for group in groups.groups)
        after, stretches = groups.following, stretches + 1
    assert found == [["a/one.wav", "a/two.wav"], ["a/b/three.wav", "c/four.wav"]]
    assert stretches == 3


def test_folders_are_those_below_the_prefix(
    made: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One level at a time; where too many sounds lie beside them it is said that some may lack."""
    monkeypatch.setattr(catalogue, "FOLDERS_PAGE", 2)
    monkeypatch.setattr(catalogue, "FOLDERS_LOOK", 8)
    whole = made.facets(wanted=["folders"])
    assert (whole.folders, whole.folders_complete) == ({"a/": 3, "c/": 1}, True)
    assert made.facets(Filter(prefix="a/"), ["folders"]).folders == {"a/b/": 1}
    monkeypatch.setattr(catalogue, "FOLDERS_LOOK", 2)
    assert not made.facets(Filter(prefix="a/"), ["folders"]).folders_complete


def test_a_walk_goes_on_behind_any_item(made: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a walk is taken up again, what follows is the rest of the whole walk."""
    monkeypatch.setattr(catalogue, "EXPORT_PAGE", 2)
    ids = [point.id for points in made.walk() for point in points]
    assert ids == [point.id for point in POINTS]
    for number, id_ in enumerate(ids, 1):
        assert [point.id for points in made.walk(after=id_) for point in points] == ids[number:]
