"""What can go wrong on the way, one thing after the other: ``make chaos``.

Each scenario changes a bucket while something happens to events or processes. Once all is quiet
the index must equal the bucket: its keys, etags, words and vectors, and the dead letters must be
the bad files, no more and no less. Everything is real: Valkey, S3 and SQS over HTTP (or a folder
with its watcher), the intake, two workers, the embedded Qdrant behind its owner. What happens when
is drawn by the seed, though processes keep a timing of their own.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from deployment import Deployment
from rich.console import Console
from rich.table import Table
from scenarios import bad_input, buckets, changes, hosts, load, outages, refusals, rollouts
from several import SeveralBuckets, SeveralStage
from stage import Stage

SCENARIOS = (
    *changes.SCENARIOS, *bad_input.SCENARIOS, *outages.SCENARIOS, *refusals.SCENARIOS,
    *rollouts.SCENARIOS, *hosts.SCENARIOS, *load.SCENARIOS,
    *buckets.SCENARIOS,
)  # fmt: skip
# Only there can times be set, and names be changed.
IN_A_FOLDER = (*bad_input.IN_A_FOLDER, *load.IN_A_FOLDER)
DEPLOYMENTS: dict[str, Callable[[Path], Deployment]] = {
    "s3": partial(Deployment, s3=True),
    "folder": partial(Deployment, s3=False),
    "several": SeveralBuckets,
}


def where_of(scenario: Callable[[Stage], None]) -> str:
    """Return on which deployment a scenario plays."""
    if scenario in buckets.SCENARIOS:
        return "several"
    return "folder" if scenario in IN_A_FOLDER else "s3"


def name_of(scenario: Callable[[Stage], None]) -> str:
    """Return a scenario's name as it is given on the command line."""
    return scenario.__name__.replace("_", "-")


def play(
    scenario: Callable[[Stage], None], deployment: Deployment, seed: int, scale: float
) -> tuple[list[str], list[str], bool]:
    """Play one scenario; return its line of the table, what is told of it, and if it failed."""
    name = name_of(scenario)
    kind = SeveralStage if isinstance(deployment, SeveralBuckets) else Stage
    stage = kind(deployment, f"{name}/", random.Random(f"{name} {seed}"), scale)
    started = time.monotonic()
    if deployment.s3:
        deployment.notify(on=True)
    try:
        scenario(stage)
        stage.settle()
        faults = stage.differences()
    except TimeoutError as error:
        faults = [f"never quiet: {error}, {deployment.lanes.lengths()}"]
    except AssertionError as error:
        faults = [str(error)]
    deployment.start_again()
    letters = list(deployment.letters.keys(prefix=stage.prefix))
    wrong_letters = [fault for fault in faults if ": letter " in fault]
    cells = [
        name, str(stage.told), str(len(stage.truth)), str(len(faults)),
        f"{len(letters)}, {'not ' if wrong_letters else ''}as expected",
        f"{time.monotonic() - started:.1f}",
    ]  # fmt: skip
    return cells, [*stage.notes, *faults], bool(faults)


def main() -> int:
    """Play the scenarios; print a table; return 1 if index and bucket differ after any."""
    parser = argparse.ArgumentParser(description=__doc__)
    by_name = {name_of(scenario): scenario for scenario in SCENARIOS}
    parser.add_argument("--scenario", action="append", choices=by_name, help="all, if not given")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--scale", type=float, default=1.0, help="of everything's number")
    options = parser.parse_args()
    chosen = [by_name[name] for name in options.scenario or by_name]
    table = Table(title=f"seed {options.seed}, scale {options.scale:g}", title_justify="left")
    for column in ("scenario", "messages", "objects", "differences", "dead letters", "s"):
        table.add_column(column, justify="left" if column == "scenario" else "right")
    console, failed, started = Console(width=100), False, time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        for where, begin in DEPLOYMENTS.items():
            scenarios = [each for each in chosen if where_of(each) == where]
            if not scenarios:
                continue
            deployment = begin(Path(temporary, where))
            for scenario in scenarios:
                cells, told, wrong = play(scenario, deployment, options.seed, options.scale)
                table.add_row(*cells)
                failed = failed or wrong
                lines = ["  ".join(cells), *told]
                console.print("\n    ".join(lines), markup=False, highlight=False, soft_wrap=True)
            deployment.stop()
    console.print(table)
    console.print(f"{time.monotonic() - started:.0f} s in all")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
