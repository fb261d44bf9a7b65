"""The commands that exchange the encoder while everything runs: ``audiofuse rollout --help``.

What they know is in the registry and in Qdrant: each works from any machine, and the next one, or
the same one again, goes on where one was killed. As in ``cli.py`` they import what they need when
they run.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from audiofuse.core.errors import AudiofuseError
from audiofuse.core.settings import PREFIX, Settings
from audiofuse.workers.commands.terminal.screen import Screen
from audiofuse.workers.telemetry.logs import configure_logging

if TYPE_CHECKING:
    from audiofuse.core.encoder.encoder import Encoder
    from audiofuse.workers.rollout.gates import Gate, GateName
    from audiofuse.workers.rollout.operator import Operator

STEPS_SHOWN = 5

rollout_cli = typer.Typer(
    no_args_is_help=True,
    help="Exchange the encoder while everything runs: start, promote, then rollback or drop.",
)
console = Screen()


def _operator() -> "Operator":
    from audiofuse.workers.rollout.operator import Operator

    settings = Settings()
    configure_logging(settings)
    return Operator(settings)


def _take(step: str, take: Callable[["Operator"], None]) -> None:
    operator = _operator()
    if not operator.finishes(step):
        take(operator)
    _done(operator)


def _done(operator: "Operator") -> None:
    console.print(f"done: {operator.rollout.history[-1].what}")


@rollout_cli.command()
def start(
    version: Annotated[str, typer.Argument(help="What audiofuse-train publish has said.")],
) -> None:
    """Build a version beside the live one: every change goes to both, the rest is filled in.

    Stop it whenever you like, and go on with resume. Nothing changes for who searches.
    """
    operator = _operator()
    if not operator.finishes(f"start {version}"):
        operator.start(version, lambda: _tried_out(operator, version))
    _build(operator)


@rollout_cli.command()
def resume() -> None:
    """Go on with building: after pause, or when the command that did so was stopped."""
    operator = _operator()
    operator.resume(lambda: _tried_out(operator, operator.rollout.other))
    _build(operator)


def _tried_out(operator: "Operator", version: str) -> "Encoder":
    from audiofuse.core.bundles.loading import load_version
    from audiofuse.workers.rollout.gates import try_out

    encoder = load_version(operator.settings, version)
    try_out(encoder, version)
    return encoder


def _build(operator: "Operator") -> None:
    from audiofuse.workers.commands.terminal.display import Bars

    version = operator.rollout.other
    with Bars() as bars:
        task = bars.add_task(f"building {version}", total=None)

        def show(points: int, total: int) -> None:
            bars.update(task, completed=points, total=total)

        complete = operator.build(show)
    if complete:
        console.print(f"{version} has everything: audiofuse rollout promote makes it live")
    else:
        console.print(f"{version} is not built any further: see audiofuse rollout status")


@rollout_cli.command()
def pause() -> None:
    """Stop building; what changes in the bucket still goes to both versions."""
    operator = _operator()
    operator.pause()
    _done(operator)


@rollout_cli.command()
def promote(
    force: Annotated[
        list[str] | None,
        typer.Option(help="Promote although this gate is not passed; that is recorded."),
    ] = None,
    queries: Annotated[
        Path | None,
        typer.Option(
            help=f"Manifest of clips with queries to judge by; default: {PREFIX}GATE_QUERIES."
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Rows whose queries are asked.")] = "val",
) -> None:
    """Make the other version live, in one step, if it passes every gate.

    coverage: it holds what the bucket holds. dead-letters: it rejected nothing that the live one
    holds. quality: on held-out queries it is not certainly worse, with metadata or without.
    optimised: Qdrant has nothing left to do. services: each address of AUDIOFUSE_SEARCH_URL has
    loaded it.
    """
    from audiofuse.workers.commands.terminal.display import gates_table

    operator = _operator()
    if operator.finishes("promote"):
        _done(operator)
        return
    operator.may_promote()
    operator.wait_for_followers()
    forced = _gate_names(force or [])
    gates = _gates(operator, queries or operator.settings.gate_queries, split)
    console.print(gates_table((each.name, _verdict(each, forced), each.found) for each in gates))
    failed = tuple(each.name for each in gates if not each.passed)
    if closed := [name for name in failed if name not in forced]:
        raise AudiofuseError(f"not promoted, for gates that are not passed: {', '.join(closed)}")
    operator.promote(failed)
    _done(operator)


def _gate_names(names: list[str]) -> set["GateName"]:
    from audiofuse.workers.rollout.gates import GateName

    try:
        return {GateName(name) for name in names}
    except ValueError as error:
        raise typer.BadParameter(f"{error}; the gates are {', '.join(GateName)}") from error


def _verdict(gate: "Gate", forced: set["GateName"]) -> str:
    if gate.passed:
        return "passed"
    return "FORCED" if gate.name in forced else "NOT PASSED"


def _gates(operator: "Operator", queries: Path | None, split: str) -> list["Gate"]:
    from audiofuse.workers.repair.agreement import rejected_alone
    from audiofuse.workers.rollout import gates
    from audiofuse.workers.service.client import Access, service_urls

    settings = operator.settings
    candidate = operator.rollout.other
    agreement = operator.agreement(candidate)
    rollout = operator.rollout
    rejected = rejected_alone(agreement, candidate, rollout.live, rollout.started)
    return [
        gates.coverage(agreement),
        gates.dead_letters(list(rejected)),
        _quality(operator, queries, split),
        gates.optimised(operator.index, operator.index.generation(candidate)),
        gates.services(service_urls(settings.search_url), candidate, Access.of(settings)),
    ]


def _quality(operator: "Operator", queries: Path | None, split: str) -> "Gate":
    from audiofuse.core.bundles.loading import load_version
    from audiofuse.core.evaluation.clips import read_manifest
    from audiofuse.workers.rollout import gates

    if queries is None:
        return gates.not_checked(f"no --queries, and {PREFIX}GATE_QUERIES is not set")
    clips = read_manifest(queries)
    live, candidate = (
        load_version(operator.settings, version) for version in operator.rollout.versions
    )
    return gates.quality(live, candidate, clips, split)


@rollout_cli.command()
def rollback() -> None:
    """Make the version live again that was so before, in one step; nothing is built anew."""
    _take("rollback", lambda operator: operator.rollback())


@rollout_cli.command()
def abort() -> None:
    """Give up: delete the version that is built. Only while it is not live."""
    _take("abort", lambda operator: operator.abort())


@rollout_cli.command()
def drop() -> None:
    """End the rollout: delete the version that was live before. There is no way back."""
    _take("drop", lambda operator: operator.drop())


@rollout_cli.command()
def status(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Show what is live, what is built beside it, how far that is, and the last steps."""
    from audiofuse.core.evaluation.scorecards import open_scorecards
    from audiofuse.workers.commands.terminal.display import (
        facts_table,
        moment,
        scores_tables,
        steps_table,
    )

    operator = _operator()
    rollout = operator.rollout
    points = {version: operator.points(version) for version in rollout.versions}
    scorecards = open_scorecards(operator.settings)
    cards = [scorecards.of(version) for version in rollout.versions]
    if as_json:
        scores = {card.version: card.model_dump()["scores"] for card in cards}
        facts_told = rollout.model_dump() | {"points": points, "scores": scores}
        typer.echo(json.dumps(facts_told, indent=2))
        return
    facts = {"phase": str(rollout.phase), "live": f"{rollout.live}, {points[rollout.live]} points"}
    if rollout.other:
        facts["other"] = f"{rollout.other}, {points[rollout.other]} points"
        facts["started"] = moment(rollout.started)
    if rollout.overrides:
        facts["forced"] = ", ".join(f"{each.gate} by {each.by}" for each in rollout.overrides)
    if rollout.dropped:
        facts["dropped"] = ", ".join(rollout.dropped)
    steps = steps_table(rollout.history[-STEPS_SHOWN:])
    console.print(facts_table("rollout", facts), steps, *scores_tables(cards))
