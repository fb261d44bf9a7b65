"""The commands about encoders: ``evaluate``, ``encoder`` and ``bundle``.

As in ``main.py`` they import what they need when they run.
"""

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import track

from audiofuse.core.errors import ConfigurationError
from audiofuse.core.settings import Settings
from audiofuse.workers.commands.options import Json, print_json

if TYPE_CHECKING:
    from audiofuse.core.encoder.encoder import Encoder

encoder_cli = typer.Typer(no_args_is_help=True, help="Make encoder bundles.")
bundle_cli = typer.Typer(no_args_is_help=True, help="Look into encoder bundles.")
console = Console()

Bundle = Annotated[Path, typer.Argument(help="The bundle's folder.")]


def evaluate(
    manifests: Annotated[list[Path], typer.Argument(help="JSONL manifests of clips.")],
    split: Annotated[str, typer.Option(help="Rows whose queries are asked.")] = "val",
    kind: Annotated[str, typer.Option(help="Only queries of this kind, e.g. paraphrase.")] = "",
    blank: Annotated[
        float, typer.Option(min=0, max=1, help="Share of clips whose metadata is taken away.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Chooses which clips are blanked.")] = 0,
    encoder: Annotated[
        Path | None, typer.Option(help="Bundle to score; default: the one that is shipped.")
    ] = None,
    *,
    as_json: Json = False,
) -> None:
    """Score an encoder's retrieval: audio only, metadata only, and both."""
    from audiofuse.core.evaluation.clips import read_manifest, select_queries
    from audiofuse.core.evaluation.evaluation import encode_clips
    from audiofuse.core.evaluation.evaluation import evaluate as score
    from audiofuse.workers.commands.display import metrics_table

    clips = [clip for manifest in manifests for clip in read_manifest(manifest)]
    queries = select_queries(clips, split, kind)
    if not queries:
        raise ConfigurationError(f"no row of the split {split!r} has queries of this kind")
    model = _encoder_to_score(encoder)
    progress = partial(track, console=Console(stderr=True), description="listening")
    gallery = encode_clips(model, progress(clips))
    for clip, error in gallery.rejected:
        typer.echo(f"left out: {clip.path}: {error}", err=True)
    metrics = {
        name: each.as_dict() for name, each in score(model, gallery, queries, blank, seed).items()
    }
    title = f"{len(queries)} queries, {len(gallery.clips)} clips"
    if as_json:
        print_json({"queries": len(queries), "clips": len(gallery.clips), "metrics": metrics})
    else:
        console.print(metrics_table(title, metrics))


def _encoder_to_score(bundle: Path | None) -> "Encoder":
    from audiofuse.core.bundles.bundle import load_bundle
    from audiofuse.core.encoder.starting import default_encoder

    return load_bundle(bundle) if bundle else default_encoder()


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


@bundle_cli.command("inspect")
def bundle_inspect(path: Bundle, *, as_json: Json = False) -> None:
    """Verify a bundle and show its version, files, parameters, configuration and metrics."""
    from audiofuse.core.bundles.manifest import inspect_bundle
    from audiofuse.workers.commands.display import facts_table

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
