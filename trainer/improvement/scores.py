"""Scores of old and new by what was sealed: what their scorecards say of this archive."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from audiofuse.core.evaluation.evaluation import AUDIO, HYBRID, score
from audiofuse.core.evaluation.intervals import estimate
from audiofuse.core.evaluation.scorecards import MAP, Figure, Score, data_hash
from audiofuse.trainer.improvement.archive import Archive
from audiofuse.trainer.improvement.heads import VIEWS
from audiofuse.trainer.improvement.judging import Ranked, selected, slices

SYSTEMS = dict(zip(VIEWS, (AUDIO, HYBRID), strict=True))  # as evaluations call the views


class Scores(NamedTuple):
    """One score for each slice that has questions: of old, and of new."""

    old: Sequence[Score] = ()
    new: Sequence[Score] = ()


def scores(archive: Archive, turns: Sequence[Ranked], tags: Collection[str]) -> Scores:
    """Score both, what matters most as the newest; ``tags`` are those that listeners asked about.

    New is what five turns have learned, each judged by what was sealed in it.
    """
    found: list[tuple[Score, Score]] = []
    for name, chosen in reversed(slices(tags).items()):
        kept = [each for turn in turns if (each := selected(turn, chosen))]
        if kept:
            groups = [question.group for each in kept for question in each.questions]
            asked = f"this archive: {name}, sealed by turns"
            data = data_hash(fact for each in kept for fact in _facts(archive, each))
            sounds = sum(len(each.sounds) for each in kept)
            old, new = (
                Score(asked=asked, data=data, queries=len(groups), sounds=sounds,
                      figures=_figures(groups, side, kept))
                for side in ([each.old for each in kept], [each.new for each in kept])
            )  # fmt: skip
            found.append((old, new))
    return Scores(*(list(side) for side in zip(*found, strict=True))) if found else Scores()


def _facts(archive: Archive, ranked: Ranked) -> Iterable[object]:
    for question in ranked.questions:
        yield question.text, *sorted(archive.sounds[row].id for row in question.means)
    for row in ranked.sounds:
        sound = archive.sounds[row]
        yield sound.id, sound.etag, sound.clip.metadata.text


def _figures(
    groups: Sequence[str], side: Sequence[Mapping[str, Tensor]], kept: Sequence[Ranked]
) -> dict[str, dict[str, Figure]]:
    found = {}
    for view, system in SYSTEMS.items():
        values = [
            score(cosines[view], each.relevant).average_precision
            for cosines, each in zip(side, kept, strict=True)
        ]
        mean = estimate(groups, torch.cat(values))
        found[system] = {MAP: Figure(value=mean.value, low=mean.low, high=mean.high)}
    return found
