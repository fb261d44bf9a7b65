"""The commands of verdicts: ``audiofuse feedback --help``."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from audiofuse.core.errors import QueryError
from audiofuse.core.items import point_id
from audiofuse.core.query import check_words
from audiofuse.core.settings import Settings
from audiofuse.workers.commands.terminal.screen import Screen

if TYPE_CHECKING:
    from audiofuse.core.feedback.verdicts import Verdict

PAGE = 500  # items that are looked up at once

feedback_cli = typer.Typer(
    no_args_is_help=True, help="What listeners say of hits, kept to improve the encoder by."
)
console = Screen()

Keys = Annotated[list[str] | None, typer.Option(metavar="KEY", help="May be given again.")]


@feedback_cli.command("say")
def say(
    query: Annotated[str, typer.Argument(help="The question's words.")],
    fits: Keys = None,
    misses: Keys = None,
    sought: Keys = None,
    withdraw: Keys = None,
) -> None:
    """Say which items answer a question, which do not, and which was the one looked for.

    What is said of the same question and item later replaces it; --withdraw takes it back.
    """
    from audiofuse.core.storage.store import place_of
    from audiofuse.workers.service.client import Access, tell

    check_words(query)
    current = Settings()
    said = {"fits": fits, "misses": misses, "sought": sought, "withdrawn": withdraw}
    verdicts = [
        {"item": str(point_id(*place_of(current, key))), "opinion": opinion}
        for opinion, keys in said.items()
        for key in keys or []
    ]
    if not verdicts:
        raise QueryError("nothing is said: give --fits, --misses, --sought or --withdraw a key")
    kept = tell(current.search_url, {"q": query, "verdicts": verdicts}, Access.of(current))
    console.print(f"{kept} verdicts are kept")


@feedback_cli.command("export")
def export() -> None:
    """Print all verdicts, one JSON object a line, oldest day first."""
    from audiofuse.core.feedback.book import open_book

    for verdict in open_book(Settings()).read():
        typer.echo(verdict.model_dump_json())


@feedback_cli.command("erase")
def erase(
    caller: Annotated[
        str | None, typer.Option(help="What this API key's holder said; '' is said without a key.")
    ] = None,
    key: Annotated[str | None, typer.Option(help="What was said of this item.")] = None,
    before: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="What was said before this day.")
    ] = None,
    *,
    gone: Annotated[
        bool, typer.Option("--gone", help="What was said of items that are no longer there.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Forget verdicts for good: those that meet every condition that is given."""
    from audiofuse.core.feedback.book import open_book

    current = Settings()
    book = open_book(current)
    conditions: list[Callable[[Verdict], bool]] = []
    if caller is not None:
        conditions.append(lambda verdict: verdict.caller == caller)
    if key is not None:
        conditions.append(lambda verdict: verdict.key == key)
    if before is not None:
        until = before.replace(tzinfo=UTC).timestamp()
        conditions.append(lambda verdict: verdict.at < until)
    if gone:
        there = _there(current, (verdict.item for verdict in book.read()))
        conditions.append(lambda verdict: verdict.item not in there)
    if not conditions:
        raise typer.BadParameter("say what to forget: --caller, --key, --before or --gone")

    def chosen(verdict: "Verdict") -> bool:
        return all(condition(verdict) for condition in conditions)

    if not yes:
        number = sum(map(chosen, book.read()))
        typer.confirm(f"Forget {number} verdicts?", abort=True, err=True)
    console.print(f"{book.erase(chosen)} verdicts are forgotten")


def _there(settings: Settings, items: Iterator[str]) -> set[str]:
    """Return which of the items the live index has."""
    from audiofuse.core.index.index import open_index

    index, wanted = open_index(settings), iter(set(items))
    live = index.live()
    there: set[str] = set()
    while live and (page := list(islice(wanted, PAGE))):
        there |= index.get(live, page).keys()
    return there
