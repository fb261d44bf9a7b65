"""Why an object is found or not, and the audit of a bucket."""

from typing import Any

import pytest

from audiofuse.core.errors import Reason
from audiofuse.workers.queue.lanes import Lanes
from audiofuse.workers.repair.explain import Explainer, State

CROW = "night/crow + 100%é.wav"


@pytest.fixture
def explainer(world: Any) -> Explainer:
    """Return what explains the world's objects."""
    lanes = Lanes(world.redis, "audiofuse")
    return Explainer(world.store, world.index, world.redis, lanes, "audiofuse")


def test_each_state_is_told_with_its_reason(world: Any, explainer: Explainer) -> None:
    """Indexed, changed since, never met, rejected, gone, never there, or no sound at all."""
    world.put("new.wav", "bad.wav", "old.wav", "gone.wav")
    world.reject("bad.wav")
    world.index_as_seen("old.wav", "gone.wav")
    world.put("old.wav")
    world.delete("gone.wav")
    told = {
        key: explainer.explain(key)
        for key in ("owl.wav", "old.wav", "new.wav", "bad.wav", "gone.wav", "none.wav", "notes.txt")
    }
    assert [each.state for each in told.values()] == [
        State.INDEXED, State.OUTDATED, State.MISSING, State.REJECTED, State.ORPHANED,
        State.ABSENT, State.NO_SOUND,
    ]  # fmt: skip
    assert "silent, a fault of the test" in told["bad.wav"].why
    assert "nothing waits" in told["new.wav"].why
    assert "reconcile" in told["old.wav"].why
    assert told["none.wav"].object is None


def test_all_that_is_known_is_told(world: Any, explainer: Explainer) -> None:
    """The object, its sidecar, which versions hold it since when, and letters of both."""
    world.reject(f"{CROW}.json", Reason.BAD_SIDECAR)
    told = explainer.explain(CROW)
    assert told.object is not None
    assert told.sidecar is not None
    assert told.sidecar.key == f"{CROW}.json"
    (held,) = told.held
    assert (held.version, held.is_live, held.agrees) == ("tiny-000000", True, True)
    assert (held.modified, held.indexed_at) == (told.object.modified_ms, held.modified + 1000)
    assert [each.reason for each in told.letters] == [Reason.BAD_SIDECAR]
    assert told.state is State.INDEXED
    world.put(f"{CROW}.json")
    assert explainer.explain(CROW).state is State.OUTDATED


def test_moments_are_told_and_whether_they_are_all_there(world: Any, explainer: Explainer) -> None:
    """A recording lacks one, or has one of another state: the index has another state of it."""
    world.put("long.wav")
    world.index_as_seen("long.wav", duration_s=20.0)
    (held,) = explainer.explain("long.wav").held
    assert (held.moments, held.moments_there, held.moments_agree, held.agrees) == (4, 4, True, True)
    world.index.remove_moments(world.generation, explainer.explain("long.wav").id, beyond=3)
    told = explainer.explain("long.wav")
    assert (told.held[0].moments_there, told.held[0].moments_agree) == (3, False)
    assert told.state is State.OUTDATED
    world.write_moments("long.wav", [3], "another state")
    (held,) = explainer.explain("long.wav").held
    assert (held.moments, held.moments_there, held.agrees) == (4, 4, False)


def test_moments_that_were_left_behind_are_told(world: Any, explainer: Explainer) -> None:
    """Without object and point they are not nothing: reconcile removes them, and it says so."""
    world.write_moments("gone.wav", [0, 1], "a state")
    told = explainer.explain("gone.wav")
    assert (told.state, told.moments_left, told.held) == (State.ORPHANED, 2, [])
    assert "its object is gone, 2 moments of it are not" in told.why
    assert world.differences() == ["gone.wav"]
    assert explainer.explain("owl.wav").moments_left == 0


def test_the_sums_of_an_audit_agree(world: Any, explainer: Explainer) -> None:
    """Each sound of the bucket is counted once, and so is each point of the index."""
    world.put("new.wav", "a/bad.wav", "a/mute.wav", "old.wav", "gone.wav", "never.wav")
    world.reject("a/bad.wav", Reason.DAMAGED)
    world.reject("a/mute.wav")
    world.reject("never.wav")
    world.index_as_seen("old.wav", "gone.wav")
    world.put("old.wav")
    world.delete("gone.wav")
    world.delete("never.wav")
    audit = explainer.audit()
    assert audit.agrees
    assert (audit.expected, audit.indexed, audit.outdated, audit.missing) == (6, 2, 1, 1)
    assert audit.rejected == {"damaged": 1, "silent": 1}
    assert (audit.orphaned, audit.points) == (1, 4)
    assert audit.points == world.index.count(world.generation)
    some = explainer.audit("a/")
    assert (some.expected, some.rejected) == (2, {"damaged": 1, "silent": 1})
    assert some.agrees


def test_before_anything_is_indexed_all_is_missing(world: Any, explainer: Explainer) -> None:
    """An audit needs no index: without one every sound is missing."""
    world.index.drop(world.generation)
    audit = explainer.audit()
    assert (audit.version, audit.expected, audit.missing, audit.points) == (None, 2, 2, 0)
    assert explainer.explain("owl.wav").state is State.MISSING
