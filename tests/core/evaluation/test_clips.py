"""Clips: manifests, queries, and what a sidecar says beyond metadata."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from audiofuse.core.errors import ConfigurationError, Reason, Rejected
from audiofuse.core.evaluation.clips import (
    Clip,
    Query,
    ask_for_captions,
    clip_of,
    read_manifest,
    select_queries,
)
from audiofuse.core.items import Metadata

ROWS: list[dict[str, object]] = [
    {
        "audio": "owl.wav",
        "set": "birds",
        "identity": "owl",
        "split": "val",
        "title": "owl",
        "keywords": ["night"],
        "captions": ["an owl hoots", " ", "a bird at night "],
        "licence": "CC0",
        "source": "a walk",
        "queries": [
            {"text": "an owl", "kind": "partial"},
            {"text": "a bird", "kind": "paraphrase"},
        ],
    },
    {
        "audio": "night/owl.wav",
        "identity": "owl",
        "split": "val",
        "queries": [{"text": "an owl", "kind": "partial"}],
    },
    {"audio": "crow.flac", "title": None},
]


@pytest.fixture
def clips(tmp_path: Path) -> list[Clip]:
    """Return the clips of the manifest above."""
    path = tmp_path / "clips.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS))
    return read_manifest(path)


def test_a_row_says_all_of_a_clip(clips: list[Clip], tmp_path: Path) -> None:
    """Every field of a manifest's row is read; blank captions and unknown fields are left out."""
    assert clips[0] == Clip(
        path=tmp_path / "owl.wav",
        identity="owl",
        split="val",
        metadata=Metadata(title="owl", keywords=("night",)),
        queries=(Query("an owl", "partial", "owl"), Query("a bird", "paraphrase", "owl")),
        captions=("an owl hoots", "a bird at night"),
        licence="CC0",
        collection="birds",
    )


def test_a_row_needs_nothing_but_a_path(clips: list[Clip], tmp_path: Path) -> None:
    """A clip without more is its own identity, in no split yet, without words."""
    assert clips[2] == Clip(tmp_path / "crow.flac", "crow.flac", "", Metadata())


def test_captions_are_never_metadata(clips: list[Clip]) -> None:
    """What humans said of a clip is what is asked for, so it is no word of the item."""
    assert clips[0].metadata.text == "owl night"


def test_each_query_is_asked_once(clips: list[Clip]) -> None:
    """A query that every clip of its identity repeats counts once; kinds can be chosen."""
    assert [query.text for query in select_queries(clips, "val")] == ["an owl", "a bird"]
    assert [query.text for query in select_queries(clips, "val", "paraphrase")] == ["a bird"]
    assert not select_queries(clips, "train")


def test_captions_are_asked_where_there_are_no_queries(clips: list[Clip]) -> None:
    """A clip's captions become its queries, but never beside queries that were chosen."""
    asked = ask_for_captions(replace(clips[0], queries=()))
    assert asked.queries == (
        Query("an owl hoots", "caption", "owl"),
        Query("a bird at night", "caption", "owl"),
    )
    assert ask_for_captions(clips[0]) == clips[0]


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (b"not json", "not JSON"),
        (b"[]", "object"),
        (b"", "not JSON"),
        (b"\xff", "not JSON"),
        (b'{"title": "no audio"}', '"audio"'),
        (b'{"audio": ""}', '"audio"'),
        (b'{"audio": "a", "title": 3}', '"title"'),
        (b'{"audio": "a", "captions": [3]}', '"captions.0"'),
        (b'{"audio": "a", "queries": ["an owl"]}', '"queries.0"'),
        (b'{"audio": "a", "set": 1}', '"set"'),
    ],
)
def test_a_broken_manifest_line_is_named(tmp_path: Path, line: bytes, named: str) -> None:
    """A manifest that cannot be read says which line is wrong, and what in it."""
    path = tmp_path / "broken.jsonl"
    path.write_bytes(b'{"audio": "fine.wav"}\n' + line + b"\n")
    with pytest.raises(ConfigurationError, match=f"broken.jsonl, line 2: .*{named}"):
        read_manifest(path)


def test_only_line_feeds_end_a_row(tmp_path: Path) -> None:
    """A line separator within a text, which JSON allows, does not end the row."""
    path = tmp_path / "clips.jsonl"
    path.write_text('{"audio": "a.wav", "title": "two\u2028lines"}\n', encoding="utf-8")
    assert [clip.metadata.title for clip in read_manifest(path)] == ["two\u2028lines"]


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    """A manifest that is not there is an error of configuration."""
    with pytest.raises(ConfigurationError, match="nowhere"):
        read_manifest(tmp_path / "nowhere.jsonl")


def test_a_sidecar_may_have_a_single_caption() -> None:
    """One caption need not be a list; semicolons within it do not split it."""
    metadata = Metadata.from_json(b'{"title": "owl", "captions": "an owl; at night"}')
    clip = clip_of(Path("owl.wav"), "birds/owl.wav", metadata)
    assert (clip.identity, clip.captions) == ("birds/owl.wav", ("an owl; at night",))
    assert clip.metadata == Metadata(title="owl")


def test_a_wrong_field_of_a_sidecar_is_rejected() -> None:
    """What is no caption is refused by the field's name, instead of being trained on."""
    with pytest.raises(Rejected, match='"captions"') as caught:
        clip_of(Path("owl.wav"), "owl", Metadata.from_json(b'{"captions": 3}'))
    assert caught.value.reason == Reason.BAD_SIDECAR


def test_the_reference_manifests_are_read(shared: Path) -> None:
    """The project's three manifests give their clips, splits, queries and captions."""
    human, esc, extra = (
        read_manifest(shared / "data" / f"{name}.jsonl") for name in ("human", "esc", "extra")
    )
    assert (len(human), len(esc), len(extra)) == (283, 629, 407)
    assert (len(select_queries(human, "train")), len(select_queries(human, "val"))) == (562, 206)
    assert {clip.collection for clip in human} == {"booth", "natsound165"}
    assert all(clip.path.is_file() and clip.identity for clip in human + esc + extra)
    assert extra[0].captions == ("A red apple.",)
    assert extra[0].licence == "GPL-2"


def test_each_caption_of_a_clip_is_asked(clips: list[Clip]) -> None:
    """Equal captions of one clip are several queries; of two clips of one identity, one."""
    twice = replace(clips[0], queries=(), captions=("a dog", "a dog", "a cat"))
    asked = [ask_for_captions(twice), ask_for_captions(twice)]
    texts = [query.text for query in select_queries(asked, twice.split)]
    assert texts == ["a dog", "a dog", "a cat"]
