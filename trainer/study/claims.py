"""What the paper claims of its grid, beside what came of it."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch

from audiofuse.core.evaluation.intervals import estimate
from audiofuse.trainer.data.metadata import Captions, Kind
from audiofuse.trainer.study.grid import (
    KINDS,
    MAP,
    Cell,
    Results,
    Trial,
    sample_deviation,
    why_left_out,
)

ABSTRACT = "arXiv 2406.15897, abstract"
SECOND_HAND = "arXiv 2406.15897, second-hand"
OURS = "ours, no claim of the paper"
BORNE_OUT, NOT_BORNE_OUT, UNCLEAR = "borne out", "not borne out", "no clear difference"
# Student's t at 97.5 % for 2, 3, ... seeds. Two standard errors would call one of five differences
# between equal systems clear when there are three seeds.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


class _Pair(NamedTuple):
    better: Cell
    other: Cell


_Stated = tuple[str, float | None, str, list[_Pair]]  # statement, paper's, source, pairs


@dataclass(frozen=True)
class Claim:
    """That one system is better than another, and what came of it.

    ``paper_pp`` is by how much in the paper, in percentage points mAP@10, where that is known;
    ``source`` tells where from and on which dataset. ``differences`` are ours by seed, each the
    mean over the kinds of metadata in ``over``; without any, ``lacking`` says why. ``collection``
    is the data set that they were tested on, where there are several; ``sounds`` how far other
    sounds might have moved the mean, half of a 95 % interval, where single queries are known.
    """

    statement: str
    paper_pp: float | None
    source: str
    over: tuple[str, ...]
    differences: dict[int, float]
    lacking: str
    collection: str = ""
    sounds: float | None = None

    @property
    def mean(self) -> float | None:
        """Our difference in percentage points, if there is any."""
        return statistics.fmean(self.differences.values()) if self.differences else None

    @property
    def deviation(self) -> float | None:
        """The standard deviation over seeds, of two or more."""
        return sample_deviation([*self.differences.values()])

    @property
    def margin(self) -> float | None:
        """Half of the mean's 95 % interval over seeds and sounds; ``None`` with a single seed.

        Over seeds it is t · deviation / √seeds, with Student's t; over sounds ``sounds``. The two
        are independent, so that their squares add up.
        """
        if self.deviation is None:
            return None
        seeds = len(self.differences)
        student = STUDENT[min(seeds - 2, len(STUDENT) - 1)]
        return math.hypot(student * self.deviation / math.sqrt(seeds), self.sounds or 0.0)

    @property
    def verdict(self) -> str:
        """What can be concluded, of the direction alone and not of the size.

        A difference is clear when 0 is outside of its 95 % interval, mean ± ``margin``.
        """
        if self.mean is None:
            return f"cannot tell: {self.lacking}"
        if self.margin is None:
            return "cannot tell: a single seed"
        if abs(self.mean) <= self.margin:
            return UNCLEAR
        return BORNE_OUT if self.mean > 0 else NOT_BORNE_OUT


def claims(results: Results) -> list[Claim]:
    """Return what the paper says of its grid, and claims of ours, beside what came of them.

    Where several data sets were tested on, each has its own.
    """
    return [claim for name in results.collections for claim in _claims_of(results, name)]


def _claims_of(results: Results, collection: str) -> list[Claim]:
    late = {kind: Cell(fusion="late", kind=kind) for kind in KINDS}
    audio = Cell(fusion="audio")

    def against(**change: Any) -> list[_Pair]:
        return [_Pair(cell, cell.model_copy(update=change)) for cell in late.values()]

    stated: list[_Stated] = [
        ("keywords, late, over audio only", 2.36, f"ClothoV2: {ABSTRACT}",
         [_Pair(late[Kind.OS], audio)]),
        ("descriptions, late, over audio only", 8.82, f"ClothoV2: {SECOND_HAND}",
         [_Pair(late[Kind.FS], audio)]),
        ("closed-set tags, late, over audio only", 3.69, f"AudioCaps: {ABSTRACT}",
         [_Pair(late[Kind.CS], audio)]),
        ("late fusion over mid (said to be no worse)", None, SECOND_HAND, against(fusion="mid")),
        ("shared text tower over separate, late", None, SECOND_HAND, against(separate=True)),
        ("real captions over artificial, late", None, SECOND_HAND,
         against(captions=Captions.SUPPLIED)),
        ("real captions over templates, late", None, OURS, against(captions=Captions.TEMPLATES)),
        ("hybrid, late, over metadata only", None, OURS, against(fusion="metadata")),
        _joint_claim(results, collection),
    ]  # fmt: skip
    return [_compare(results, collection, *each) for each in stated]


def _joint_claim(results: Results, collection: str) -> _Stated:
    """Compare what learned from both data sets with what learned from that of the test alone.

    That one has the kind of tags that the data set has, be they open-set or closed-set ones.
    """
    joint = Cell(fusion="late", kind=Kind.OS_CS, both=True)
    measured = {each.cell for each in results.measured if each.collection == collection}
    own = [Cell(fusion="late", kind=kind) for kind in (Kind.OS_CS, Kind.OS, Kind.CS)]
    alone = next((cell for cell in own if cell in measured), own[0])
    if collection == "audiocaps":
        statement, pair = "its own data set over both, late", _Pair(alone, joint)
    else:
        statement, pair = "both data sets over its own, late", _Pair(joint, alone)
    source = f"better on ClothoV2, slightly worse on AudioCaps: {SECOND_HAND}"
    return statement, None, source, [pair]


def _compare(  # noqa: PLR0913, PLR0917 - a claim's parts, in the order of the list
    results: Results,
    collection: str,
    statement: str,
    paper_pp: float | None,
    source: str,
    pairs: Sequence[_Pair],
) -> Claim:
    """Compare the pairs of which there are results, in each seed that has all of those."""
    known = {each.test: each.metrics[MAP] for each in results.measured}
    seeds = sorted({each.seed for each in results.measured})
    tests = {
        (pair, seed): (
            Trial(pair.better, seed, collection),
            Trial(pair.other, seed, collection),
        )
        for pair in pairs
        for seed in seeds
    }
    by_seed = {
        pair: {
            seed: 100 * (known[tests[pair, seed][0]] - known[tests[pair, seed][1]])
            for seed in seeds
            if known.keys() >= set(tests[pair, seed])
        }
        for pair in pairs
    }
    found = {pair: values for pair, values in by_seed.items() if values}
    whole = [seed for seed in seeds if found and all(seed in each for each in found.values())]
    reasons = [
        [why for cell in pair for why in why_left_out(cell, results.left_out, collection)]
        for pair in pairs
    ]
    known_why = "; ".join(dict.fromkeys(chain(*reasons))) if all(reasons) else ""
    return Claim(
        statement, paper_pp, source,
        over=tuple(str(pair.better.kind) for pair in found),
        differences={seed: statistics.fmean(e[seed] for e in found.values()) for seed in whole},
        lacking=known_why or "no seed has its cells",
        collection=collection,
        sounds=_over_sounds(results, [tests[pair, seed] for pair in found for seed in whole]),
    )  # fmt: skip


def _over_sounds(results: Results, tests: Sequence[tuple[Trial, Trial]]) -> float | None:
    """Return half of the 95 % interval of the mean difference, were other sounds asked for.

    Each query's difference is averaged over kinds and seeds, and sounds are resampled. ``None``
    where scores of single queries are not there, or are of other queries.
    """
    pairs = [[results.queries.get(test) for test in pair] for pair in tests]
    known = [precisions for pair in pairs for precisions in pair if precisions]
    if not known or len(known) < 2 * len(pairs):
        return None
    identities = known[0].identities
    if any(each.identities != identities for each in known):
        return None
    better, other = (torch.stack([each.values for each in known[at::2]]) for at in (0, 1))
    found = estimate(identities, 100 * (better - other).mean(0))
    return (found.high - found.low) / 2
