"""The paper's grid: its cells, what is asked of them, and what a dataset has nothing for."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import product
from typing import NamedTuple, Self

from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import ConfigurationError
from audiofuse.core.evaluation.clips import TEST, TRAIN, VAL, Clip, ask_for_captions
from audiofuse.core.evaluation.evaluation import CUTOFF, RECALLS
from audiofuse.core.model.config import Fusion
from audiofuse.trainer.data.corpus import Corpus
from audiofuse.trainer.data.metadata import Captions, Kind, count_sentences, metadata_text
from audiofuse.trainer.training.config import FitConfig

FUSIONS: tuple[Fusion, ...] = ("audio", "metadata", "late", "mid")
KINDS = (Kind.CS, Kind.OS, Kind.FS, Kind.OS_CS)
PAPER = FitConfig(drop_metadata=0.0)  # our defaults, but every item keeps its metadata
SEEDS = 3
BOTH = "both"  # data sets are trained on together
LACKING = {  # why captions are left out
    Captions.REAL: "no clip to learn from has any",
    Captions.TEMPLATES: "no clip to learn from has tags or a title to make them of",
    Captions.SUPPLIED: "no clip to learn from came with any",
}
OWN_PARTS: Mapping[str, Callable[["Cell"], bool]] = {  # and which cells have them
    "audio_head": lambda cell: cell.fusion in {"audio", "late"},
    "mid_fusion": lambda cell: cell.fusion == "mid",
    "separate_metadata_tower": lambda cell: cell.separate,
}
MAP = f"mAP@{CUTOFF}"
SHOWN = (MAP, *(f"R@{k}" for k in RECALLS))


class Cell(BaseModel):
    """One system of the grid; audio alone has no ``kind`` of metadata.

    ``separate`` gives metadata a text tower of its own; ``captions`` are those to train on;
    ``both``: it learns from all data sets together, else from the one that it is tested on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    fusion: Fusion
    kind: Kind | None = None
    separate: bool = False
    captions: Captions = Captions.REAL
    both: bool = False

    @model_validator(mode="after")
    def _has_metadata_or_none(self) -> Self:
        if (self.fusion == "audio") != (self.kind is None) or (self.separate and not self.kind):
            msg = "audio alone has neither a kind of metadata nor a tower for it; all else has"
            raise ValueError(msg)
        return self

    @property
    def words(self) -> tuple[str, str, str, str, str]:
        """Fusion, metadata, text tower, captions and what is trained on, as tables show them."""
        tower = "" if self.kind is None else "separate" if self.separate else "shared"
        return self.fusion, self.kind or "", tower, self.captions, BOTH if self.both else ""

    @property
    def name(self) -> str:
        """The words joined, as folders and ``--cells`` name it: late-os-shared-real, audio-real."""
        return "-".join(filter(None, self.words))


def select_cells(patterns: Sequence[str]) -> list[Cell]:
    """Return the cells of the grid whose names match one of the patterns, as "late-*-real".

    Without patterns those are all. Raises ``ConfigurationError`` for a pattern that matches none.
    """
    cells = paper_cells()
    for pattern in patterns:
        if not any(fnmatchcase(cell.name, pattern) for cell in cells):
            names = ", ".join(cell.name for cell in cells)
            raise ConfigurationError(f"no cell matches {pattern!r}; there are {names}")
    return [
        cell
        for cell in cells
        if not patterns or any(fnmatchcase(cell.name, pattern) for pattern in patterns)
    ]


def grid(
    fusions: Iterable[Fusion] = FUSIONS,
    kinds: Iterable[Kind] = KINDS,
    separate: Iterable[bool] = (False, True),
    captions: Iterable[Captions] = tuple(Captions),
) -> list[Cell]:
    """Return every combination once that is a system of its own."""
    cells = [
        Cell(fusion=fusion, captions=each)
        if fusion == "audio"
        else Cell(fusion=fusion, kind=kind, separate=own, captions=each)
        for fusion, kind, own, each in product(fusions, kinds, separate, captions)
    ]
    return list(dict.fromkeys(cells))


def paper_cells() -> list[Cell]:
    """Return the whole grid: every combination, and what learns from both data sets together.

    Of these there are those with written captions and with each clip's tags, be they of an open or
    a closed set: ClothoV2 has the ones, AudioCaps the others.
    """
    joint = grid(kinds=[Kind.OS_CS], captions=[Captions.REAL])
    return [*grid(), *(cell.model_copy(update={"both": True}) for cell in joint)]


@dataclass(frozen=True)
class Plan:
    """What to run: each cell with so many seeds, from the first one on.

    A cell decides ``metadata`` and ``captions`` of the ``config``, and the seed its ``seed``.
    ``facts`` are what else the results depend on, as the names of the pretrained towers.
    """

    cells: Sequence[Cell] = field(default_factory=paper_cells)
    seeds: int = SEEDS
    first_seed: int = 0
    config: FitConfig = PAPER
    facts: Mapping[str, str] = field(default_factory=dict)


class Measured(BaseModel):
    """A finished training as tested: metrics from 0 to 1 by their usual names.

    ``collection`` is the data set that it was tested on, where there are several; ``config`` the
    hash of the training's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    cell: Cell
    seed: int
    collection: str = ""
    metrics: dict[str, float]
    config: str

    @property
    def test(self) -> "Trial":
        """Which test it was."""
        return Trial(self.cell, self.seed, self.collection)


class Trial(NamedTuple):
    """A system and a seed, tested on a data set."""

    cell: Cell
    seed: int
    collection: str = ""

    @property
    def name(self) -> str:
        """The words joined, as files are named."""
        return "-".join(filter(None, (self.cell.name, self.collection, str(self.seed))))


class Precisions(NamedTuple):
    """The average precision of single queries, float64 ``(queries,)``, sorted by their identity."""

    identities: list[str]
    values: Tensor


@dataclass(frozen=True)
class Results:
    """What was measured, and which kinds of metadata or captions were left out, with the reason.

    ``queries`` are the single queries' scores of those tests of which the files are there.
    """

    measured: list[Measured]
    left_out: dict[str, str]
    queries: Mapping[Trial, Precisions] = field(default_factory=dict, compare=False)

    @property
    def collections(self) -> list[str]:
        """The data sets that were tested on; one without a name where there is one only."""
        return list(dict.fromkeys(each.collection for each in self.measured)) or [""]


class Ranked(NamedTuple):
    """The clips to find, and the split whose captions ask for them."""

    clips: list[Clip]
    split: str


def rank_for_captions(corpus: Corpus) -> Ranked:
    """Let captions ask, whatever else would: ``fs`` ranks for captions, and all are compared."""
    clips = [
        ask_for_captions(replace(clip, queries=())) for clip in corpus.clips if clip.split != TRAIN
    ]
    asking = {clip.split for clip in clips if clip.captions}
    if TEST in asking:
        return Ranked([clip for clip in clips if clip.split != VAL], TEST)
    if VAL in asking:
        return Ranked(clips, VAL)
    raise ConfigurationError("nothing to test by: no clip of the splits test and val has captions")


def rank_collections(corpus: Corpus) -> dict[str, Ranked]:
    """Return what each published data set is tested by, among its own clips, if there are several.

    Else it is what all the data are tested by, under no name. Raises ``ConfigurationError`` where
    nothing is asked.
    """
    parts = {
        name: replace(corpus, clips=[clip for clip in corpus.clips if clip.collection == name])
        for name in corpus.benchmarks
    }
    asking = {
        name: part
        for name, part in parts.items()
        if any(clip.captions and clip.split != TRAIN for clip in part.clips)
    }
    if len(asking) < 2:  # noqa: PLR2004 - several
        return {"": rank_for_captions(corpus)}
    return {name: rank_for_captions(part) for name, part in asking.items()}


def clips_to_learn(corpus: Corpus, collection: str) -> list[Clip]:
    """Return the clips to learn from of a data set, or all without a name."""
    return [clip for clip in corpus.train if collection in {"", clip.collection}]


def find_left_out(
    cells: Sequence[Cell], corpus: Corpus, ranked: Mapping[str, Ranked]
) -> dict[str, str]:
    """Return what of the cells' kinds and captions the data sets have nothing for, and why."""
    own = [cell for cell in cells if not cell.both]
    reasons = {
        _part(collection, part): why
        for collection, each in ranked.items()
        for part, why in _lacking(own, clips_to_learn(corpus, collection), each).items()
    }
    joint = [cell for cell in cells if cell.both]
    if joint and len(ranked) < 2:  # noqa: PLR2004 - several
        return reasons | {BOTH: "there are not two published data sets"}
    return reasons | {
        _part(BOTH, kind): LACKING[Captions.REAL]
        for kind in dict.fromkeys(cell.kind for cell in joint if cell.kind)
        if not any(_words(corpus.train, kind))
    }


def _lacking(cells: Sequence[Cell], train: Sequence[Clip], ranked: Ranked) -> dict[str, str]:
    asked = [clip for clip in ranked.clips if clip.split == ranked.split]
    reasons: dict[str, str] = {}
    seen: dict[tuple[str, ...], Kind] = {}
    for kind in dict.fromkeys(cell.kind for cell in cells if cell.kind):
        learned, found = _words(train, kind), _words(asked, kind)
        if not any(learned):
            reasons[kind] = "no clip to learn from has any"
        elif not any(found):
            reasons[kind] = f"no clip of the split {ranked.split} has any"
        elif (same := seen.setdefault(learned + found, kind)) != kind:
            reasons[kind] = f"the same words as {same}"
    return reasons | {
        captions: LACKING[captions]
        for captions in dict.fromkeys(cell.captions for cell in cells)
        if not any(count_sentences(clip, captions) for clip in train)
    }


def _part(collection: str, part: str) -> str:
    return f"{collection} {part}".strip()


def _words(clips: Sequence[Clip], kind: Kind) -> tuple[str, ...]:
    return tuple(
        metadata_text(clip, caption, kind)
        for clip in clips
        for caption in range(len(clip.captions))
    )


def why_left_out(cell: Cell, left_out: Mapping[str, str], collection: str = "") -> list[str]:
    """Return the reasons why a cell is not run on a data set: none if it is."""
    if cell.both:
        parts = [BOTH, _part(BOTH, cell.kind or "")]
    else:
        parts = [_part(collection, cell.kind or ""), _part(collection, cell.captions)]
    return [f"{part}: {left_out[part]}" for part in parts if part in left_out]


def refuse_parts_of_no_cell(cells: Sequence[Cell], names: Iterable[str]) -> None:
    """Raise ``ConfigurationError`` for the name of a part that none of the cells has."""
    for name in names:
        has = OWN_PARTS.get(name.split(".")[0])
        if has and not any(map(has, cells)):
            raise ConfigurationError(f"--freeze {name}: no cell that is run has it: leave it out")


def parts_there(encoder: Encoder, names: Iterable[str]) -> list[str]:
    """Return those of the names that may be meant for this cell's encoder.

    Not every cell has a fusion, a head or a separate tower; all else must be a part of each.
    """
    parts = {name for name, _ in encoder.model.named_children()}
    return [
        name for name in names if name.split(".")[0] in parts or name.split(".")[0] not in OWN_PARTS
    ]


def sample_deviation(values: Sequence[float]) -> float | None:
    """Return the standard deviation of a sample of two or more."""
    return statistics.stdev(values) if len(values) > 1 else None
