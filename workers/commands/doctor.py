"""Commands for before and beside: ``audiofuse doctor --help``, and ``audiofuse plan --help``."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from audiofuse.core.cores import usable_cpus
from audiofuse.core.errors import AudiofuseError
from audiofuse.core.settings import Settings
from audiofuse.workers.commands.terminal.options import Json, print_json
from audiofuse.workers.commands.terminal.screen import Screen
from audiofuse.workers.deployment.plan import (
    SHIPPED,
    Bucket,
    Prices,
    Vectors,
    Wanted,
    compute,
    read_figures,
)


def doctor(*, as_json: Json = False) -> None:
    """Look at all that a deployment needs, and say what is wrong and what to do.

    Exit code 1 if anything is wrong; warnings alone are 0.
    """
    from audiofuse.workers.commands.terminal.display import checks_table
    from audiofuse.workers.deployment.doctor import Verdict, examine

    checks = list(examine(Settings()))
    if as_json:
        print_json([asdict(each) for each in checks])
    else:
        Screen().print(checks_table(checks))
    wrong = [each.name for each in checks if each.verdict is Verdict.WRONG]
    if wrong:
        raise AudiofuseError(f"wrong: {', '.join(wrong)}")


def plan(
    sounds: Annotated[int, typer.Option(min=1, help="How many.")],
    seconds: Annotated[float, typer.Option(min=0.1, help="How long one is, on the mean.")] = 30.0,
    cores: Annotated[int, typer.Option(min=0, help="Of all workers; 0: this machine's.")] = 0,
    bucket: Annotated[Bucket, typer.Option(help="Where they lie.")] = Bucket.S3,
    vectors: Annotated[Vectors, typer.Option(help="What is kept in memory.")] = Vectors.FLOAT32,
    replicas: Annotated[int, typer.Option(min=1, help="Of the index.")] = 1,
    gpu: Annotated[
        float, typer.Option(min=0, metavar="CLIPS", help="A second, by make bench-gpu; 0: none.")
    ] = 0.0,
    figures: Annotated[
        Path | None, typer.Option(help="Of your machine: make bench-worker ARGS='--figures FILE'.")
    ] = None,
    core_hour: Annotated[float, typer.Option(min=0, help="Its price.")] = 0.05,
    million_requests: Annotated[float, typer.Option(min=0, help="Their price, to S3.")] = 0.40,
    memory_gb: Annotated[float, typer.Option(min=0, help="Price of a GB of it, a month.")] = 3.0,
    disk_gb: Annotated[float, typer.Option(min=0, help="Price of a GB of it, a month.")] = 0.1,
    *,
    moments: Annotated[bool, typer.Option(help="Of recordings of 7.5 s and more.")] = True,
    as_json: Json = False,
) -> None:
    """Compute what so many sounds need: hours, memory, disk, requests, money.

    From what a benchmark measured and sizes that deploy/capacity.md tells; prices are examples.
    """
    from audiofuse.workers.commands.terminal.display import plan_table

    wanted = Wanted(
        sounds, seconds, cores or usable_cpus(), bucket, moments, vectors, replicas, gpu
    )
    prices = Prices(core_hour, million_requests, memory_gb, disk_gb)
    lines = compute(wanted, read_figures(figures or SHIPPED), prices)
    if as_json:
        print_json([asdict(line) for line in lines])
    else:
        Screen().print(plan_table(lines))
