"""The command ``audiofuse-train improve``: the archive teaches its encoder."""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from audiofuse.core.bundles.bundle import load_bundle, save_bundle
from audiofuse.core.bundles.document import Phase
from audiofuse.core.bundles.registry import Registry, locate, open_registry
from audiofuse.core.errors import AudiofuseError
from audiofuse.core.evaluation.scorecards import open_scorecards
from audiofuse.core.model.classes import class_sentences
from audiofuse.core.settings import Settings
from audiofuse.trainer.improvement import tables
from audiofuse.trainer.improvement.archive import Archive, read_archive
from audiofuse.trainer.improvement.improve import Outcome
from audiofuse.trainer.improvement.improve import improve as improve_encoder

NOT_BETTER = 3  # the exit code; 1 and 2 are those of every command
MOST_SOUNDS = 5000
START = (sys.executable, "-m", "audiofuse", "rollout", "start")  # the other half of the product

console = Console(stderr=True)


def improve(
    name: Annotated[str, typer.Option(help="The version's name, before its hash.")] = "improved",
    sounds: Annotated[
        int,
        typer.Option(
            min=1,
            help="Learn from at most so many sounds: those with verdicts, then others. More teach "
            "more, and take longer.",
        ),
    ] = MOST_SOUNDS,
    *,
    rollout: Annotated[
        bool,
        typer.Option(
            "--rollout",
            help="Start its rollout, too, as audiofuse rollout start does. It goes live by "
            "audiofuse rollout promote, whose gates judge it again.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what came of it, and publish nothing.")
    ] = False,
) -> None:
    """Have the archive teach the live encoder, and publish what is better.

    It learns from what the deployment knows already: the stored audio vectors of its sounds, the
    words of their sidecars, and what listeners said of hits (AUDIOFUSE_FEEDBACK=true, the page,
    audiofuse feedback say). No sound is fetched or decoded, and a CPU takes minutes for 1,000
    sounds. What is behind the towers learns; the towers themselves: audiofuse-train fit.

    Each sound and each question judges one version that has learned from neither. If listeners'
    questions are not certainly answered better, or others are answered worse by more than .01
    mAP@10, or the verdicts do not agree with each other, nothing is published and the exit code is
    3. Else the bundle is published in AUDIOFUSE_REGISTRY, with its figures in its model card and in
    the scorecards of both versions, and its version printed.

    For cron: it asks nothing, and the same command begins again, or goes on with its rollout, when
    it was stopped.

        0 4 * * 0  audiofuse-train improve --rollout
    """
    settings = Settings()
    registry = open_registry(settings)
    if rollout and (building := _building(registry, name)):
        _start(building)
        return
    archive = read_archive(settings, sounds)
    console.print(
        f"{archive.version}: {len(archive.sounds)} sounds, {archive.count} verdicts on "
        f"{len(archive.verdicts)} questions"
    )
    outcome = _improved(settings, archive)
    Console().print(tables.table(outcome))
    if not outcome.judgement.is_better:
        for why in outcome.judgement.refusals:
            typer.echo(f"nothing is published: {why}", err=True)
        raise typer.Exit(NOT_BETTER)
    if dry_run:
        return
    version = _published(registry, name, archive, outcome)
    cards = open_scorecards(settings)
    cards.add(archive.version, outcome.scores.old)
    cards.add(version, outcome.scores.new)
    typer.echo(version)
    if rollout:
        _start(version)


def _building(registry: Registry, name: str) -> str:
    """Return the version that this command has begun to roll out, if it was stopped there.

    Raises ``AudiofuseError`` when another one is under way.
    """
    document, _ = registry.rollout()
    if document is None or document.phase is Phase.NONE:
        return ""
    if document.phase is Phase.BUILDING and document.other.startswith(f"{name}-"):
        return document.other
    raise AudiofuseError(
        f"a rollout is under way, {document.live} and {document.other}: end it first, see "
        "audiofuse rollout status"
    )


def _improved(settings: Settings, archive: Archive) -> Outcome:
    encoder = load_bundle(locate(settings, archive.version))
    with Progress(console=console) as progress:
        task = progress.add_task("learning", total=None)

        def show(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        return improve_encoder(encoder, archive, class_sentences(), show)


def _published(registry: Registry, name: str, archive: Archive, outcome: Outcome) -> str:
    """Save and publish the bundle: it appears whole or not at all; once more changes nothing."""
    assert outcome.encoder is not None
    with tempfile.TemporaryDirectory(prefix="audiofuse-") as folder:
        card = tables.card(name, archive, outcome)
        figures = tables.metrics(archive, outcome)
        return registry.publish(save_bundle(outcome.encoder, Path(folder), name, card, figures))


def _start(version: str) -> None:
    """Start a rollout by the command, or go on with it; ``AudiofuseError`` if it fails."""
    code = subprocess.run([*START, version], check=False).returncode  # noqa: S603 - our own command
    if code:
        raise AudiofuseError(f"{version} is published, but its rollout did not start: see above")
