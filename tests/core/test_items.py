"""Items: which keys are sounds, where their words lie, and what a sidecar may say."""

import json
from uuid import UUID

import pytest

from audiofuse.core.errors import Reason, Rejected
from audiofuse.core.items import (
    AUDIO_SUFFIXES,
    Item,
    Metadata,
    ObjectInfo,
    agrees,
    describes,
    is_audio,
    is_sidecar,
    point_id,
    sidecar_keys,
    sidecar_stem,
    user_metadata_hash,
)

ODD_KEYS = [
    "rain.wav",
    "Rain.wav",
    "rain heavy.wav",
    "rain+heavy.wav",
    "rain%20heavy.wav",
    "rain%2Bheavy.wav",
    "100%.wav",
    "éclair.wav",  # composed
    "e\u0301clair.wav",  # the same letters, decomposed
    "\N{FILE FOLDER}/雨.wav",
    "folder/rain.wav",
    "folder//rain.wav",
]


@pytest.mark.parametrize("suffix", sorted(AUDIO_SUFFIXES))
def test_every_audio_suffix_counts_in_any_case(suffix: str) -> None:
    """A key is a sound by its suffix, however that is capitalised."""
    assert is_audio(f"a/rain{suffix}")
    assert is_audio(f"a/rain{suffix.upper()}")
    assert is_audio(f"a/rain{suffix.title()}")


@pytest.mark.parametrize(
    "key",
    [
        "",
        "rain",
        "wav",
        "rain.txt",
        "rain.wav.txt",
        "rain.wav.part",
        "rain.wav/notes",
        "rain.json",
        "takes.wav/",
    ],
)
def test_other_objects_are_no_sounds(key: str) -> None:
    """Without an audio suffix at its very end a key is not taken for a sound."""
    assert not is_audio(key)


@pytest.mark.parametrize("key", [".wav", ".rain.wav", "a/.rain.wav", "a/._rain.wav", "a/..wav"])
def test_a_hidden_file_is_no_sound(key: str) -> None:
    """Files whose name begins with a dot, as macOS leaves beside the real ones, are no items."""
    assert not is_audio(key)


def test_a_sound_in_a_hidden_folder_is_a_sound() -> None:
    """Only the name of the file itself hides it."""
    assert is_audio(".archive/rain.wav")


@pytest.mark.parametrize(
    ("key", "may_be"),
    [
        ("rain.json", True),
        ("a/rain.wav.json", True),
        ("rain", False),
        ("rain.wav", False),
        ("rain.json.bak", False),
        (".rain.json", False),
        ("a/.rain.wav.json", False),
        (".json", False),
    ],
)
def test_sidecars_are_json_files_that_are_not_hidden(key: str, *, may_be: bool) -> None:
    """A key may be a sidecar if it ends in .json and its name does not begin with a dot."""
    assert is_sidecar(key) is may_be


@pytest.mark.parametrize(
    ("key", "first", "second"),
    [
        ("rain.wav", "rain.wav.json", "rain.json"),
        ("a b/rain.take.2.flac", "a b/rain.take.2.flac.json", "a b/rain.take.2.json"),
        ("RAIN.WAV", "RAIN.WAV.json", "RAIN.json"),
        ("v1.0/rain.wav", "v1.0/rain.wav.json", "v1.0/rain.json"),
        ("rain..wav", "rain..wav.json", "rain..json"),
        ("a//b.wav", "a//b.wav.json", "a//b.json"),
        ("./a/../b.wav", "./a/../b.wav.json", "./a/../b.json"),
    ],
)
def test_the_longer_sidecar_name_wins(key: str, first: str, second: str) -> None:
    """The sidecar named after the whole file comes before the one that only shares its stem."""
    assert sidecar_keys(key) == (first, second)


@pytest.mark.parametrize(
    ("sidecar", "audio", "does"),
    [
        ("rain.wav.json", "rain.wav", True),
        ("rain.json", "rain.wav", True),
        ("rain.json", "rain.flac", True),
        ("rain.json", "rain.take.wav", False),
        ("rain.flac.json", "rain.wav", False),
        ("a/rain.json", "b/rain.wav", False),
        ("Rain.json", "rain.wav", False),
        ("rain.json", "rain.txt", False),
        (".rain.json", ".rain.wav", False),
    ],
)
def test_a_sidecar_describes_its_own_sounds_only(sidecar: str, audio: str, *, does: bool) -> None:
    """One sidecar may describe several sounds of its stem in its folder, and no others."""
    assert describes(sidecar, audio) is does


@pytest.mark.parametrize("audio_key", ["rain.wav", "a/rain.take.2.flac", "RAIN.WAV"])
def test_sounds_are_found_by_the_stem_of_their_sidecar(audio_key: str) -> None:
    """Every sound begins with the stem of each sidecar it may have, so one listing finds it."""
    for sidecar in sidecar_keys(audio_key):
        assert audio_key.startswith(sidecar_stem(sidecar))


def test_a_point_id_never_changes() -> None:
    """The id is uuid5 of the S3 URI: another value would orphan every point ever written."""
    assert point_id("sounds", "a b/räin+1.wav") == UUID("618b9661-bd79-575b-b161-f3194e27559a")


def test_every_object_has_a_point_id_of_its_own() -> None:
    """Keys that differ in case, encoding or Unicode form only, and other buckets, never collide."""
    ids = {point_id(bucket, key) for bucket in ("one", "two") for key in ODD_KEYS}
    assert len(ids) == 2 * len(ODD_KEYS)


@pytest.mark.parametrize(
    "tags",
    [
        ["rain", "heavy rain"],
        [" rain ", "", "heavy rain", " "],
        "rain; heavy rain",
        " rain ;; heavy rain;",
    ],
)
def test_tags_are_a_list_or_one_string_with_semicolons(tags: object) -> None:
    """Both ways to write keywords and labels mean the same."""
    metadata = Metadata.from_json(json.dumps({"keywords": tags, "labels": tags}).encode())
    assert metadata.keywords == metadata.labels == ("rain", "heavy rain")


def test_a_comma_does_not_split_a_tag() -> None:
    """AudioSet's own labels hold commas, so only semicolons separate."""
    metadata = Metadata.from_json(b'{"labels": "Domestic animals, pets"}')
    assert metadata.labels == ("Domestic animals, pets",)


def test_unknown_fields_are_kept_as_extra() -> None:
    """Whatever else a sidecar says is carried along untouched, even under names of Python's own."""
    extra = {
        "licence": "CC0",
        "take": 2,
        "place": {"lat": 1.5, "tags": [None, True]},
        "model_config": 1,
        "extra": 2,
        "": 3,
    }
    metadata = Metadata.from_json(json.dumps({"title": "Rain", **extra}).encode())
    assert metadata == Metadata(title="Rain", extra=extra)


def test_an_empty_object_is_a_sidecar_without_words() -> None:
    """No field is required."""
    assert Metadata.from_json(b"{}") == Metadata()


@pytest.mark.parametrize("field", ["title", "description", "keywords", "labels", "licence"])
def test_a_null_field_is_an_absent_one(field: str) -> None:
    """Programs that write null for what nobody filled in leave a gap, not an error."""
    metadata = Metadata.from_json(json.dumps({field: None}).encode())
    assert metadata == Metadata()
    assert metadata.filled_from({"title": "Rain"}) == Metadata(title="Rain")


def test_a_byte_order_mark_is_skipped() -> None:
    """Windows editors write one before the JSON."""
    content = '\ufeff{"title": "Türe"}'.encode()
    assert Metadata.from_json(content) == Metadata(title="Türe")


BROKEN = {
    "nothing": (b"", "not JSON"),
    "no JSON": (b"title: rain", "not JSON"),
    "cut off": (b'{"title": "Ra', "not JSON"),
    "more behind": (b"{} {}", "not JSON"),
    "UTF-16": ('{"title": "Rain"}'.encode("utf-16"), "not JSON"),
    "invalid UTF-8": (b'{"title": "T\xfcre"}', "not JSON"),
    "lone surrogate": (rb'{"title": "\ud800"}', "not JSON"),
    "lone surrogate as a name": (rb'{"\udc00": 1}', "not JSON"),
    "NaN": (b'{"gain": NaN}', "not JSON"),
    "infinity": (b'{"gain": -Infinity}', "not JSON"),
    "endless integer": (b'{"take": ' + b"9" * 5000 + b"}", "not JSON"),
    "deep nesting": (b"[" * 100_000, "not JSON"),
    "deep nesting in a field": (b'{"x": ' + b"[" * 100_000, "not JSON"),
    "array": (b'["rain"]', "not a list"),
    "string": (b'"rain"', "not a str"),
    "null": (b"null", "not a NoneType"),
    "number as title": (b'{"title": 5}', '"title"'),
    "boolean as title": (b'{"title": true}', '"title"'),
    "list as description": (b'{"description": ["rain"]}', '"description"'),
    "number as keywords": (b'{"keywords": 5}', '"keywords"'),
    "object as keywords": (b'{"keywords": {"rain": 1}}', '"keywords"'),
    "numbers in keywords": (b'{"keywords": ["rain", 5]}', r'"keywords\.1"'),
    "lists in labels": (b'{"labels": [["rain"]]}', r'"labels\.0"'),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_sidecar_is_rejected_and_the_field_is_named(case: str) -> None:
    """Whatever is wrong with a sidecar is one verdict, which says where it is wrong."""
    content, message = BROKEN[case]
    with pytest.raises(Rejected, match=message) as caught:
        Metadata.from_json(content)
    assert caught.value.reason is Reason.BAD_SIDECAR
    assert len(caught.value.detail) < 200


def test_user_metadata_fills_gaps_only() -> None:
    """What the sidecar says stands; what it leaves out comes from the object's own headers."""
    user_metadata = {
        "title": "from S3",
        "description": "from S3",
        "keywords": "a; b",
        "labels": "c",
        "licence": "ignored",
    }
    sidecar = Metadata(title="from the sidecar", keywords=("own",), extra={"take": 2})
    assert sidecar.filled_from(user_metadata) == Metadata(
        title="from the sidecar",
        description="from S3",
        keywords=("own",),
        labels=("c",),
        extra={"take": 2},
    )


def test_without_a_sidecar_user_metadata_is_all_there_is() -> None:
    """User metadata alone makes an item with words."""
    filled = Metadata().filled_from({"keywords": "rain;storm"})
    assert filled == Metadata(keywords=("rain", "storm"))


def test_no_user_metadata_changes_nothing() -> None:
    """An object without user metadata leaves the sidecar as it is."""
    metadata = Metadata("Rain", "It rains.", ("rain",), ("Rain",), {"take": 2})
    assert metadata.filled_from({}) == metadata


def test_sentences_are_read_before_tags() -> None:
    """The text begins with title and description, since only its first tokens are read."""
    metadata = Metadata(" Rain ", "It rains.", ("wet", "storm"), ("Water",), {"note": "unread"})
    assert metadata.text == "Rain It rains. wet storm Water"


@pytest.mark.parametrize(
    "metadata",
    [Metadata(), Metadata(" ", "\n", ("", "\t"), (" ",)), Metadata(extra={"note": "unread"})],
)
def test_no_words_are_no_text(metadata: Metadata) -> None:
    """White space and extra fields alone leave nothing to read."""
    assert metadata.text == ""


def test_an_item_is_its_sound_and_the_state_of_its_words() -> None:
    """The key comes from the sound; without a sidecar the sidecar's etag is empty, never None."""
    audio = ObjectInfo("rain.wav", "a1", 10, 0)
    sidecar = ObjectInfo("rain.json", "s1", 10, 0)
    assert (Item("b", audio).key, Item("b", audio).sidecar_etag) == ("rain.wav", "")
    assert (Item("b", audio, sidecar).key, Item("b", audio, sidecar).sidecar_etag) == (
        "rain.wav",
        "s1",
    )


def test_a_point_agrees_with_one_state_of_its_item_only() -> None:
    """Another name, sound, sidecar, time or user metadata is another state; listings tell none."""
    audio = ObjectInfo("rain.wav", "a1", 10, 7, {"title": "Rain"})
    item = Item("b", audio, ObjectInfo("rain.json", "s1", 10, 0))
    payload = {
        "key": "rain.wav",
        "etag": "a1",
        "sidecar_etag": "s1",
        "modified": 7,
        "user_metadata_hash": user_metadata_hash({"title": "Rain"}),
    }
    assert item.agrees_with(payload)
    for name in payload:
        assert not item.agrees_with(payload | {name: "other"})
    other_words = payload | {"user_metadata_hash": ""}
    assert agrees(other_words, "a1", "s1", 7)
    assert not agrees(other_words, "a1", "", 7)
