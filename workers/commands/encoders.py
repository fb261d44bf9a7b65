"""The commands about encoders: ``evaluate``, ``encoder`` and ``bundle``.

As in ``main.py`` they import what they need when they run.
"""

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import track

from audiofuse.core.errors import ConfigurationError
from audiofuse.core.settings import Settings
from audiofuse.workers.commands.terminal.options import Json, print_json
from audiofuse.workers.commands.terminal.screen import Screen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from audiofuse.core.encoder.encoder import Encoder
    from audiofuse.core.evaluation.benchmarks import Benchmark
    from audiofuse.core.evaluation.clips import Query
    from audiofuse.core.evaluation.evaluation import QueryScores
    from audiofuse.core.evaluation.scorecards import Score

encoder_cli = typer.Typer(
    no_args_is_help=True, help="Make encoder bundles, and list published ones."
)
bundle_cli = typer.Typer(no_args_is_help=True, help="Look into encoder bundles.")
console = Screen()

Bundle = Annotated[Path, typer.Argument(help="The bundle's folder.")]


def evaluate(
    sources: Annotated[
        list[Path] | None,
        typer.Argument(help="JSONL manifests of clips, or one folder of ClothoV2 or AudioCaps."),
    ] = None,
    split: Annotated[
        str, typer.Option(help="Whose queries are asked: val, test, evaluation, ...")
    ] = "val",
    kind: Annotated[str, typer.Option(help="Only queries of this kind, e.g. paraphrase.")] = "",
    blank: Annotated[
        float, typer.Option(min=0, max=1, help="Share of clips whose metadata is taken away.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Chooses which clips are blanked.")] = 0,
    encoder: Annotated[
        Path | None, typer.Option(help="Bundle to score; default: the one that is shipped.")
    ] = None,
    version: Annotated[
        str,
        typer.Option(
            help="Published version to score instead. Its scorecard in AUDIOFUSE_REGISTRY keeps "
            "what came of it."
        ),
    ] = "",
    moments: Annotated[
        Path | None,
        typer.Option(
            help="Score moments instead: a manifest with times, or CASTELLA's SPLIT.json."
        ),
    ] = None,
    audio: Annotated[
        Path | None, typer.Option(help="Folder of the recordings; default: beside the manifest.")
    ] = None,
    window: Annotated[float, typer.Option(help="Length of a moment's windows in s.")] = 5.0,
    hop: Annotated[
        float | None, typer.Option(help="From one window to the next in s; default: its length.")
    ] = None,
    *,
    as_json: Json = False,
) -> None:
    """Score an encoder's retrieval: audio only, metadata only, and both; or moments.

    Manifests: every clip is ranked. ClothoV2 or AudioCaps, as published: by the benchmark's own
    protocol, the clips of the split alone; ClothoV2 also by DCASE 2025's several relevant clips a
    caption, if metadata_eval.csv lies there.

    With --moments: which recording is found, by items alone and by moments, and where in it.

    With --version the figures are kept: audiofuse encoder list and rollout status show them, and
    Grafana beside those of the other version in a rollout.
    """
    if version and (encoder or moments):
        raise ConfigurationError("--version is scored by clips, and instead of an --encoder")
    if seed and not blank:
        raise ConfigurationError("--seed chooses what --blank takes away: add --blank 0.5")
    if moments:
        if sources or kind:
            raise ConfigurationError("--moments is scored alone, without other sources or --kind")
        from audiofuse.core.model.config import Grid
        from audiofuse.workers.commands.moments import evaluate_moments

        grid = Grid(window, hop or window)
        evaluate_moments(
            moments, audio, grid, partial(encoder_to_score, encoder), (blank, seed), as_json=as_json
        )
        return
    if not sources:
        raise ConfigurationError("name a manifest or a folder to score by, or --moments MANIFEST")
    asked = _read_sources(sources, split)
    queries = [query for query in asked.queries if kind in {"", query.kind}]
    if not queries:
        raise ConfigurationError(f"no row of the split {split!r} has queries of this kind")
    if asked.lacking:
        typer.echo(f"{sources[0]}: {asked.lacking}", err=True)
    model = _published(version) if version else encoder_to_score(encoder)
    score = _evaluate_clips(
        asked, queries, model, (blank, seed), _told(sources, split, kind, blank), as_json=as_json
    )
    if version:
        from audiofuse.core.evaluation.scorecards import open_scorecards

        open_scorecards(Settings()).add(version, [score])
        typer.echo(f"kept in the scorecard of {version}", err=True)


def _told(sources: "Sequence[Path]", split: str, kind: str, blank: float) -> str:
    """Return in words what is asked."""
    names = " and ".join(source.name for source in sources)
    only = f", {kind}" if kind else ""
    return f"{split} of {names}{only}" + (f", {blank:.0%} without metadata" if blank else "")


def _published(version: str) -> "Encoder":
    from audiofuse.core.bundles.loading import load_version

    return load_version(Settings(), version)


def _evaluate_clips(
    asked: "Benchmark",
    queries: "list[Query]",
    model: "Encoder",
    blanking: tuple[float, int],
    told: str,
    *,
    as_json: bool,
) -> "Score":
    """Ask all queries, show what came of it, and return the score of a scorecard."""
    from audiofuse.core.evaluation.benchmarks import RELEVANCE_CUTOFF
    from audiofuse.core.evaluation.evaluation import (
        CUTOFF,
        blank_metadata,
        encode_clips,
        judge,
        score_of,
    )
    from audiofuse.workers.commands.terminal.display import metrics_table

    progress = partial(track, console=Console(stderr=True), description="listening")
    gallery = encode_clips(model, progress(asked.clips))
    for clip, error in gallery.rejected:
        typer.echo(f"left out: {clip.path}: {error}", err=True)

    ranked = blank_metadata(gallery, *blanking)

    def means(scores: "dict[str, QueryScores]") -> dict[str, dict[str, float]]:
        return {name: each.mean().as_dict() for name, each in scores.items()}

    scores = judge(model, ranked, queries, CUTOFF)
    several = (
        means(judge(model, ranked, asked.relevance, RELEVANCE_CUTOFF)) if asked.relevance else {}
    )
    metrics, score = means(scores), score_of(told, scores, queries, ranked)
    if as_json:
        facts = {"queries": len(queries), "clips": len(gallery.clips), "metrics": metrics}
        more = {"queries": len(asked.relevance), "metrics": several}
        print_json(facts | ({"several relevant": more} if several else {}))
        return score
    console.print(metrics_table(f"{len(queries)} queries, {len(gallery.clips)} clips", metrics))
    if several:
        title = f"DCASE 2025: {len(asked.relevance)} queries, each for several clips"
        console.print(metrics_table(title, several))
    return score


def _read_sources(sources: "Sequence[Path]", split: str) -> "Benchmark":
    from audiofuse.core.evaluation.benchmarks import Benchmark, read_benchmark
    from audiofuse.core.evaluation.clips import read_manifest, select_queries

    benchmark = read_benchmark(sources[0], split)
    if benchmark is None:
        clips = [clip for manifest in sources for clip in read_manifest(manifest)]
        return Benchmark(clips, select_queries(clips, split))
    if len(sources) > 1:
        raise ConfigurationError(f"{sources[0]} is a benchmark, which is scored alone")
    return benchmark


def encoder_to_score(bundle: Path | None) -> "Encoder":
    """Load a bundle, by default the encoder that is shipped."""
    if bundle:
        from audiofuse.core.bundles.loading import load_folder

        return load_folder(Settings(), bundle)
    from audiofuse.core.encoder.starting import default_encoder

    return default_encoder()


@encoder_cli.command("start")
def encoder_start(
    out: Annotated[Path, typer.Option(help="Folder in which the bundle's folder is made.")],
    audio: Annotated[
        str,
        typer.Option(help="EfficientAT checkpoint: a released name (mn10_as), a file, or a URL."),
    ] = "",
    text: Annotated[
        str, typer.Option(help="BERT: a Hugging Face id, e.g. bert-base-uncased, or a folder.")
    ] = "",
    *,
    live: Annotated[
        bool, typer.Option("--live", help="Name it as the live one in OUT/live.json.")
    ] = False,
) -> None:
    """Make the bundle to begin with: the default encoder, trained, as the product ships it.

    With --audio or --text it is a starting encoder instead: any two pretrained towers, nothing
    trained. The checkpoint and the AudioSet class names are looked for in AUDIOFUSE_PRETRAINED,
    else downloaded.
    """
    from audiofuse.core.bundles.bundle import save_bundle
    from audiofuse.core.encoder import starting

    if audio or text:
        encoder = starting.from_pretrained(
            Settings(), audio or starting.SHIPPED_CHECKPOINT, text or starting.minilm()
        )
        bundle = save_bundle(encoder, out, starting.NAME, starting.CARD)
    else:
        encoder, card = starting.default_encoder(), starting.default_card()
        bundle = save_bundle(encoder, out, starting.DEFAULT_NAME, card)
    if live:
        (out / "live.json").write_text(json.dumps({"version": bundle.name}) + "\n")
    typer.echo(bundle)


@encoder_cli.command("list")
def encoder_list(*, as_json: Json = False) -> None:
    """Show the versions that are published, what each is to the deployment, and what it scored."""
    from audiofuse.core.bundles.registry import open_registry
    from audiofuse.core.evaluation.scorecards import open_scorecards
    from audiofuse.workers.commands.terminal.display import facts_table, scores_tables

    settings = Settings()
    registry, cards = open_registry(settings), open_scorecards(settings)
    rollout, _ = registry.rollout()
    of = {version: cards.of(version) for version in registry.versions()}
    roles = {rollout.live: "live", rollout.other: "in a rollout"} if rollout else {}
    if as_json:
        rows: dict[str, Any] = {
            version: {"role": roles.get(version, ""), "scores": card.model_dump()["scores"]}
            for version, card in of.items()
        }
        print_json(rows)
        return
    console.print(
        facts_table("encoders", {version: roles.get(version, "") for version in of}),
        *scores_tables(list(of.values())),
    )


@bundle_cli.command("inspect")
def bundle_inspect(path: Bundle, *, as_json: Json = False) -> None:
    """Verify a bundle and show its version, files, parameters, configuration and metrics."""
    from audiofuse.core.bundles.manifest import inspect_bundle
    from audiofuse.workers.commands.terminal.display import facts_table

    facts = inspect_bundle(path)
    if as_json:
        print_json(facts.as_dict())
        return
    files = {name: f"{size:,} bytes" for name, size in facts.files.items()}
    parameters = {part: f"{count:,}" for part, count in facts.parameters.items()}
    console.print(
        facts_table(facts.version, files | {"total": f"{facts.size:,} bytes"}),
        facts_table("parameters", parameters),
        facts_table("configuration", facts.config),
        facts_table("metrics", facts.metrics) if facts.metrics else "no metrics",
    )


@bundle_cli.command("verify")
def bundle_verify(path: Bundle) -> None:
    """Check every file of a bundle against its manifest."""
    from audiofuse.core.bundles.manifest import bundle_version, verify_bundle

    manifest = verify_bundle(path)
    typer.echo(f"{bundle_version(path)}: {len(manifest.files)} files, as its manifest says")


@bundle_cli.command("export-query")
def bundle_export_query(
    path: Bundle,
    out: Annotated[Path, typer.Option(help="The folder to make.")],
) -> None:
    """Copy out the query tower, which fastembed loads: for asking without torch (README)."""
    from audiofuse.core.bundles.manifest import copy_query_tower

    copy_query_tower(path, out)
    typer.echo(out)
