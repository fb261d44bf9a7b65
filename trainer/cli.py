"""The command line of the trainer: ``audiofuse-train --help``.

Exit codes: 0 done, 1 something failed, 2 wrong usage or configuration, 3 not better (improve).
"""

import copy
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import track
from torch import distributed

from audiofuse.core.bundles.bundle import load_bundle, save_bundle
from audiofuse.core.bundles.manifest import CARD, METRICS
from audiofuse.core.bundles.registry import open_registry
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.encoder.inference import use_cpus
from audiofuse.core.encoder.starting import RELEVANCE, TRAINED, save_trained
from audiofuse.core.errors import AudiofuseError, ConfigurationError
from audiofuse.core.evaluation.clips import VAL
from audiofuse.core.evaluation.evaluation import HYBRID, evaluate
from audiofuse.core.model.config import Fusion
from audiofuse.core.settings import Settings
from audiofuse.trainer.calibrate import calibrate
from audiofuse.trainer.data.batches import Example, Examples, training_rows
from audiofuse.trainer.data.corpus import Corpus, Division, prepare_corpus
from audiofuse.trainer.data.gallery import encode_cached, score_kind
from audiofuse.trainer.data.metadata import Kind
from audiofuse.trainer.improving import improve
from audiofuse.trainer.options import Cache, Sources, ValShare, fit_options, refuse_unused
from audiofuse.trainer.study.assessment import Assessment, compare
from audiofuse.trainer.study.claims import claims
from audiofuse.trainer.study.grid import (
    PAPER,
    SEEDS,
    Plan,
    parts_there,
    refuse_parts_of_no_cell,
    select_cells,
)
from audiofuse.trainer.study.paper import Callbacks, run_grid
from audiofuse.trainer.study.results import REPORT, compare_on, training_card, write_results
from audiofuse.trainer.study.tables import as_markdown, claims_table, grid_table
from audiofuse.trainer.training.calibration import after_training
from audiofuse.trainer.training.config import FitConfig
from audiofuse.trainer.training.default import CONFIG as DEFAULT_CONFIG
from audiofuse.trainer.training.default import default_task
from audiofuse.trainer.training.fit import Fit, Task, freeze_parts
from audiofuse.trainer.training.start import PaperShape, load_start, paper_encoder
from audiofuse.trainer.training.step import world

FAILURE, USAGE = 1, 2
BERT = "bert-base-uncased"  # the paper's
CRITERION = "hybrid mAP@10"  # of the weights that are kept
DECIDED_BY_CELL = frozenset({"metadata", "captions", "seed"})
EVALUATION_TIMEOUT = timedelta(hours=2)  # other processes wait while the first evaluates

cli = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train encoders on your own sounds. Start with: audiofuse-train fit BUCKET --run RUN.",
)
cli.command()(improve)
console = Console(stderr=True)


@cli.command()
@fit_options(FitConfig())
def fit(
    sources: Sources,
    run: Annotated[Path, typer.Option(help="Folder of this run: checkpoints, log, report.")],
    config: FitConfig,
    out: Annotated[
        Path | None, typer.Option(help="Where the bundle's folder is made; default: the run's.")
    ] = None,
    name: Annotated[str, typer.Option(help="The bundle's name, without its version.")] = "trained",
    start: Annotated[
        Path | None, typer.Option(help="Bundle to start from; default: the shipped encoder.")
    ] = None,
    audio: Annotated[
        str, typer.Option(help="Start from this EfficientAT checkpoint instead, e.g. mn10_as, ...")
    ] = "",
    text: Annotated[
        str, typer.Option(help=f"... and this BERT: a Hugging Face id or a folder [{BERT}].")
    ] = "",
    fusion: Annotated[
        Fusion | None, typer.Option(help="With --audio: how the item is made [late].")
    ] = None,
    *,
    separate: Annotated[
        bool, typer.Option("--separate", help="With --audio: metadata has a tower of its own.")
    ] = False,
    freeze: Annotated[
        list[str] | None, typer.Option(help="Part to leave as it is, e.g. text_tower.bert.")
    ] = None,
    val_share: ValShare = None,
    cache: Cache = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")
    ] = False,
) -> None:
    """Train on pairs of sounds and sentences, and write a bundle with what was measured.

    Several GPUs or machines: start it with torchrun -m audiofuse.trainer fit ...
    """
    ignored = {"--text": text, "--fusion": fusion, "--separate": separate}
    _refuse_ignored(audio, start, ignored)
    if separate and fusion == "audio":
        raise ConfigurationError("--separate: --fusion audio reads no metadata: leave out one")
    settings = Settings()
    device = _join_world(settings)
    corpus = _judged(_corpus(sources, settings, cache, Division(val_share, config.seed)))
    shape = PaperShape(audio, text or BERT, fusion or "late", separate)
    encoder = paper_encoder(settings, shape, config.seed) if audio else load_start(start)
    refuse_unused(config, encoder.config.fusion)
    others = {"start": copy.deepcopy(encoder)}
    if settings.encoder and settings.encoder != start:
        others["live"] = load_bundle(settings.encoder)
    encoder.model.to(device)
    Fit(encoder, _task(corpus, config, freeze or []), config, run).run(resume=resume)
    if world()[0] == 0:
        systems = compare_on(corpus, {name: encoder} | others, device)
        assessment = write_results(run, name, systems, corpus)
        encoder, told = after_training(encoder, corpus)
        encoder.model.cpu()
        card = f"{training_card(name, corpus.train, config)}\n{told}"
        bundle = save_bundle(encoder, out or run, name, card, assessment.as_dict())
        for other in others:
            _say_verdict(assessment, name, other)
        typer.echo(f"{run / REPORT}\n{bundle}")


@cli.command()
def report(
    bundle: Annotated[Path, typer.Argument(help="Bundle to report on.")],
    sources: Sources,
    run: Annotated[
        Path, typer.Option(help="Folder for report.html; its training log is shown if it has one.")
    ],
    against: Annotated[
        Path | None, typer.Option(help="Bundle to compare with; default: the shipped encoder.")
    ] = None,
    val_share: ValShare = None,
    seed: Annotated[int, typer.Option(help="With --val-share: which sounds, as in fit.")] = 0,
    cache: Cache = None,
) -> None:
    """Measure a bundle on the sounds to judge by, and write one page: RUN/report.html."""
    settings = Settings()
    device = _device(settings)
    corpus = _judged(_corpus(sources, settings, cache, Division(val_share, seed)))
    encoders = {bundle.name: load_bundle(bundle), "other": load_start(against)}
    run.mkdir(parents=True, exist_ok=True)
    assessment = write_results(run, bundle.name, compare_on(corpus, encoders, device), corpus)
    _say_verdict(assessment, bundle.name, "other")
    typer.echo(run / REPORT)


@cli.command()
def publish(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.")],
    registry: Annotated[
        str | None,
        typer.Option(help="s3://bucket/prefix or a folder; default: AUDIOFUSE_REGISTRY."),
    ] = None,
    name: Annotated[
        str,
        typer.Option(help="Publish it under this name, as another version of the same encoder."),
    ] = "",
) -> None:
    """Put a bundle into the registry, verified, and print its version: for audiofuse rollout start.

    What is published never changes. To publish it once more changes nothing.
    """
    settings = Settings() if registry is None else Settings(registry=registry)
    with tempfile.TemporaryDirectory(prefix="audiofuse-") as folder:
        if name:
            encoder = load_bundle(bundle)
            card, metrics = (bundle / CARD).read_text(), json.loads((bundle / METRICS).read_text())
            bundle = save_bundle(encoder, Path(folder), name, card, metrics)
        typer.echo(open_registry(settings).publish(bundle))


cli.command()(calibrate)


@cli.command()
@fit_options(PAPER, without=DECIDED_BY_CELL)
def paper(
    sources: Sources,
    run: Annotated[Path, typer.Option(help="Folder of the grid; finished cells are not repeated.")],
    config: FitConfig,
    audio: Annotated[str, typer.Option(help="EfficientAT checkpoint.")] = "mn40_as_ext",
    text: Annotated[str, typer.Option(help="BERT: a Hugging Face id or a folder.")] = BERT,
    cells: Annotated[
        list[str] | None,
        typer.Option(
            help="Only cells of such a name, * for any part, as late-*-shared-real or audio-real; "
            "may be given again. Default: all."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each cell.")] = SEEDS,
    first_seed: Annotated[
        int, typer.Option(min=0, help="Of these trainings, to share seeds among machines.")
    ] = 0,
    freeze: Annotated[
        list[str] | None, typer.Option(help="Part to leave as it is: faster, not the paper's way.")
    ] = None,
    val_share: ValShare = None,
    cache: Cache = None,
) -> None:
    """Run the paper's grid on your data, and compare with its claims.

    Audio only, metadata only, late and mid fusion; every kind of metadata; a shared and a separate
    text tower; written and artificial captions; trained on the data set of the test or on both,
    where ClothoV2 and AudioCaps are given. Sizes are the paper's unless you say otherwise.
    Several machines share a grid by --cells or --first-seed, each with a folder of its own; join
    the lines of their cells.jsonl and the files of their queries/ in one folder, and run the
    command there once more for the tables.
    """
    chosen = select_cells(cells or [])
    refuse_parts_of_no_cell(chosen, freeze or ())
    settings = Settings()
    device = _join_world(settings)
    if world()[1] > 1:
        raise ConfigurationError("the grid runs in one process: give each machine a folder")
    corpus = _corpus(sources, settings, cache, Division(val_share))

    def make(fusion: Fusion, separate: bool, seed: int) -> Encoder:  # noqa: FBT001 - as it is called
        encoder = paper_encoder(settings, PaperShape(audio, text, fusion, separate), seed)
        freeze_parts(encoder, parts_there(encoder, freeze or ()))
        encoder.model.to(device)
        return encoder

    facts = {"audio": audio, "text": text, "frozen": " ".join(sorted(freeze or ()))}
    watch = Callbacks(partial(track, description="trainings", console=console), say=typer.echo)
    plan = Plan(chosen, seeds, first_seed, config, facts)
    results = run_grid(plan, corpus, make, run, watch)
    Console().print(grid_table(results), claims_table(claims(results)))
    (run / "results.md").write_text(as_markdown(results))


@cli.command("default")
def train_default(
    sources: Sources,
    run: Annotated[Path, typer.Option(help="Folder of this run.")],
    out: Annotated[Path, typer.Option(help="File for what is shipped of it.")] = TRAINED,
    cache: Cache = None,
    *,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")
    ] = False,
) -> None:
    """Make the encoder that the product ships, anew.

    It learns from those sounds whose licence permits shipping the result. The others judge it after
    each epoch, if they have queries; nothing is chosen by that. What the scores of the one before
    meant is forgotten: `audiofuse-train calibrate --shipped` tells it anew.
    """
    settings = Settings()
    corpus = _corpus(sources, settings, cache, Division())
    encoder, task = default_task(settings, corpus)
    task = replace(task, show=_show, say=typer.echo)
    Fit(encoder, task, DEFAULT_CONFIG, run).run(resume=resume)
    save_trained(encoder, out)
    if out == TRAINED:
        RELEVANCE.unlink(missing_ok=True)
    typer.echo(out)


def _refuse_ignored(audio: str, start: Path | None, only_with_audio: Mapping[str, object]) -> None:
    """Refuse options that would do nothing, by what to write instead."""
    if audio and start:
        raise ConfigurationError("--start and --audio both say what to start from: leave out one")
    given = [name for name, value in only_with_audio.items() if value]
    if given and not audio:
        raise ConfigurationError(
            f"{', '.join(given)}: only with --audio, such as --audio mn10_as, which starts from "
            "pretrained towers"
        )


def _say_verdict(assessment: Assessment, name: str, other: str) -> None:
    for title, each in compare(assessment, name, other).items():
        typer.echo(
            f"{name} against {other}, {title}: {each.value:+.3f} mAP@10 "
            f"[{each.low:+.3f}, {each.high:+.3f}], {each.verdict}"
        )


def _judged(corpus: Corpus) -> Corpus:
    if not corpus.queries:
        raise ConfigurationError("nothing to judge by: no clip of the split val has captions")
    return corpus


def _task(corpus: Corpus, config: FitConfig, freeze: Sequence[str]) -> Task:
    rows = training_rows(
        corpus.train,
        every_caption=config.every_caption,
        captions=config.captions,
    )
    if not rows:
        raise ConfigurationError(
            f"no clip to learn from has {config.captions} captions: give others by --captions"
        )

    def score(encoder: Encoder) -> dict[str, float]:
        gallery = encode_cached(encoder, corpus.gallery, corpus.entries)
        if config.metadata is not Kind.ALL:  # items carry then what they were trained with
            metrics = {HYBRID: score_kind(encoder, gallery, VAL, config.metadata).scores.mean()}
        else:
            metrics = evaluate(encoder, gallery, corpus.queries)
        return {f"{row} mAP@10": each.mean_average_precision for row, each in metrics.items()}

    return Task(
        Examples(rows, corpus.entries, config.example_config), score, CRITERION,
        frozen=frozenset(freeze), show=_show, say=typer.echo,
    )  # fmt: skip


def _join_world(settings: Settings) -> torch.device:
    """Join the processes that torchrun started, if it did; return this one's device."""
    device = _device(settings)
    if not distributed.is_torchelastic_launched():
        return device
    if device.type == "cpu":
        distributed.init_process_group("gloo", timeout=EVALUATION_TIMEOUT)
        return device
    # Both lines: a collective without tensors, as a barrier, would else use the first GPU.
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    distributed.init_process_group("nccl", timeout=EVALUATION_TIMEOUT, device_id=device)
    return device


def _device(settings: Settings) -> torch.device:
    """Return where to compute; ``ConfigurationError`` when a GPU is asked for and there is none."""
    usable = torch.cuda.is_available() and settings.device != "cpu"
    if settings.device == "cuda" and not usable:
        raise ConfigurationError("AUDIOFUSE_DEVICE is cuda, but PyTorch finds no usable GPU")
    return torch.device("cuda" if usable else "cpu")


def _corpus(
    sources: list[str], settings: Settings, cache: Path | None, division: Division
) -> Corpus:
    folder = cache or settings.home / "training"
    progress = partial(track, description="reading", console=console)
    return prepare_corpus(sources, settings, folder, division, progress)


def _show(work: Iterable[list[Example]], total: int, label: str) -> Iterable[list[Example]]:
    hidden = not console.is_terminal  # a log file wants lines only
    return track(work, label, total=total, console=console, transient=True, disable=hidden)


def main() -> None:
    """Run a command; expected errors become one line and an exit code."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    use_cpus()
    try:
        cli()
    except ConfigurationError as error:
        _fail(str(error), USAGE)
    except ValidationError as error:
        _fail(_explained(error), USAGE)
    except AudiofuseError as error:
        _fail(str(error), FAILURE)
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def _explained(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_input=False)
    return "; ".join(
        f"--{str(each['loc'][0]).replace('_', '-')}: {each['msg']}" for each in problems
    )


def _fail(message: str, code: int) -> None:
    typer.echo(f"audiofuse-train: {message}", err=True)
    sys.exit(code)
