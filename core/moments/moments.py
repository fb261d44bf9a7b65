"""From the scores of a recording's windows to its moments: the best, joined with neighbours."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from audiofuse.core.encoder.embeddings import Floats

MOST = 3  # moments of one recording; more are seldom looked at

Spans = NDArray[np.float64]  # ``(windows, 2)``: start and end in seconds, in order of start


@dataclass(frozen=True)
class Moment:
    """A part of a recording, in seconds from its beginning, with the score of its best window."""

    start_s: float
    end_s: float
    score: float


def best_moments(spans: Spans, scores: Floats, slack: float, most: int = MOST) -> list[Moment]:
    """Return at most ``most`` moments that do not overlap, best first.

    ``scores`` is float ``(windows,)``, the cosines of some or all windows to a question. A moment
    is the best window that is left, with the unbroken run of windows around it that score at most
    ``slack`` less. Windows are neighbours if one begins before or as the other ends, so that a gap
    where windows are not given ends a moment. Of equal scores the earlier is better.
    """
    left = np.ones(len(scores), np.bool_)
    moments: list[Moment] = []
    while left.any() and len(moments) < most:
        best = int(np.where(left, scores, -np.inf).argmax())
        fits = left & (scores >= scores[best] - slack)
        first, last = best, best
        while first > 0 and fits[first - 1] and spans[first, 0] <= spans[first - 1, 1]:
            first -= 1
        while last + 1 < len(fits) and fits[last + 1] and spans[last + 1, 0] <= spans[last, 1]:
            last += 1
        start, end = float(spans[first, 0]), float(spans[last, 1])
        moments.append(Moment(start, end, float(scores[best])))
        left &= (spans[:, 1] <= start) | (spans[:, 0] >= end)
    return moments
