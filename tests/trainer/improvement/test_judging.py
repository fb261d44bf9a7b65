"""Judging: figures, how certain they are, and what is refused."""

from collections.abc import Callable

import pytest
import torch

from audiofuse.trainer.improvement.archive import Archive, Verdicts
from audiofuse.trainer.improvement.heads import VIEWS
from audiofuse.trainer.improvement.judging import ASKED, Ranked, details, judge
from audiofuse.trainer.improvement.turns import Kind, Question

SOUNDS = 24
Ranking = tuple[list[int], list[int]]  # the rank of the sound that is meant, old and new


def ranked(kind: Kind, about: str, ranks: Ranking, questions: int) -> Ranked:
    """Return questions that each mean one sound, which old and new find at these ranks in turn."""
    asked, old, new = [], [], []
    for number in range(questions):
        means = number % SOUNDS
        asked.append(Question(f"{kind} {number}", kind, f"{kind} {number}", about,
                              frozenset({means})))  # fmt: skip
        for rows, own in ((old, ranks[0]), (new, ranks[1])):
            others = [row for row in range(SOUNDS) if row != means]
            order = [*others[: (rank := own[number % len(own)])], means, *others[rank:]]
            rows.append([-float(order.index(row)) for row in range(SOUNDS)])
    relevant = torch.tensor([[row in q.means for row in range(SOUNDS)] for q in asked])
    by_view = [dict.fromkeys(VIEWS, torch.tensor(rows)) for rows in (old, new)]
    return Ranked(asked, list(range(SOUNDS)), *by_view, relevant)


BETTER = ranked(Kind.ASKED, "owl", ([5], [0]), 20)
SAME = ranked(Kind.OWN, "bell", ([1], [1]), 30)


@pytest.mark.parametrize(
    ("turns", "refusal"),
    [
        ([BETTER, SAME], ""),
        ([ranked(Kind.ASKED, "owl", ([5], [0]), 9), SAME], "9 could be judged by"),
        ([ranked(Kind.ASKED, "owl", ([2, 0], [0, 2]), 20), SAME], "not certainly better"),
        ([BETTER, ranked(Kind.OWN, "bell", ([1], [1, 2]), 30)], "other sounds, own words"),
        ([BETTER, ranked(Kind.GENERAL, "bell", ([1], [1, 2]), 30)], "general sentences"),
        ([BETTER, ranked(Kind.GENERAL, "bell", ([8], [8, 9]), 60)], ""),  # certain, and .006
        ([BETTER, ranked(Kind.GENERAL, "owl", ([1], [9]), 30)], ""),  # of what was asked about
    ],
)
def test_what_is_not_certainly_better_or_forgets_is_refused(
    turns: list[Ranked], refusal: str, archive_with: Callable[[Verdicts], Archive]
) -> None:
    """Enough questions, a gain beyond chance, and little lost elsewhere: else it is told why."""
    judgement = judge(archive_with({"a": {0: True}}), turns, {"owl"})
    assert judgement.is_better == (not refusal)
    assert refusal in " ".join(judgement.refusals)
    if not refusal:
        figure = judgement.figures[ASKED][VIEWS[0]]
        assert (figure.old, figure.new) == (pytest.approx(1 / 6), 1.0)
        assert 0 < figure.low <= figure.gain <= figure.high


def test_figures_are_by_tag_and_by_folder(
    archive_with: Callable[[Verdicts], Archive],
) -> None:
    """Whoever reads them sees which tags and which folders gained."""
    found = details(archive_with({}), [BETTER, SAME])
    assert set(found) == {"about owl", "about bell", "in near/", "in far/"}
    assert found["about owl"][VIEWS[1]].gain == pytest.approx(5 / 6)
    assert found["about bell"][VIEWS[1]].gain == 0
