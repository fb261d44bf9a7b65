"""What scores of the new version mean: fitted on what chose how far to go, checked on what judges.

No turn has learned from either part of it. A question that judges one turn has chosen in another:
so what is said of it there is told by curves that are fitted without that.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from audiofuse.core.errors import ConfigurationError
from audiofuse.trainer.improvement.heads import VIEWS
from audiofuse.trainer.improvement.judging import Ranked, selected
from audiofuse.trainer.improvement.turns import Kind
from audiofuse.trainer.training.calibration import (
    BLANKED,
    Calibration,
    Hits,
    checked,
    fit_relevance,
)

# Expected calibration error on what was sealed, less its bias, beyond which nothing is claimed.
# More claims more often, and less truly.
MOST_OFF = 0.05
FITTED_ON = "listeners' questions that chose how far to learn"
CHECKED_ON = "those that were sealed, by curves fitted without them"


def calibration_of(
    choosing: Sequence[Ranked], sealed: Sequence[Ranked], present: Tensor
) -> Calibration:
    """Return what new scores mean, by what was ranked in each turn, in their order.

    ``present`` tells which sounds of the archive have words. Only listeners' questions count: the
    archive's own words are in its items, and general sentences taught the encoder to begin with.
    Raises ``ConfigurationError`` where they are too few, or it is off by more than ``MOST_OFF``.
    """
    fitting, checking = (_asked(turns) for turns in (choosing, sealed))
    if not checking:
        raise ConfigurationError("no listeners' questions to calibrate by")
    relevance = fit_relevance(_together([_hits(each, present) for each in fitting]))
    hits, told, below = [], [], []
    for each in checking:
        fold = fit_relevance(
            _together([_hits(other, present) for other in _without(each, fitting)])
        )
        hits.append(_hits(each, present))
        told.append(hits[-1].told(fold))
        below.append(np.full(len(told[-1]), fold.nothing_below))
    found = checked(relevance, _together(hits), np.concatenate(told), np.concatenate(below))
    if found.error_unbiased > MOST_OFF:
        raise ConfigurationError(
            f"on {found.questions} sealed questions it would be off by {found.error_unbiased:.3f}, "
            f"more than {MOST_OFF:g}: more listeners' questions tell more"
        )
    return found


def _asked(turns: Sequence[Ranked]) -> list[Ranked]:
    kept = (selected(each, lambda question: question.kind is Kind.ASKED) for each in turns)
    return [each for each in kept if each]


def _without(sealed: Ranked, choosing: Sequence[Ranked]) -> list[Ranked]:
    """Return what shares neither sounds nor questions with what was sealed."""
    sounds, texts = set(sealed.sounds), {question.text for question in sealed.questions}
    kept = (
        selected(each, lambda question: question.text not in texts)
        for each in choosing
        if sounds.isdisjoint(each.sounds)
    )
    return [each for each in kept if each]


def _together(parts: Sequence[Hits]) -> Hits:
    """Join the hits of different questions; ``ConfigurationError`` for none."""
    if not parts:
        raise ConfigurationError("too few listeners' questions to calibrate by")
    numbered, first = [], 0
    for part in parts:
        numbered.append(part.numbered_from(first))
        first += int(part.question.max(initial=-1)) + 1
    return Hits.joined(numbered)


def _hits(asked: Ranked, present: Tensor) -> Hits:
    """Return what questions are shown, with all words, half of them, and none."""
    alone, hybrid = (asked.new[view] for view in VIEWS)
    unknown = _unknown(asked)
    order = torch.randperm(len(asked.sounds), generator=torch.Generator().manual_seed(0))
    parts = []
    for share in BLANKED:
        worded = present[list(asked.sounds)].clone()
        worded[order[: round(share * len(order))]] = False
        scores = torch.where(worded, hybrid, alone).masked_fill(unknown, -torch.inf)
        parts.append(Hits.shown(scores, worded.numpy(), asked.relevant, plain=share == 0.0))
    return Hits.joined(parts)


def _unknown(asked: Ranked) -> Tensor:
    """Return of which sounds nobody knows whether they are meant: boolean ``(questions, sounds)``.

    A question that means a tag means no other sounds; of one that means none only verdicts tell.
    """
    rows = [
        [not question.about and row not in question.means | question.misses for row in asked.sounds]
        for question in asked.questions
    ]
    return torch.tensor(rows)
