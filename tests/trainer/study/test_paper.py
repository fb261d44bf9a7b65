"""The paper's grid: its cells, each run once and tested by the rule, and what is claimed."""

import json
import weakref
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import ConfigurationError
from audiofuse.core.evaluation.clips import Clip, Query
from audiofuse.core.evaluation.evaluation import Gallery, evaluate
from audiofuse.core.items import Metadata
from audiofuse.core.model.config import TINY
from audiofuse.trainer.data.cache import AudioCache
from audiofuse.trainer.data.corpus import Corpus
from audiofuse.trainer.data.gallery import encode_cached
from audiofuse.trainer.data.metadata import Captions, Kind
from audiofuse.trainer.study import paper
from audiofuse.trainer.study.claims import claims
from audiofuse.trainer.study.grid import (
    PAPER,
    Cell,
    Measured,
    Plan,
    Results,
    grid,
    rank_collections,
)
from audiofuse.trainer.study.paper import (
    CELLS,
    QUERIES,
    RUNNING,
    WEIGHTS,
    Callbacks,
    Training,
    run_grid,
)
from audiofuse.trainer.training.config import FitConfig
from audiofuse.trainer.training.fit import BEST, Fit

SOUNDS = Path(__file__).parents[3] / "examples" / "sounds"
NAMES = ("animals/owl.wav", "animals/crow.flac", "home/typing.mp3", "water/bubbles.opus")
KEYWORDS = ("bird; night", "black bird", "office; keys", "pond")
CONFIG = PAPER.model_copy(
    update={"epochs": 1, "batch_size": 4, "crop_s": 1.0, "mask_bands": 8, "mask_frames": 8}
)
AUDIO = Cell(fusion="audio")
OS, FS = (Cell(fusion="late", kind=kind) for kind in (Kind.OS, Kind.FS))
FEW = [AUDIO, OS]
REAL = [Captions.REAL]
QUIET = Callbacks(say=lambda _: None)


def _clip(name: str, split: str, keywords: str) -> Clip:
    return Clip(
        SOUNDS / name, f"{split} {name}", split, Metadata(keywords=tuple(keywords.split("; "))),
        captions=(f"the sound of {name}", f"{keywords} can be heard", f"{name[::-1]} once more"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Return sounds to learn from and to find, decoded: the same files under two identities."""
    clips = [
        _clip(name, split, keywords)
        for split in ("train", "val")
        for name, keywords in zip(NAMES, KEYWORDS, strict=True)
    ]
    cache = AudioCache(tmp_path_factory.mktemp("cache"), 600, workers=1)
    return Corpus(clips, cache.prepare(clips).entries)


def _with(corpus: Corpus, **change: Any) -> Corpus:
    return replace(corpus, clips=[replace(clip, **change) for clip in corpus.clips])


def _make(fusion: Any, separate: bool, seed: int) -> Encoder:  # noqa: FBT001 - as it is called
    update = {"fusion": fusion, "absent": "empty", "metadata": TINY.text if separate else None}
    encoder = Encoder.random(TINY.model_copy(update=update), seed)
    project, texts = encoder.model.text_tower.project, [*NAMES, *KEYWORDS]
    with torch.no_grad():  # an untrained tower says nearly the same of all: spread that out
        project.weight /= float(encoder.encode_text(texts).std(0).mean())
        project.bias -= torch.from_numpy(encoder.encode_text(texts).mean(0))
    return encoder


def _unmade(fusion: Any, separate: bool, seed: int) -> Encoder:  # noqa: FBT001 - as it is called
    raise AssertionError((fusion, separate, seed))


def _plan(cells: Sequence[Cell] = FEW, seeds: int = 1, config: FitConfig = CONFIG) -> Plan:
    return Plan(cells, seeds, config=config, facts={"audio": "tiny"})


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / CELLS).read_text().splitlines()]


def test_machines_share_seeds(corpus: Corpus, tmp_path: Path) -> None:
    """Seeds that ran in two folders give, their lines joined, what one folder would have."""
    plans = [replace(_plan([AUDIO]), first_seed=seed) for seed in (0, 1)]
    for number, plan in enumerate(plans):
        run_grid(plan, corpus, _make, tmp_path / str(number), QUIET)
    joined = "".join((tmp_path / str(n) / CELLS).read_text() for n in (0, 1))
    (tmp_path / "0" / CELLS).write_text(joined)
    results = run_grid(_plan([AUDIO], seeds=2), corpus, _unmade, tmp_path / "0", QUIET)
    assert [each.seed for each in results.measured] == [0, 1]
    assert [test.seed for test in results.queries] == [0]
    (file,) = (tmp_path / "1" / QUERIES).iterdir()
    file.rename(tmp_path / "0" / QUERIES / file.name)
    results = run_grid(_plan([AUDIO], seeds=2), corpus, _unmade, tmp_path / "0", QUIET)
    assert [test.seed for test in results.queries] == [0, 1]
    for measured in results.measured:
        values = results.queries[measured.test].values
        assert len(values) == 4 * 3
        assert float(values.mean()) == pytest.approx(measured.metrics["mAP@10"])


@pytest.fixture
def two(corpus: Corpus) -> Corpus:
    """Return the sounds as two benchmarks, one with keywords, the other with labels."""
    clips = [
        replace(clip, collection="clotho") if number % 2 else
        replace(clip, collection="audiocaps", metadata=Metadata(labels=clip.metadata.keywords))
        for number, clip in enumerate(corpus.clips)
    ]  # fmt: skip
    return replace(corpus, clips=clips, benchmarks=("clotho", "audiocaps"))


def test_each_benchmark_is_tested_by_itself(two: Corpus, tmp_path: Path) -> None:
    """A cell trains on each data set's own clips; what learns from both is tested on each."""
    learned: list[int] = []

    def see(work: Any, total: int, _label: str) -> Any:
        learned.append(total)
        return work

    joint = Cell(fusion="late", kind=Kind.OS_CS, both=True)
    closed = Cell(fusion="late", kind=Kind.CS)
    config = CONFIG.model_copy(update={"batch_size": 2})
    plan = _plan([OS, closed, joint], config=config)
    results = run_grid(plan, two, _make, tmp_path, replace(QUIET, show=see))
    assert [(each.cell, each.collection) for each in results.measured] == [
        (OS, "clotho"),
        (closed, "audiocaps"),
        (joint, "clotho"),
        (joint, "audiocaps"),
    ]
    assert learned == [3, 3, 6]  # batches of two of so many captions
    assert len(results.queries) == 4
    assert {len(each.values) for each in results.queries.values()} == {2 * 3}
    assert results.left_out["clotho cs"] == "no clip to learn from has any"
    assert run_grid(plan, two, _unmade, tmp_path, QUIET) == results


def test_one_benchmark_has_nothing_to_join(corpus: Corpus, two: Corpus, tmp_path: Path) -> None:
    """Without two published data sets that ask, training on both is left out, with the reason."""
    joint = Cell(fusion="audio", both=True)
    results = run_grid(_plan([joint]), corpus, _unmade, tmp_path, QUIET)
    assert results.left_out == {"both": "there are not two published data sets"}
    clips = [c for c in two.clips if c.collection == "clotho" or c.split == "train"]
    assert list(rank_collections(replace(two, clips=clips))) == [""]


def test_what_was_tested_is_kept(corpus: Corpus, tmp_path: Path) -> None:
    """Each finished training leaves its weights, which load into an encoder of its shape."""
    run_grid(_plan([OS]), corpus, _make, tmp_path, QUIET)
    (file,) = (tmp_path / WEIGHTS).iterdir()
    assert file.name == "late-os-shared-real-0.safetensors"
    _make("late", separate=False, seed=1).model.load_state_dict(load_file(file))


def test_every_cell_is_run_once(corpus: Corpus, tmp_path: Path) -> None:
    """Each shape trains, alone in memory, and is tested; a second call trains none of them."""
    made, alive = [], weakref.WeakSet[Any]()

    def make(*asked: Any) -> Encoder:
        assert not alive
        made.append(asked)
        alive.add((encoder := _make(*asked)).model)
        return encoder

    cells = [
        *grid(kinds=[Kind.OS], separate=[False], captions=REAL),
        Cell(fusion="late", kind=Kind.FS, separate=True, captions=Captions.TEMPLATES),
        Cell(fusion="mid", kind=Kind.FS, separate=True),
    ]
    said: list[str] = []
    first = run_grid(_plan(cells), corpus, make, tmp_path, Callbacks(say=said.append))
    assert made == [(cell.fusion, cell.separate, 0) for cell in cells]
    assert [each.cell for each in first.measured] == cells
    assert all(0 < each.metrics["mAP@10"] <= 1 for each in first.measured)
    assert said[-1].split()[0] == "mid-fs-separate-real-0"
    assert not list((tmp_path / RUNNING).iterdir())  # no checkpoint is left
    told = json.loads((tmp_path / "results.json").read_text())
    measured = [each.metrics["mAP@10"] for each in first.measured]
    assert [cell["mAP@10"] for cell in told["cells"]] == measured
    assert len(told["claims"]) == len(claims(first))
    assert run_grid(_plan(cells), corpus, _unmade, tmp_path, QUIET) == first


def test_a_cell_decides_how_it_is_trained(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metadata, captions and seed are the cell's, all else is the caller's; none is dropped."""
    given = []

    class Untrained(Fit):
        def run(self, *, resume: bool) -> dict[str, float]:
            assert resume
            given.append(self._config)
            self._run.mkdir(parents=True)
            (self._run / BEST).touch()
            return {}

    monkeypatch.setattr(paper, "Fit", Untrained)
    made = Cell(fusion="late", kind=Kind.FS, captions=Captions.TEMPLATES)
    run_grid(_plan([AUDIO, made], seeds=2), corpus, _make, tmp_path, QUIET)
    assert [(c.seed, c.captions) for c in given] == [
        (0, "real"),
        (0, "templates"),
        (1, "real"),
        (1, "templates"),
    ]
    assert given[1].metadata is Kind.FS
    own = {"seed", "captions", "metadata"}
    assert all(c.model_dump(exclude=own) == CONFIG.model_dump(exclude=own) for c in given)
    assert given[0].drop_metadata == 0


def _with_captions(corpus: Corpus, counts: Sequence[int]) -> Corpus:
    """Give each clip so many captions, and a query of another kind."""
    clips = [
        replace(
            clip,
            captions=(*clip.captions, *(f"{each} again" for each in clip.captions))[:count],
            queries=(Query("not asked", "", clip.identity),),
        )
        for clip, count in zip(corpus.clips, counts, strict=True)
    ]
    return replace(corpus, clips=clips)


def test_a_cell_is_tested_by_the_papers_rule(corpus: Corpus, tmp_path: Path) -> None:
    """Captions ask; descriptions are ranked once for each caption, by the caption after it."""
    asking = _with_captions(corpus, (3, 3, 3, 3, 5, 1, 3, 2))
    config = CONFIG.model_copy(update={"learning_rate": 1e-12, "final_learning_rate": 0})
    measured = run_grid(_plan([AUDIO, OS, FS], config=config), asking, _make, tmp_path, QUIET)
    found = [each.metrics for each in measured.measured]

    clips = asking.gallery
    encoders = {f: _make(f, separate=False, seed=0) for f in ("audio", "late")}
    embeddings = {
        f: encode_cached(each, clips, corpus.entries).embeddings for f, each in encoders.items()
    }

    def score(fusion: str, row: str, captions: range, carried: list[Clip]) -> dict[str, float]:
        queries = [
            Query(clip.captions[index], "", clip.identity)
            for clip in clips
            for index in captions
            if index < len(clip.captions)
        ]
        scores = evaluate(encoders[fusion], Gallery(carried, embeddings[fusion]), queries)
        return scores[row].as_dict()

    def score_described(index: int) -> dict[str, float]:
        after = [each.captions[(index + 1) % len(each.captions)] for each in clips]
        after[1] = ""  # its only caption is the query
        carried = [
            replace(clip, metadata=Metadata(description=words))
            for clip, words in zip(clips, after, strict=True)
        ]
        return score("late", "hybrid", range(index, index + 1), carried)

    described, queries = [score_described(index) for index in range(5)], (4, 3, 2, 1, 1)
    expected = [
        score("audio", "audio only", range(5), clips),
        score("late", "hybrid", range(5), clips),
        {
            name: sum(n * each[name] for n, each in zip(queries, described, strict=True)) / 11
            for name in described[0]
        },
    ]
    for metrics, wanted in zip(found, expected, strict=True):
        assert metrics == pytest.approx(wanted)
    for first, second in combinations(expected, 2):
        assert first != pytest.approx(second)  # so that none could stand for another
    for row in ("audio only", "metadata only"):
        assert expected[1] != pytest.approx(score("late", row, range(5), clips))


def test_without_captions_nothing_is_tested(corpus: Corpus, tmp_path: Path) -> None:
    """A dataset that asks nothing is refused before anything is trained."""
    with pytest.raises(ConfigurationError, match="nothing to test by"):
        run_grid(_plan(), replace(corpus, clips=corpus.train), _make, tmp_path, QUIET)


def test_a_stopped_grid_goes_on(corpus: Corpus, tmp_path: Path) -> None:
    """A grid that is stopped between and inside trainings ends as one that was not."""
    config = CONFIG.model_copy(update={"epochs": 2})
    shown = []

    def stop(work: Any, _total: int, label: str) -> Any:
        shown.append(label)
        if len(shown) == 4:  # the second cell's second epoch
            raise KeyboardInterrupt
        return work

    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    with pytest.raises(KeyboardInterrupt):
        run_grid(_plan(config=config), corpus, _make, stopped, replace(QUIET, show=stop))
    assert [line["cell"]["fusion"] for line in _lines(stopped)] == ["audio"]
    (stopped / RUNNING / "audio-real-0").mkdir()  # as if it was killed before it was deleted
    run_grid(_plan(config=config), corpus, _make, stopped, replace(QUIET, show=stop))
    assert shown[4:] == ["epoch 2 of 2"]
    run_grid(_plan(config=config), corpus, _make, whole, QUIET)
    assert (stopped / CELLS).read_text() == (whole / CELLS).read_text()
    assert not list((stopped / RUNNING).iterdir())


def test_more_seeds_and_cells_are_added(corpus: Corpus, tmp_path: Path) -> None:
    """A wider grid runs only what the folder lacks, seed by seed, and shows just that."""
    run_grid(_plan([AUDIO]), corpus, _make, tmp_path, QUIET)
    shown: list[Any] = []

    def see(work: Sequence[Any]) -> Sequence[Any]:
        shown.extend(work)
        return work

    run_grid(_plan(FEW, seeds=2), corpus, _make, tmp_path, replace(QUIET, progress=see))
    assert [(each.seed, each.cell) for each in shown] == [(0, OS), (1, AUDIO), (1, OS)]
    assert [line["seed"] for line in _lines(tmp_path)] == [0, 0, 1, 1]


def test_a_folder_of_another_config_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    """Other options, facts or clips are named and never mixed with what the folder holds."""
    run_grid(_plan([]), corpus, _make, tmp_path, QUIET)
    other = CONFIG.model_copy(update={"epochs": 2, "seed": 7})  # the seed is the cells'
    with pytest.raises(ConfigurationError, match="of another epochs: name another folder"):
        run_grid(_plan(config=other), corpus, _make, tmp_path, QUIET)
    facts = {"audio": "mn10_as", "text": "bert"}
    with pytest.raises(ConfigurationError, match="of another audio, text:"):
        run_grid(replace(_plan(), facts=facts), corpus, _make, tmp_path, QUIET)
    with pytest.raises(ConfigurationError, match="of another clips:"):
        run_grid(_plan(), _with(corpus, metadata=Metadata()), _make, tmp_path, QUIET)
    line = Measured(cell=AUDIO, seed=0, metrics={}, config="strange").model_dump_json()
    (tmp_path / CELLS).write_text(line)
    with pytest.raises(ConfigurationError, match="lines of another config"):
        run_grid(_plan(), corpus, _make, tmp_path, QUIET)


def _left_out(corpus: Corpus, folder: Path) -> tuple[dict[str, str], list[Cell]]:
    """Return what a grid that has everything leaves out, and what it would train."""
    work: list[Training] = []

    def see(each: Sequence[Any]) -> Sequence[Any]:
        work.extend(each)
        return []

    plan = _plan(grid(["audio", "late"], separate=[False]))
    results = run_grid(plan, corpus, _make, folder, replace(QUIET, progress=see))
    return results.left_out, [training.cell for training in work]


def test_an_empty_kind_is_left_out(corpus: Corpus, tmp_path: Path) -> None:
    """Keywords alone leave out closed-set tags, and both together, which are keywords once more."""
    left_out, cells = _left_out(corpus, tmp_path)
    assert left_out == {
        "cs": "no clip to learn from has any",
        "os+cs": "the same words as os",
        "supplied": "no clip to learn from came with any",
    }
    assert {cell.kind for cell in cells} == {None, Kind.OS, Kind.FS}
    claim = claims(Results([], left_out))[2]
    assert claim.verdict == "cannot tell: cs: no clip to learn from has any"


def test_what_one_side_lacks_is_left_out(corpus: Corpus, tmp_path: Path) -> None:
    """Words on only one side of the split train or test nothing, nor do sentences made of none."""
    clips = [
        replace(clip, metadata=Metadata(), captions=clip.captions[:1])
        if clip.split == "train"
        else replace(clip, metadata=Metadata(labels=("Bird",)))
        for clip in corpus.clips
    ]
    left_out, cells = _left_out(replace(corpus, clips=clips), tmp_path / "train")
    assert set(left_out) == {"cs", "os", "fs", "os+cs", "templates", "supplied"}
    assert cells == [AUDIO]
    clips = [replace(c, captions=c.captions[: 1 + 2 * (c.split == "train")]) for c in corpus.clips]
    left_out, cells = _left_out(replace(corpus, clips=clips), tmp_path / "val")
    assert left_out["fs"] == "no clip of the split val has any"
    assert {cell.captions for cell in cells} == {Captions.REAL, Captions.TEMPLATES}
