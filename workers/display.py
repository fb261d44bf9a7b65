"""What people see: tables of hits, of the deployment's state, of settings and of evaluations."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from statistics import median
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from workers.dead_letters import DeadLetter


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> Table:
    """Columns whose name begins with ``>`` are numbers and flush right."""
    table = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        number = name.startswith(">")
        table.add_column(
            name.removeprefix(">"), justify="right" if number else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    return table


def hits_table(query: str, hits: Sequence[Mapping[str, Any]]) -> Table:
    """Show hits with the parts of their scores; audio and metadata add up to the score."""
    rows = (
        (
            str(rank),
            f"{hit['score']:.3f}",
            _part(hit["audio"]),
            _part(hit["metadata"]) if hit["payload"]["has_text"] == "yes" else "none",
            hit["key"],
            hit["payload"]["title"],
        )
        for rank, hit in enumerate(hits, 1)
    )
    columns = (">#", ">score", ">audio", ">metadata", "file", "title")
    return _table(f'"{query}"', columns, rows)


def _part(value: float | None) -> str:
    return "" if value is None else f"{value:+.3f}"


def drops_table(seconds: Mapping[str, float], errors: Mapping[str, str]) -> Table:
    """Show how long each dropped file took to be searchable, or what went wrong with it."""
    rows = [(key, f"{took:.2f}", "") for key, took in sorted(seconds.items())]
    rows += [(key, "", error) for key, error in sorted(errors.items())]
    if seconds:
        rows.append(("median", f"{median(seconds.values()):.2f}", ""))
        rows.append(("longest", f"{max(seconds.values()):.2f}", ""))
    return _table("", ("file", ">seconds until searchable", "what went wrong"), rows)


def letters_table(letters: Iterable[DeadLetter]) -> Table:
    """Show what is wrong with which object, newest first."""
    rows = (
        (
            f"{datetime.fromtimestamp(each.at, UTC).astimezone():%Y-%m-%d %H:%M:%S}",
            each.key,
            each.reason,
            each.detail,
        )
        for each in letters
    )
    return _table("last errors", ("when", "object", "reason", "detail"), rows)


def facts_table(title: str, facts: Mapping[str, object]) -> Table:
    """Show names and values."""
    return _table(title, ("", ""), ((name, str(value)) for name, value in facts.items()))


def settings_rows(rows: Iterable[tuple[str, str, str, str]]) -> Table:
    """Show each setting with its value, where that comes from, and what it means."""
    return _table("", ("setting", "value", "from", "meaning"), rows)


def metrics_table(title: str, rows: Mapping[str, Mapping[str, float]]) -> Table:
    """Show metrics, one row for each system."""
    names = list(next(iter(rows.values())))
    return _table(
        title,
        ("system", *(f">{name}" for name in names)),
        ((system, *(f"{values[name]:.3f}" for name in names)) for system, values in rows.items()),
    )
