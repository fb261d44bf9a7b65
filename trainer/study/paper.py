"""The grid of arXiv 2406.15897 on any dataset, and the paper's claims beside what came of it.

A cell is one system: what is fused, from which metadata, read by which text tower, trained on whose
captions. Each is trained and tested once a seed. Queries are the captions of the split ``test``, or
of ``val`` where nothing else is asked; tested are the last weights, as the authors do, so that
nothing is chosen by any split and ``val`` need not be ranked beside ``test``.

dir/  config.json   what every training shares; another folder is needed for another
      cells.jsonl   a line for each finished training; lines of several machines may be joined
      weights/      what was tested, a file for each finished training
      running/      the run that is under way, to go on from
      results.json  means, what was left out and why, claims
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import ConfigurationError
from audiofuse.core.evaluation.evaluation import Metrics
from audiofuse.trainer.data.batches import Examples, training_rows
from audiofuse.trainer.data.cache import Progress, no_progress
from audiofuse.trainer.data.corpus import Corpus
from audiofuse.trainer.data.gallery import encode_cached, score_kind
from audiofuse.trainer.data.metadata import Kind
from audiofuse.trainer.study.grid import (
    Cell,
    Measured,
    Plan,
    Ranked,
    Results,
    find_left_out,
    rank_for_captions,
    why_left_out,
)
from audiofuse.trainer.study.tables import as_dict
from audiofuse.trainer.training.config import MACHINE, FitConfig
from audiofuse.trainer.training.fit import BEST, Fit, Show, Task, no_batch_progress
from audiofuse.trainer.training.start import Fusion

CONFIG, CELLS, RUNNING, RESULTS = "config.json", "cells.jsonl", "running", "results.json"
WEIGHTS = "weights"


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
    ranked = rank_for_captions(corpus)
    left_out = find_left_out(plan.cells, corpus.train, ranked)
    version = _claim_folder(folder, _shared_config(plan, corpus))
    measured = _read_cells(folder, version)
    done = {(each.seed, each.cell) for each in measured}
    for seed, cell in done:  # a run that was killed after its line was written is still there
        shutil.rmtree(_run_folder(folder, cell, seed), ignore_errors=True)
    cells = [cell for cell in plan.cells if not why_left_out(cell, left_out)]
    seeds = range(plan.first_seed, plan.first_seed + plan.seeds)
    # By seeds first: what is stopped has whole grids.
    work = [each for each in product(seeds, cells) if each not in done]
    for seed, cell in watch.progress(work):
        training = _Training(cell, seed, _run_folder(folder, cell, seed))
        encoder = _train(training, plan.config, corpus, make, watch)
        metrics = _test(encoder, cell, corpus, ranked).as_dict()
        measured.append(Measured(cell=cell, seed=seed, metrics=metrics, config=version))
        _write(folder / CELLS, "".join(f"{each.model_dump_json()}\n" for each in measured))
        _keep_weights(training, folder)
        shutil.rmtree(training.run)
    results = Results(measured, left_out)
    _write(folder / RESULTS, json.dumps(as_dict(results), indent=2) + "\n")
    return results


class _Training(NamedTuple):
    cell: Cell
    seed: int
    run: Path


def _train(
    training: _Training, config: FitConfig, corpus: Corpus, make: Make, watch: Callbacks
) -> Encoder:
    """Train a cell, or go on with it, and return the encoder with its last weights."""
    cell, seed, run = training
    given = {"artificial_captions": cell.artificial, "seed": seed}
    config = config.model_copy(update=given | ({"metadata": cell.kind} if cell.kind else {}))
    rows = training_rows(
        corpus.train,
        every_caption=config.every_caption,
        artificial=config.artificial_captions,
    )
    task = Task(
        Examples(rows, corpus.entries, config.example_config),
        score=lambda _: {}, criterion="epoch",
        show=watch.show, say=lambda line: watch.say(f"{run.name}  {line}"),
    )  # fmt: skip
    fit = Fit(make(cell.fusion, cell.separate, seed), task, config, run)
    fit.run(resume=True)
    return fit.encoder


def _test(encoder: Encoder, cell: Cell, corpus: Corpus, ranked: Ranked) -> Metrics:
    """Score what the cell makes of its items, each query of the same weight."""
    kind = cell.kind or Kind.OS  # audio alone is asked as the others are, and uses no metadata
    gallery = encode_cached(encoder, ranked.clips, corpus.entries)
    return score_kind(encoder, gallery, ranked.split, kind).mean()


def _keep_weights(training: _Training, folder: Path) -> None:
    """Keep what was tested, by the name of its run: weeks of computing should leave a model."""
    (folder / WEIGHTS).mkdir(exist_ok=True)
    (training.run / BEST).replace(folder / WEIGHTS / f"{training.run.name}.safetensors")


def _shared_config(plan: Plan, corpus: Corpus) -> dict[str, Any]:
    decided = {"metadata", "artificial_captions", "seed", *MACHINE}
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
    return folder / RUNNING / f"{cell.name}-{seed}"


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
