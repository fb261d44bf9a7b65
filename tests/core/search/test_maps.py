"""The map: drawn when somebody looks, twice, kept, and drawn anew when it is not right any more."""

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from audiofuse.core.encoder.embeddings import Floats
from audiofuse.core.errors import Unavailable
from audiofuse.core.index.index import Index, Point, connect_embedded
from audiofuse.core.search import maps
from audiofuse.core.search.maps import Map, Maps

SIZES = SimpleNamespace(dim=3, audio_dim=2)


class Live:
    """An index with some items, as the map sees a searcher."""

    def __init__(self, number: int) -> None:
        """Fill the live generation with so many items."""
        self.index = Index(connect_embedded(), "audiofuse")
        self.live: Any = None
        self.go_live("late-aaa", number)

    def go_live(self, version: str, number: int) -> None:
        """Have another generation be live."""
        self.live = self.index.create(version, SIZES)
        self.add(range(number))

    def add(self, numbers: range) -> None:
        """Add items."""
        points = [
            Point(str(UUID(int=n)), {"key": f"{n}.wav"}, np.eye(3)[n % 3].tolist(), (1, 0))
            for n in numbers
        ]
        if points:
            self.index.upsert(self.live, points)

    def with_index(self, work: Callable[..., Any]) -> Any:
        """See ``Searcher``."""
        return work(self.index, self.live)


def _final(drawn: Maps, eventually: Callable[..., Map]) -> Map:
    return eventually(lambda: (seen := drawn.look()) and seen.is_final and seen)


def test_a_map_is_shown_before_it_is_final(eventually: Callable[..., Map]) -> None:
    """The first who looks gets none, then a rough one, which the final one replaces."""
    goes_on = threading.Event()

    def lay_out(vectors: Floats) -> Floats:
        goes_on.wait(60)
        return vectors[:, :2]

    drawn = Maps(Live(30), lay_out)  # type: ignore[arg-type]
    assert drawn.look() is None
    rough = eventually(drawn.look)
    assert not rough.is_final
    goes_on.set()
    final = _final(drawn, eventually)
    assert final.number > rough.number
    assert (final.count, final.encoder, len(final.places)) == (30, "late-aaa", 30)
    assert {each.payload["key"] for each in final.points} == {f"{n}.wav" for n in range(30)}
    same = {tuple(place) for place in final.places.round(3).tolist()}
    assert len(same) == 3


def test_a_map_is_kept_until_items_came_and_it_is_old(
    eventually: Callable[..., Map], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking costs nothing; when it is drawn anew the one before is shown until that is final."""
    live = Live(9)
    drawn = Maps(live, lambda vectors: vectors[:, :2])  # type: ignore[arg-type]
    first = _final(drawn, eventually)
    live.add(range(9, 12))
    assert drawn.look() is first
    monkeypatch.setattr(maps, "REDRAWN_S", 0)
    assert drawn.look() is first
    assert eventually(lambda: (seen := drawn.look()) is not first and seen).count == 12


def test_another_encoder_has_another_map(eventually: Callable[..., Map]) -> None:
    """Places of one version are never shown for another."""
    live = Live(9)
    drawn = Maps(live, lambda vectors: vectors[:, :2])  # type: ignore[arg-type]
    _final(drawn, eventually)
    live.go_live("late-bbb", 4)
    assert drawn.look() is None
    assert _final(drawn, eventually).encoder == "late-bbb"


def test_many_items_are_drawn_by_chance(
    eventually: Callable[..., Map], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A map has no more than so many, each once, and tells how many there are."""
    monkeypatch.setattr(maps, "MOST_ITEMS", 20)
    monkeypatch.setattr(maps, "ITEMS_AT_ONCE", 7)
    final = _final(Maps(Live(50), lambda vectors: vectors[:, :2]), eventually)  # type: ignore[arg-type]
    assert final.count == 50
    assert len({each.id for each in final.points}) == len(final.places) == 20


def test_nothing_is_a_map_too(eventually: Callable[..., Map]) -> None:
    """Before the first item the map is empty."""
    assert _final(Maps(Live(0)), eventually).points == []  # type: ignore[arg-type]


def test_what_could_not_be_drawn_is_told_and_tried_again(eventually: Callable[..., Any]) -> None:
    """Whoever looks hears of it once; then it is drawn anew."""
    fails = [Unavailable("no process can be had")]

    def lay_out(vectors: Floats) -> Floats:
        if fails:
            raise fails.pop()
        return vectors[:, :2]

    drawn = Maps(Live(9), lay_out)  # type: ignore[arg-type]

    def fails_once() -> bool:
        try:
            drawn.look()
        except Unavailable as error:
            return "no process" in str(error)
        return False

    eventually(fails_once)
    drawn._map = None
    assert _final(drawn, eventually).count == 9
