"""What people see: tables of hits, of the deployment's state, of settings and of evaluations."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from statistics import median
from typing import TYPE_CHECKING, Any, TypeVar

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from audiofuse.core.bundles.document import Step
from audiofuse.workers.commands.terminal.screen import OneLine

if TYPE_CHECKING:  # what asking a service needs not, and may not have
    from audiofuse.core.evaluation.intervals import Estimate
    from audiofuse.core.evaluation.scorecards import Figure, Scorecard
    from audiofuse.workers.deployment.doctor import Check
    from audiofuse.workers.deployment.plan import Line
    from audiofuse.workers.queue.dead_letters import DeadLetter

DIGITS = 8  # of a hash, which tell others from it
SYSTEMS_SHOWN = ("hybrid", "audio only", "metadata only")

T = TypeVar("T")
Cell = str | Text | OneLine


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> Table:
    """Columns whose name begins with ``>`` are numbers and flush right."""
    table = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        number = name.startswith(">")
        table.add_column(
            name.removeprefix(">"), justify="right" if number else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return table


def hits_table(
    query: str, hits: Sequence[Mapping[str, Any]], offset: int = 0, *, wide: bool = False
) -> Table:
    """Show hits with the parts of their scores, which add up; ``wide``: as bars, too.

    Of recordings it is told at which times they are heard, the best first.
    """
    columns: dict[str, list[Cell]] = {
        ">#": [str(rank) for rank, _ in enumerate(hits, offset + 1)],
        ">score": [f"{hit['score']:.3f}" for hit in hits],
        **_relevance(hits),
        ">audio": [_part(hit["audio"]) for hit in hits],
        ">metadata": [
            _part(hit["metadata"]) if hit["payload"]["has_text"] == "yes" else "none"
            for hit in hits
        ],
    }
    if wide:
        columns[""] = [_bar(hit["audio"], hit["metadata"]) for hit in hits]
    columns[">length"] = [_length(hit["payload"]["duration_s"]) for hit in hits]
    columns["file"] = [OneLine(hit["key"]) for hit in hits]
    moments = [hit.get("moments", []) for hit in hits]  # a service of an older release tells none
    if any(moments):
        columns["at"] = [", ".join(clock(at["start_s"]) for at in some) for some in moments]
    columns["title"] = [hit["payload"]["title"] or _tags(hit["payload"]) for hit in hits]
    return _table(f'"{query}"', list(columns), zip(*columns.values(), strict=True))


def _relevance(hits: Sequence[Mapping[str, Any]]) -> dict[str, list[Cell]]:
    """Return a column with how probable hits are, if that is known of any."""
    known = [hit.get("relevance") for hit in hits]  # a service of an older release tells none
    if all(each is None for each in known):
        return {}
    return {">relevance": ["" if each is None else f"{each:.0%}" for each in known]}


def clock(seconds: float) -> str:
    """Return a time within a recording as players show it: 12:31, 1:02:03."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _part(value: float | None) -> str:
    return "" if value is None else f"{value:+.3f}"


def _bar(audio: float | None, metadata: float | None) -> Text:
    """Draw the parts of a score that speak for a hit, a cell for each tenth."""
    bar = Text()
    for part, colour in ((audio, "cyan"), (metadata, "magenta")):
        bar.append("█" * round(10 * max(0.0, part or 0.0)), style=colour)
    return bar


def _length(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}" if minutes else f"{seconds:.1f} s"


def _tags(payload: Mapping[str, Any]) -> Text:
    return Text(", ".join([*payload["keywords"], *payload["labels"]]), style="dim")


def drops_table(seconds: Mapping[str, float], errors: Mapping[str, str]) -> Table:
    """Show how long each dropped file took to be searchable, or what went wrong with it."""
    rows: list[tuple[Cell, str, str]] = [
        (OneLine(key), f"{took:.2f}", "") for key, took in sorted(seconds.items())
    ]
    rows += [(OneLine(key), "", error) for key, error in sorted(errors.items())]
    if seconds:
        rows.append(("median", f"{median(seconds.values()):.2f}", ""))
        rows.append(("longest", f"{max(seconds.values()):.2f}", ""))
    return _table("", ("file", ">seconds until searchable", "what went wrong"), rows)


def letters_table(title: str, letters: "Iterable[DeadLetter]") -> Table:
    """Show what is wrong with which object, newest first."""
    rows = (
        (
            moment(each.at),
            OneLine(each.key),
            each.reason,
            each.detail,
            str(each.count),
        )
        for each in letters
    )
    return _table(title, ("when", "object", "reason", "detail", ">times"), rows)


def moment(at: float) -> str:
    """Return a Unix time as people here read it."""
    return f"{datetime.fromtimestamp(at, UTC).astimezone():%Y-%m-%d %H:%M:%S}"


def facts_table(title: str, facts: Mapping[str, object]) -> Table:
    """Show names and values."""
    return _table(title, ("", ""), ((name, str(value)) for name, value in facts.items()))


def checks_table(checks: Iterable["Check"]) -> Table:
    """Show what the doctor looked at, how it is, what was found, and what to do."""
    colours = {"ok": "green", "warning": "yellow", "wrong": "bold red"}
    return _table(
        "",
        ("", "", "found", "what to do"),
        (
            (each.name, Text(each.verdict, style=colours[each.verdict]), each.found, each.advice)
            for each in checks
        ),
    )


def plan_table(lines: Iterable["Line"]) -> Table:
    """Show what is needed, and what each figure comes from."""
    rows = ((each.what, each.amount, each.source) for each in lines)
    return _table("", ("", ">needed", "computed from"), rows)


def gates_table(gates: Iterable[tuple[str, str, str]]) -> Table:
    """Show each gate, what became of it, and what was found."""
    return _table("", ("gate", "", "found"), gates)


def steps_table(steps: Iterable[Step]) -> Table:
    """Show what was done in a rollout, when and by whom."""
    rows = ((moment(each.at), each.what, each.by) for each in steps)
    return _table("last steps", ("when", "step", "by"), rows)


def settings_rows(rows: Iterable[tuple[str, str, str, str]]) -> Table:
    """Show each setting with its value, where that comes from, and what it means."""
    return _table("", ("setting", "value", "from", "meaning"), rows)


def metrics_table(title: str, rows: Mapping[str, Mapping[str, float]]) -> Table:
    """Show metrics, one row for each system; empty where a system has none."""
    names = list(dict.fromkeys(name for values in rows.values() for name in values))
    return _table(
        title,
        ("system", *(f">{name}" for name in names)),
        (
            (system, *(f"{values[name]:.3f}" if name in values else "" for name in names))
            for system, values in rows.items()
        ),
    )


def intervals_table(title: str, rows: Mapping[str, "Estimate"]) -> Table:
    """Show estimates with their 95 % intervals."""
    return _table(
        title,
        ("", ">mean", ">from", ">to"),
        (
            (name, *(f"{value:+.3f}" for value in (each.value, each.low, each.high)))
            for name, each in rows.items()
        ),
    )


def scores_tables(cards: "Sequence[Scorecard]") -> list[Table]:
    """Show mAP@10 of versions with its interval: what one table has was asked the same."""
    asked = sorted({(score.asked, score.data) for card in cards for score in card.scores})
    return [
        _table(
            f"mAP@10, {words} ({data[:DIGITS]})",
            ("version", *(f">{system}" for system in SYSTEMS_SHOWN)),
            [
                (card.version, *(_interval(score.figures.get(system)) for system in SYSTEMS_SHOWN))
                for card in cards
                for score in card.scores
                if score.data == data
            ],
        )
        for words, data in asked
    ]


def _interval(metrics: "Mapping[str, Figure] | None") -> str:
    if not (figure := metrics and metrics.get("mAP@10")):
        return "-"
    value, low, high = (
        f"{each:.3f}".removeprefix("0") for each in (figure.value, figure.low, figure.high)
    )
    return f"{value} [{low}, {high}]"


class Bars(Progress):
    """Progress bars with count, rate and the time that is left."""

    def __init__(self, *more: ProgressColumn, console: Console | None = None) -> None:
        """Show them on standard error, or a ``console``; with ``more`` columns."""
        super().__init__(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(),
            TimeRemainingColumn(), *more, console=console or Console(stderr=True),
        )  # fmt: skip

    def over(self, steps: Iterable[T], what: str, total: int | None, /) -> Iterable[T]:
        """Show a walk as a bar."""
        return self.track(steps, total, description=what)


class _Rate(ProgressColumn):
    """Steps a second, lately."""

    def render(self, task: Task) -> Text:
        """Show nothing before anything moved."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.1f}/s" if speed else "", style="progress.data.speed")
