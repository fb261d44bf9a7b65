"""sync(key) makes the index agree with the bucket, whatever it finds there."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from audiofuse.core.encoder.embeddings import AudioEmbedding
from audiofuse.core.errors import Reason, Rejected
from audiofuse.core.items import point_id
from audiofuse.workers.telemetry.names import Outcome

SOUNDS = Path(__file__).parents[4] / "examples" / "sounds"
OWL = SOUNDS / "animals/owl.wav"
CROW = SOUNDS / "animals/crow.flac"
KEY = "night/owl + 100%é.wav"


def test_a_new_sound_is_indexed_with_its_words(world: Any) -> None:
    """A sound with a sidecar becomes one point that holds the facts of both."""
    world.put(KEY, OWL)
    sidecar = {"title": "Owl", "keywords": "night;forest", "labels": ["Owl"], "mic": "old"}
    world.put(KEY + ".json", json.dumps(sidecar).encode())
    assert world.syncer.sync(KEY).outcome is Outcome.CREATED
    payload = world.payload(KEY)
    assert payload is not None
    expected = {
        "key": KEY,
        "bucket": "bucket",
        "title": "Owl",
        "keywords": ["night", "forest"],
        "labels": ["Owl"],
        "extra": {"mic": "old"},
        "has_text": "yes",
        "encoder": "tiny-000000",
        "sample_rate": 11025,
        "channels": 1,
        "size": OWL.stat().st_size,
    }
    assert {name: payload[name] for name in expected} == expected
    assert payload["duration_s"] == pytest.approx(0.74, abs=0.01)


def test_syncing_again_changes_nothing(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A duplicate event costs a look at the bucket and no encoding."""
    world.put(KEY, OWL)
    world.syncer.sync(KEY)
    monkeypatch.setattr(world.encoder, "encode_audio", lambda _: pytest.fail("it was heard again"))
    assert world.syncer.sync(KEY).outcome is Outcome.UNCHANGED


def test_other_words_are_fused_without_listening_again(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A changed sidecar re-fuses the stored audio vector, to the vector a fresh sync gives."""
    world.put(KEY, OWL)
    world.syncer.sync(KEY)
    world.put(KEY + ".json", b'{"title": "An owl"}')
    with monkeypatch.context() as patch:
        patch.setattr(world.encoder, "encode_audio", lambda _: pytest.fail("it was heard again"))
        assert world.syncer.sync(KEY).outcome is Outcome.REFUSED
    id_ = str(point_id("bucket", KEY))
    refused = world.index.get(world.generation, [id_], vectors=True)[id_]
    world.index.remove(world.generation, [id_])
    world.syncer.sync(KEY)
    fresh = world.index.get(world.generation, [id_], vectors=True)[id_]
    assert list(refused.item) == pytest.approx(list(fresh.item), abs=1e-5)
    assert refused.payload["title"] == "An owl"


def test_a_sidecar_that_goes_takes_its_words_along(world: Any) -> None:
    """Without its sidecar an item is its audio alone again."""
    world.put(KEY, OWL)
    world.put(KEY + ".json", b'{"title": "An owl"}')
    world.syncer.sync(KEY)
    (world.root / (KEY + ".json")).unlink()
    assert world.syncer.sync(KEY).outcome is Outcome.REFUSED
    payload = world.payload(KEY)
    assert payload is not None
    assert (payload["title"], payload["has_text"]) == ("", "no")


def test_a_replaced_sound_is_heard_anew(world: Any) -> None:
    """New bytes under the same key replace the point."""
    world.put(KEY, OWL)
    world.syncer.sync(KEY)
    world.put(KEY, SOUNDS / "animals/duck-quack.wav")
    assert world.syncer.sync(KEY).outcome is Outcome.UPDATED
    payload = world.payload(KEY)
    assert payload is not None
    assert payload["duration_s"] == pytest.approx(0.26, abs=0.01)
    assert world.index.count(world.generation) == 1


def test_a_deleted_sound_leaves_the_index(world: Any) -> None:
    """Deleting removes the point; what never was is no error."""
    world.put(KEY, OWL)
    world.syncer.sync(KEY)
    (world.root / KEY).unlink()
    assert world.syncer.sync(KEY).outcome is Outcome.REMOVED
    assert world.payload(KEY) is None
    assert world.syncer.sync(KEY).outcome is Outcome.ABSENT


BAD = {
    "empty.wav": (b"", Reason.EMPTY),
    "text.wav": (b"this is no sound", Reason.NOT_AUDIO),
    "cut.flac": (CROW.read_bytes()[: CROW.stat().st_size // 2], Reason.DAMAGED),
    "large.wav": (bytes(10_000_001), Reason.TOO_LARGE),
}


@pytest.mark.parametrize("key", BAD)
def test_a_bad_object_is_rejected_with_its_reason(world: Any, key: str) -> None:
    """Each bad object is one Rejected that knows the state it judged, and has no point."""
    content, reason = BAD[key]
    world.put(key, content)
    with pytest.raises(Rejected) as caught:
        world.syncer.sync(key)
    info = world.syncer.store.head(key)
    assert info is not None
    assert (caught.value.reason, caught.value.etag) == (reason, info.etag)
    assert world.payload(key) is None
    letter = world.letters.get([key])[key]
    assert (letter.reason, letter.etag) == (reason, info.etag)


def test_a_sound_that_turned_bad_is_not_found_any_more(world: Any) -> None:
    """A point never outlives the object it describes: the good sound was replaced by a bad one."""
    world.put(KEY, OWL)
    world.syncer.sync(KEY)
    world.put(KEY, b"not a sound any more")
    with pytest.raises(Rejected):
        world.syncer.sync(KEY)
    assert world.payload(KEY) is None


@pytest.mark.parametrize("sidecar", [b"{", b"[]", b'{"title": 7}', b" " * 300_000])
def test_a_broken_sidecar_costs_only_itself(world: Any, sidecar: bytes) -> None:
    """The audio is indexed alone, and the sidecar is reported under its own key."""
    world.put(KEY, OWL)
    world.put(KEY + ".json", sidecar)
    synced = world.syncer.sync(KEY)
    assert synced.outcome is Outcome.CREATED
    assert [(k, p.reason) for k, p in synced.problems.items()] == [
        (KEY + ".json", Reason.BAD_SIDECAR)
    ]
    payload = world.payload(KEY)
    assert payload is not None
    assert payload["has_text"] == "no"


def test_a_vector_that_is_not_finite_is_never_written(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the encoder fails numerically the item is rejected, not written as NaN."""
    world.put(KEY, OWL)
    encode = world.encoder.encode_audio
    silly = lambda windows: AudioEmbedding(encode(windows).pooled * math.nan)  # noqa: E731
    monkeypatch.setattr(world.encoder, "encode_audio", silly)
    with pytest.raises(Rejected) as caught:
        world.syncer.sync(KEY)
    assert caught.value.reason is Reason.NOT_FINITE
    assert world.payload(KEY) is None


def test_a_good_outcome_clears_old_letters(world: Any) -> None:
    """Once an item is indexed nothing is held against it or its sidecars."""
    world.put(KEY, b"no sound")
    with pytest.raises(Rejected):
        world.syncer.sync(KEY)
    world.letters.add("other.wav", Rejected(Reason.NOT_AUDIO, "no sound"))
    world.put(KEY, OWL)
    world.put(KEY + ".json", b"{")
    world.syncer.sync(KEY)
    assert world.verdicts() == {KEY + ".json": Reason.BAD_SIDECAR, "other.wav": Reason.NOT_AUDIO}
    world.put(KEY + ".json", b"{}")
    world.syncer.sync(KEY)
    assert world.verdicts() == {"other.wav": Reason.NOT_AUDIO}


def test_a_deleted_object_leaves_no_letters(world: Any) -> None:
    """What is gone is not wrong, neither the sound nor the sidecar that it leaves behind."""
    world.put(KEY, b"no sound")
    world.put(KEY + ".json", b"{")
    with pytest.raises(Rejected):
        world.syncer.sync(KEY)
    assert world.verdicts() == {KEY: Reason.NOT_AUDIO, KEY + ".json": Reason.BAD_SIDECAR}
    (world.root / KEY).unlink()
    world.syncer.sync(KEY)
    assert world.verdicts() == {}


def test_letters_that_differ_from_the_point_are_mended(world: Any) -> None:
    """A worker that died before it wrote the letters, or wrote old ones, is made up for."""
    world.put(KEY, OWL)
    world.put(KEY + ".json", b"{")
    world.syncer.sync(KEY)
    letter = world.letters.get([KEY + ".json"])[KEY + ".json"]
    world.letters.clear([KEY + ".json"])
    world.letters.add(KEY, Rejected(Reason.NOT_AUDIO, "of another state"))
    assert world.syncer.sync(KEY).outcome is Outcome.UNCHANGED
    assert world.verdicts() == {KEY + ".json": Reason.BAD_SIDECAR}
    assert world.letters.get([KEY + ".json"])[KEY + ".json"].etag == letter.etag


def test_a_broken_sidecar_of_two_sounds_has_its_letter_until_neither_uses_it(world: Any) -> None:
    """What becomes of one sound does not hide what is wrong with the other's words."""
    world.put("rain.json", b"{")
    world.put("rain.wav", OWL)
    world.put("rain.flac", CROW)
    world.syncer.sync("rain.wav")
    world.syncer.sync("rain.flac")
    (world.root / "rain.flac").unlink()
    world.syncer.sync("rain.flac")
    assert world.verdicts() == {"rain.json": Reason.BAD_SIDECAR}
    world.put("rain.wav.json", b"{}")
    world.syncer.sync("rain.wav")
    assert world.verdicts() == {}


def test_a_mended_sidecar_of_two_sounds_has_no_letter(world: Any) -> None:
    """Whichever of its sounds is synced first, the letter goes."""
    for name in ("rain.wav", "rain.mp3"):
        world.put(name, OWL)
    for content, expected in ((b"{", {"rain.json": Reason.BAD_SIDECAR}), (b"{}", {})):
        world.put("rain.json", content)
        world.syncer.sync("rain.wav")
        assert world.verdicts() == expected
