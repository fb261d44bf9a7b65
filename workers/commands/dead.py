"""The dead letters' commands: ``audiofuse dead --help``.

As in ``cli.py`` they import what they need when they run. However many letters there are, they are
read and changed a page at a time.
"""

import json
import math
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from audiofuse.core.errors import AudiofuseError, Reason
from audiofuse.core.settings import Settings
from audiofuse.workers.commands.terminal.options import Json, Prefix, print_json, seconds
from audiofuse.workers.commands.terminal.screen import Screen

if TYPE_CHECKING:
    from audiofuse.workers.queue.dead_letters import DeadLetters

PAGE = 500
LOOK_S = 0.5  # how often it looks what became of what is tried again

dead_cli = typer.Typer(no_args_is_help=True, help="What was rejected, and why.")
console = Screen()

Keys = Annotated[list[str] | None, typer.Argument(help="Only these keys.")]
WithReason = Annotated[Reason | None, typer.Option(help="Only what was rejected for this reason.")]
OlderThan = Annotated[
    float | None,
    typer.Option(parser=seconds, metavar="DURATION", help="Only what was rejected before: 2d, 3h."),
]


@dead_cli.command("list")
def list_(
    reason: WithReason = None,
    prefix: Prefix = "",
    older_than: OlderThan = None,
    limit: Annotated[int, typer.Option(min=0, help="How many; 0: all.")] = 50,
    *,
    as_json: Json = False,
) -> None:
    """Show what was rejected, newest first; as JSON, one object a line."""
    from audiofuse.workers.commands.terminal.display import letters_table

    letters = _letters()
    keys = islice(letters.keys(reason, prefix, _before(older_than)), limit or None)
    while page := list(islice(keys, PAGE)):
        found = letters.get(page)
        if as_json:
            for letter in found.values():
                typer.echo(json.dumps(asdict(letter), ensure_ascii=False))
        else:
            console.print(letters_table("", found.values()))


@dead_cli.command("show")
def show(key: Annotated[str, typer.Argument(help="Its key.")], *, as_json: Json = False) -> None:
    """Show all that is known of one rejected object."""
    from audiofuse.workers.commands.terminal.display import facts_table, moment

    letter = _letters().get([key]).get(key)
    if letter is None:
        raise AudiofuseError(f"there is no dead letter for {key}")
    if as_json:
        print_json(asdict(letter))
    else:
        console.print(facts_table("", asdict(letter) | {"at": moment(letter.at)}))


@dead_cli.command("retry")
def retry(
    keys: Keys = None,
    reason: WithReason = None,
    prefix: Prefix = "",
    older_than: OlderThan = None,
    *,
    wait: Annotated[
        bool, typer.Option("--wait", help="Follow until each has another verdict.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Try rejected objects again, at once: all of them, or the chosen ones.

    A letter stays until there is another verdict. Ctrl-C stops the watching, not the work.
    """
    from audiofuse.workers.commands.terminal.display import Bars
    from audiofuse.workers.intake.events import key_to_sync
    from audiofuse.workers.repair.feed import LaneFeed
    from audiofuse.workers.telemetry.names import Lane

    letters, before, began = _letters(), _before(older_than), time.time()
    chosen = _chosen(letters, keys, reason, prefix, before)
    feed = LaneFeed(Settings(), Lane.LIVE)
    for _ in feed.queue(key_to_sync(key) or key for key in chosen):
        pass

    def left() -> int:
        """Count those that have no other verdict yet."""
        if keys:
            return sum(letter.at < began for letter in letters.get(keys).values())
        return sum(1 for _ in letters.keys(reason, prefix, min(before, began)))

    if wait:
        with Bars() as bars, suppress(KeyboardInterrupt):
            task = bars.add_task("trying again", total=feed.queued)
            while (waiting := left()) and feed.done < feed.queued:
                bars.update(task, completed=max(0, feed.queued - waiting))
                time.sleep(LOOK_S)
            bars.update(task, completed=feed.queued - left())
    if as_json:
        print_json({"queued": feed.queued} | ({"unsettled": left()} if wait else {}))
    else:
        console.print(f"{feed.queued} objects are queued")
        if wait:
            console.print(f"{letters.count()} are rejected now; {left()} were not tried yet")


@dead_cli.command("purge")
def purge(
    keys: Keys = None,
    reason: WithReason = None,
    prefix: Prefix = "",
    older_than: OlderThan = None,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Forget verdicts: all of them, or the chosen ones.

    The next reconcile tries their objects again.
    """
    letters = _letters()
    choice = (keys, reason, prefix, _before(older_than))
    if not yes:
        number = sum(1 for _ in _chosen(letters, *choice))
        typer.confirm(f"Forget {number} dead letters?", abort=True, err=True)
    count, remaining = 0, _chosen(letters, *choice)
    while batch := list(islice(remaining, PAGE)):
        letters.clear(batch)
        count += len(batch)
    if as_json:
        print_json({"purged": count})
    else:
        console.print(f"{count} dead letters are forgotten")


def _letters() -> "DeadLetters":
    from audiofuse.workers.queue.broker import connect_redis
    from audiofuse.workers.queue.dead_letters import DeadLetters

    current = Settings()
    return DeadLetters(connect_redis(current), current.index_name)


def _chosen(
    letters: "DeadLetters",
    keys: list[str] | None,
    reason: Reason | None,
    prefix: str,
    before: float,
) -> Iterator[str]:
    if keys and (reason or prefix or before < math.inf):
        raise typer.BadParameter("give keys, or choose by --reason, --prefix and --older-than")
    return iter(letters.get(keys)) if keys else letters.keys(reason, prefix, before)


def _before(older_than: float | None) -> float:
    return time.time() - older_than if older_than else math.inf
