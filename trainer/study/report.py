"""The report of a training: one HTML page that needs nothing else, with charts and sounds inside.

It has no script and lets the browser load nothing. Whatever words come from clips, queries and
callers are escaped.
"""

import base64
import io
import json
import math
import wave
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from torch import Tensor
from torchaudio.functional import resample

from audiofuse.core.audio.recording import open_recording
from audiofuse.core.audio.windows import SAMPLE_RATE
from audiofuse.core.errors import Rejected
from audiofuse.core.evaluation.clips import Clip, Query
from audiofuse.core.evaluation.evaluation import (
    HYBRID,
    MAX_DURATION_S,
    encode_queries,
    item_vectors,
)
from audiofuse.core.evaluation.intervals import Estimate
from audiofuse.trainer.study.assessment import ALL, Assessment, System, compare

EXAMPLES, RESULTS = 12, 3
WAV_HZ, WAV_S = 16_000, 5  # at most 214 kB a sound, in base64, and 11 MB a page
FULL_SCALE = 32767
MAP_ITEMS, MAP_QUERIES = 800, 400  # time grows with the square: a busy CPU places 1,800 in 1 min
COLOURS = 8  # as many as can be told apart; the last is for all the rest
NEIGHBOURS, STEPS, EXAGGERATION = 30, 500, 12  # of t-SNE, as usual
START_SIZE, BISECTIONS = 0.01, 50
CHART_WIDTH, CHART_HEIGHT, MAP_SIZE = 240, 90, 100


@dataclass(frozen=True)
class Story:
    """What a page is about: the first system of the assessment, compared with the others.

    ``shown`` is that system; ``log`` is its run's ``log.jsonl``, if it was trained; ``facts`` are
    what else a reader should know by name, such as data and options.
    """

    title: str
    assessment: Assessment
    shown: System
    log: Path | None = None
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """How the first system compares with another, by slice; ``values`` are mAP@10 on all queries.

    Those are the first system's and the other's.
    """

    other: str
    values: tuple[float, float]
    slices: dict[str, Estimate]

    @property
    def overall(self) -> Estimate:
        """The difference on all queries."""
        return self.slices[ALL]

    @property
    def reach(self) -> float:
        """How far from 0 the intervals go."""
        return (
            max(abs(end) for each in self.slices.values() for end in (each.low, each.high)) or 1.0
        )

    @property
    def groups(self) -> dict[str, list[str]]:
        """The slices by what can be concluded on them."""
        verdicts = dict.fromkeys(each.verdict for each in self.slices.values())
        return {
            verdict: [name for name, each in self.slices.items() if each.verdict == verdict]
            for verdict in verdicts
        }


@dataclass(frozen=True)
class Chart:
    """A number by epoch; ``points`` are x, y and what to say of them, the rest is written on it."""

    name: str
    points: list[tuple[float, float, str]]
    first: float
    last: float
    low: float
    high: float
    epochs: int


@dataclass(frozen=True)
class Result:
    """A clip and its rank for a query; the sound is a data URL, "" when it is gone."""

    rank: int
    title: str
    identity: str
    right: bool
    sound: str


@dataclass(frozen=True)
class Example:
    """A query, the rank of its first right clip in each system, and what the first system found."""

    text: str
    ranks: dict[str, int]
    results: list[Result]


@dataclass(frozen=True)
class Point:
    """A circle on the map: its centre, the number of its colour, what it is."""

    x: float
    y: float
    colour: int
    name: str


@dataclass(frozen=True)
class Map:
    """Items and queries in two dimensions; ``colours`` are named, with how many items have them."""

    items: list[Point]
    queries: list[Point]
    colours: list[tuple[str, int]]


def write_report(out: Path, story: Story) -> None:
    """Write the page to the file ``out``."""
    environment = Environment(
        loader=FileSystemLoader(Path(str(files("audiofuse.trainer.study"))) / "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    assessment, system = story.assessment, story.shown
    texts = [clip.metadata.text for clip in system.gallery.clips]
    items = item_vectors(system.encoder, system.gallery, texts)
    asked = encode_queries(system.encoder, assessment.queries)
    page = environment.get_template("report.html.j2").render(
        story=story,
        ours=assessment.systems[0],
        verdicts=[_verdict(assessment, other) for other in assessment.systems[1:]],
        slices=assessment.as_dict()["slices"],
        charts=_charts(story.log) if story.log else [],
        examples=_examples(story, asked, items),
        map=_map(story, asked, items),
        chart_size=(CHART_WIDTH, CHART_HEIGHT),
    )
    out.write_text(page, encoding="utf-8", errors="replace")  # a file's name may be no UTF-8


def _verdict(assessment: Assessment, other: str) -> Verdict:
    everything, ours = assessment.slices[ALL], assessment.systems[0]
    values = everything.estimate(ours).value, everything.estimate(other).value
    return Verdict(other, values, compare(assessment, ours, other))


# Training


def _charts(log: Path) -> list[Chart]:
    """Chart each number of a run's log; what is not finite has no place on a chart."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    names = dict.fromkeys(name for line in lines for name in line if name != "epoch")
    series = {
        name: [
            (line["epoch"], line[name]) for line in lines if math.isfinite(line.get(name, math.nan))
        ]
        for name in names
    }
    return [_chart(name, points) for name, points in series.items() if points]


def _chart(name: str, series: Sequence[tuple[int, float]]) -> Chart:
    epochs, values = [epoch for epoch, _ in series], [value for _, value in series]
    across, down = _scaled(epochs, CHART_WIDTH), _scaled(values, CHART_HEIGHT)
    points = [
        (x, CHART_HEIGHT - y, f"epoch {epoch}: {value:.4g}")
        for x, y, (epoch, value) in zip(across, down, series, strict=True)
    ]
    return Chart(
        name, points, values[0], values[-1], low=min(values), high=max(values), epochs=epochs[-1]
    )


def _scaled(values: Sequence[float], size: int) -> list[float]:
    """Spread values over 0 to ``size``, or put them in the middle if they are all the same."""
    low, high = min(values), max(values)
    span = high - low
    return [round(size * (value - low) / span if span else size / 2, 2) for value in values]


# Hits and misses


def _examples(story: Story, asked: Tensor, items: Tensor) -> dict[str, list[Example]]:
    """Return the queries whose first right clip is ranked best and worst, of different sounds."""
    queries, clips = story.assessment.queries, story.shown.gallery.clips
    scores = story.assessment.slices[ALL].scores
    ranks = {
        system: [round(1 / rank) for rank in each[HYBRID].reciprocal_rank.tolist()]
        for system, each in scores.items()
    }
    ours = ranks[story.assessment.systems[0]]
    by_rank = sorted(range(len(queries)), key=ours.__getitem__)
    best = _of_different_sounds(by_rank, queries)
    worst = _of_different_sounds([row for row in by_rank[::-1] if row not in best], queries)

    def example(row: int) -> Example:
        query = queries[row]
        order = (items @ asked[row]).argsort(descending=True, stable=True).tolist()
        results = [(rank, clips[number]) for rank, number in enumerate(order, 1)]
        right = next(rank for rank, clip in results if clip.identity == query.identity)
        return Example(
            query.text,
            {system: each[row] for system, each in ranks.items()},
            [
                _result(rank, clip, query)
                for rank, clip in results
                if rank <= RESULTS or rank == right
            ],
        )

    return {
        "Found best": [example(row) for row in best],
        "Found worst": [example(row) for row in worst],
    }


def _of_different_sounds(rows: Sequence[int], queries: Sequence[Query]) -> list[int]:
    """Return the first rows that mean different sounds, for half of the examples."""
    first: dict[str, int] = {}
    for row in rows:
        first.setdefault(queries[row].identity, row)
    return list(first.values())[: EXAMPLES // 2]


def _result(rank: int, clip: Clip, query: Query) -> Result:
    right = clip.identity == query.identity
    return Result(rank, _title(clip), clip.identity, right, _sound(clip.path))


def _title(clip: Clip) -> str:
    return clip.metadata.title or clip.path.name


def _sound(path: Path) -> str:
    """Return a sound's beginning as a data URL of mono 16-bit WAV; "" when it is gone."""
    try:
        with open_recording(path, MAX_DURATION_S) as recording:
            window = next(recording.windows())
    except (OSError, Rejected):
        return ""
    beginning = torch.from_numpy(window[: WAV_S * SAMPLE_RATE])
    samples = resample(beginning, SAMPLE_RATE, WAV_HZ).clamp(-1, 1) * FULL_SCALE
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(WAV_HZ)
        writer.writeframes(samples.round().numpy().astype("<i2").tobytes())
    return "data:audio/wav;base64," + base64.b64encode(file.getvalue()).decode()


# The map


def _map(story: Story, asked: Tensor, items: Tensor) -> Map:
    clips, queries = story.shown.gallery.clips, story.assessment.queries
    clip_rows, query_rows = _thinned(len(clips), MAP_ITEMS), _thinned(len(queries), MAP_QUERIES)
    places = place_in_plane(torch.cat([items[clip_rows], asked[query_rows]]))
    across, down = (_scaled(axis.tolist(), MAP_SIZE) for axis in places.T)
    groups = _groups(clips)
    colours = Counter(groups[clips[row].identity] for row in clip_rows).most_common()
    numbers = {name: min(n, COLOURS - 1) for n, (name, _) in enumerate(colours)}
    named = [
        (clips[row].identity, f"{_title(clips[row])} ({clips[row].identity})") for row in clip_rows
    ] + [(queries[row].identity, queries[row].text) for row in query_rows]
    points = [
        Point(x, y, numbers.get(groups[identity], COLOURS - 1), name)
        for x, y, (identity, name) in zip(across, down, named, strict=True)
    ]
    rest = sum(count for _, count in colours[COLOURS - 1 :])
    if len(colours) > COLOURS:
        colours[COLOURS - 1 :] = [("other", rest)]
    return Map(points[: len(clip_rows)], points[len(clip_rows) :], colours)


def _thinned(count: int, most: int) -> list[int]:
    """Return evenly spread rows, at most ``most``."""
    return list(range(0, count, -(-count // most)))


def _groups(clips: Sequence[Clip]) -> dict[str, str]:
    """Return for each identity what it is coloured by: collections, or labels if there is one."""
    if len({clip.collection for clip in clips}) > 1:
        return {clip.identity: clip.collection or "no collection" for clip in clips}
    counts = Counter(label for clip in clips for label in clip.metadata.labels)
    return {
        clip.identity: max(clip.metadata.labels, key=counts.__getitem__, default="no label")
        for clip in clips
    }


def place_in_plane(vectors: Tensor) -> Tensor:
    """Place ``(points, dim)`` in the plane, neighbours near each other: ``(points, 2)``, by t-SNE.

    It begins with the two main axes, which alone show little: they held .17 of the variance of the
    starting encoder's vectors. Nothing is random. Time grows with the square of the points.
    """
    attraction = _affinities(vectors, min(NEIGHBOURS, max(1, (len(vectors) - 1) / 3)))
    centred = vectors - vectors.mean(0)
    places: Tensor = centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:2].T
    places *= START_SIZE / places.std().clamp(min=1e-12)
    moves = torch.zeros_like(places)
    for step in range(STEPS):
        early = step < STEPS // 4
        near = 1 / (1 + torch.cdist(places, places).square())
        near.fill_diagonal_(0)
        pull = ((EXAGGERATION if early else 1) * attraction - near / near.sum()) * near
        gradient = 4 * (pull.sum(1, keepdim=True) * places - pull @ places)
        moves = (0.5 if early else 0.8) * moves - len(vectors) / EXAGGERATION * gradient
        places = places + moves
    return places


def _affinities(vectors: Tensor, neighbours: float) -> Tensor:
    """Return how much each two points belong together, ``(points, points)``, 1 in all.

    The width of each point's bell is searched for so that it has that many effective neighbours.
    """
    distances = torch.cdist(vectors, vectors).square().fill_diagonal_(torch.inf)
    distances = distances - distances.amin(1, keepdim=True)
    sharpness = torch.ones(len(vectors), 1)
    low, high = torch.zeros_like(sharpness), torch.full_like(sharpness, torch.inf)
    for _ in range(BISECTIONS):
        shares = (-distances * sharpness).softmax(1)
        wide = torch.special.entr(shares).sum(1, keepdim=True) > math.log(neighbours)
        low, high = torch.where(wide, sharpness, low), torch.where(wide, high, sharpness)
        sharpness = torch.where(high.isinf(), 2 * sharpness, (low + high) / 2)
    affinities: Tensor = (shares + shares.T) / (2 * len(vectors))
    return affinities
