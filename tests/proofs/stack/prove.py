"""Run docker-compose.yml as it is and hold it against what it promises: ``make proof-compose``.

Each row of the table is something that a user does or that befalls a deployment, with its bar. The
project's image is built of this checkout. The other images are pulled; where that cannot be,
stand-ins of the same names are built of Debian's packages and PyPI's (see images.py; needs root
and debootstrap). The deployment has a project name and volumes of its own, though the ports of the
file, and is taken down at the end with its volumes. Needed: a Docker engine on this machine,
Compose 2.24, buildx, and for the rows `secrets` and `killed` root, because they look at, and kill,
processes.

    make proof-compose
    python tests/proofs/stack/prove.py --rows up,event --keep /tmp/kept   # leave it running
    python tests/proofs/stack/prove.py --build-network host   # builds see this machine's network

DEBIAN_MIRROR is where packages come from, QDRANT_BINARY a Qdrant server's binary for its stand-in.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import rows_change
import rows_failures
import rows_use
import rows_walls
from images import console, images_of, is_stand_in, provide
from rich.console import Console
from rich.table import Table
from stack import Stack


class Row(NamedTuple):
    """One line of the table."""

    bar: str
    check: Callable[..., str]


ROWS = {
    "up": Row("<= 120 s, nothing overridden", rows_use.up),
    "event": Row("found <= 10 s, by an event", rows_use.by_event),
    "links": Row("a hit's link opens", rows_use.links),
    "examples": Row("all there; the letter has the reason", rows_use.examples),
    "documented": Row("all end well, the owl is found", rows_use.documented),
    "ports": Row("four, on the loopback; of storage S3's", rows_walls.ports),
    "ways-out": Row("none, by name or address", rows_walls.ways_out),
    "secrets": Row("none in inspect, none in environments", rows_walls.secrets),
    "killed": Row("healthy <= 60 s, found <= 60 s", rows_failures.killed),
    "restarted": Row("only storage, only intake: found", rows_failures.restarted),
    "orderly": Row("an orderly end in the log", rows_failures.orderly),
    "stop-start": Row("same items, same encoder", rows_failures.stop_start),
    "restored": Row("sounds kept, all back", rows_failures.restored),
    "moved": Row("sounds, items and encoder there", rows_failures.moved),
    "swapped": Row("0 questions failed", rows_change.swapped),
    "upgraded": Row("same items, both images", rows_change.upgraded),
    "two-workers": Row("two targets, both work", rows_change.two_workers),
    "watched": Row("targets up, no alert after 5 min", rows_change.watched),
    "told": Row("an alert reaches the webhook", rows_change.told),
    "large": Row("nothing left, all indexed", rows_failures.large_uploads),
}


def main() -> None:
    """Prove."""
    given = _arguments()
    with tempfile.TemporaryDirectory(prefix="audiofuse-proof-") as temporary:
        folder = given.keep or Path(temporary)
        stack = Stack(given.project, folder, given.patience)
        images = images_of(stack.compose("--profile", "*", "config", "--format", "json"))
        if not given.no_build:
            provide(images, given.build_network, given.torch)
        console.print("stand-ins:", ", ".join(sorted(filter(is_stand_in, images))) or "none")
        if not given.keep:
            stack.down()  # what a run left that was killed
        table = Table("row", "bar", "seen", "seconds", title="docker-compose.yml, as it runs")
        try:
            failed = _play(stack, given, table)
        finally:
            Console(width=180).print(table)
            if not given.keep:
                stack.down()
    if failed:
        sys.exit(f"not as it has to be: {', '.join(failed)}")


def _play(stack: Stack, given: argparse.Namespace, table: Table) -> list[str]:
    """Play the rows; return those that failed. Without `up` none of the others is played."""
    failed = []
    extra = {"ways-out": {"outside": given.outside}, "large": {"kills": given.kills}}
    for name, row in ROWS.items():
        if name not in {"up", *given.rows}:
            continue
        started = time.monotonic()
        try:
            seen, colour = partial(row.check, stack, **extra.get(name, {}))(), ""
        except Exception as error:  # noqa: BLE001 - each row fails for itself
            seen, colour = f"{type(error).__name__}: {error}", "red"
            failed.append(name)
        seconds = f"{time.monotonic() - started:.0f}"
        console.print(f"{name}: {'FAILED ' if colour else ''}{seen} ({seconds} s)", markup=False)
        table.add_row(name, row.bar, seen[:400], seconds, style=colour)
        if failed == ["up"]:
            break
    return failed


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join(ROWS)
    parser.add_argument(
        "--rows", default=list(ROWS), type=lambda text: text.split(","),
        help=f"some of {names}; `up` is always played",
    )  # fmt: skip
    parser.add_argument("--project", default="audiofuse-proof", help="project name of compose")
    parser.add_argument("--patience", type=float, default=1, help="multiplies every bound in time")
    parser.add_argument("--kills", type=int, default=20, help="how often `large` kills the worker")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER",
        help="keep its .env here, and leave it running; with the same FOLDER, go on with it",
    )  # fmt: skip
    parser.add_argument("--no-build", action="store_true", help="use the images that are there")
    parser.add_argument(
        "--build-network", default="default", help="network of builds: default or host"
    )
    parser.add_argument(
        "--torch", default="", help="the image's TORCH; empty: the package index's PyTorch"
    )
    parser.add_argument(
        "--outside", default="pypi.org:443", help="what this machine reaches and no container may"
    )
    given = parser.parse_args()
    unknown = set(given.rows) - set(ROWS)
    if unknown:
        parser.error(f"no such rows: {', '.join(sorted(unknown))}")
    return given


if __name__ == "__main__":
    main()
