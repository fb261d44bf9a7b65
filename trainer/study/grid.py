"""The paper's grid: its cells, what is asked of them, and what a dataset has nothing for."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import product
from typing import NamedTuple, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from audiofuse.core.errors import ConfigurationError
from audiofuse.core.evaluation.clips import Clip, ask_for_captions
from audiofuse.core.evaluation.evaluation import CUTOFF, RECALLS
from audiofuse.trainer.data.corpus import Corpus
from audiofuse.trainer.data.metadata import Kind, artificial_caption, metadata_text
from audiofuse.trainer.data.splits import TEST, TRAIN, VAL
from audiofuse.trainer.training.config import FitConfig
from audiofuse.trainer.training.start import Fusion

FUSIONS: tuple[Fusion, ...] = ("audio", "metadata", "late", "mid")
KINDS = (Kind.CS, Kind.OS, Kind.FS, Kind.OS_CS)
PAPER = FitConfig(drop_metadata=0.0)  # our defaults, but every item keeps its metadata
SEEDS = 3
ARTIFICIAL = "artificial captions"  # named so when they are left out
MAP = f"mAP@{CUTOFF}"
SHOWN = (MAP, *(f"R@{k}" for k in RECALLS))


class Cell(BaseModel):
    """One system of the grid; audio alone has no ``kind`` of metadata.

    ``separate`` gives metadata a text tower of its own; ``artificial`` captions are made from
    metadata, for training only.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    fusion: Fusion
    kind: Kind | None = None
    separate: bool = False
    artificial: bool = False

    @model_validator(mode="after")
    def _has_metadata_or_none(self) -> Self:
        if (self.fusion == "audio") != (self.kind is None) or (self.separate and not self.kind):
            msg = "audio alone has neither a kind of metadata nor a tower for it; all else has"
            raise ValueError(msg)
        return self

    @property
    def words(self) -> tuple[str, str, str, str]:
        """Fusion, metadata, text tower and captions, as tables show them."""
        tower = "" if self.kind is None else "separate" if self.separate else "shared"
        return self.fusion, self.kind or "", tower, "artificial" if self.artificial else "real"

    @property
    def name(self) -> str:
        """The words joined, as folders and ``--cells`` name it: late-os-shared-real, audio-real."""
        return "-".join(filter(None, self.words))


def select_cells(patterns: Sequence[str]) -> list[Cell]:
    """Return the cells of the grid whose names match one of the patterns, as "late-*-real".

    Without patterns those are all. Raises ``ConfigurationError`` for a pattern that matches none.
    """
    cells = grid()
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
    artificial: Iterable[bool] = (False, True),
) -> list[Cell]:
    """Return every combination once that is a system of its own."""
    cells = [
        Cell(fusion=fusion, artificial=made)
        if fusion == "audio"
        else Cell(fusion=fusion, kind=kind, separate=own, artificial=made)
        for fusion, kind, own, made in product(fusions, kinds, separate, artificial)
    ]
    return list(dict.fromkeys(cells))


@dataclass(frozen=True)
class Plan:
    """What to run: each cell with so many seeds, from the first one on.

    A cell decides ``metadata`` and ``artificial_captions`` of the ``config``, and the seed its
    ``seed``. ``facts`` are what else the results depend on, as the names of the pretrained towers.
    """

    cells: Sequence[Cell] = field(default_factory=grid)
    seeds: int = SEEDS
    first_seed: int = 0
    config: FitConfig = PAPER
    facts: Mapping[str, str] = field(default_factory=dict)


class Measured(BaseModel):
    """A finished training: metrics from 0 to 1 by their usual names, the hash of its config."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    cell: Cell
    seed: int
    metrics: dict[str, float]
    config: str


@dataclass(frozen=True)
class Results:
    """What was measured, and which kinds of metadata or captions were left out, with the reason."""

    measured: list[Measured]
    left_out: dict[str, str]


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


def find_left_out(cells: Sequence[Cell], train: Sequence[Clip], ranked: Ranked) -> dict[str, str]:
    """Return what of the cells' kinds and captions this dataset has nothing for, and why."""
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
    made, chance = any(cell.artificial for cell in cells), np.random.default_rng(0)
    if made and not any(artificial_caption(clip, chance) for clip in train):
        reasons[ARTIFICIAL] = "no clip to learn from has tags or a title to make them of"
    return reasons


def _words(clips: Sequence[Clip], kind: Kind) -> tuple[str, ...]:
    return tuple(
        metadata_text(clip, caption, kind)
        for clip in clips
        for caption in range(len(clip.captions))
    )


def why_left_out(cell: Cell, left_out: Mapping[str, str]) -> list[str]:
    """Return the reasons why a cell is not run: none if it is."""
    parts = [cell.kind or "", ARTIFICIAL if cell.artificial else ""]
    return [f"{part}: {left_out[part]}" for part in parts if part in left_out]


def sample_deviation(values: Sequence[float]) -> float | None:
    """Return the standard deviation of a sample of two or more."""
    return statistics.stdev(values) if len(values) > 1 else None
