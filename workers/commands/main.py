"""The command line: ``audiofuse --help``.

Commands import what they need when they run, so that asking a question never loads torch.
Exit codes: 0 done, 1 something failed or is not reachable, 2 wrong usage or configuration.
"""

import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError
from redis.exceptions import RedisError

from audiofuse.core.errors import AudiofuseError, ConfigurationError, QueryError
from audiofuse.core.settings import PREFIX, Settings, misspelt_settings, settings_table
from audiofuse.workers.commands.dead import dead_cli
from audiofuse.workers.commands.doctor import doctor, plan
from audiofuse.workers.commands.encoders import bundle_cli, encoder_cli, evaluate
from audiofuse.workers.commands.explain import explain
from audiofuse.workers.commands.feedback import feedback_cli
from audiofuse.workers.commands.moments import compose
from audiofuse.workers.commands.processes import (
    begin,
    exporter,
    intake,
    serve,
    serve_index,
    worker,
)
from audiofuse.workers.commands.rollout import rollout_cli
from audiofuse.workers.commands.search import mcp, search
from audiofuse.workers.commands.snapshot import snapshot_cli
from audiofuse.workers.commands.terminal.options import (
    Inventory,
    Json,
    Prefix,
    Remove,
    print_json,
    seconds,
)
from audiofuse.workers.commands.terminal.screen import Screen
from audiofuse.workers.commands.up import up

if TYPE_CHECKING:
    from audiofuse.workers.deployment.status import Status

FAILURE, USAGE = 1, 2

cli = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Find sounds by sentences. Start with: audiofuse up --bucket FOLDER, then, in another "
    "terminal: audiofuse search 'a dog barking'.",
)
cli.add_typer(encoder_cli, name="encoder")
cli.add_typer(dead_cli, name="dead")
cli.add_typer(bundle_cli, name="bundle")
cli.add_typer(rollout_cli, name="rollout")
cli.add_typer(snapshot_cli, name="snapshot")
cli.add_typer(feedback_cli, name="feedback")
cli.command()(up)
cli.command()(search)
console = Screen()


@cli.command()
def status(*, as_json: Json = False) -> None:
    """Show queue, index and the last errors."""
    from audiofuse.workers.deployment.status import read_status

    state = read_status(Settings())
    if as_json:
        print_json(state.as_dict())
    else:
        _show(state)
    if state.index_away:
        raise AudiofuseError(state.index_away)


def _show(state: "Status") -> None:
    from audiofuse.workers.commands.terminal.display import facts_table, letters_table, moment

    for outage in state.outages:
        since = f"{outage.worker} waits since {moment(outage.since)}"
        console.print(f"{since}: {outage.error}", style="bold red", markup=False)
    queue: dict[str, object] = dict(state.queue)
    queue |= {f"keys that wait for {version}": n for version, n in state.waiting.items()}
    queue |= {"broken, not ours": state.broken} if state.broken else {}
    index: dict[str, object] = {"live encoder": state.version, "items": state.items}
    index = dict.fromkeys(index, "unknown") if state.index_away else index
    index |= {"rejected": state.dead_letters}
    console.print(facts_table("queue", queue), facts_table("index", index))
    if state.devices:
        devices = {name: device or "nothing now" for name, device in state.devices.items()}
        console.print(facts_table("encoders run on", devices))
    if state.reconciled:
        title = f"last reconciled {moment(state.reconciled.at)}"
        console.print(facts_table(title, state.reconciled.found))
    if state.held_back:
        console.print(f"held back: {state.held_back}", style="bold red")
    if state.latest:
        console.print(facts_table("rejected", state.reasons))
        console.print(letters_table("last errors", state.latest))


@cli.command()
def settings(*, as_json: Json = False) -> None:
    """Show every setting, its value (secrets hidden), where it comes from and what it means."""
    from audiofuse.workers.commands.terminal.display import settings_rows

    rows = settings_table(Settings())
    if as_json:
        print_json({name: {"value": value, "from": source} for name, value, source, _ in rows})
    else:
        console.print(settings_rows(rows))


@cli.command()
def reconcile(
    prefix: Prefix = "",
    every: Annotated[
        float | None,
        typer.Option(
            parser=seconds, metavar="DURATION", help="Do it now and then so often: 90s, 6h, 1d."
        ),
    ] = None,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Compare only; queue nothing.")
    ] = False,
    remove: Remove = False,
    inventory: Inventory = "",
    as_json: Json = False,
) -> None:
    """Compare bucket and index, and queue what differs on the backfill lane.

    When 5,000 wait there it waits for the workers. Stop it whenever you like: the next run finds
    what is left.
    """
    from audiofuse.workers.commands.terminal.display import Bars, facts_table
    from audiofuse.workers.repair import backfill as work

    current = Settings()
    if every and dry_run:
        raise typer.BadParameter("--every queues what it finds; --dry-run queues nothing")
    if every and inventory:
        raise typer.BadParameter("--every lists the bucket; an inventory is one time's")
    if every and remove:
        raise typer.BadParameter(
            "--remove is for one time: what is gone the next time is not known"
        )
    if every:
        work.keep_reconciled(begin("reconcile"), prefix, every)
    with Bars() as bars:
        found = work.reconcile(
            current, prefix, bars.over, dry_run=dry_run, remove=remove, inventory=inventory
        )
    run, queued = found.run, 0 if dry_run else found.run.count(found.to_queue(remove=remove))
    if as_json:
        print_json({"seconds": round(run.seconds, 3), "queued": not dry_run, **run.found})
    else:
        console.print(facts_table(f"compared in {run.seconds:.1f} s", run.found))
        console.print(f"{run.differing} objects differ; {queued} are queued")
    if found.removals.are_too_many and not remove:
        raise AudiofuseError(str(found.removals))


@cli.command()
def backfill(
    prefix: Prefix = "",
    *,
    everything: Annotated[
        bool, typer.Option("--all", help="Queue every sound, also what agrees or was rejected.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Follow the queue until all is done.")
    ] = True,
    remove: Remove = False,
    inventory: Inventory = "",
    as_json: Json = False,
) -> None:
    """Index a bucket that has sounds in it, and follow the work to its end.

    Queues what reconcile finds, never more than 5,000 ahead of the workers. Ctrl-C stops the
    watching, not the work: what is queued is worked on, and the next run finds the rest.
    """
    from audiofuse.workers.commands.terminal.display import Bars
    from audiofuse.workers.repair.feed import LaneFeed
    from audiofuse.workers.repair.listing import listed
    from audiofuse.workers.repair.reconcile import open_reconciler
    from audiofuse.workers.telemetry.names import Lane

    current = Settings()
    feed, reconciler = LaneFeed(current, Lane.BACKFILL), open_reconciler(current)
    with (
        Bars() as bars,
        listed(current, prefix, inventory) as listing,
        reconciler.compare(prefix, bars.over, remove=remove, listing=listing) as comparison,
    ):
        findings = comparison.to_queue(everything=everything, remove=remove)
        found, total = comparison.run.found, comparison.run.count(findings)
        task = bars.add_task("indexing", total=total)
        unsettled = partial(reconciler.unsettled, comparison)
        try:
            for _ in feed.queue(comparison.keys(*findings)):
                bars.update(task, completed=feed.done)
            for _ in feed.follow(comparison.keys(*findings), unsettled) if wait else ():
                bars.update(task, completed=feed.done)
        except KeyboardInterrupt:
            bars.stop()
            wait = False
        bars.update(task, completed=feed.done)
    if as_json:
        print_json({"found": found, "total": total, "queued": feed.queued})
    elif wait:
        console.print(f"all {total} are done; audiofuse dead list tells what was rejected")
    else:
        console.print(f"{feed.queued} of {total} are queued, and are worked on without this")
    if feed.queued < total:
        raise AudiofuseError("not all is queued yet; run it again for the rest")
    if comparison.removals.are_too_many and not remove:
        raise AudiofuseError(str(comparison.removals))


for command in (
    doctor,
    plan,
    explain,
    mcp,
    evaluate,
    compose,
    intake,
    exporter,
    serve,
    serve_index,
):
    cli.command()(command)
HANDED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}  # to Celery
cli.command(context_settings=HANDED_ON)(worker)


def main() -> None:
    """Run a command; expected errors become one line and an exit code."""
    for line in misspelt_settings():
        typer.echo(f"audiofuse: {line}", err=True)
    try:
        cli()
    except (ConfigurationError, QueryError) as error:
        _fail(str(error), USAGE)
    except ValidationError as error:
        _fail("\n".join(_explain_settings(error)), USAGE)
    except (AudiofuseError, RedisError) as error:
        _fail(str(error), FAILURE)
    except ModuleNotFoundError as error:
        if not error.name or error.name.split(".")[0] == "audiofuse":
            raise
        _fail(f"{error}; what runs a deployment needs: pip install 'audiofuse[local]'", USAGE)


def _explain_settings(error: ValidationError) -> list[str]:
    return [
        f"{PREFIX}{str(each['loc'][0]).upper()}: {each['msg']}"
        for each in error.errors(include_url=False, include_input=False)
    ]


def _fail(message: str, code: int) -> None:
    typer.echo(f"audiofuse: {message}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
