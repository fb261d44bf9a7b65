"""What a deployment knows: read from its index and its book of verdicts."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from fastapi import FastAPI

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import ConfigurationError
from audiofuse.core.evaluation.clips import Clip
from audiofuse.core.feedback.book import open_book
from audiofuse.core.feedback.verdicts import Opinion, Verdict, standing
from audiofuse.core.index import embedded
from audiofuse.core.index.engine import Engine
from audiofuse.core.index.index import Point, open_index
from audiofuse.core.items import Metadata
from audiofuse.core.settings import Settings
from audiofuse.trainer.improvement.archive import Sound, joined, read_archive

Serving = Callable[[FastAPI], AbstractContextManager[str]]


@pytest.fixture
def settings(serving: Serving, engine: Engine, tmp_path: Path) -> Iterator[Settings]:
    """Return settings of a deployment with an empty index."""
    with serving(embedded.create_app(engine, "key")) as url:
        yield Settings(home=tmp_path / "home", qdrant_url=url, qdrant_api_key="key")


def point(number: int, encoder: Encoder, **payload: object) -> Point:
    """Return a point as a worker writes it, in short."""
    known = {"key": f"field/{number}.wav", "etag": f"e{number}", "content_hash": f"c{number}"}
    audio = np.full(encoder.audio_dim, number + 1.0).tolist()
    item = np.ones(encoder.dim).tolist()
    return Point(str(UUID(int=number)), known | payload, item, audio)


def said(  # noqa: PLR0913, PLR0917 - what a verdict consists of
    number: int, etag: str, opinion: str, at: float, text: str = "A dog!", caller: str = ""
) -> Verdict:
    """Return what somebody says of a point."""
    id_ = str(UUID(int=number))
    return Verdict(
        at=at,
        caller=caller,
        text=text,
        item=id_,
        key="",
        etag=etag,
        encoder="v",
        opinion=Opinion(opinion),
    )


def test_an_archive_is_its_points_and_what_was_last_said_of_them(
    settings: Settings, encoder: Encoder
) -> None:
    """Vectors, words and captions come from points; a verdict counts for the state it judged."""
    with pytest.raises(ConfigurationError, match="nothing is live"):
        read_archive(settings, 10)
    index = open_index(settings)
    live = index.create("v", encoder)
    words = {"title": "t", "keywords": ["k"], "labels": ["l"], "extra": {"captions": "a caption"}}
    broken = {"key": "root.wav", "extra": {"captions": 7}}
    index.upsert(live, [point(0, encoder, **words), point(1, encoder, **broken)])
    open_book(settings).add(
        [
            said(0, "e0", "misses", 2),
            said(0, "e0", "fits", 1),
            said(1, "before", "fits", 1),
            said(1, "e1", "sought", 1, "a cat"),
        ]
    )
    archive = read_archive(settings, 10)
    first, second = archive.sounds
    assert archive.version == "v"
    assert first.audio.tolist() == [1.0] * encoder.audio_dim
    assert (first.tags, first.sentences) == (("l", "k"), ("t", "a caption"))
    assert (first.clip.collection, first.clip.identity) == ("field", "c0")
    assert (second.clip.collection, second.clip.captions) == ("", ())
    assert archive.verdicts == {"a dog": {0: False}, "a cat": {1: True}}


def test_what_was_taken_back_teaches_nothing() -> None:
    """Only what its own caller said is taken back, and may be said anew."""
    sound = Sound(str(UUID(int=0)), "e0", Clip(Path("a"), "c", "", Metadata()), np.ones(2))
    lines = [
        said(0, "e0", "misses", 1, caller="you"),
        said(0, "e0", "fits", 2, caller="me"),
        said(0, "e0", "withdrawn", 3, "a DOG", caller="me"),
        said(0, "e0", "fits", 4, "a cat", caller="me"),
        said(0, "e0", "withdrawn", 5, "a cat", caller="me"),
        said(0, "e0", "withdrawn", 6, "an owl", caller="me"),
        said(0, "e0", "sought", 7, "an owl", caller="me"),
    ]
    assert joined([sound], standing(lines)) == {"a dog": {0: False}, "an owl": {0: True}}


def test_of_many_sounds_those_with_verdicts_come_first(
    settings: Settings, encoder: Encoder
) -> None:
    """A large archive is read in part: what was judged, then the same others each time."""
    index = open_index(settings)
    live = index.create("v", encoder)
    index.upsert(live, [point(number, encoder) for number in range(5)])
    open_book(settings).add([said(4, "e4", "fits", 1)])
    keys = [str(sound.clip.path) for sound in read_archive(settings, 3).sounds]
    assert keys == ["field/0.wav", "field/1.wav", "field/4.wav"]
