"""The commands that ask: ``audiofuse search --help``, and ``mcp``, by which assistants do."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from audiofuse.core.errors import ConfigurationError, QueryError, Unavailable
from audiofuse.core.homes import running_elsewhere
from audiofuse.core.items import point_id
from audiofuse.core.query import check_words
from audiofuse.core.settings import PREFIX, Settings
from audiofuse.core.storage.store import place_of
from audiofuse.workers.commands.terminal.options import Json, Prefix, print_json
from audiofuse.workers.commands.terminal.screen import Screen

WIDE = 110  # columns of a terminal that has room for bars

Tags = Annotated[list[str] | None, typer.Option(help="A keyword that hits have; may be repeated.")]
Day = Annotated[
    datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Modified since this day.")
]


def search(
    query: Annotated[str, typer.Argument(help="A sentence that describes the sound.")] = "",
    sound: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A sound that hits sound like.")
    ] = None,
    like: Annotated[str, typer.Option(metavar="KEY", help="An item that hits are like.")] = "",
    at: Annotated[
        float | None, typer.Option(min=0, metavar="SECONDS", help="With --like: its moment there.")
    ] = None,
    without: Annotated[str, typer.Option(help="Words for what hits are not like.")] = "",
    balance: Annotated[
        float | None, typer.Option(min=0, max=1, help="0: audio alone counts, 1: metadata alone.")
    ] = None,
    min_relevance: Annotated[
        float | None, typer.Option(min=0, max=1, help="Least probability that a hit is meant.")
    ] = None,
    keyword: Tags = None,
    label: Annotated[list[str] | None, typer.Option(help="A label that hits have.")] = None,
    min_duration: Annotated[float | None, typer.Option(min=0, help="Seconds.")] = None,
    max_duration: Annotated[float | None, typer.Option(min=0, help="Seconds.")] = None,
    since: Day = None,
    until: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Modified until this day.")
    ] = None,
    bucket: Annotated[str, typer.Option(help="Name of the bucket that hits are in.")] = "",
    prefix: Prefix = "",
    has_text: Annotated[
        bool | None, typer.Option("--with-text/--without-text", help="Only with, without metadata.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many sounds to show.")] = 10,
    offset: Annotated[int, typer.Option(min=0, help="How many to pass over.")] = 0,
    *,
    moments: Annotated[
        bool, typer.Option("--moments", help="List moments instead of recordings.")
    ] = False,
    unique: Annotated[bool, typer.Option("--unique", help="Same content only once.")] = False,
    extra: Annotated[
        bool, typer.Option("--extra", help="With --json: what else their sidecars say, too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Find sounds by a sentence, by a sound (--sound), by an item (--like), or by several."""
    from audiofuse.workers.commands.terminal.display import hits_table
    from audiofuse.workers.service.client import Access, answer

    if query or not (sound or like):
        check_words(query)
    if sound and like:
        raise QueryError("--sound and --like exclude each other")
    if at is not None and not like:
        raise QueryError("--at is a second of the item that --like names")
    current = Settings()
    options: dict[str, Any] = {
        "q": query, "without": without, "balance": balance,
        "min_relevance": min_relevance, "keyword": keyword, "label": label,
        "min_duration": min_duration, "max_duration": max_duration, "since": _day(since),
        "until": _day(until), "bucket": bucket, "prefix": prefix, "limit": limit, "offset": offset,
        "has_text": None if has_text is None else "yes" if has_text else "no",
        "like": str(point_id(*place_of(current, like))) if like else None,
        "at_s": at,
        "moments": "true" if moments else None,
        "unique": "true" if unique else None,
        "extra": "true" if extra else None,
    }  # fmt: skip
    given = {name: value for name, value in options.items() if value not in (None, "")}
    try:
        found = answer(current.search_url, given, sound, Access.of(current))
    except Unavailable as error:
        raise Unavailable(f"{error}{_elsewhere(current)}") from error
    hits, nothing = found["hits"], found.get("nothing")  # an older service does not know
    partial = found.get("partial", [])  # of a federation
    if as_json:
        print_json({"query": query, "nothing": nothing, "partial": partial, "hits": hits})
        return
    console = Screen()
    for each in partial:
        console.print(f"without {each['member']}: {each['reason']}", markup=False)
    if hits:
        if nothing:
            console.print("nothing here sounds like that; the nearest are")
        title, wide = query or (sound.name if sound else like), console.width >= WIDE
        console.print(hits_table(title, hits, offset, wide=wide))
    else:
        console.print("nothing is found: other words, or fewer conditions?")


def _elsewhere(current: Settings) -> str:
    """Say which deployments run that these settings do not mean."""
    homes = [str(home) for home in running_elsewhere() if home != current.home.resolve()]
    return f"; one runs with {PREFIX}HOME={' or '.join(homes)}" if homes else ""


def _day(moment: datetime | None) -> str | None:
    return moment.date().isoformat() if moment else None


def mcp() -> None:
    """Let an assistant find sounds: an MCP server on standard input and output.

    It asks AUDIOFUSE_SEARCH_URL, or what `audiofuse up` runs. pip install 'audiofuse[mcp]'
    """
    try:
        from audiofuse.workers.programs.assistant import build_assistant
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{error}: pip install 'audiofuse[mcp]'") from error
    from audiofuse.workers.programs.client import AsyncClient

    build_assistant(AsyncClient()).run()
