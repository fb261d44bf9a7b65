"""How encoders compare on clips that none of them was trained on, and how certain that is.

Every system ranks the same clips for the same queries, on slices: ``all``; ``without metadata``, no
item has any; ``half blanked``, half of the items have none; ``paraphrases``, queries of that kind;
and ``from X``, queries for sounds of the collection X. Only the first three change the items.

Queries for one sound stand and fall together, so that identities are resampled, not queries. An
interval tells what other sounds might have given; what other seeds would have, ``spread`` tells.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import ConfigurationError
from audiofuse.core.evaluation.clips import Clip, Query
from audiofuse.core.evaluation.evaluation import (
    AUDIO,
    CUTOFF,
    HYBRID,
    RECALLS,
    Gallery,
    QueryScores,
    Relevance,
    blank_metadata,
    judge,
)
from audiofuse.core.evaluation.intervals import Estimate, estimate

ALL, WITHOUT, HALF, PARAPHRASES = "all", "without metadata", "half blanked", "paraphrases"
PARAPHRASE = "paraphrase"  # the kind of a query that shares no word with the title
BLANKED_SHARE, BLANKING_SEEDS = 0.5, (0, 1, 2)


@dataclass(frozen=True)
class System:
    """An encoder and its embeddings of the clips to find."""

    encoder: Encoder
    gallery: Gallery


@dataclass(frozen=True)
class Slice:
    """Some queries under one condition.

    ``identities`` has that of each query; ``scores`` are by system and by what was ranked;
    ``random`` is what rankings by chance are expected to score.
    """

    identities: list[str]
    scores: dict[str, dict[str, QueryScores]]
    random: QueryScores

    def estimate(self, system: str, ranked: str = HYBRID) -> Estimate:
        """Return a system's mAP@10."""
        return estimate(self.identities, self.scores[system][ranked].average_precision)

    def compare(self, system: str, other: str) -> Estimate:
        """Return by how much a system's hybrid mAP@10 exceeds another's, query by query."""
        ours, theirs = (self.scores[name][HYBRID].average_precision for name in (system, other))
        return estimate(self.identities, ours - theirs)

    def as_dict(self) -> dict[str, Any]:
        """Return the means and intervals for JSON."""
        systems = {
            system: {ranked: self._row(system, ranked) for ranked in rows}
            for system, rows in self.scores.items()
        }
        return {
            "queries": len(self.identities),
            "identities": len(set(self.identities)),
            "random": self.random.mean().as_dict(),
            "systems": systems,
        }

    def _row(self, system: str, ranked: str) -> dict[str, Any]:
        estimate = self.estimate(system, ranked)
        interval = {f"mAP@{CUTOFF} interval": [estimate.low, estimate.high]}
        return self.scores[system][ranked].mean().as_dict() | interval


@dataclass(frozen=True)
class Assessment:
    """What ``assess`` found: slices by name, of these queries to so many clips."""

    queries: list[Query]
    clips: int
    slices: dict[str, Slice]

    @property
    def systems(self) -> list[str]:
        """Their names, in the order in which they were given."""
        return list(self.slices[ALL].scores)

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        slices = {name: each.as_dict() for name, each in self.slices.items()}
        return {"clips": self.clips, "slices": slices}


def assess(systems: Mapping[str, System], queries: Sequence[Query]) -> Assessment:
    """Have every system rank the same clips, all that were decoded, for the same queries.

    Raises ``ConfigurationError`` when there is no query, a query means no clip of these, or
    the systems have embedded different clips.
    """
    clips, *others = (system.gallery.clips for system in systems.values())
    if any(other != clips for other in others):
        raise ConfigurationError("the systems have not embedded the same clips")
    if not queries:
        raise ConfigurationError("there is no query to ask")
    random = by_chance(Relevance.of(queries, clips))
    judged = {name: _judge(system, queries) for name, system in systems.items()}
    slices = {
        name: Slice(
            [queries[row].identity for row in rows],
            {system: _select(scores[condition], rows) for system, scores in judged.items()},
            random.select(rows),
        )
        for name, (condition, rows) in _parts(queries, clips).items()
    }
    return Assessment(list(queries), len(clips), slices)


def _judge(system: System, queries: Sequence[Query]) -> dict[str, dict[str, QueryScores]]:
    """Return a system's scores by condition and by what was ranked."""
    encoder, gallery = system.encoder, system.gallery
    plain = judge(encoder, gallery, queries)
    galleries = [blank_metadata(gallery, BLANKED_SHARE, seed) for seed in BLANKING_SEEDS]
    blanked = [judge(encoder, each, queries) for each in galleries]
    return {
        ALL: plain,
        # An item without metadata is what ``audio only`` ranks, and metadata alone ranks nothing.
        WITHOUT: {AUDIO: plain[AUDIO], HYBRID: plain[AUDIO]},
        HALF: {ranked: QueryScores.average([each[ranked] for each in blanked]) for ranked in plain},
    }


def _parts(queries: Sequence[Query], clips: Sequence[Clip]) -> dict[str, tuple[str, list[int]]]:
    """Return for each slice its condition and the rows of its queries."""
    every = list(range(len(queries)))
    parts = {PARAPHRASES: [row for row in every if queries[row].kind == PARAPHRASE]}
    for collection in sorted({clip.collection for clip in clips} - {""}):
        held = {clip.identity for clip in clips if clip.collection == collection}
        parts[f"from {collection}"] = [row for row in every if queries[row].identity in held]
    return {condition: (condition, every) for condition in (ALL, WITHOUT, HALF)} | {
        name: (ALL, rows)
        for name, rows in parts.items()
        if 0 < len(rows) < len(every)  # else it is no slice, or all queries once more
    }


def _select(scores: Mapping[str, QueryScores], rows: Sequence[int]) -> dict[str, QueryScores]:
    return {ranked: each.select(rows) for ranked, each in scores.items()}


def by_chance(relevant: Relevance) -> QueryScores:
    """Return what rankings by chance are expected to score: exactly, so without any seed.

    Only the number of relevant items counts, so that the sums are made once for each number.
    """
    items = len(relevant.clips)
    numbers, row_of = torch.unique(relevant.counts, return_inverse=True)
    wanted, before = numbers.double()[:, None], torch.arange(items, dtype=torch.double)
    # If the item at a rank is relevant, those before it are with (wanted - 1) / (items - 1).
    precision = (1 + before * (wanted - 1) / max(items - 1, 1)) / (before + 1)
    none = (1 - wanted / (items - before)).clamp(min=0).cumprod(1)  # is relevant up to a rank
    first = -none.diff(prepend=torch.ones_like(wanted))
    scores = QueryScores(
        (precision[:, :CUTOFF] * wanted / items).sum(1) / wanted[:, 0].clamp(max=CUTOFF),
        (first / (before + 1)).sum(1),
        {k: torch.full_like(wanted[:, 0], min(k, items) / items) for k in RECALLS},
    )
    return scores.select(row_of.tolist())


def compare(assessment: Assessment, system: str, other: str) -> dict[str, Estimate]:
    """Return, for each slice, by how much a system's hybrid mAP@10 exceeds another's."""
    return {name: each.compare(system, other) for name, each in assessment.slices.items()}


def spread(assessments: Sequence[Assessment]) -> dict[str, Any]:
    """Return mean and deviation over several seeds: by slice, system, what was ranked and metric.

    The deviation is the standard one of a sample, so that at least two are needed. Raises
    ``ConfigurationError`` when the assessments differ in slices or systems.
    """
    return _spread([_means(assessment) for assessment in assessments])  # type: ignore[no-any-return]


def _means(assessment: Assessment) -> dict[str, Any]:
    return {
        name: {
            system: {ranked: scores.mean().as_dict() for ranked, scores in rows.items()}
            for system, rows in each.scores.items()
        }
        for name, each in assessment.slices.items()
    }


def _spread(values: Sequence[Any]) -> Any:
    """Join dictionaries of one shape into one whose values are means and deviations."""
    first = values[0]
    if not isinstance(first, dict):
        return {"mean": statistics.fmean(values), "deviation": statistics.stdev(values)}
    if other := next((value for value in values if value.keys() != first.keys()), None):
        raise ConfigurationError(f"assessments of different shape: {[*first]} and {[*other]}")
    return {name: _spread([value[name] for value in values]) for name in first}
