"""The grid of arXiv 2406.15897 on any dataset, and the paper's claims beside what came of it.

A cell is one system: what is fused, from which metadata, read by which tower, trained on whose
captions. Each is trained and tested once a seed. Queries are the captions of the split ``test``, or
of ``val`` where nothing else is asked; tested are the last weights, as the authors do, so that
nothing is chosen by any split and ``val`` need not be ranked beside ``test``.

dir/  config.json   what every training shares; another folder is needed for another
      cells.jsonl   a line for each finished training; lines of several machines may be joined
      running/      the run that is under way, to go on from
      results.json  means, what was left out and why, claims
"""

import hashlib
import json
import math
import shutil
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, product
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator
from rich.box import SIMPLE_HEAD
from rich.table import Table

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import ConfigurationError
from audiofuse.core.evaluation.clips import Clip, ask_for_captions
from audiofuse.core.evaluation.evaluation import (
    CUTOFF,
    HYBRID,
    RECALLS,
    Gallery,
    Metrics,
    QueryScores,
    judge,
)
from audiofuse.trainer.data.batches import Examples, training_rows
from audiofuse.trainer.data.cache import Progress, unseen
from audiofuse.trainer.data.corpus import Corpus
from audiofuse.trainer.data.datasets import TEST, VAL
from audiofuse.trainer.data.gallery import encode_cached
from audiofuse.trainer.data.metadata import (
    Kind,
    artificial_caption,
    evaluation_rankings,
    metadata_text,
)
from audiofuse.trainer.training.fit import Fit, FitConfig, Show, Task, unshown
from audiofuse.trainer.training.start import Fusion

FUSIONS: tuple[Fusion, ...] = ("audio", "metadata", "late", "mid")
KINDS = (Kind.CS, Kind.OS, Kind.FS, Kind.OS_CS)
PAPER = FitConfig(drop_metadata=0.0)  # our defaults, but every item keeps its metadata
SEEDS = 3
ARTIFICIAL = "artificial captions"  # named so when they are left out
CONFIG, CELLS, RUNNING, RESULTS = "config.json", "cells.jsonl", "running", "results.json"
MAP = f"mAP@{CUTOFF}"
SHOWN = (MAP, *(f"R@{k}" for k in RECALLS))

ABSTRACT = "arXiv 2406.15897, abstract"
SECOND_HAND = "arXiv 2406.15897, second-hand"
OURS = "ours, no claim of the paper"
BORNE_OUT, NOT_BORNE_OUT, UNCLEAR = "borne out", "not borne out", "no clear difference"
# Student's t at 97.5 % for 2, 3, ... seeds. Two standard errors would call one of five differences
# between equal systems clear when there are three seeds.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


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
    """What to run: each cell with the seeds 0, 1, ...

    A cell decides ``metadata`` and ``artificial_captions`` of the ``config``, and the seed its
    ``seed``. ``facts`` are what else the results depend on, as the names of the pretrained towers.
    """

    cells: Sequence[Cell] = field(default_factory=grid)
    seeds: int = SEEDS
    config: FitConfig = PAPER
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Watch:
    """Who sees how far it got: with the trainings, with a training's batches, with its epochs."""

    progress: Progress = unseen
    show: Show = unshown
    say: Callable[[str], None] = print


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


# Running

Make = Callable[[Fusion, bool, int], Encoder]


def run_grid(plan: Plan, corpus: Corpus, make: Make, folder: Path, watch: Watch) -> Results:
    """Train and test what is not finished yet; return everything that the folder holds then.

    ``make`` builds the encoder to begin with, of a fusion, with a separate metadata tower or not,
    and from a seed, on the device to train on. One process runs a grid. Raises
    ``ConfigurationError`` when the folder holds results of another config or dataset, when there is
    nothing to ask, or when a training cannot work.
    """
    ranked = _ranked(corpus)
    left_out = _left_out(plan.cells, corpus.train, ranked)
    version = _claim_folder(folder, _shared_config(plan, corpus))
    measured = _read_cells(folder, version)
    done = {(each.seed, each.cell) for each in measured}
    for seed, cell in done:  # a run that was killed after its line was written is still there
        shutil.rmtree(_run_folder(folder, cell, seed), ignore_errors=True)
    cells = [cell for cell in plan.cells if not _why_left_out(cell, left_out)]
    # By seeds first: what is stopped has whole grids.
    work = [each for each in product(range(plan.seeds), cells) if each not in done]
    for seed, cell in watch.progress(work):
        training = _Training(cell, seed, _run_folder(folder, cell, seed))
        encoder = _train(training, plan.config, corpus, make, watch)
        metrics = _test(encoder, cell, corpus, ranked).as_dict()
        measured.append(Measured(cell=cell, seed=seed, metrics=metrics, config=version))
        _write(folder / CELLS, "".join(f"{each.model_dump_json()}\n" for each in measured))
        shutil.rmtree(training.run)
    results = Results(measured, left_out)
    _write(folder / RESULTS, json.dumps(_as_dict(results), indent=2) + "\n")
    return results


class _Training(NamedTuple):
    cell: Cell
    seed: int
    run: Path


def _ranked(corpus: Corpus) -> Ranked:
    """Let captions ask, whatever else would: ``fs`` ranks for captions, and all are compared."""
    clips = [ask_for_captions(replace(clip, queries=())) for clip in corpus.gallery]
    asking = {clip.split for clip in clips if clip.captions}
    if TEST in asking:
        return Ranked([clip for clip in clips if clip.split != VAL], TEST)
    if VAL in asking:
        return Ranked(clips, VAL)
    raise ConfigurationError("nothing to test by: no clip of the splits test and val has captions")


def _left_out(cells: Sequence[Cell], train: Sequence[Clip], ranked: Ranked) -> dict[str, str]:
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


def _why_left_out(cell: Cell, left_out: Mapping[str, str]) -> list[str]:
    parts = [cell.kind or "", ARTIFICIAL if cell.artificial else ""]
    return [f"{part}: {left_out[part]}" for part in parts if part in left_out]


def _train(
    training: _Training, config: FitConfig, corpus: Corpus, make: Make, watch: Watch
) -> Encoder:
    """Train a cell, or go on with it, and return the encoder with its last weights."""
    cell, seed, run = training
    given = {"artificial_captions": cell.artificial, "seed": seed}
    config = config.model_copy(update=given | ({"metadata": cell.kind} if cell.kind else {}))
    rows = training_rows(corpus.train, every_caption=config.every_caption)
    task = Task(
        Examples(rows, corpus.entries, config.reading), score=lambda _: {}, criterion="epoch",
        show=watch.show, say=lambda line: watch.say(f"{run.name}  {line}"),
    )  # fmt: skip
    fit = Fit(make(cell.fusion, cell.separate, seed), task, config, run)
    fit.run(resume=True)
    return fit.encoder


def _test(encoder: Encoder, cell: Cell, corpus: Corpus, ranked: Ranked) -> Metrics:
    """Score what the cell makes of its items, each query of the same weight."""
    heard = encode_cached(encoder, ranked.clips, corpus.entries).heard
    kind = cell.kind or Kind.OS  # audio alone is asked as the others are, and reads nothing
    rankings = evaluation_rankings(ranked.clips, ranked.split, kind)
    judged = [judge(encoder, Gallery(each.clips, heard), each.queries) for each in rankings]
    return QueryScores.concatenate([each[HYBRID] for each in judged]).mean()


# The folder


def _shared_config(plan: Plan, corpus: Corpus) -> dict[str, Any]:
    decided = {"metadata", "artificial_captions", "seed"}
    clips = [
        [clip.identity, clip.split, clip.captions, asdict(clip.metadata),
         corpus.entries[clip.path].content]
        for clip in corpus.clips
    ]  # fmt: skip
    return {
        **plan.config.model_dump(mode="json", exclude=decided),
        **plan.facts,
        "clips": _hash(json.dumps(clips)),
    }


def _claim_folder(folder: Path, config: Mapping[str, Any]) -> str:
    """Return the config's hash, the config being that of the folder from now on."""
    path = folder / CONFIG
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else config
    if known != config:
        names = sorted(known.keys() | config.keys())
        other = [name for name in names if known.get(name) != config.get(name)]
        raise ConfigurationError(
            f"{folder} holds results of another {', '.join(other)}: name another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config, indent=2) + "\n"
    _write(path, text)
    return _hash(text)


def _read_cells(folder: Path, version: str) -> list[Measured]:
    path = folder / CELLS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    measured = [Measured.model_validate_json(line) for line in lines]
    if any(each.config != version for each in measured):
        raise ConfigurationError(f"{path} has lines of another config than {folder / CONFIG}")
    return list({(each.cell, each.seed): each for each in measured}.values())


def _run_folder(folder: Path, cell: Cell, seed: int) -> Path:
    return folder / RUNNING / "-".join([*filter(None, cell.words), str(seed)])


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# The claims


@dataclass(frozen=True)
class Claim:
    """That one system is better than another, and what came of it.

    ``paper_pp`` is by how much in the paper, in percentage points mAP@10, where that is known;
    ``source`` tells where from and on which dataset. ``differences`` are ours by seed, each the
    mean over the kinds of metadata in ``over``; without any, ``lacking`` says why.
    """

    statement: str
    paper_pp: float | None
    source: str
    over: tuple[str, ...]
    differences: dict[int, float]
    lacking: str

    @property
    def mean(self) -> float | None:
        """Our difference in percentage points, if there is any."""
        return statistics.fmean(self.differences.values()) if self.differences else None

    @property
    def deviation(self) -> float | None:
        """The standard deviation over seeds, of two or more."""
        return _deviation([*self.differences.values()])

    @property
    def verdict(self) -> str:
        """What can be concluded, of the direction alone and not of the size.

        A difference is clear when 0 is outside of its 95 % interval, mean ± t · deviation / √seeds
        with Student's t. It tells what other seeds would have given, not what other sounds would.
        """
        if self.mean is None:
            return f"cannot tell: {self.lacking}"
        if self.deviation is None:
            return "cannot tell: a single seed"
        seeds = len(self.differences)
        student = STUDENT[min(seeds - 2, len(STUDENT) - 1)]
        if abs(self.mean) <= student * self.deviation / math.sqrt(seeds):
            return UNCLEAR
        return BORNE_OUT if self.mean > 0 else NOT_BORNE_OUT


def claims(results: Results) -> list[Claim]:
    """Return what the paper says of its grid, and one claim of ours, beside what came of it."""
    late = {kind: Cell(fusion="late", kind=kind) for kind in KINDS}
    audio = Cell(fusion="audio")

    def against(**change: Any) -> list[_Pair]:
        return [_Pair(cell, cell.model_copy(update=change)) for cell in late.values()]

    stated: list[tuple[str, float | None, str, list[_Pair]]] = [
        ("keywords, late, over audio only", 2.36, f"ClothoV2: {ABSTRACT}",
         [_Pair(late[Kind.OS], audio)]),
        ("descriptions, late, over audio only", 8.82, f"ClothoV2: {SECOND_HAND}",
         [_Pair(late[Kind.FS], audio)]),
        ("closed-set tags, late, over audio only", 3.69, f"AudioCaps: {ABSTRACT}",
         [_Pair(late[Kind.CS], audio)]),
        ("late fusion over mid (said to be no worse)", None, SECOND_HAND, against(fusion="mid")),
        ("shared text tower over separate, late", None, SECOND_HAND, against(separate=True)),
        ("real captions over artificial, late", None, SECOND_HAND, against(artificial=True)),
        ("hybrid, late, over metadata only", None, OURS, against(fusion="metadata")),
    ]  # fmt: skip
    return [_compare(results, *each) for each in stated]


class _Pair(NamedTuple):
    better: Cell
    other: Cell


def _compare(
    results: Results, statement: str, paper_pp: float | None, source: str, pairs: Sequence[_Pair]
) -> Claim:
    """Compare the pairs of which there are results, in each seed that has all of those."""
    known = {(each.cell, each.seed): each.metrics[MAP] for each in results.measured}
    seeds = sorted({each.seed for each in results.measured})
    by_seed = {
        pair: {
            seed: 100 * (known[pair.better, seed] - known[pair.other, seed])
            for seed in seeds
            if (pair.better, seed) in known and (pair.other, seed) in known
        }
        for pair in pairs
    }
    found = {pair: values for pair, values in by_seed.items() if values}
    whole = [seed for seed in seeds if found and all(seed in each for each in found.values())]
    reasons = [
        [why for cell in pair for why in _why_left_out(cell, results.left_out)] for pair in pairs
    ]
    known_why = "; ".join(dict.fromkeys(chain(*reasons))) if all(reasons) else ""
    return Claim(
        statement, paper_pp, source,
        over=tuple(str(pair.better.kind) for pair in found),
        differences={seed: statistics.fmean(e[seed] for e in found.values()) for seed in whole},
        lacking=known_why or "no seed has its cells",
    )  # fmt: skip


# Tables


class _Table(NamedTuple):
    """Columns whose name begins with ``>`` are numbers; ``notes`` stand below."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    notes: list[str]


def grid_table(results: Results) -> Table:
    """Show every cell in percent: means over seeds, of mAP@10 with the standard deviation."""
    return _rich(_grid(results))


def claims_table(stated: Sequence[Claim]) -> Table:
    """Show claims, differences in percentage points mAP@10."""
    return _rich(_claims(stated))


def as_markdown(results: Results) -> str:
    """Return both tables and what was left out, for a README."""
    tables = (_grid(results), _claims(claims(results)))
    return "\n".join(_markdown(table) for table in tables)


def _as_dict(results: Results) -> dict[str, Any]:
    """Return means, what was left out and claims for JSON: metrics from 0 to 1."""
    return {
        "cells": [
            cell.model_dump(mode="json")
            | {"seeds": len(values[MAP]), "deviation": _deviation(values[MAP])}
            | {name: statistics.fmean(values[name]) for name in SHOWN}
            for cell, values in _by_cell(results).items()
        ],
        "left out": results.left_out,
        "claims": [
            asdict(claim)
            | {"mean": claim.mean, "deviation": claim.deviation, "verdict": claim.verdict}
            for claim in claims(results)
        ],
    }


def _by_cell(results: Results) -> dict[Cell, dict[str, list[float]]]:
    """Return the seeds' values by cell and metric, cells in the order in which they were run."""
    cells = dict.fromkeys(each.cell for each in results.measured)
    return {
        cell: {
            name: [each.metrics[name] for each in results.measured if each.cell == cell]
            for name in SHOWN
        }
        for cell in cells
    }


def _grid(results: Results) -> _Table:
    rows = [
        (*cell.words, *(_percent(values[name], name) for name in SHOWN), str(len(values[MAP])))
        for cell, values in _by_cell(results).items()
    ]
    columns = ("fusion", "metadata", "text tower", "captions",
               *(f">{name}" for name in SHOWN), ">seeds")  # fmt: skip
    notes = [f"left out: {name}: {reason}" for name, reason in results.left_out.items()]
    return _Table("test results in percent", columns, rows, notes)


def _percent(values: Sequence[float], name: str) -> str:
    deviation = _deviation(values) if name == MAP else None
    mean = f"{100 * statistics.fmean(values):.2f}"
    return mean if deviation is None else f"{mean} ± {100 * deviation:.2f}"


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _claims(stated: Sequence[Claim]) -> _Table:
    rows = [
        (claim.statement, _points(claim.paper_pp), _ours(claim), str(len(claim.differences)),
         ", ".join(claim.over), claim.verdict, claim.source)
        for claim in stated
    ]  # fmt: skip
    columns = ("claim", ">paper", ">ours", ">seeds", "over", "verdict", "source")
    return _Table(f"claims, differences in percentage points {MAP}", columns, rows, [])


def _ours(claim: Claim) -> str:
    spread = "" if claim.deviation is None else f" ± {claim.deviation:.2f}"
    return _points(claim.mean) + spread


def _points(value: float | None) -> str:
    return "" if value is None else f"{value:+.2f}"


def _rich(shown: _Table) -> Table:
    table = Table(
        title=shown.title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False,
        caption="\n".join(shown.notes) or None, caption_justify="left",
    )  # fmt: skip
    for name in shown.columns:
        number = name.startswith(">")
        table.add_column(name.removeprefix(">"), justify="right" if number else "left")
    for row in shown.rows:
        table.add_row(*row)
    return table


def _markdown(shown: _Table) -> str:
    heads = [name.removeprefix(">") for name in shown.columns]
    rules = ["---:" if name.startswith(">") else "---" for name in shown.columns]
    lines = [f"| {' | '.join(row)} |" for row in (heads, rules, *shown.rows)]
    notes = [f"\n{note}" for note in shown.notes]
    return "\n".join([f"{shown.title}:\n", *lines, *notes]) + "\n"
