"""What changes while it is worked on is not lost."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from audiofuse.core.errors import Reason, Rejected, Unavailable
from audiofuse.core.items import ObjectInfo
from audiofuse.workers.telemetry.names import Outcome

SOUNDS = Path(__file__).parents[4] / "examples" / "sounds"
OWL = SOUNDS / "animals/owl.wav"
CROW = SOUNDS / "animals/crow.flac"
KEY = "night/owl + 100%é.wav"


def _once(world: Any, monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Let ``act`` happen right after the first time the index is written."""
    upsert, done = world.index.upsert, []

    def write_then_act(*arguments: object) -> None:
        upsert(*arguments)  # type: ignore[arg-type]
        if not done:
            done.append(act())

    monkeypatch.setattr(world.index, "upsert", write_then_act)


def test_a_change_during_the_write_is_not_lost(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sound replaced while its point is written is looked at again: the last state wins."""
    world.put(KEY, OWL)
    _once(world, monkeypatch, lambda: world.put(KEY, SOUNDS / "animals/duck-quack.wav"))
    world.syncer.sync(KEY)
    payload = world.payload(KEY)
    assert payload is not None
    assert payload["duration_s"] == pytest.approx(0.26, abs=0.01)


def test_a_delete_during_the_write_is_not_lost(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sound deleted while its point is written has no point in the end."""
    world.put(KEY, OWL)
    _once(world, monkeypatch, (world.root / KEY).unlink)
    assert world.syncer.sync(KEY).outcome is Outcome.REMOVED
    assert world.payload(KEY) is None


def test_a_sound_deleted_before_it_is_fetched_is_simply_gone(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deleted between event and fetch, an object is absent, not rejected."""
    world.put(KEY, OWL)
    look = world.syncer._look

    def look_then_delete(key: str) -> object:
        item = look(key)
        (world.root / KEY).unlink(missing_ok=True)
        return item

    monkeypatch.setattr(world.syncer, "_look", look_then_delete)
    assert world.syncer.sync(KEY).outcome is Outcome.ABSENT


def test_a_half_copied_file_is_no_verdict(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is bad because it is still being written is looked at again, not rejected."""
    world.put(KEY, CROW.read_bytes()[:5000])
    encode = world.encoder.encode_audio

    def finish_copy_then_encode(windows: object) -> object:
        monkeypatch.setattr(world.encoder, "encode_audio", encode)
        shutil.copy(CROW, world.root / KEY)
        return encode(windows)  # type: ignore[arg-type]

    monkeypatch.setattr(world.encoder, "encode_audio", finish_copy_then_encode)
    world.syncer.sync(KEY)
    assert world.payload(KEY) is not None


def test_an_object_that_never_rests_is_left_for_later(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object that changes at every look ends in Unavailable, not in an endless loop."""
    world.put(KEY, OWL)
    encode = world.encoder.encode_audio

    def encode_then_change(windows: object) -> object:
        world.put(KEY, OWL)
        return encode(windows)  # type: ignore[arg-type]

    monkeypatch.setattr(world.encoder, "encode_audio", encode_then_change)
    with pytest.raises(Unavailable, match="keeps changing"):
        world.syncer.sync(KEY)


def test_a_verdict_on_a_state_that_is_gone_is_taken_back(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad object replaced while its verdict is recorded is indexed, and has no letter."""
    world.put(KEY, b"no sound")
    add = world.letters.add

    def add_then_replace(key: str, verdict: Rejected) -> None:
        add(key, verdict)
        world.put(KEY, OWL)

    monkeypatch.setattr(world.letters, "add", add_then_replace)
    assert world.syncer.sync(KEY).outcome is Outcome.CREATED
    assert world.verdicts() == {}


def test_user_metadata_changed_within_a_second_is_seen(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 tells times in whole seconds; same bytes with other words are fused anew all the same."""
    world.put(KEY, OWL)
    head, words = world.syncer.store.head, {"title": "An owl"}

    def head_with_words(key: str) -> ObjectInfo | None:
        info = head(key)
        return replace(info, user_metadata=dict(words)) if info else None

    monkeypatch.setattr(world.syncer.store, "head", head_with_words)
    world.syncer.sync(KEY)
    words["title"] = "A tawny owl"
    assert world.syncer.sync(KEY).outcome is Outcome.REFUSED
    payload = world.payload(KEY)
    assert payload is not None
    assert payload["title"] == "A tawny owl"


def test_what_is_given_up_has_no_point_of_another_state(world: Any) -> None:
    """Given up, an object keeps a point that describes it, and loses one that does not."""
    world.put(KEY, OWL)
    world.syncer.sync(KEY)
    world.syncer.give_up(KEY, Rejected(Reason.BUG, "KeyError"))
    assert world.payload(KEY) is not None
    world.put(KEY, CROW)
    world.syncer.give_up(KEY, Rejected(Reason.BUG, "KeyError"))
    assert world.payload(KEY) is None
    info = world.syncer.store.head(KEY)
    assert info is not None
    letter = world.letters.get([KEY])[KEY]
    assert (letter.reason, letter.etag) == (Reason.BUG, info.etag)
