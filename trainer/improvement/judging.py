"""Old against new, by what was sealed: mAP@10 of both, how certain, and what it is worth.

An interval tells what other questions might have given, and another what other sounds might: both
resample in pairs, so that old and new meet the same ones. What counts is the lower of their ends.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from audiofuse.core.evaluation.evaluation import score
from audiofuse.core.evaluation.intervals import FEWEST_IDENTITIES, PERCENTILES, estimate
from audiofuse.core.model.hybrid import HybridEncoder
from audiofuse.trainer.improvement.archive import Archive
from audiofuse.trainer.improvement.heads import VIEWS, Reader, Stored, items, questions
from audiofuse.trainer.improvement.turns import Kind, Question, Share

RESAMPLES = 300  # of the sounds; each ranks all of them anew
MOST_LOST = 0.01  # mAP@10 that questions about other sounds may lose, a mean of both views


Choice = Callable[[Question], bool]


class Ranked(NamedTuple):
    """Questions of one part, by what old and new rank its sounds, one cosine for each.

    ``old`` and ``new`` are by view, ``(questions, sounds)`` each, as is the boolean ``relevant``;
    ``sounds`` are the sounds' numbers.
    """

    questions: Sequence[Question]
    sounds: Sequence[int]
    old: Mapping[str, Tensor]
    new: Mapping[str, Tensor]
    relevant: Tensor


@torch.no_grad()
def rank(
    share: Share, reader: Reader, sounds: Stored, old: HybridEncoder, new: HybridEncoder
) -> Ranked:
    """Rank the sounds of a share for those of its questions that mean any of them."""
    asked = [question for question in share.questions if question.means]
    known, pooled = (
        sounds.select(torch.tensor(share.sounds)),
        reader.questions([q.text for q in asked]),
    )

    def cosines(model: HybridEncoder) -> dict[str, Tensor]:
        words = questions(model, pooled)
        return {name: words @ view.T for name, view in zip(VIEWS, items(model, known), strict=True)}

    meant = Share(share.sounds, asked).relevance()
    return Ranked(asked, share.sounds, cosines(old), cosines(new), meant)


class Figure(NamedTuple):
    """mAP@10 of old and new, and their difference with the ends of its 95 % interval.

    ``low`` and ``high`` are of the wider side: over questions or over sounds.
    """

    questions: int
    groups: int
    old: float
    new: float
    low: float
    high: float

    @property
    def gain(self) -> float:
        """The difference."""
        return self.new - self.old


@dataclass(frozen=True)
class Judgement:
    """What was found, by slice and view, and why nothing is published, if nothing is."""

    figures: Mapping[str, Mapping[str, Figure]]
    refusals: Sequence[str]

    @property
    def is_better(self) -> bool:
        """Whether the new version is worth publishing."""
        return not self.refusals

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        figures = {
            name: {view: each._asdict() | {"gain": each.gain} for view, each in views.items()}
            for name, views in self.figures.items()
        }
        return {"figures": figures, "refused": list(self.refusals)}


ASKED, OWN, OTHER = "listeners' questions", "own words", "other sounds, own words"
GENERAL = "other sounds, general sentences"


def slices(tags: Collection[str]) -> dict[str, Choice]:
    """Return which questions count for what; ``tags`` are those that listeners asked about."""
    return {
        ASKED: lambda each: each.kind is Kind.ASKED,
        OWN: lambda each: each.kind is Kind.OWN,
        OTHER: lambda each: each.kind is Kind.OWN and each.about not in tags,
        GENERAL: lambda each: each.kind is Kind.GENERAL and each.about not in tags,
    }


def judge(archive: Archive, turns: Sequence[Ranked], tags: Collection[str]) -> Judgement:
    """Compare old and new on what was sealed; ``tags`` are those that listeners asked about."""

    def figures(chosen: Choice, resamples: int = 0) -> dict[str, Figure]:
        kept = [selected(each, chosen) for each in turns]
        return {view: figure(kept, view, resamples) for view in VIEWS} if any(kept) else {}

    aim = ASKED if archive.verdicts else OWN
    chosen = slices(tags)
    figured = {name: figures(own, RESAMPLES if name == aim else 0) for name, own in chosen.items()}
    found = {name: each for name, each in figured.items() if each}
    return Judgement(found, [*_not_better(aim, found.get(aim)), *_forgotten(found)])


def details(archive: Archive, turns: Sequence[Ranked]) -> dict[str, dict[str, Figure]]:
    """Return the figures of questions about each tag, and of questions that mean each folder."""
    folders = [sound.clip.collection for sound in archive.sounds]
    asked = [question for each in turns for question in each.questions]
    about = {question.about for question in asked} - {""}
    chosen_by: dict[str, Choice] = {
        f"about {tag}": partial(_is_about, tag) for tag in sorted(about)
    }
    chosen_by |= {
        f"in {name}/": partial(_is_in, name, folders) for name in sorted(set(folders) - {""})
    }
    found = {}
    for name, chosen in chosen_by.items():
        kept = [selected(each, chosen) for each in turns]
        if any(kept):
            found[name] = {view: figure(kept, view) for view in VIEWS}
    return found


def _is_about(tag: str, question: Question) -> bool:
    return question.about == tag


def _is_in(folder: str, folders: Sequence[str], question: Question) -> bool:
    return any(folders[row] == folder for row in question.means)


def selected(ranked: Ranked, chosen: Choice) -> Ranked | None:
    """Return what was ranked for some of the questions; ``None`` for none."""
    rows = [row for row, question in enumerate(ranked.questions) if chosen(question)]
    if not rows:
        return None
    return Ranked(
        [ranked.questions[row] for row in rows],
        ranked.sounds,
        {view: each[rows] for view, each in ranked.old.items()},
        {view: each[rows] for view, each in ranked.new.items()},
        ranked.relevant[rows],
    )


def figure(turns: Iterable[Ranked | None], view: str, resamples: int = 0) -> Figure:
    """Return what old and new score by one view; over sounds only if resamples are asked for."""
    kept = [each for each in turns if each]
    new, old = (
        torch.cat([score(side[view], each.relevant).average_precision for side, each in sides])
        for sides in ([(each.new, each) for each in kept], [(each.old, each) for each in kept])
    )
    groups = [question.group for each in kept for question in each.questions]
    by_questions = estimate(groups, new - old)
    low, high = by_questions.low, by_questions.high
    if resamples:
        ends = _over_sounds(kept, view, resamples)
        low, high = min(low, ends[0]), max(high, ends[1])
    return Figure(
        len(groups), by_questions.identities, float(old.mean()), float(new.mean()), low, high
    )


def _over_sounds(turns: Sequence[Ranked], view: str, resamples: int) -> tuple[float, float]:
    """Return the interval of the difference as other sounds might give it."""
    chance = torch.Generator().manual_seed(0)
    means = []
    for _ in range(resamples):
        differences = []
        for each in turns:
            drawn = torch.randint(len(each.sounds), (len(each.sounds),), generator=chance)
            relevant = each.relevant[:, drawn]
            there = relevant.any(1)
            if there.any():
                new, old = (score(side[view][there][:, drawn], relevant[there]).average_precision
                            for side in (each.new, each.old))  # fmt: skip
                differences.append(new - old)
        means.append(float(torch.cat(differences).mean()) if differences else 0.0)
    low, high = np.percentile(means, PERCENTILES)
    return float(low), float(high)


def _not_better(aim: str, views: Mapping[str, Figure] | None) -> list[str]:
    groups = max((each.groups for each in (views or {}).values()), default=0)
    if not views or groups < FEWEST_IDENTITIES:
        return [f"{aim}: {groups} could be judged by, and {FEWEST_IDENTITIES} are needed"]
    if all(each.low <= 0 for each in views.values()):
        return [f"{aim}: not certainly better"]
    return [f"{aim}, {view}: certainly worse" for view, each in views.items() if each.high < 0]


def _forgotten(found: Mapping[str, Mapping[str, Figure]]) -> list[str]:
    """Return what is lost of other sounds: too much in the mean of both views, or for sure in one.

    Too much is the same in both. What is lost for sure and is less than that may be lost: else the
    more questions judge, the smaller losses would be refused.
    """
    losses = []
    for name in (OTHER, GENERAL):
        views = found.get(name, {})
        if views and (gain := fmean(each.gain for each in views.values())) < -MOST_LOST:
            losses.append(f"{name}: {-gain:.3f} mAP@10 is lost, more than {MOST_LOST:g}")
        losses += [
            f"{name}, {view}: certainly worse, by {-each.gain:.3f} mAP@10"
            for view, each in views.items()
            if each.high < 0 and each.gain < -MOST_LOST
        ]
    return losses
