"""How well moments are found: which recording, and where in it.

Two systems rank the same recordings for the same queries: by their items, as without moments, and
by the better of item and best moment. Moments are named over all recordings, best first, as a
search lists them; one is right if it overlaps, however little, a span that the query means.

R1@0.5 and R1@0.7 are those of moment retrieval (CASTELLA, DCASE 2026, QVHighlights): each query is
asked of the very recordings that it means, and the first moment counts if its overlap with one
relevant span is at least that share of both together (intersection over union).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audiofuse.core.audio.recording import open_recording
from audiofuse.core.encoder.embeddings import Floats, unit
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import ConfigurationError, Rejected
from audiofuse.core.evaluation.clips import Clip
from audiofuse.core.evaluation.evaluation import CUTOFF, ROWS_PER_BATCH, QueryScores, score
from audiofuse.core.evaluation.intervals import Estimate, estimate
from audiofuse.core.evaluation.timed import Span, TimedQuery
from audiofuse.core.model.config import Grid, MomentShape
from audiofuse.core.moments.hearing import Heard, hear
from audiofuse.core.moments.moments import Moment, best_moments

ITEMS, MOMENTS, GAIN = "items alone", "moments", "moments - items alone"
MAX_DURATION_S = 24 * 3600.0  # longer recordings are not evaluated, but listed
OVERLAPS = (1, 5)  # among so many moments one is right
SHARES = (0.5, 0.7)  # of R1@


@dataclass
class Recordings:
    """Recordings by name, heard once; those that cannot be heard are listed, not fatal."""

    heard: dict[str, Heard] = field(default_factory=dict)
    rejected: list[tuple[str, Exception]] = field(default_factory=list)


@dataclass(frozen=True)
class Localisation:
    """Scores of single queries, by system and metric: float64 ``(queries,)``, from 0 to 1."""

    identities: list[str]
    scores: dict[str, dict[str, Tensor]]

    def means(self) -> dict[str, dict[str, float]]:
        """Return the means over the queries."""
        return {
            system: {name: float(values.mean()) for name, values in metrics.items()}
            for system, metrics in self.scores.items()
        }

    def intervals(self) -> dict[str, Estimate]:
        """Return mAP@10 of both systems and of their difference, query by query (paired)."""
        name = f"mAP@{CUTOFF}"
        items, moments = (self.scores[system][name] for system in (ITEMS, MOMENTS))
        values = {ITEMS: items, MOMENTS: moments, GAIN: moments - items}
        return {system: estimate(self.identities, each) for system, each in values.items()}

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        intervals = {name: [each.low, each.high] for name, each in self.intervals().items()}
        return {
            "queries": len(self.identities),
            "identities": len(set(self.identities)),
            "metrics": self.means(),
            f"mAP@{CUTOFF} intervals": intervals,
        }


def hear_recordings(
    encoder: Encoder, recordings: Iterable[tuple[str, Clip]], grid: Grid
) -> Recordings:
    """Decode and encode every recording once; memory does not grow with a recording's length."""
    found = Recordings()
    for name, clip in recordings:
        try:
            with open_recording(clip.path, MAX_DURATION_S) as recording:
                heard = hear(encoder, recording.windows(), clip.metadata.text, grid)
        except (Rejected, FileNotFoundError) as error:
            found.rejected.append((name, error))
        else:
            found.heard[name] = heard
    return found


def localise(
    encoder: Encoder,
    recordings: Recordings,
    queries: Sequence[TimedQuery],
    slack: float = MomentShape().slack,
) -> Localisation:
    """Score both systems on the queries for recordings that were heard.

    Others are left out. Raises ``ConfigurationError`` when no query is left.
    """
    held = recordings.heard
    asked = [query for query in queries if any(span.audio in held for span in query.relevant)]
    if not asked:
        raise ConfigurationError("no query means a recording that could be heard")
    vectors = _encode([query.text for query in asked], encoder)
    names = list(held)
    items = np.nan_to_num(vectors @ np.stack([held[name].item for name in names]).T)
    found = [
        _Found.of(query, items[row], vectors[row], held, slack) for row, query in enumerate(asked)
    ]
    relevant = torch.tensor(
        [[name in {span.audio for span in query.relevant} for name in names] for query in asked]
    )
    best = torch.tensor([each.recordings for each in found])
    ranked = {ITEMS: score(torch.from_numpy(items), relevant), MOMENTS: score(best, relevant)}
    scores = {system: _columns(each) for system, each in ranked.items()}
    scores[MOMENTS] |= {
        f"overlap@{k}": torch.tensor([each.overlaps(k) for each in found], dtype=torch.double)
        for k in OVERLAPS
    } | {
        f"R1@{share}": torch.tensor([each.located(share) for each in found], dtype=torch.double)
        for share in SHARES
    }
    return Localisation([query.identity for query in asked], scores)


@dataclass(frozen=True)
class _Found:
    """What was found for one query: each recording's score, and its moments by name."""

    relevant: tuple[Span, ...]
    recordings: list[float]
    moments: dict[str, list[Moment]]

    @classmethod
    def of(
        cls,
        query: TimedQuery,
        items: Floats,
        vector: Floats,
        held: dict[str, Heard],
        slack: float,
    ) -> "_Found":
        moments = {
            name: _moments(each, float(item), vector, slack)
            for (name, each), item in zip(held.items(), items, strict=True)
        }
        best = [
            max(float(item), each[0].score)
            for item, each in zip(items, moments.values(), strict=True)
        ]
        return cls(query.relevant, best, moments)

    def overlaps(self, k: int) -> bool:
        """Whether one of the first ``k`` moments of all recordings overlaps a relevant span."""
        every = [(name, each) for name, own in self.moments.items() for each in own]
        first = sorted(every, key=lambda found: -found[1].score)[:k]
        return any(self._share(name, moment) > 0 for name, moment in first)

    def located(self, share: float) -> float:
        """Return in how many of the recordings that are meant the first moment fits so well."""
        meant = {span.audio for span in self.relevant} & set(self.moments)
        fits = [self._share(name, self.moments[name][0]) >= share for name in meant]
        return sum(fits) / len(fits)

    def _share(self, name: str, moment: Moment) -> float:
        spans = [span for span in self.relevant if span.audio == name]
        return max((intersection_over_union(moment, span) for span in spans), default=0.0)


def intersection_over_union(moment: Moment, span: Span) -> float:
    """Return how much of both together they have in common, 0 to 1."""
    common = min(moment.end_s, span.end_s) - max(moment.start_s, span.start_s)
    together = max(moment.end_s, span.end_s) - min(moment.start_s, span.start_s)
    return max(0.0, common) / together


def _moments(heard: Heard, item: float, vector: Floats, slack: float) -> list[Moment]:
    """Return a recording's moments, at least one: of one that has no windows it is the whole."""
    if not len(heard.spans):
        return [Moment(0.0, heard.duration_s, item)]
    return best_moments(heard.spans, heard.vectors @ vector, slack)


def _encode(texts: Sequence[str], encoder: Encoder) -> Floats:
    starts = range(0, len(texts), ROWS_PER_BATCH)
    batches = [encoder.encode_text(texts[start : start + ROWS_PER_BATCH]) for start in starts]
    return unit(np.concatenate(batches))


def _columns(scores: QueryScores) -> dict[str, Tensor]:
    recalls = {f"R@{k}": scores.recall[k] for k in OVERLAPS}
    return {f"mAP@{scores.cutoff}": scores.average_precision} | recalls
