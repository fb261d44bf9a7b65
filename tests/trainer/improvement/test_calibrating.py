"""What scores of the new version mean: by questions that it did not learn from."""

import pytest
import torch

from audiofuse.core.errors import ConfigurationError
from audiofuse.trainer.improvement.calibrating import MOST_OFF, calibration_of
from audiofuse.trainer.improvement.heads import VIEWS
from audiofuse.trainer.improvement.judging import Ranked
from audiofuse.trainer.improvement.turns import TURNS, Kind, Question

SOUNDS, QUESTIONS = 20, 24  # in each part
PRESENT = torch.ones(TURNS * SOUNDS, dtype=torch.bool)


def part(number: int, lift: float, *, about: str = "owl") -> Ranked:
    """Return a part, whose questions each mean four of its sounds, which score ``lift`` more."""
    chance = torch.Generator().manual_seed(number)
    sounds = list(range(number * SOUNDS, (number + 1) * SOUNDS))
    questions, relevant = [], torch.zeros(QUESTIONS, SOUNDS, dtype=torch.bool)
    for row in range(QUESTIONS):
        means = torch.randperm(SOUNDS, generator=chance)[:4]
        relevant[row, means] = True
        meant = frozenset(sounds[column] for column in means.tolist())
        text = f"{number} {row}"
        questions.append(Question(text, Kind.ASKED, text, about, meant))
    cosines = 0.3 + torch.randn(QUESTIONS, SOUNDS, generator=chance) / 10 + lift * relevant
    return Ranked(questions, sounds, {}, dict.fromkeys(VIEWS, cosines), relevant)


def test_what_judges_checks_and_is_not_fitted_on() -> None:
    """Curves are those of what chose; where they are far off what was sealed, none are claimed."""
    choosing = [part((number + 1) % TURNS, 0.3) for number in range(TURNS)]
    same = calibration_of(choosing, [part(number, 0.3) for number in range(TURNS)], PRESENT)
    assert same.relevance.worded.at(0.7) > 0.8
    assert same.relevance.worded.at(0.3) < 0.2
    assert same.questions == QUESTIONS * TURNS
    assert same.error < MOST_OFF
    with pytest.raises(ConfigurationError, match="would be off by"):
        calibration_of(choosing, [part(number, -0.3) for number in range(TURNS)], PRESENT)


def test_what_nobody_judged_is_not_taken_for_a_miss() -> None:
    """A question that means no tag has no other hits than those with a verdict: all fit here."""
    parts = [part(number, 0.3, about="") for number in range(TURNS)]
    with pytest.raises(ConfigurationError, match="0 are not meant"):
        calibration_of(parts, parts, PRESENT)
