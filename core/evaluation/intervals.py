"""How certain a mean over queries is, when queries for one sound stand and fall together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

RESAMPLES = 1000
PERCENTILES = (2.5, 97.5)
FEWEST_IDENTITIES = 10  # resampling fewer gives intervals that are too narrow to conclude from


@dataclass(frozen=True)
class Estimate:
    """A mean over queries with its 95 % interval, from so many identities."""

    value: float
    low: float
    high: float
    identities: int

    @property
    def verdict(self) -> str:
        """Of a difference: what can be concluded."""
        if self.identities < FEWEST_IDENTITIES:
            return "too few sounds to tell"
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "no clear difference"


def estimate(identities: Sequence[str], values: Tensor) -> Estimate:
    """Estimate the mean of the queries' ``values`` by resampling their identities.

    Two calls with the same identities draw the same ones: the difference of two systems is paired.
    """
    numbers = {identity: number for number, identity in enumerate(dict.fromkeys(identities))}
    groups = [numbers[identity] for identity in identities]
    sums, counts = np.bincount(groups, values.numpy()), np.bincount(groups)
    chance = np.random.default_rng(0)
    drawn = chance.multinomial(len(numbers), np.full(len(numbers), 1 / len(numbers)), RESAMPLES)
    low, high = np.percentile((drawn @ sums) / (drawn @ counts), PERCENTILES)
    return Estimate(float(values.mean()), float(low), float(high), len(numbers))
