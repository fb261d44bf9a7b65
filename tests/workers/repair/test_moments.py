"""A comparison finds recordings whose moments are not as they are to be, and so does who waits."""

from collections.abc import Callable
from typing import Any

import pytest

from audiofuse.core.index.index import Point
from audiofuse.core.items import moment_id, point_id
from audiofuse.core.model.config import Grid
from audiofuse.workers.repair import agreement as agreement_module
from audiofuse.workers.repair.agreement import Agreement
from audiofuse.workers.repair.comparison import compare
from audiofuse.workers.rollout.gates import coverage

World = Any  # see conftest.py
LONG, SHORT = "field/forest.wav", "owl.wav"


def _id(world: World, key: str, number: int) -> str:
    return moment_id(str(point_id(world.store.bucket, key)), number)


def _state(world: World) -> str:
    id_ = str(point_id(world.store.bucket, LONG))
    return str(world.index.get(world.generation, [id_])[id_].payload["moments_state"])


def _name_none(world: World) -> None:
    id_ = str(point_id(world.store.bucket, LONG))
    point = world.index.get(world.generation, [id_], vectors=True)[id_]
    kept = {k: v for k, v in point.payload.items() if not k.startswith("moments")}
    world.index.upsert(world.generation, [Point(id_, kept, point.item, point.audio)])


def _lose_item(world: World, key: str) -> None:
    world.index.remove(world.generation, [str(point_id(world.store.bucket, key))])


FAULTS: dict[str, tuple[Callable[[World], object], list[str]]] = {
    "nothing": (lambda _: None, []),
    "one is lost": (
        lambda w: w.index.remove(w.generation.moments, [_id(w, LONG, 7)]),
        [LONG],
    ),
    "all are lost": (
        lambda w: w.index.remove_moments(w.generation, str(point_id(w.store.bucket, LONG))),
        [LONG],
    ),
    "one is of another state": (lambda w: w.write_moments(LONG, [3], "another"), [LONG]),
    "one is a draft": (lambda w: w.write_moments(LONG, [3], _state(w) + "~"), [LONG]),
    "one too many": (lambda w: w.write_moments(LONG, [12], _state(w)), [LONG]),
    "one left beyond the end": (lambda w: w.write_moments(LONG, [12], "another"), [LONG]),
    "of a short sound": (lambda w: w.write_moments(SHORT, [0], "another"), [SHORT]),
    "of an object that is gone": (lambda w: w.write_moments("gone.wav", [0], "s"), ["gone.wav"]),
    "of an item that is not there": (lambda w: _lose_item(w, LONG), [LONG]),
    "made by an older release": (_name_none, [LONG]),
    "to be cut in another way": (
        lambda w: w.index.create(w.generation.version, w.sizes, Grid(10, 10)),
        [LONG],
    ),
    "to have none": (lambda w: w.index.create(w.generation.version, w.sizes), [LONG]),
}


@pytest.fixture
def recorded(world: World) -> World:
    """Return a world with a recording of a minute in it."""
    world.put(LONG)
    world.index_as_seen(LONG, duration_s=60.0)
    return world


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found_and_nothing_else(recorded: World, fault: str) -> None:
    """The recording's key is named, once, and left alone again once all is as it is to be."""
    act, expected = FAULTS[fault]
    act(recorded)
    assert recorded.differences() == expected


@pytest.mark.parametrize("fault", FAULTS)
def test_a_new_generation_is_not_covered_before_its_moments_are(
    recorded: World, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate compares moments, too; what is left beside a short sound, nobody is shown."""
    monkeypatch.setattr(agreement_module, "FOLLOW_S", 0.0)
    act, expected = FAULTS[fault]
    act(recorded)
    w = recorded
    agreement = Agreement(w.store, w.index, w.generation, w.letters)
    assert coverage(agreement).passed == (not expected)


def test_a_rejected_recordings_moments_are_found(recorded: World) -> None:
    """A letter explains a point that is lacking, and no moments that are there."""
    _lose_item(recorded, LONG)
    recorded.reject(LONG)
    assert recorded.differences() == [LONG]
    recorded.index.remove_moments(recorded.generation, str(point_id("bucket", LONG)))
    assert recorded.differences() == []


def test_what_was_found_is_settled_once_its_moments_are_there(recorded: World) -> None:
    """Who follows a repair to its end counts moments, not points alone."""
    w = recorded
    w.index.remove(w.generation.moments, [_id(w, LONG, 7)])
    w.write_moments("gone.wav", [0], "s")
    agreement = Agreement(w.store, w.index, w.generation, w.letters)
    with compare(w.store, w.index, w.generation, w.letters) as comparison:
        keys = sorted(comparison.keys())
        assert agreement.unsettled(comparison, keys) == keys == [LONG, "gone.wav"]
        w.index_as_seen(LONG, duration_s=60.0)
        assert agreement.unsettled(comparison, keys) == ["gone.wav"]
        w.index.remove_moments(w.generation, str(point_id("bucket", "gone.wav")))
        assert agreement.unsettled(comparison, keys) == []


def test_a_generation_without_a_collection_of_moments_is_compared(recorded: World) -> None:
    """One that an older release made: its recordings are named once it is made whole."""
    w = recorded
    _name_none(w)
    w.index._client.delete_collection(w.generation.moments.collection)
    assert w.differences() == []
    w.index.create(w.generation.version, w.sizes, Grid())
    assert w.differences() == [LONG]
