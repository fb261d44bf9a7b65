"""Everything in order: what is meant, five turns of teaching and judging, and what came of it."""

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import ConfigurationError
from audiofuse.core.model.hybrid import HybridEncoder
from audiofuse.core.query import normalise
from audiofuse.trainer.improvement.archive import Archive
from audiofuse.trainer.improvement.calibrating import CHECKED_ON, FITTED_ON, calibration_of
from audiofuse.trainer.improvement.heads import (
    VIEWS,
    Reader,
    Stored,
    items,
    questions,
    set_between,
    set_to_mean,
)
from audiofuse.trainer.improvement.judging import (
    MOST_LOST,
    Figure,
    Judgement,
    Ranked,
    details,
    figure,
    judge,
    rank,
    selected,
)
from audiofuse.trainer.improvement.meaning import DOUBT, candidates, doubt, tags_meant
from audiofuse.trainer.improvement.scores import Scores, scores
from audiofuse.trainer.improvement.teaching import STEPS, lesson, teach
from audiofuse.trainer.improvement.turns import TURNS, Kind, Part, Question, Questions, Turn
from audiofuse.trainer.training.calibration import HEADING

WAYS = (1.0, 0.8, 0.6, 0.4)  # shares of the way from old to new that are tried
LEAST_SOUNDS = 50  # different ones: a fifth of them is ranked at a time

Show = Callable[[int, int], object]


@dataclass(frozen=True)
class Outcome:
    """The encoder after teaching, if it came so far, with what was judged.

    ``ways`` is how far each turn went, ``doubt`` that of the verdicts, ``scores`` are for the
    scorecards of old and new, ``told`` is the model card's section on what scores mean.
    """

    encoder: Encoder | None
    judgement: Judgement
    details: Mapping[str, Mapping[str, Figure]] = field(default_factory=dict)
    ways: Sequence[float] = ()
    meant: Mapping[str, str] = field(default_factory=dict)
    doubt: float | None = None
    scores: Scores = field(default_factory=Scores)
    told: str = ""


def improve(
    encoder: Encoder, archive: Archive, general: Mapping[str, Sequence[str]], show: Show
) -> Outcome:
    """Teach a copy of the encoder what the archive knows, and judge it.

    ``general`` are sentences by kind of sound; ``show`` is told the steps done and all there are.
    Raises ``ConfigurationError`` for an encoder that fuses by frames.
    """
    reader = Reader(encoder)
    known = len({sound.clip.identity for sound in archive.sounds})
    if known < LEAST_SOUNDS:
        return _refused(f"{known} sounds: at least {LEAST_SOUNDS} are needed")
    sounds = reader.sounds(archive.sounds)
    with torch.no_grad():
        whole = items(encoder.model, sounds)[1]
    uncertain = doubt(archive, whole) if archive.verdicts else None
    if uncertain is not None and uncertain > DOUBT:
        return _refused(
            f"the verdicts do not agree: {archive.count} given by chance would agree as well in "
            f"{uncertain:.1%} of cases, more than {DOUBT:.1%}",
            uncertain,
        )
    meant = tags_meant(archive, _nearness(encoder.model, archive, reader))
    book = Questions(archive, meant, named_here(archive, general))
    if all(question.kind is Kind.GENERAL for question in book.every):
        return _refused("no sound has words, and nobody said what fits")
    about = set(meant.values())
    steps = iter(range(1, TURNS * STEPS + 1))
    turns = [
        _take(Turn(number, book), encoder.model, reader, sounds, about,
              lambda: show(next(steps), TURNS * STEPS))
        for number in range(TURNS)
    ]  # fmt: skip
    improved = copy.deepcopy(encoder)
    set_to_mean(improved.model, [turn.model for turn in turns])
    ranked = [turn.ranked for turn in turns]
    improved, told = _calibrated(improved, turns, sounds.present)
    return Outcome(
        improved,
        judge(archive, ranked, about),
        details(archive, ranked),
        [turn.way for turn in turns],
        meant,
        uncertain,
        scores(archive, ranked, about),
        told,
    )


def named_here(archive: Archive, general: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """Return sentences by the tag of the archive that names their kind; "" has all others.

    A kind has one name or several, as "Waves, surf".
    """
    tags = {normalise(tag): tag for sound in archive.sounds for tag in sound.tags}
    found: dict[str, list[str]] = {}
    for kind, sentences in general.items():
        names = map(normalise, (kind, *kind.split(",")))
        tag = next((tags[name] for name in names if name in tags), "")
        found.setdefault(tag, []).extend(sentences)
    return dict(found)


class _Taken(NamedTuple):
    """What one turn gave: what the judge sees, what chose, how far it went, where it arrived."""

    ranked: Ranked
    choosing: Ranked
    way: float
    model: HybridEncoder


def _take(  # noqa: PLR0913, PLR0917 - a turn, and what all turns share
    turn: Turn, start: HybridEncoder, reader: Reader, sounds: Stored, about: Collection[str],
    tick: Callable[[], object],
) -> _Taken:  # fmt: skip
    """Teach, go as far as is good for what is to choose by, and rank what is sealed."""
    taught = teach(start, lesson(turn.share(Part.LEARNED), reader, sounds), turn.number, tick)
    model, choosing = copy.deepcopy(start), turn.share(Part.CHOOSING)

    def worth(way: float) -> tuple[bool, float]:
        set_between(model, start, taught, way)
        return _worth(rank(choosing, reader, sounds, start, model), about)

    way = max(WAYS, key=worth)
    set_between(model, start, taught, way)
    sealed, chosen = (
        rank(share, reader, sounds, start, model) for share in (turn.share(Part.SEALED), choosing)
    )
    return _Taken(sealed, chosen, way, model)


def _calibrated(improved: Encoder, turns: Sequence[_Taken], present: Tensor) -> tuple[Encoder, str]:
    """Return the encoder with what its scores mean now, and the card's section; or why without."""
    try:
        found = calibration_of(
            [turn.choosing for turn in turns], [turn.ranked for turn in turns], present
        )
    except ConfigurationError as error:
        return improved.with_relevance(None), f"{HEADING}\n\nNot known: {error}.\n"
    return improved.with_relevance(found.relevance), found.card(FITTED_ON, CHECKED_ON)


def _worth(ranked: Ranked, about: Collection[str]) -> tuple[bool, float]:
    """Return whether little is lost elsewhere, and what is gained; or else how much is lost."""
    gains = {kind: _gain(selected(ranked, partial(_counts, kind, about))) for kind in Kind}
    keeps = gains[Kind.GENERAL] >= -MOST_LOST / 2
    return keeps, (gains[Kind.ASKED] or gains[Kind.OWN]) if keeps else gains[Kind.GENERAL]


def _counts(kind: Kind, about: Collection[str], question: Question) -> bool:
    """Whether a question is of a kind, and if it is a general one, about other sounds."""
    return question.kind is kind and (kind is not Kind.GENERAL or question.about not in about)


def _gain(ranked: Ranked | None) -> float:
    """Return the difference of both views' means; 0 for no questions."""
    return fmean(figure([ranked], view).gain for view in VIEWS) if ranked else 0.0


def _nearness(
    model: HybridEncoder, archive: Archive, reader: Reader
) -> dict[tuple[str, str], float]:
    pairs = candidates(archive)
    with torch.no_grad():
        asked, tags = (
            questions(model, reader.questions([pair[side] for pair in pairs])) for side in (0, 1)
        )
    return dict(zip(pairs, (asked * tags).sum(1).tolist(), strict=True))


def _refused(why: str, uncertain: float | None = None) -> Outcome:
    return Outcome(None, Judgement({}, [why]), doubt=uncertain)
