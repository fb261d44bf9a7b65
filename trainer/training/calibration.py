"""What an encoder's scores mean: fitted on judged questions, and checked on others.

    judged questions ──> their nearest hits, which are known to be meant or not ──> two curves
    other questions  ──> the same, told by the curves ──> how far off these are

Each question is asked with its answers there and with them taken away, and each time with all
metadata, with that of half the sounds, and with none: archives differ in that.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import ConfigurationError
from audiofuse.core.evaluation.clips import TEST, TRAIN, VAL, Query, select_queries
from audiofuse.core.evaluation.evaluation import (
    QUERIES_PER_BATCH,
    Gallery,
    blank_metadata,
    encode_queries,
    item_vectors,
)
from audiofuse.core.evaluation.evaluation import Relevance as Meant
from audiofuse.core.model.relevance import Curve, Relevance
from audiofuse.core.query import normalise
from audiofuse.trainer.data.corpus import Corpus
from audiofuse.trainer.data.gallery import encode_cached

SHOWN = 10  # hits of each question that are judged: what a page shows
BLANKED = (0.0, 0.5, 1.0)  # shares of the sounds whose metadata is taken away
# What a hit counts where the answers are taken away: as if of five questions one had none. More
# tells less of hits where the answers are there; less tells too much where they are not.
UNANSWERED = 0.25
# Share of questions that may be told that nothing answers them, though it does. More tells more of
# those so that nothing answers. Measured in DECISIONS.md.
MISTAKEN = 0.15
FEWEST = 20  # hits of each kind, meant or not, of which a curve is fitted; fewer say nothing
BINS = 10  # of probabilities, in which what is told is compared with what is
RESAMPLES = 1000  # of the questions; fewer tell the bias of their error less surely
DIGITS = 4  # of what is kept: more would not be known
HEADING = "## What a score means"

Values = NDArray[np.float64]
Truths = NDArray[np.bool_]


class Judged(NamedTuple):
    """Sounds and questions for some of them; the sounds of other splits are left out."""

    gallery: Gallery
    queries: Sequence[Query]


@dataclass(frozen=True)
class Hits:
    """Nearest hits of judged questions, all ``(hits,)``.

    ``question`` numbers the questions, ``plain`` are those among all sounds with their metadata,
    ``answered`` those of questions whose answers were there.
    """

    score: Values
    worded: Truths
    meant: Truths
    question: NDArray[np.int64]
    plain: Truths
    answered: Truths

    @classmethod
    def of(cls, encoder: Encoder, judged: Judged) -> Self:
        """Ask all questions, in each way."""
        return cls.joined([part for share in BLANKED for part in _asked(encoder, judged, share)])

    @classmethod
    def shown(cls, scores: Tensor, worded: Truths, meant: Tensor, *, plain: bool) -> Self:
        """Return the nearest hits by ``scores``, ``(questions, sounds)`` as is ``meant``.

        First with the answers there, then with them taken away. What scores ``-inf`` is not there.
        """
        parts = []
        for answered in (True, False):
            left = scores if answered else scores.masked_fill(meant, -torch.inf)
            best = left.topk(min(SHOWN, left.shape[1]), dim=1)
            there = best.values.isfinite()
            count = int(there.sum())
            parts.append(cls(
                best.values[there].double().numpy(),
                worded[best.indices[there].numpy()],
                meant.gather(1, best.indices)[there].numpy(),
                torch.arange(len(left))[:, None].expand_as(there)[there].numpy(),
                np.full(count, plain),
                np.full(count, answered),
            ))  # fmt: skip
        return cls.joined(parts)

    @property
    def weight(self) -> Values:
        """What each hit counts."""
        return np.where(self.answered, 1.0, UNANSWERED)

    @classmethod
    def joined(cls, parts: Sequence["Hits"]) -> Self:
        """Join hits of the same questions."""
        names = [each.name for each in fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def numbered_from(self, first: int) -> Self:
        """Return the hits, of other questions: their numbers begin later."""
        return replace(self, question=self.question + first)

    def told(self, relevance: Relevance) -> Values:
        """Return how probably each is meant, as a calibration tells it."""
        pairs = zip(self.score.tolist(), self.worded.tolist(), strict=True)
        return np.array([relevance.of(score, has_words=worded) for score, worded in pairs])


@dataclass(frozen=True)
class Calibration:
    """A calibration, and what is seen of it on questions that it was not fitted on.

    ``error`` is the expected calibration error: how far off probabilities are on average, in bins.
    ``error_unbiased`` is that less what right curves would show, too, of so few questions.
    ``error_answered`` is the first where the answers are there. ``told_nothing`` and ``missed`` are
    the shares of questions that are told that nothing answers them, where their answers were taken
    away and, mistakenly, where they are there; all sounds have their metadata then.
    """

    relevance: Relevance
    questions: int
    error: float
    error_unbiased: float
    error_answered: float
    told_nothing: float
    missed: float

    def card(self, fitted_on: str, checked_on: str) -> str:
        """Return what a model card says of it."""
        return (
            f"{HEADING}\n\n"
            "Scores of questions by words are brought to probabilities by curves that were fitted "
            f"on {fitted_on}. On {self.questions} questions of {checked_on} they are off by "
            f"{self.error:.3f} (expected calibration error; {self.error_unbiased:.3f} less the "
            f"bias of so few questions), where the answers are there by {self.error_answered:.3f}. "
            f"Of the questions whose answers were taken away "
            f"{self.told_nothing:.0%} are told that nothing sounds like that, of those with an "
            f"answer {self.missed:.0%}.\n"
        )


def calibrated(encoder: Encoder, fit: Judged, check: Judged) -> tuple[Encoder, Calibration]:
    """Return the encoder with a calibration fitted on some questions and checked on others.

    Raises ``ConfigurationError`` when the questions to fit on have too few hits to tell.
    """
    relevance = fit_relevance(Hits.of(encoder, fit))
    hits = Hits.of(encoder, check)
    told, below = hits.told(relevance), np.full(len(hits.score), relevance.nothing_below)
    return encoder.with_relevance(relevance), checked(relevance, hits, told, below)


def calibrated_on(
    encoder: Encoder, corpus: Corpus, fit: str = VAL, check: str = TEST
) -> tuple[Encoder, str]:
    """Return the encoder, calibrated on splits that it did not learn from, and its card's section.

    Where the split to check on has no questions, half of the identities to fit on are kept for it.
    Raises what ``calibrated`` does.
    """
    fitting, checking = _judged(encoder, corpus, fit), _judged(encoder, corpus, check)
    named = f"the split {fit}", f"the split {check}"
    if not checking.queries:
        halves = [[q for q in fitting.queries if _half(q) == side] for side in (0, 1)]
        fitting, checking = (Judged(fitting.gallery, each) for each in halves)
        named = f"half of the split {fit}", "the other half"
    if not (fitting.queries and checking.queries):
        raise ConfigurationError(f"no questions of the split {fit} to fit and to check by")
    encoder, calibration = calibrated(encoder, fitting, checking)
    return encoder, calibration.card(*named)


def after_training(encoder: Encoder, corpus: Corpus) -> tuple[Encoder, str]:
    """Return what ``calibrated_on`` does; with too few questions no calibration, and why."""
    try:
        return calibrated_on(encoder, corpus)
    except ConfigurationError as error:
        return encoder.with_relevance(None), f"{HEADING}\n\nNot known: {error}.\n"


def fit_relevance(hits: Hits) -> Relevance:
    """Fit both curves, and below which probability of the best hit there is no answer."""
    curves = [_curve(hits, hits.worded == worded) for worded in (True, False)]
    fitted = Relevance(worded=curves[0], wordless=curves[1], nothing_below=0.0)
    best = _best(hits, hits.told(fitted), hits.plain & hits.answered)
    below = round(float(np.quantile(best, MISTAKEN)), DIGITS)
    return fitted.model_copy(update={"nothing_below": below})


def expected_error(told: Values, meant: Truths, weight: Values) -> float:
    """Return how far what is told is from what is, on average over hits, in equal bins."""
    off = np.bincount(_bins(told), weight * (told - meant), BINS)
    return float(np.abs(off).sum() / weight.sum())


def unbiased_error(told: Values, hits: Hits) -> float:
    """Return the expected calibration error less its bias, as resampled questions tell that.

    What chance adds in a bin is never taken away by another, so that of few questions right curves
    look wrong, too (arXiv 1909.10155, 2012.08668). Hits of one question stand and fall together.
    """
    number = np.unique(hits.question, return_inverse=True)[1]
    questions = int(number.max()) + 1
    off = np.bincount(
        number * BINS + _bins(told), hits.weight * (told - hits.meant), questions * BINS
    ).reshape(questions, BINS)
    weight = np.bincount(number, hits.weight)
    chance = np.random.default_rng(0)
    drawn = chance.multinomial(questions, np.full(questions, 1 / questions), RESAMPLES)
    again = np.abs(drawn @ off).sum(1) / (drawn @ weight)
    return max(0.0, 2 * expected_error(told, hits.meant, hits.weight) - float(again.mean()))


def _bins(told: Values) -> NDArray[np.int64]:
    return np.minimum((told * BINS).astype(np.int64), BINS - 1)


def checked(relevance: Relevance, hits: Hits, told: Values, below: Values) -> Calibration:
    """Return what is seen of a calibration on hits that it was not fitted on.

    ``told`` is how probable they are told, ``below`` what a best hit must reach, both ``(hits,)``.
    """
    answered = hits.answered

    def nothing(chosen: Truths) -> float:
        return float((_best(hits, 1 + told - below, hits.plain & chosen) < 1).mean())

    return Calibration(
        relevance,
        questions=len(np.unique(hits.question)),
        error=expected_error(told, hits.meant, hits.weight),
        error_unbiased=unbiased_error(told, hits),
        error_answered=expected_error(told[answered], hits.meant[answered], hits.weight[answered]),
        told_nothing=nothing(~answered),
        missed=nothing(answered),
    )


def _judged(encoder: Encoder, corpus: Corpus, split: str) -> Judged:
    others = {TRAIN, VAL, TEST} - {split}
    queries = select_queries(corpus.clips, split)
    clips = [clip for clip in corpus.clips if clip.split not in others] if queries else []
    return Judged(encode_cached(encoder, clips, corpus.entries), queries)


def _half(query: Query) -> int:
    return hashlib.sha256(query.identity.encode()).digest()[0] % 2


def _asked(encoder: Encoder, judged: Judged, blanked: float) -> list[Hits]:
    """Return the hits with a share of the metadata taken away, in parts."""
    gallery = blank_metadata(judged.gallery, blanked)
    texts = [clip.metadata.text for clip in gallery.clips]
    items, asked = item_vectors(encoder, gallery, texts), encode_queries(encoder, judged.queries)
    worded = np.array([bool(normalise(text)) for text in texts])
    relevant = Meant.of(judged.queries, gallery.clips)
    parts = []
    for start in range(0, len(asked), QUERIES_PER_BATCH):
        rows = slice(start, start + QUERIES_PER_BATCH)
        hits = Hits.shown(asked[rows] @ items.T, worded, relevant.rows(rows), plain=blanked == 0.0)
        parts.append(hits.numbered_from(start))
    return parts


def _curve(hits: Hits, chosen: Truths) -> Curve:
    score, meant, weight = hits.score[chosen], hits.meant[chosen], hits.weight[chosen]
    counts = {"are": int(meant.sum()), "are not": int((~meant).sum())}
    for what, count in counts.items():
        if count < FEWEST:
            raise ConfigurationError(
                f"too few hits to calibrate by: of those with words, or of those without, {count} "
                f"{what} meant, and {FEWEST} are needed: give more sounds with questions"
            )
    fitted = LogisticRegression(C=1e6).fit(score[:, None], meant, weight)
    slope, offset = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
    if slope < 0:  # such scores say nothing: all hits are alike
        share = float(np.average(meant, weights=weight))
        slope, offset = 0.0, float(np.log(share / (1 - share)))
    return Curve(slope=round(slope, DIGITS), offset=round(offset, DIGITS))


def _best(hits: Hits, told: Values, chosen: Truths) -> Values:
    """Return the highest probability that each question is told, of some of the hits; of none 0."""
    best: Values = np.zeros(int(hits.question.max()) + 1)
    np.maximum.at(best, hits.question[chosen], told[chosen])
    return best[np.unique(hits.question)]
