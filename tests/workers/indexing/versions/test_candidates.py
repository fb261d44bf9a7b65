"""What fails for a candidate, or while the document cannot be read, costs no object."""

from collections.abc import Iterable
from typing import Any

import pytest

from audiofuse.core.encoder.embeddings import Fused
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import Rejected, Unavailable
from audiofuse.core.index.index import Generation, Point
from audiofuse.workers.telemetry.names import Lane, Outcome

OLD, OTHER_EARS = "old-000000", "other-222222"


@pytest.mark.parametrize("fault", ["gone", "away", "bug"])
def test_a_candidate_never_holds_the_live_version(
    world: Any, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Whatever the candidate fails at, the live version's message is settled; its key waits."""
    world.open(OTHER_EARS)
    candidate = world.index.generation(OTHER_EARS)
    upsert = world.index.upsert

    def refuse(generation: Generation, points: Iterable[Point]) -> None:
        if generation == candidate:
            raise {"away": Unavailable("away"), "bug": KeyError("oops")}[fault]
        upsert(generation, points)

    if fault == "gone":
        world.index.drop(candidate)
    else:
        monkeypatch.setattr(world.index, "upsert", refuse)
    world.put("a.wav", "animals/owl.wav")
    assert world.settle("a.wav") is Outcome.CREATED
    assert world.waiting.count(OTHER_EARS) == 1
    assert world.letters.count() == 0
    monkeypatch.undo()
    world.index.create(OTHER_EARS, world._encoders[OTHER_EARS])
    world.drain.step()
    ((key, lane),) = world.sent
    world.settle(key, lane)
    assert "a.wav" in world.points(OTHER_EARS)


def test_a_bug_of_the_candidate_costs_one_object_only_that(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Met three times it is the object's letter, of the version that met it; so a backfill ends."""
    world.open(OTHER_EARS)
    world.put("a.wav", "animals/owl.wav")
    monkeypatch.setattr(world._encoders[OTHER_EARS], "encode_windows", lambda _: 1 / 0)
    every = world._every(Lane.BACKFILL)
    for _ in range(3):
        assert world.letters.count() == 0
        every.sync("a.wav")
    (letter,) = world.letters.latest(9)
    assert (letter.encoder, letter.reason) == (OTHER_EARS, "bug")
    assert "a.wav" in world.points(OLD)


def test_a_bug_that_every_object_meets_costs_none(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A candidate at which everything fails alike is an outage: the keys wait, without letters."""
    world.open(OTHER_EARS)
    monkeypatch.setattr(world._encoders[OTHER_EARS], "encode_windows", lambda _: 1 / 0)
    keys = [f"{number}.wav" for number in range(6)]
    every = world._every(Lane.LIVE)
    for key in keys:
        world.put(key, "animals/owl.wav")
    for _ in range(3):
        for key in keys:
            every.sync(key)
    assert world.letters.count() == 0
    assert world.waiting.count(OTHER_EARS) == 6


def test_a_worker_that_cannot_read_the_document_settles_nothing(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others may have promoted meanwhile: what it acknowledged would be missing in what is live."""
    world.put("a.wav", "animals/owl.wav")
    monkeypatch.setattr("audiofuse.workers.queue.followers.LEASE_S", -1.0)
    with pytest.raises(Unavailable, match="could not be read"):
        world.settle("a.wav")
    assert world.points(OLD) == {}


def test_what_was_worked_on_while_the_lease_ended_is_not_settled(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long decoding may outlast the lease: the message is tried again once it is read."""
    world.put("a.wav", "animals/owl.wav")
    upsert = world.index.upsert

    def write_while_the_lease_ends(*arguments: Any) -> None:
        upsert(*arguments)
        monkeypatch.setattr("audiofuse.workers.queue.followers.LEASE_S", -1.0)

    monkeypatch.setattr(world.index, "upsert", write_while_the_lease_ends)
    with pytest.raises(Unavailable, match="could not be read"):
        world.settle("a.wav")
    monkeypatch.setattr("audiofuse.workers.queue.followers.LEASE_S", 10.0)
    world.versions.look()
    assert world.settle("a.wav") is Outcome.UNCHANGED


def test_verdicts_are_the_live_ones_unless_the_other_rejects_alone(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What both reject is the live one's letter; what one rejects alone is its own."""
    world.open(OTHER_EARS)
    (world.store.root / "a.wav").write_bytes(b"no sound")
    with pytest.raises(Rejected):
        world.settle("a.wav")
    assert [(each.encoder, each.count) for each in world.letters.latest(9)] == [(OLD, 1)]
    fuse = Encoder.fuse

    def broken(self: Encoder, *arguments: Any) -> Any:
        fused = fuse(self, *arguments)
        bad = self is world._encoders[OTHER_EARS]
        return Fused(fused.vectors * float("nan"), fused.norms) if bad else fused

    monkeypatch.setattr(Encoder, "fuse", broken)
    world.put("a.wav", "animals/owl.wav")
    assert world.settle("a.wav") is Outcome.CREATED
    (letter,) = world.letters.latest(9)
    assert (letter.encoder, letter.reason) == (OTHER_EARS, "not_finite")
    assert world.points(OTHER_EARS) == {}
    monkeypatch.undo()
    assert world.settle("a.wav") is Outcome.UNCHANGED
    assert world.letters.count() == 0
    assert "a.wav" in world.points(OTHER_EARS)


def test_what_is_given_up_in_the_live_version_is_still_tried_in_the_other(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The letter is that of the version that met the bug, and only that one lacks the item."""
    world.open(OTHER_EARS)
    world.put("a.wav", "animals/owl.wav")
    monkeypatch.setattr(world._encoders[OLD], "encode_windows", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        world.settle("a.wav")
    world.give_up("a.wav")
    (letter,) = world.letters.latest(9)
    assert (letter.encoder, letter.reason) == (OLD, "bug")
    assert world.points(OLD) == {}
    assert "a.wav" in world.points(OTHER_EARS)
