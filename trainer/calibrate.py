"""The command that tells what an encoder's scores mean: ``audiofuse-train calibrate``."""

import json
from pathlib import Path
from typing import Annotated

import typer

from audiofuse.core.bundles.bundle import save_bundle
from audiofuse.core.bundles.manifest import CARD, METRICS, verify_bundle
from audiofuse.core.encoder.starting import (
    DEFAULT_NAME,
    RELEVANCE,
    default_card,
    save_relevance,
)
from audiofuse.core.errors import ConfigurationError
from audiofuse.core.evaluation.clips import TEST, VAL
from audiofuse.core.settings import Settings
from audiofuse.trainer.data.corpus import Division, prepare_corpus
from audiofuse.trainer.options import Cache, Sources, ValShare
from audiofuse.trainer.training.calibration import HEADING, calibrated_on
from audiofuse.trainer.training.start import load_start


def calibrate(
    sources: Sources,
    bundle: Annotated[
        Path | None, typer.Option(help="Bundle to calibrate; default: the shipped encoder.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the folder of the calibrated bundle is made.")
    ] = None,
    fit: Annotated[
        str, typer.Option(help="Split whose questions are fitted on; none that it learned from.")
    ] = VAL,
    check: Annotated[
        str, typer.Option(help="Split to check on; where it has none, half of --fit's sounds.")
    ] = TEST,
    val_share: ValShare = None,
    cache: Cache = None,
    *,
    shipped: Annotated[
        bool, typer.Option("--shipped", help="Write it beside the shipped encoder's weights.")
    ] = False,
) -> None:
    """Tell how probable hits are by their score: another version of a bundle, by the same weights.

    Hits then have a relevance, which min_relevance filters by, and questions that nothing answers
    are told so. `audiofuse-train publish` and `audiofuse rollout start` bring it into use; audio
    vectors are taken over.
    """
    if (out is None) == (not shipped) or (shipped and bundle):
        raise ConfigurationError("give --out FOLDER, or --shipped without a --bundle")
    settings = Settings()
    folder = cache or settings.home / "training"
    corpus = prepare_corpus(sources, settings, folder, Division(val_share))
    encoder, told = calibrated_on(load_start(bundle), corpus, fit, check)
    typer.echo(told)
    if out is None:
        save_relevance(encoder, RELEVANCE)
        typer.echo(RELEVANCE)
        return
    name = verify_bundle(bundle).name if bundle else DEFAULT_NAME
    card = (bundle / CARD).read_text() if bundle else default_card()
    metrics = json.loads((bundle / METRICS).read_text()) if bundle else {}
    typer.echo(save_bundle(encoder, out, name, with_section(card, told), metrics))


def with_section(card: str, told: str) -> str:
    """Return a model card that ends with what a score means, in place of what it said of that."""
    return f"{card.partition(HEADING)[0].rstrip()}\n\n{told}"
