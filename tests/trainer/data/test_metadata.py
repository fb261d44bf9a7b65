"""Which words of a clip are its metadata, in training and in evaluation."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from audiofuse.core.evaluation.clips import Clip, Query
from audiofuse.core.items import Metadata
from audiofuse.trainer.data.metadata import (
    TEMPLATES,
    Kind,
    artificial_caption,
    evaluation_rankings,
    metadata_text,
)

OWL = Clip(
    path=Path("owl.wav"),
    identity="owl",
    split="val",
    metadata=Metadata("Owl at dusk", "It hoots twice.", ("night", "forest"), ("Hoot", "Owl")),
    queries=(Query("a hooting bird", "partial", "owl"),),
    captions=("an owl hoots", "a bird at night", "hooting in a forest"),
)
CROW = Clip(Path("crow.flac"), "crow", "train", Metadata("Crow"), captions=("a crow", "a caw"))


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("cs", "Hoot Owl"),
        ("os", "Owl at dusk night forest"),
        ("os+cs", "Owl at dusk night forest Hoot Owl"),
        ("all", "Owl at dusk It hoots twice. night forest Hoot Owl"),
    ],
)
def test_a_kind_chooses_the_fields(kind: str, text: str) -> None:
    """Each kind reads its own fields, in the order of inference, whatever the caption."""
    assert {metadata_text(OWL, index, Kind(kind)) for index in range(3)} == {text}


def test_all_is_what_inference_reads() -> None:
    """The default kind gives the very text that a worker gives to the text tower."""
    assert metadata_text(OWL, 0, Kind.ALL) == OWL.metadata.text


def test_a_caption_carries_the_next_one() -> None:
    """With full sentences each caption goes with the one after it, the last with the first."""
    texts = [metadata_text(OWL, index, Kind.FS) for index in range(3)]
    assert texts == ["a bird at night", "hooting in a forest", "an owl hoots"]


def test_the_same_words_are_no_other_caption() -> None:
    """A caption that repeats the query is passed over for the next different one."""
    twice = replace(OWL, captions=("an owl hoots", "An owl hoots.", "a bird at night"))
    texts = [metadata_text(twice, index, Kind.FS) for index in range(3)]
    assert texts == ["a bird at night", "a bird at night", "an owl hoots"]


@pytest.mark.parametrize("captions", [(), ("an owl hoots",), ("an owl hoots", "An owl hoots!")])
def test_a_single_caption_carries_nothing(captions: tuple[str, ...]) -> None:
    """Without another caption there is no full sentence, rather than the target itself."""
    assert not metadata_text(replace(OWL, captions=captions), 0, Kind.FS)


def test_no_query_meets_its_own_words() -> None:
    """In the evaluation of full sentences no clip carries what it is asked for by."""
    rankings = evaluation_rankings([OWL, CROW], "val", Kind.FS)
    assert [[query.text for query in each.queries] for each in rankings] == [
        ["an owl hoots"],
        ["a bird at night"],
        ["hooting in a forest"],
    ]
    carried = [[clip.metadata.text for clip in each.clips] for each in rankings]
    assert carried == [
        ["a bird at night", "a caw"],
        ["hooting in a forest", "a crow"],
        ["an owl hoots", "a caw"],
    ]


def test_clips_with_fewer_captions_are_asked_less_often() -> None:
    """A clip has one query for each caption, and is ranked for the others' queries too."""
    rankings = evaluation_rankings([OWL, replace(CROW, split="val")], "val", Kind.FS)
    assert [len(each.queries) for each in rankings] == [2, 2, 1]
    assert [len(each.clips) for each in rankings] == [2, 2, 2]


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.FS])
def test_other_kinds_are_one_ranking(kind: Kind) -> None:
    """The split's own queries are asked once, against clips that carry that kind's metadata."""
    (ranking,) = evaluation_rankings([OWL, CROW], "val", kind)
    assert ranking.queries == list(OWL.queries)
    texts = [metadata_text(clip, 0, kind) for clip in (OWL, CROW)]
    assert [clip.metadata.text for clip in ranking.clips] == texts


def test_a_split_without_captions_has_no_ranking() -> None:
    """Nothing is ranked where nothing can be asked."""
    assert not evaluation_rankings([OWL], "test", Kind.FS)


def test_artificial_captions_name_the_tags() -> None:
    """They are templates filled with some of the tags, each once, in any order."""
    clip = replace(OWL, metadata=Metadata("Owl.wav", keywords=("rain", "wind"), labels=("Rain",)))
    generator = np.random.default_rng(0)
    made = {artificial_caption(clip, generator) for _ in range(200)}
    fillings = ("rain", "wind", "rain and wind", "wind and rain")
    assert made == {template.format(words) for template in TEMPLATES for words in fillings}


def test_artificial_captions_name_three_tags_at_most() -> None:
    """A clip of many tags still gives captions of a length that people write."""
    clip = replace(OWL, metadata=Metadata(keywords=tuple("abcdefgh")))
    generator = np.random.default_rng(0)
    parts = {artificial_caption(clip, generator).count(", ") for _ in range(50)}
    assert parts == {0, 1}


def test_artificial_captions_are_reproducible() -> None:
    """The same generator's state gives the same captions."""
    made = [
        [artificial_caption(OWL, generator) for _ in range(20)]
        for generator in (np.random.default_rng(7), np.random.default_rng(7))
    ]
    assert made[0] == made[1]


@pytest.mark.parametrize(("title", "named"), [(" Owl at dusk ", True), (" ", False)])
def test_artificial_captions_fall_back_to_the_title(title: str, *, named: bool) -> None:
    """Without tags the title is named; without a title there is no caption."""
    clip = replace(OWL, metadata=Metadata(title))
    made = artificial_caption(clip, np.random.default_rng(0))
    assert ("Owl at dusk" in made) is named
    assert bool(made) is named
