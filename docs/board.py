"""Draws a dashboard of deploy/grafana as a page, from what a Prometheus answers to its queries.

Grafana itself is no package that could be installed here. What is drawn is what its panels ask for,
where they have it; how they look is only alike.
"""

import html
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

WIDTH, ROW, GAP = 1440, 38, 8  # of the page, of a row of the grid, between panels; pixels
COLUMNS = 24  # of Grafana's grid
TITLE, LEGEND, LEFT, BOTTOM = 30, 20, 52, 18  # what a graph leaves free for them; pixels
TICKS = 5  # of an axis, at most
MINUTE_S = 60
GAP_S = 5  # between two points of a line that is not broken, at most
RATE_INTERVAL = "15s"  # what Grafana would choose for a scrape each second, and a little calmer
COLOURS = ("#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#8ab8ff", "#96d98d")
NAMED = {
    "green": "#73bf69", "yellow": "#f2cc0c", "red": "#f2495c", "blue": "#5794f2", "text": "#9fa7b3",
}  # fmt: skip
STYLE = f"""
body {{ margin: 0; background: #111217; color: #ccccdc; font: 12px/1.3 system-ui, sans-serif; }}
main {{ position: relative; width: {WIDTH}px; }}
section {{ position: absolute; background: #181b1f; border: 1px solid #2b2f36; border-radius: 3px;
  box-sizing: border-box; overflow: hidden; }}
h2 {{ font-size: 13px; font-weight: 500; margin: 7px 10px 0; }}
.figure {{ font-size: 34px; font-weight: 500; text-align: center; line-height: 84px; }}
.none {{ text-align: center; padding-top: 70px; color: #9fa7b3; }}
svg {{ display: block; }} text {{ fill: #9fa7b3; font-size: 11px; }}
"""

Points = list[tuple[float, float]]  # seconds, value


class Series(NamedTuple):
    """What one line, or one band, shows."""

    name: str
    points: Points


def page(board: Path, query: Callable[[str, bool], list[dict[str, Any]]], span: float) -> str:
    """Return the dashboard as HTML.

    ``query(PromQL, instant)`` returns Prometheus's ``result``; graphs go back for ``span`` seconds.
    """
    panels = json.loads(board.read_text())["panels"]
    bottom = max(each["gridPos"]["y"] + each["gridPos"]["h"] for each in panels) * ROW + GAP
    shown = "".join(_section(each, query, span) for each in panels)
    main = f'<main style="height: {bottom}px">{shown}</main>'
    return f"<!doctype html><meta charset=utf-8><style>{STYLE}</style>{main}"


def _section(
    panel: dict[str, Any], query: Callable[[str, bool], list[dict[str, Any]]], span: float
) -> str:
    place, unit = panel["gridPos"], (WIDTH - GAP) / COLUMNS
    width, height = place["w"] * unit - GAP, place["h"] * ROW - GAP
    series = [
        Series(_name(target, found, panel["title"]), _points(found))
        for target in panel["targets"]
        for found in query(_filled(target["expr"]), bool(target.get("instant")))
    ]
    series = [each for each in series if each.points]
    draw = {"stat": _figure, "timeseries": _graph, "state-timeline": _bands}[panel["type"]]
    none = panel["fieldConfig"]["defaults"].get("noValue", "none")
    inside = draw(panel, series, width, height - TITLE, span) if series else ""
    if not inside:
        kind = "figure" if panel["type"] == "stat" else "none"
        inside = f'<div class="{kind}">{html.escape(none)}</div>'
    at = f"left: {place['x'] * unit + GAP}px; top: {place['y'] * ROW + GAP}px"
    title = html.escape(panel["title"])
    size = f"width: {width}px; height: {height}px"
    return f'<section style="{at}; {size}"><h2>{title}</h2>{inside}</section>'


def _filled(expr: str) -> str:
    return expr.replace("$__rate_interval", RATE_INTERVAL).replace("$instance", ".*")


def _name(target: dict[str, Any], found: dict[str, Any], title: str) -> str:
    legend = target.get("legendFormat", "__auto")
    if legend == "__auto":
        return title
    return re.sub(r"{{(\w+)}}", lambda m: found["metric"].get(m[1], ""), legend).strip()


def _points(found: dict[str, Any]) -> Points:
    values = found.get("values") or [found["value"]]
    points = [(float(at), float(value)) for at, value in values]
    return [(at, value) for at, value in points if math.isfinite(value)]


def shown(value: float, unit: str, decimals: int = 1) -> str:
    """Return a value with its unit, as Grafana shows it."""
    if unit == "percentunit":
        return f"{100 * value:.{decimals}f}%"
    if unit == "s":
        if value < 1:
            return f"{1000 * value:.0f} ms"
        return (
            f"{value:.{decimals}f} s"
            if value < MINUTE_S
            else f"{value / MINUTE_S:.{decimals}f} min"
        )
    suffix = unit.removeprefix("suffix:") if unit.startswith("suffix:") else ""
    return f"{value:.{decimals}f}".removesuffix(".0") + suffix


def _colour(defaults: dict[str, Any], value: float) -> str:
    steps = defaults["thresholds"]["steps"]
    passed = [each["color"] for each in steps if each["value"] is None or value >= each["value"]]
    return NAMED.get(passed[-1], passed[-1])


def _mapped(defaults: dict[str, Any], value: float) -> tuple[str, str] | None:
    for mapping in defaults.get("mappings", ()):
        if option := mapping["options"].get(f"{value:g}"):
            return option["text"], NAMED.get(option["color"], option["color"])
    return None


def _figure(
    panel: dict[str, Any], series: Sequence[Series], width: float, height: float, span: float
) -> str:
    del width, height, span
    defaults = panel["fieldConfig"]["defaults"]
    value = series[0].points[-1][1]
    text = shown(value, defaults.get("unit", ""), defaults.get("decimals", 0))
    text, colour = _mapped(defaults, value) or (text, _colour(defaults, value))
    return f'<div class="figure" style="color: {colour}">{html.escape(text)}</div>'


def _graph(
    panel: dict[str, Any], series: Sequence[Series], width: float, height: float, span: float
) -> str:
    defaults = panel["fieldConfig"]["defaults"]
    custom = defaults.get("custom", {})
    log = custom.get("scaleDistribution", {}).get("type") == "log"
    stacked = custom.get("stacking", {}).get("mode") == "normal"
    drawn = _stacked(series) if stacked else list(series)
    values = [value for each in drawn for _, value in each.points]
    low, high = _range(values, log=log)
    end = max(at for each in drawn for at, _ in each.points)
    across, up = width - LEFT - 10, height - LEGEND - BOTTOM

    def x(at: float) -> float:
        return LEFT + across * (1 - (end - at) / span)

    def y(value: float) -> float:
        if log:
            share = math.log(max(value, low) / low) / math.log(high / low)
        else:
            share = (value - low) / (high - low)
        return 4 + up * (1 - min(max(share, 0), 1))

    parts = []
    for tick in _ticks(low, high, log=log):
        parts.append(_line(LEFT, y(tick), width - 10, y(tick), "#2b2f36"))
        text = shown(tick, defaults.get("unit", ""), 0 if tick == int(tick) else 1)
        parts.append(f'<text x="{LEFT - 6}" y="{y(tick) + 4}" text-anchor="end">{text}</text>')
    for minutes in range(int(span // MINUTE_S) + 1):
        at = end - MINUTE_S * minutes
        text = f"-{minutes} min" if minutes else "now"
        anchor = "middle" if minutes else "end"
        where = f'x="{x(at)}" y="{up + 18}" text-anchor="{anchor}"'
        parts.append(f"<text {where}>{text}</text>")
    for number, each in reversed(list(enumerate(drawn))):
        colour = COLOURS[number % len(COLOURS)]
        for points in _unbroken(each.points):
            path = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in points)
            if stacked:
                first, last = x(points[0][0]), x(points[-1][0])
                corners = f"{first:.1f},{4 + up} {path} {last:.1f},{4 + up}"
                parts.append(f'<polygon points="{corners}" fill="{colour}" fill-opacity="0.3"/>')
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}"/>')
    parts += _limits(defaults, y, width, low, high)
    return _svg(width, height, [*parts, *_legend([each.name for each in drawn], width, height)])


def _stacked(series: Sequence[Series]) -> list[Series]:
    """Return each series on top of those before it; where one has no value it counts as nothing."""
    below: dict[float, float] = {}
    stacked = []
    for each in series:
        points = [(at, value + below.get(at, 0.0)) for at, value in each.points]
        below |= dict(points)
        stacked.append(Series(each.name, points))
    return stacked


def _unbroken(points: Points) -> list[Points]:
    """Return the stretches between which Prometheus had no value."""
    stretches = [points[:1]]
    for before, point in pairwise(points):
        if point[0] - before[0] > GAP_S:
            stretches.append([])
        stretches[-1].append(point)
    return stretches


def _range(values: Iterable[float], *, log: bool) -> tuple[float, float]:
    values = list(values)
    if log:
        low = 10 ** math.floor(math.log10(max(min(values), 1e-3)))
        return low, max(10 ** math.ceil(math.log10(max(*values, 2 * low))), 10 * low)
    return 0.0, max(values) * 1.1 or 1.0


def _ticks(low: float, high: float, *, log: bool) -> list[float]:
    if log:
        count = round(math.log10(high / low))
        return [low * 10**number for number in range(count + 1)]
    step = 10 ** math.floor(math.log10(high))
    step = next(each for each in (step / 5, step / 2, step, 2 * step) if high / each <= TICKS)
    return [step * number for number in range(int(high / step) + 1)]


def _limits(
    defaults: dict[str, Any], y: Callable[[float], float], width: float, low: float, high: float
) -> list[str]:
    if defaults.get("custom", {}).get("thresholdsStyle", {}).get("mode") != "dashed":
        return []
    limits = [each["value"] for each in defaults["thresholds"]["steps"] if each["value"]]
    return [
        _line(LEFT, y(each), width - 10, y(each), NAMED["red"], "6 4")
        for each in limits
        if low <= each <= high
    ]


def _bands(
    panel: dict[str, Any], series: Sequence[Series], width: float, height: float, span: float
) -> str:
    defaults = panel["fieldConfig"]["defaults"]
    left = 8 + 7 * max(len(each.name) for each in series)
    row = min((height - BOTTOM) / len(series), 44.0)
    end = max(at for each in series for at, _ in each.points)
    parts = []
    for number, each in enumerate(series):
        top = 4 + row * number
        middle = top + row / 2 + 4
        parts.append(
            f'<text x="{left - 6}" y="{middle}" text-anchor="end">{html.escape(each.name)}</text>'
        )
        for began, ended, value in _runs(each.points):
            text, colour = _mapped(defaults, value) or (f"{value:g}", _colour(defaults, value))
            start = max(left, left + (width - left - 10) * (1 - (end - began) / span))
            size = max((width - left - 10) * (ended - began) / span, 2)
            box = f'x="{start:.1f}" y="{top + row * 0.1:.1f}" height="{row * 0.8:.1f}"'
            parts.append(f'<rect {box} width="{size:.1f}" fill="{colour}" fill-opacity="0.7"/>')
            parts.append(
                f'<text x="{start + 6:.1f}" y="{middle:.1f}" style="fill: #fff">{text}</text>'
            )
    return _svg(width, height, parts)


def _runs(points: Points) -> list[tuple[float, float, float]]:
    """Return from when until when which value stood."""
    runs: list[tuple[float, float, float]] = []
    for at, value in points:
        if runs and runs[-1][2] == value:
            runs[-1] = (runs[-1][0], at, value)
        else:
            runs.append((at, at, value))
    return runs


def _legend(names: Sequence[str], width: float, height: float) -> list[str]:
    parts, left = [], 12.0
    letter = min(6.2, (width - left - 32 * len(names)) / sum(map(len, names)))  # pixels
    for number, name in enumerate(names):
        colour = COLOURS[number % len(COLOURS)]
        y = height - 8
        parts.append(_line(left, y - 4, left + 12, y - 4, colour, width=3))
        size = f"font-size: {11 * letter / 6.2:.1f}px"
        parts.append(f'<text x="{left + 17}" y="{y}" style="{size}">{html.escape(name)}</text>')
        left += 32 + letter * len(name)
    return parts


def _line(  # noqa: PLR0913, PLR0917 - two points and how it looks
    x1: float, y1: float, x2: float, y2: float, colour: str, dashes: str = "", width: int = 1
) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{width}" stroke-dasharray="{dashes}"/>'


def _svg(width: float, height: float, parts: Iterable[str]) -> str:
    return f'<svg width="{width:.0f}" height="{height:.0f}">{"".join(parts)}</svg>'
