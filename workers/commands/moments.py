"""Moments: ``evaluate --moments``, and ``compose``, which makes recordings to score them by."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import track

from audiofuse.core.errors import ConfigurationError
from audiofuse.core.model.config import Grid
from audiofuse.workers.commands.terminal.options import print_json
from audiofuse.workers.commands.terminal.screen import Screen

if TYPE_CHECKING:
    from audiofuse.core.encoder.encoder import Encoder

console = Screen()
MOST_S = 3600.0  # of a composed recording, which is made in memory: 500 MB


def evaluate_moments(
    manifest: Path,
    audio: Path | None,
    grid: Grid,
    load: "Callable[[], Encoder]",
    blanking: tuple[float, int],
    *,
    as_json: bool,
) -> None:
    """Score recordings and moments; ``blanking`` is a share of recordings, and what draws them."""
    from audiofuse.core.evaluation.evaluation import CUTOFF, Gallery, blank_metadata
    from audiofuse.core.evaluation.localisation import hear_recordings, localise
    from audiofuse.core.evaluation.timed import read_timed
    from audiofuse.workers.commands.terminal.display import intervals_table, metrics_table

    timed = read_timed(manifest, audio)
    encoder = load()
    clips = blank_metadata(Gallery(list(timed.recordings.values())), *blanking).clips
    named = list(zip(timed.recordings, clips, strict=True))
    walk = track(named, "listening", console=Console(stderr=True))
    recordings = hear_recordings(encoder, walk, grid)
    for name, error in recordings.rejected:
        typer.echo(f"left out: {name}: {error}", err=True)
    found = localise(encoder, recordings, timed.queries, encoder.config.moments.slack)
    if len(found.identities) < len(timed.queries):
        typer.echo(
            f"{manifest}: {len(found.identities):,} of {len(timed.queries):,} queries are asked, "
            "so these figures are not comparable with those of all",
            err=True,
        )
    if as_json:
        windows = {"window_s": grid.window_s, "hop_s": grid.hop_s}
        print_json({"recordings": len(recordings.heard)} | windows | found.as_dict())
        return
    title = (
        f"{len(found.identities)} queries, {len(recordings.heard)} recordings, "
        f"windows of {grid.window_s:g} s every {grid.hop_s:g} s"
    )
    sounds = len(set(found.identities))
    console.print(
        metrics_table(title, found.means()),
        intervals_table(
            f"mAP@{CUTOFF}, 95 % intervals from {sounds} identities", found.intervals()
        ),
    )


def compose(
    sources: Annotated[list[Path], typer.Argument(help="JSONL manifests of short clips: events.")],
    out: Annotated[Path, typer.Option(help="Folder to make: WAV files and moments.jsonl.")],
    background: Annotated[
        list[str], typer.Option(help="Words of a label whose clips are a background; repeat it.")
    ],
    backgrounds_from: Annotated[
        list[Path] | None,
        typer.Option(help="Manifests to take backgrounds from; default: those of the events."),
    ] = None,
    recordings: Annotated[int, typer.Option(min=1, help="How many are made.")] = 12,
    duration: Annotated[
        float, typer.Option(min=10, max=MOST_S, help="Of each recording, in s.")
    ] = 600.0,
    events: Annotated[int, typer.Option(min=1, help="In each recording.")] = 6,
    kinds: Annotated[int, typer.Option(min=1, help="Of events, in all recordings.")] = 20,
    quietest: Annotated[float, typer.Option(help="Event, in dB above the background.")] = -6.0,
    loudest: Annotated[float, typer.Option(help="Event, in dB above the background.")] = 12.0,
    seed: Annotated[int, typer.Option(help="Chooses clips, places and levels.")] = 0,
) -> None:
    """Compose long recordings of short clips, with known moments, for evaluate --moments.

    Each is a background, minutes long, with events at chance places and levels. Events are clips
    with queries; where no clip has any, they are asked for by their first label.
    """
    if quietest > loudest:
        raise ConfigurationError(f"--quietest {quietest:g} is above --loudest {loudest:g}")
    if out.exists() and any(out.iterdir()):
        raise ConfigurationError(f"{out} is not empty: --out names a folder to make")
    from audiofuse.core.evaluation import composing
    from audiofuse.core.evaluation.clips import read_manifest

    clips = [clip for path in sources for clip in read_manifest(path)]
    beds = [clip for path in backgrounds_from or sources for clip in read_manifest(path)]
    shape = composing.Shape(recordings, duration, events, kinds, quietest, loudest)
    composed = composing.compose(clips, composing.find_backgrounds(beds, background), shape, seed)
    written = composing.write_recordings(composed, out)
    steps = track(written, "composing", total=recordings + 1, console=Console(stderr=True))
    for path in steps:
        last = path
    typer.echo(last)
