"""Several encoder versions in one worker: every item into each, and what may go wrong with one."""

import json
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from audiofuse.core.bundles.document import Rollout
from audiofuse.core.errors import Unavailable
from audiofuse.core.index.index import GenerationGone
from audiofuse.core.items import point_id
from audiofuse.core.retrying import BackOff
from audiofuse.workers.indexing.versions import (
    Loaded,
)
from audiofuse.workers.telemetry.names import Lane, Outcome

SOUNDS = Path(__file__).parents[4] / "examples" / "sounds"
OLD, SAME_EARS, OTHER_EARS = "old-000000", "same-111111", "other-222222"
Eventually = Callable[..., Any]


def test_every_change_reaches_every_version(world: Any) -> None:
    """Put, replaced and deleted: both generations follow, each by its own encoder."""
    world.open(OTHER_EARS)
    world.put("a.wav", "animals/owl.wav")
    assert world.settle("a.wav") is Outcome.CREATED
    for version in (OLD, OTHER_EARS):
        point = world.points(version)["a.wav"]
        assert point.payload["encoder"] == version
        assert list(point.item) == pytest.approx(world.item_alone(version, "a.wav"), abs=1e-5)
    (world.store.root / "a.json").write_text(json.dumps({"title": "Tawny owl"}))
    assert world.settle("a.wav") is Outcome.REFUSED
    for version in (OLD, OTHER_EARS):
        assert world.points(version)["a.wav"].payload["title"] == "Tawny owl"
    (world.store.root / "a.wav").unlink()
    assert world.settle("a.wav") is Outcome.REMOVED
    assert world.points(OLD) == world.points(OTHER_EARS) == {}
    assert world.sent == []


def test_equal_ears_take_what_was_heard(world: Any) -> None:
    """A version that hears the same decodes nothing, and its vectors are as if it had."""
    world.put("a.wav", "animals/owl.wav")
    world.settle("a.wav")
    world.open(SAME_EARS)
    assert world.settle("a.wav", Lane.BACKFILL) is Outcome.UNCHANGED
    assert world.decoded == [OLD]
    point = world.points(SAME_EARS)["a.wav"]
    assert list(point.item) == pytest.approx(world.item_alone(SAME_EARS, "a.wav"), abs=1e-5)
    world.put("a.wav", "animals/duck-quack.wav")
    world.settle("a.wav")
    assert SAME_EARS not in world.decoded
    point = world.points(SAME_EARS)["a.wav"]
    assert list(point.item) == pytest.approx(world.item_alone(SAME_EARS, "a.wav"), abs=1e-5)


def test_what_waits_for_an_encoder_is_kept_once_and_handed_over_when_it_is_loaded(
    world: Any,
) -> None:
    """However often a key is told of meanwhile, it waits once, and no message goes round."""
    world.put("a.wav", "animals/owl.wav")
    world.open(OTHER_EARS, load=False)
    assert world.settle("a.wav") is Outcome.CREATED
    for lane in (*Lane, *Lane):
        assert world.settle("a.wav", lane) is Outcome.UNCHANGED
    assert world.waiting.count(OTHER_EARS) == 1
    world.drain.step()
    assert world.sent == []
    world.may_load.set()
    world.load(OTHER_EARS)
    world.drain.step()
    assert world.sent == [("a.wav", Lane.BACKFILL)]
    assert world.settle("a.wav", Lane.BACKFILL) is Outcome.UNCHANGED
    assert "a.wav" in world.points(OTHER_EARS)
    assert world.waiting.count(OTHER_EARS) == 0


def test_the_live_version_that_is_not_loaded_is_waited_for(world: Any) -> None:
    """After a promote that a worker has not followed yet its messages are not lost."""
    world.write(Rollout(live=OLD).start(OTHER_EARS, "me").promote("me"))
    world.versions.look()
    world.put("a.wav", "animals/owl.wav")
    assert world.settle("a.wav") is Outcome.LATER
    assert world.waiting.count(OTHER_EARS) == 1
    assert "a.wav" in world.points(OLD)


def test_what_is_added_while_it_is_handed_over_waits_on(world: Any) -> None:
    """A key that failed again before it was removed is not forgotten."""
    world.waiting.add(OLD, "a.wav")
    send = world.sync

    def send_and_fail(key: str, lane: Lane) -> None:
        send(key, lane)
        world.waiting.add(OLD, key)

    world.sync = send_and_fail  # type: ignore[method-assign]
    world.drain.step()
    assert world.sent == [("a.wav", Lane.BACKFILL)]
    assert world.waiting.count(OLD) == 1


def test_a_version_that_still_fails_is_tried_with_one_key_at_a_time(world: Any) -> None:
    """What waits for it does not fill the lane; once it works, more and more are handed over."""
    for number in range(40):
        world.waiting.add(OLD, f"{number}.wav")
    handed_over = []
    for fails in (True, True, True, False, False, False):
        before = len(world.sent)
        world.drain.step()
        handed_over.append(len(world.sent) - before)
        if fails:
            for key, _ in world.sent[before:]:
                world.waiting.add(OLD, key)
    assert handed_over[1:] == [1, 1, 1, 2, 4]


def test_a_dropped_generation_is_no_error(world: Any) -> None:
    """Written into what was dropped meanwhile, an item is in the live version, and that is all."""
    world.open(OTHER_EARS)
    world.write(Rollout(live=OLD).start(OTHER_EARS, "me").abort("me"))
    world.index.drop(world.index.generation(OTHER_EARS))
    world.put("a.wav", "animals/owl.wav")
    assert world.settle("a.wav") is Outcome.CREATED
    world.versions.look()
    assert world.versions.wanted == (OLD,)
    world.drain.step()
    assert world.sent == []


def test_the_live_generation_is_made_anew_once_the_index_was_emptied(world: Any) -> None:
    """Qdrant began with an empty disk: the worker that runs on indexes into it, as a new one does.

    A version that is no longer live may have been dropped: nothing is made of it.
    """
    world.put("a.wav", "animals/crickets.wav")
    world.index.drop(world.index.generation(OLD))
    with pytest.raises(GenerationGone):
        world.settle("a.wav")
    assert world.settle("a.wav") is Outcome.CREATED
    assert set(world.points(OLD)) == {"a.wav"}
    world.open(SAME_EARS)
    world.write(world.registry.rollout()[0].promote("me"))  # which this worker has not read yet
    world.index.drop(world.index.generation(OLD))
    with pytest.raises(GenerationGone):
        world.settle("a.wav")
    assert world.index.generation(OLD) not in world.index.generations()


def test_versions_come_and_go_with_the_document(world: Any, eventually: Eventually) -> None:
    """A named version is loaded in the background; one that is not is let go of when unused."""
    loading = partial(world.versions.keep_loaded, world.equip)
    thread = threading.Thread(target=loading, daemon=True)
    thread.start()
    world.open(OTHER_EARS, load=False)
    with world.versions.lease() as leased:
        assert leased[OTHER_EARS] is None
    world.may_load.set()
    eventually(lambda: len(world.versions.loaded) == 2)
    with world.versions.lease() as leased:
        assert [*leased] == [OLD, OTHER_EARS]
        world.write(Rollout(live=OLD))
        world.versions.look()
        assert leased[OTHER_EARS]
        assert not world.let_go
    eventually(lambda: world.let_go == [OTHER_EARS])
    assert len(world.versions.loaded) == 1
    assert world.loads == [OTHER_EARS]


def test_a_load_that_fails_is_tried_again(
    world: Any, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registry that is away for a while, or anything else, only delays the other version."""
    monkeypatch.setattr("audiofuse.workers.indexing.versions.LOADING_AGAIN", BackOff(0.01, 0.01))
    errors = [Unavailable("the registry is away"), MemoryError("too large")]

    def load(version: str) -> Loaded:
        if errors:
            raise errors.pop()
        return world._equip(version)

    threading.Thread(target=partial(world.versions.keep_loaded, load), daemon=True).start()
    world.open(OTHER_EARS, load=False)
    eventually(lambda: len(world.versions.loaded) == 2)


def test_the_roles_change_with_the_document(world: Any) -> None:
    """After a promote the new version's verdict counts, and the old one is still written."""
    world.open(OTHER_EARS)
    rollout, tag = world.registry.rollout()
    assert rollout
    world.registry.write(rollout.promote("me"), tag)
    world.versions.look()
    assert world.versions.wanted == (OTHER_EARS, OLD)
    world.put("a.wav", "animals/owl.wav")
    world.settle("a.wav")
    assert "a.wav" in world.points(OLD)
    assert "a.wav" in world.points(OTHER_EARS)
    assert world.index.count(world.index.generation(OLD)) == 1
    assert world.points(OLD)["a.wav"].id == str(point_id("bucket", "a.wav"))
