"""The commands that save the work of hearing every sound again: ``audiofuse snapshot --help``.

As in ``cli.py`` they import what they need when they run.
"""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from audiofuse.core.settings import Settings
from audiofuse.workers.commands.terminal.options import Json, print_json
from audiofuse.workers.commands.terminal.screen import Screen

if TYPE_CHECKING:
    from audiofuse.workers.deployment.snapshots import Snapshots

snapshot_cli = typer.Typer(
    no_args_is_help=True,
    help="Keep the index of a Qdrant server beside the encoders, and put it back.",
)
console = Screen()


@snapshot_cli.command()
def take() -> None:
    """Take a snapshot of the live index and keep it in the registry."""
    kept = _snapshots().take()
    console.print(f"kept: {kept.name} ({kept.size} bytes)", soft_wrap=True)


@snapshot_cli.command("list")
def list_(*, as_json: Json = False) -> None:
    """Show what is kept, of each version the oldest first."""
    from audiofuse.workers.commands.terminal.display import facts_table

    kept = _snapshots().kept()
    if as_json:
        print_json([asdict(each) for each in kept])
    else:
        console.print(facts_table("bytes", {each.name: each.size for each in kept}))


@snapshot_cli.command()
def restore(
    name: Annotated[str, typer.Argument(help="What `audiofuse snapshot list` calls it.")],
) -> None:
    """Put a snapshot back; `audiofuse reconcile` then brings what has changed since."""
    snapshots = _snapshots()
    generation = snapshots.restore(name)
    console.print(f"{generation.version} has {snapshots.count(generation)} items again")


def _snapshots() -> "Snapshots":
    from audiofuse.workers.deployment.snapshots import Snapshots

    return Snapshots(Settings())
