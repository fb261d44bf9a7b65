"""What the paper claims of its grid, beside what came of it."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

from audiofuse.trainer.data.metadata import Kind
from audiofuse.trainer.study.grid import KINDS, MAP, Cell, Results, sample_deviation, why_left_out

ABSTRACT = "arXiv 2406.15897, abstract"
SECOND_HAND = "arXiv 2406.15897, second-hand"
OURS = "ours, no claim of the paper"
BORNE_OUT, NOT_BORNE_OUT, UNCLEAR = "borne out", "not borne out", "no clear difference"
# Student's t at 97.5 % for 2, 3, ... seeds. Two standard errors would call one of five differences
# between equal systems clear when there are three seeds.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True)
class Claim:
    """That one system is better than another, and what came of it.

    ``paper_pp`` is by how much in the paper, in percentage points mAP@10, where that is known;
    ``source`` tells where from and on which dataset. ``differences`` are ours by seed, each the
    mean over the kinds of metadata in ``over``; without any, ``lacking`` says why.
    """

    statement: str
    paper_pp: float | None
    source: str
    over: tuple[str, ...]
    differences: dict[int, float]
    lacking: str

    @property
    def mean(self) -> float | None:
        """Our difference in percentage points, if there is any."""
        return statistics.fmean(self.differences.values()) if self.differences else None

    @property
    def deviation(self) -> float | None:
        """The standard deviation over seeds, of two or more."""
        return sample_deviation([*self.differences.values()])

    @property
    def verdict(self) -> str:
        """What can be concluded, of the direction alone and not of the size.

        A difference is clear when 0 is outside of its 95 % interval, mean ± t · deviation / √seeds
        with Student's t. It tells what other seeds would have given, not what other sounds would.
        """
        if self.mean is None:
            return f"cannot tell: {self.lacking}"
        if self.deviation is None:
            return "cannot tell: a single seed"
        seeds = len(self.differences)
        student = STUDENT[min(seeds - 2, len(STUDENT) - 1)]
        if abs(self.mean) <= student * self.deviation / math.sqrt(seeds):
            return UNCLEAR
        return BORNE_OUT if self.mean > 0 else NOT_BORNE_OUT


def claims(results: Results) -> list[Claim]:
    """Return what the paper says of its grid, and one claim of ours, beside what came of it."""
    late = {kind: Cell(fusion="late", kind=kind) for kind in KINDS}
    audio = Cell(fusion="audio")

    def against(**change: Any) -> list[_Pair]:
        return [_Pair(cell, cell.model_copy(update=change)) for cell in late.values()]

    stated: list[tuple[str, float | None, str, list[_Pair]]] = [
        ("keywords, late, over audio only", 2.36, f"ClothoV2: {ABSTRACT}",
         [_Pair(late[Kind.OS], audio)]),
        ("descriptions, late, over audio only", 8.82, f"ClothoV2: {SECOND_HAND}",
         [_Pair(late[Kind.FS], audio)]),
        ("closed-set tags, late, over audio only", 3.69, f"AudioCaps: {ABSTRACT}",
         [_Pair(late[Kind.CS], audio)]),
        ("late fusion over mid (said to be no worse)", None, SECOND_HAND, against(fusion="mid")),
        ("shared text tower over separate, late", None, SECOND_HAND, against(separate=True)),
        ("real captions over artificial, late", None, SECOND_HAND, against(artificial=True)),
        ("hybrid, late, over metadata only", None, OURS, against(fusion="metadata")),
    ]  # fmt: skip
    return [_compare(results, *each) for each in stated]


class _Pair(NamedTuple):
    better: Cell
    other: Cell


def _compare(
    results: Results, statement: str, paper_pp: float | None, source: str, pairs: Sequence[_Pair]
) -> Claim:
    """Compare the pairs of which there are results, in each seed that has all of those."""
    known = {(each.cell, each.seed): each.metrics[MAP] for each in results.measured}
    seeds = sorted({each.seed for each in results.measured})
    by_seed = {
        pair: {
            seed: 100 * (known[pair.better, seed] - known[pair.other, seed])
            for seed in seeds
            if (pair.better, seed) in known and (pair.other, seed) in known
        }
        for pair in pairs
    }
    found = {pair: values for pair, values in by_seed.items() if values}
    whole = [seed for seed in seeds if found and all(seed in each for each in found.values())]
    reasons = [
        [why for cell in pair for why in why_left_out(cell, results.left_out)] for pair in pairs
    ]
    known_why = "; ".join(dict.fromkeys(chain(*reasons))) if all(reasons) else ""
    return Claim(
        statement, paper_pp, source,
        over=tuple(str(pair.better.kind) for pair in found),
        differences={seed: statistics.fmean(e[seed] for e in found.values()) for seed in whole},
        lacking=known_why or "no seed has its cells",
    )  # fmt: skip
