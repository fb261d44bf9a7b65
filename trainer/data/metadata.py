"""Which words of a clip are its metadata: the kinds that the paper compares, and ``all``.

Every text is made by ``Metadata.text``, as at inference, so that training and use share one
function. The kinds differ only in the fields that are filled.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from audiofuse.core.evaluation.clips import CAPTION, Clip, Query, select_queries
from audiofuse.core.items import Metadata
from audiofuse.core.query import normalise

MAX_TAGS = 3  # in an artificial caption; people name few sounds in a sentence
TEMPLATES = (
    "the sound of {}",
    "a recording of {}",
    "{} can be heard",
    "{} in the background",
    "someone recorded {}",
)


class Kind(StrEnum):
    """The metadata that a system is given; the values are the paper's names."""

    CS = "cs"  # labels of a closed set, as AudioSet's
    OS = "os"  # open-set keywords, and the title
    FS = "fs"  # a full sentence: another caption of the clip
    OS_CS = "os+cs"
    ALL = "all"  # every field, as at inference


class Captions(StrEnum):
    """Whose sentences are trained on."""

    REAL = "real"  # people's
    TEMPLATES = "templates"  # made here of a clip's tags
    SUPPLIED = "supplied"  # artificial ones that came with the clips, such as WavCaps'


@dataclass(frozen=True)
class Ranking:
    """Queries, and the clips to rank for them with the metadata that they carry then."""

    queries: list[Query]
    clips: list[Clip]


def metadata_of(clip: Clip, caption_index: int, kind: Kind) -> Metadata:
    """Return the metadata that a clip carries beside its caption of that index.

    The index counts for ``fs`` alone. By the authors' rule the caption after it is carried, after
    the last one the first. Ours is that it must differ in more than case, punctuation and spaces,
    else the one after counts: people write some captions twice. Without another one the clip
    carries nothing.
    """
    known = clip.metadata
    match kind:
        case Kind.CS:
            return Metadata(labels=known.labels)
        case Kind.OS:
            return Metadata(title=known.title, keywords=known.keywords)
        case Kind.OS_CS:
            return Metadata(title=known.title, keywords=known.keywords, labels=known.labels)
        case Kind.FS:
            return Metadata(description=_next_caption(clip.captions, caption_index))
        case Kind.ALL:
            return known


def _next_caption(captions: Sequence[str], index: int) -> str:
    if not captions:
        return ""
    index %= len(captions)  # artificial captions may be more than the written ones
    own = normalise(captions[index])
    after = (*captions[index + 1 :], *captions[:index])
    return next((caption for caption in after if normalise(caption) != own), "")


def metadata_text(clip: Clip, caption_index: int, kind: Kind) -> str:
    """Return the one text that ``metadata_of`` makes; empty when there is nothing to read."""
    return metadata_of(clip, caption_index, kind).text


def evaluation_rankings(clips: Sequence[Clip], split: str, kind: Kind) -> list[Ranking]:
    """Return what to rank to evaluate a kind: the clips keep their order, only metadata changes.

    The queries are the split's, in one ranking. For ``fs`` they are the captions of the split's
    clips instead, one ranking for each index: those made of caption i are ranked against clips that
    carry the caption after it, so no clip is found by the query's own words. (The authors'
    evaluation carries the caption after that one; with two captions that would be the query.)
    A mean over all queries weighs each ranking by the number of its queries.
    """
    if kind is not Kind.FS:
        return [Ranking(select_queries(clips, split), _carrying(clips, 0, kind))]
    asked = [clip for clip in clips if clip.split == split]
    return [
        Ranking(
            [
                Query(clip.captions[index], CAPTION, clip.identity)
                for clip in asked
                if index < len(clip.captions)
            ],
            _carrying(clips, index, kind),
        )
        for index in range(max((len(clip.captions) for clip in asked), default=0))
    ]


def _carrying(clips: Sequence[Clip], caption_index: int, kind: Kind) -> list[Clip]:
    return [
        replace(clip, metadata=metadata_of(clip, caption_index % max(len(clip.captions), 1), kind))
        for clip in clips
    ]


def count_sentences(clip: Clip, captions: Captions) -> int:
    """Return how many sentences a clip has to train on.

    Templates make as many as people wrote, at least one, of a clip that has tags or a title.
    """
    match captions:
        case Captions.REAL:
            return len(clip.captions)
        case Captions.SUPPLIED:
            return len(clip.artificial)
        case Captions.TEMPLATES:
            return max(len(clip.captions), 1) if _caption_words(clip)[0] else 0


def _caption_words(clip: Clip) -> list[str]:
    """Return a clip's tags, each once, or else its title, which may be empty."""
    known = clip.metadata
    tags = {tag.lower(): tag for tag in (*known.labels, *known.keywords)}
    return list(tags.values()) or [known.title.strip()]


def artificial_caption(clip: Clip, generator: np.random.Generator) -> str:
    """Make a caption of a clip's metadata: some of its tags, or else its title, in a template.

    For training on captions that nobody wrote. Empty without tags and title.
    """
    tags = _caption_words(clip)
    if not tags[0]:
        return ""
    count = int(generator.integers(1, min(MAX_TAGS, len(tags)) + 1))
    chosen = [tags[index] for index in generator.permutation(len(tags))[:count]]
    template = TEMPLATES[generator.integers(len(TEMPLATES))]
    return template.format(_enumerated(chosen))


def _enumerated(words: Sequence[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
