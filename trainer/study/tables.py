"""Tables of a grid and its claims: for the terminal, for a README and as JSON."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table

from audiofuse.trainer.study.claims import Claim, claims
from audiofuse.trainer.study.grid import MAP, SHOWN, Cell, Results, sample_deviation


class _Table(NamedTuple):
    """Columns whose name begins with ``>`` are numbers; ``notes`` stand below."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    notes: list[str]


def grid_table(results: Results) -> Table:
    """Show every cell in percent: means over seeds, of mAP@10 with the standard deviation."""
    return _rich(_grid(results))


def claims_table(stated: Sequence[Claim]) -> Table:
    """Show claims, differences in percentage points mAP@10."""
    return _rich(_claims(stated))


def as_markdown(results: Results) -> str:
    """Return both tables and what was left out, for a README."""
    tables = (_grid(results), _claims(claims(results)))
    return "\n".join(_markdown(table) for table in tables)


def as_dict(results: Results) -> dict[str, Any]:
    """Return means, what was left out and claims for JSON: metrics from 0 to 1."""
    return {
        "cells": [
            cell.model_dump(mode="json")
            | {"collection": collection}
            | {"seeds": len(values[MAP]), "deviation": sample_deviation(values[MAP])}
            | {name: statistics.fmean(values[name]) for name in SHOWN}
            for (cell, collection), values in _by_cell(results).items()
        ],
        "left out": results.left_out,
        "claims": [
            asdict(claim)
            | {"mean": claim.mean, "deviation": claim.deviation, "margin": claim.margin}
            | {"verdict": claim.verdict}
            for claim in claims(results)
        ],
    }


def _by_cell(results: Results) -> dict[tuple[Cell, str], dict[str, list[float]]]:
    """Return the seeds' values by cell, data set and metric, in the order in which they ran."""
    values: dict[tuple[Cell, str], dict[str, list[float]]] = {}
    for each in results.measured:
        of_cell = values.setdefault((each.cell, each.collection), {name: [] for name in SHOWN})
        for name in SHOWN:
            of_cell[name].append(each.metrics[name])
    return values


def _grid(results: Results) -> _Table:
    rows = [
        (*cell.words, collection, *(_percent(values[name], name) for name in SHOWN),
         str(len(values[MAP])))
        for (cell, collection), values in _by_cell(results).items()
    ]  # fmt: skip
    columns = ("fusion", "metadata", "text tower", "captions", "trained on", "tested on",
               *(f">{name}" for name in SHOWN), ">seeds")  # fmt: skip
    notes = [f"left out: {name}: {reason}" for name, reason in results.left_out.items()]
    return _Table("test results in percent", columns, rows, notes)


def _percent(values: Sequence[float], name: str) -> str:
    deviation = sample_deviation(values) if name == MAP else None
    mean = f"{100 * statistics.fmean(values):.2f}"
    return mean if deviation is None else f"{mean} ± {100 * deviation:.2f}"


def _claims(stated: Sequence[Claim]) -> _Table:
    rows = [
        (claim.collection, claim.statement, _points(claim.paper_pp), _ours(claim),
         _interval(claim), str(len(claim.differences)), ", ".join(claim.over), claim.verdict,
         claim.source)
        for claim in stated
    ]  # fmt: skip
    columns = ("tested on", "claim", ">paper", ">ours", "95 %", ">seeds", "over", "verdict",
               "source")  # fmt: skip
    return _Table(f"claims, differences in percentage points {MAP}", columns, rows, [])


def _ours(claim: Claim) -> str:
    spread = "" if claim.deviation is None else f" ± {claim.deviation:.2f}"
    return _points(claim.mean) + spread


def _interval(claim: Claim) -> str:
    """Show the interval over seeds and sounds; over sounds alone where there is one seed."""
    margin = claim.sounds if claim.margin is None else claim.margin
    if claim.mean is None or margin is None:
        return ""
    return f"[{claim.mean - margin:+.2f}, {claim.mean + margin:+.2f}]"


def _points(value: float | None) -> str:
    return "" if value is None else f"{value:+.2f}"


def _rich(shown: _Table) -> Table:
    table = Table(
        title=shown.title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False,
        caption="\n".join(shown.notes) or None, caption_justify="left",
    )  # fmt: skip
    for name in shown.columns:
        number = name.startswith(">")
        table.add_column(name.removeprefix(">"), justify="right" if number else "left")
    for row in shown.rows:
        table.add_row(*row)
    return table


def _markdown(shown: _Table) -> str:
    heads = [name.removeprefix(">") for name in shown.columns]
    rules = ["---:" if name.startswith(">") else "---" for name in shown.columns]
    lines = [f"| {' | '.join(row)} |" for row in (heads, rules, *shown.rows)]
    notes = [f"\n{note}" for note in shown.notes]
    return "\n".join([f"{shown.title}:\n", *lines, *notes]) + "\n"
