"""The grid of arXiv 2406.15897 on any dataset, and the paper's claims beside what came of it.

A cell is one system: what is fused, from which metadata, read by which text tower, trained on whose
captions. Each is trained and tested once a seed; with two published data sets, once on each, and
what learns from both together is tested on each. Queries are the captions of the split ``test``, or
of ``val`` where nothing else is asked; tested are the last weights, as the authors do, so that
nothing is chosen by any split and ``val`` need not be ranked beside ``test``.

dir/  config.json   what every training shares; another folder is needed for another
      cells.jsonl   a line for each finished training; lines of several machines may be joined
      weights/      what was tested, a file for each finished training
      queries/      scores of single queries, a file for each test; they may be joined, too
      running/      the run that is under way, to go on from
      results.json  means, what was left out and why, claims
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import ConfigurationError
from audiofuse.core.model.config import Fusion
from audiofuse.trainer.data.batches import Examples, training_rows
from audiofuse.trainer.data.cache import Progress, no_progress
from audiofuse.trainer.data.corpus import Corpus
from audiofuse.trainer.data.gallery import KindScores, encode_cached, score_kind
from audiofuse.trainer.data.metadata import Kind
from audiofuse.trainer.study.grid import (
    Cell,
    Measured,
    Plan,
    Precisions,
    Ranked,
    Results,
    Trial,
    clips_to_learn,
    find_left_out,
    rank_collections,
    why_left_out,
)
from audiofuse.trainer.study.tables import as_dict
from audiofuse.trainer.training.config import MACHINE, FitConfig
from audiofuse.trainer.training.fit import BEST, Fit, Show, Task, no_batch_progress

CONFIG, CELLS, RUNNING, RESULTS = "config.json", "cells.jsonl", "running", "results.json"
WEIGHTS, QUERIES = "weights", "queries"


@dataclass(frozen=True)
class Callbacks:
    """Who sees how far it got: with the trainings, with a training's batches, with its epochs."""

    progress: Progress = no_progress
    show: Show = no_batch_progress
    say: Callable[[str], None] = print


Make = Callable[[Fusion, bool, int], Encoder]


def run_grid(plan: Plan, corpus: Corpus, make: Make, folder: Path, watch: Callbacks) -> Results:
    """Train and test what is not finished yet; return everything that the folder holds then.

    ``make`` builds the encoder to begin with, of a fusion, with a separate metadata tower or not,
    and from a seed, on the device to train on. One process runs a grid. Raises
    ``ConfigurationError`` when the folder holds results of another config or dataset, when there is
    nothing to ask, or when a training cannot work.
    """
    ranked = rank_collections(corpus)
    left_out = find_left_out(plan.cells, corpus, ranked)
    version = _claim_folder(folder, _shared_config(plan, corpus))
    measured = _read_cells(folder, version)
    trainings = [each for each in _trainings(plan, list(ranked)) if not each.why_left_out(left_out)]
    done = {each.test for each in measured}
    work = [each for each in trainings if not done.issuperset(each.tests)]
    for each in trainings:
        if each not in work:  # a run that was killed after its line was written is still there
            shutil.rmtree(_run_folder(folder, each), ignore_errors=True)
    for training in watch.progress(work):
        tested = _train_and_test(training, plan.config, (corpus, ranked), make, (folder, watch))
        measured += [
            Measured(**test._asdict(), metrics=metrics, config=version)
            for test, metrics in tested.items()
        ]
        _write(folder / CELLS, "".join(f"{each.model_dump_json()}\n" for each in measured))
        _keep_weights(training, folder)
        shutil.rmtree(_run_folder(folder, training))
    results = Results(measured, left_out, _read_queries(folder, measured))
    _write(folder / RESULTS, json.dumps(as_dict(results), indent=2) + "\n")
    return results


class Training(NamedTuple):
    """A system to train on a data set, on all without a name, and the data sets to test it on."""

    cell: Cell
    seed: int
    collection: str
    tested_on: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of its run and its weights."""
        return Trial(self.cell, self.seed, self.collection).name

    @property
    def tests(self) -> list[Trial]:
        """Its tests."""
        return [Trial(self.cell, self.seed, collection) for collection in self.tested_on]

    def why_left_out(self, left_out: Mapping[str, str]) -> list[str]:
        """Return the reasons why it is not run: none if it is."""
        return why_left_out(self.cell, left_out, self.collection)


def _trainings(plan: Plan, collections: list[str]) -> list[Training]:
    """Return all trainings of a plan, by seeds first: what is stopped has whole grids."""
    return [
        training
        for seed in range(plan.first_seed, plan.first_seed + plan.seeds)
        for cell in plan.cells
        for training in (
            [Training(cell, seed, "", tuple(collections))]
            if cell.both
            else [Training(cell, seed, each, (each,)) for each in collections]
        )
    ]


def _train_and_test(
    training: Training,
    config: FitConfig,
    data: tuple[Corpus, Mapping[str, Ranked]],
    make: Make,
    where: tuple[Path, Callbacks],
) -> dict[Trial, dict[str, float]]:
    """Return the metrics of each of a training's tests; nothing else of it stays in memory."""
    corpus, ranked = data
    encoder = _train(training, config, corpus, make, where)
    tested = {}
    for test in training.tests:
        scored = _test(encoder, test.cell, corpus, ranked[test.collection])
        _keep_queries(where[0], test, scored)
        tested[test] = scored.scores.mean().as_dict()
    return tested


def _train(
    training: Training,
    config: FitConfig,
    corpus: Corpus,
    make: Make,
    where: tuple[Path, Callbacks],
) -> Encoder:
    """Train a cell, or go on with it, and return the encoder with its last weights."""
    cell, seed, collection, _ = training
    folder, watch = where
    run = _run_folder(folder, training)
    given = {"captions": cell.captions, "seed": seed}
    config = config.model_copy(update=given | ({"metadata": cell.kind} if cell.kind else {}))
    rows = training_rows(
        clips_to_learn(corpus, collection),
        every_caption=config.every_caption,
        captions=config.captions,
    )
    task = Task(
        Examples(rows, corpus.entries, config.example_config),
        score=lambda _: {}, criterion="epoch",
        show=watch.show, say=lambda line: watch.say(f"{run.name}  {line}"),
    )  # fmt: skip
    fit = Fit(make(cell.fusion, cell.separate, seed), task, config, run)
    fit.run(resume=True)
    return fit.encoder


def _test(encoder: Encoder, cell: Cell, corpus: Corpus, ranked: Ranked) -> KindScores:
    """Score what the cell makes of its items, each query of the same weight."""
    kind = cell.kind or Kind.OS  # audio alone is asked as the others are, and uses no metadata
    gallery = encode_cached(encoder, ranked.clips, corpus.entries)
    return score_kind(encoder, gallery, ranked.split, kind)


def _keep_weights(training: Training, folder: Path) -> None:
    """Keep what was tested, by the name of its run: weeks of computing should leave a model."""
    (folder / WEIGHTS).mkdir(exist_ok=True)
    best = _run_folder(folder, training) / BEST
    best.replace(folder / WEIGHTS / f"{training.name}.safetensors")


def _keep_queries(folder: Path, test: Trial, scored: KindScores) -> None:
    """Keep the scores of single queries, sorted by identity so that tests can be compared."""
    (folder / QUERIES).mkdir(exist_ok=True)
    order = np.argsort(scored.identities, kind="stable")
    scores = scored.scores
    path = folder / QUERIES / f"{test.name}.npz"
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez_compressed(
            file,
            identity=np.array(scored.identities)[order],
            average_precision=scores.average_precision.numpy()[order],
            reciprocal_rank=scores.reciprocal_rank.numpy()[order],
        )
    part.replace(path)


def _read_queries(folder: Path, measured: Sequence[Measured]) -> dict[Trial, Precisions]:
    """Return the scores of single queries of those tests whose files are there."""
    found = {}
    for each in measured:
        path = folder / QUERIES / f"{each.test.name}.npz"
        if path.exists():
            with np.load(path) as columns:
                values = torch.from_numpy(columns["average_precision"])
                found[each.test] = Precisions(columns["identity"].tolist(), values)
    return found


def _shared_config(plan: Plan, corpus: Corpus) -> dict[str, Any]:
    decided = {"metadata", "captions", "seed", *MACHINE}
    clips = [
        [clip.identity, clip.split, clip.captions, clip.artificial, asdict(clip.metadata),
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
    return list({each.test: each for each in measured}.values())


def _run_folder(folder: Path, training: Training) -> Path:
    return folder / RUNNING / training.name


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
