"""What timings of two kernels tell: the ratio of their medians, and where the true one surely lies.

Samples come in pairs, one of each kernel in every round, so that what disturbs the machine for longer than a round disturbs both.
The ratio within a round has some distribution of which nothing is assumed. The interval between two of its order statistics
holds its median with a probability that depends on their ranks alone:

    P(median not in [x_(k), x_(n+1-k)]) = 2 * sum over i < k of C(n, i) / 2^n

the sign test turned round (e.g. Conover, Practical Nonparametric Statistics, 3.2).
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Interval", "Times", "compare", "summarise"]

DOUBT = 0.01
"""Probability that an interval misses the median."""

LEAST_GAIN = 0.02
"""Differences below are not believed, however surely they are measured: an interval holds for one load of the code,
and where code and data lie changes with the next one."""

LEAST_ESTIMATED_GAIN = 0.005
"""The same of estimates: they do not see where code lies, but modelled caches see where data lies, a few thousandths."""


@dataclass(frozen=True, slots=True)
class Interval:
    """How long one kernel takes over how long another does.

    Attributes:
        ratio: Median over the rounds.
        low: The median is surely no less.
        high: The median is surely no more.
        least_gain: Of a difference that is believed.
    """

    ratio: float
    low: float
    high: float
    least_gain: float = LEAST_GAIN

    @property
    def faster(self) -> bool:
        """Whether the first kernel is faster beyond the noise."""
        return self.high < 1 - self.least_gain

    @property
    def undecided(self) -> bool:
        """Whether more samples may tell."""
        return self.low < 1 - self.least_gain <= self.high

    @property
    def hopeful(self) -> bool:
        """Whether more samples may show that the first is faster, and those that there are say so."""
        return max(self.low, self.ratio) < 1 - self.least_gain


@dataclass(frozen=True, slots=True)
class Times:
    """Samples of a candidate and of the default, in microseconds or estimated cycles.

    Attributes:
        median: Of the candidate.
        minimum: Of the candidate.
        default_median: Of the default, in the same rounds.
        default_minimum: Of the default.
        rounds: Samples of each.
    """

    median: float
    minimum: float
    default_median: float
    default_minimum: float
    rounds: int


def compare(ours: Sequence[float], theirs: Sequence[float], *, exact: bool = False) -> Interval:
    """Compares two kernels by paired samples.

    Args:
        ours: Times of the first, one for each round.
        theirs: Times of the second in the same rounds.
        exact: Whether times are computed and the same each time.

    Returns:
        The interval; from 0 to infinity where there are too few samples to tell.
    """
    ratios = sorted(one / other for one, other in zip(ours, theirs, strict=True))
    ratio = statistics.median(ratios)
    if exact:
        return Interval(ratio, ratio, ratio, LEAST_ESTIMATED_GAIN)
    rank = _rank(len(ratios))
    if rank == 0:
        return Interval(ratio, 0.0, math.inf)
    return Interval(ratio, ratios[rank - 1], ratios[-rank])


def summarise(ours: Sequence[float], theirs: Sequence[float]) -> Times:
    """Gives what records keep of samples.

    Args:
        ours: Times of the candidate, one for each round.
        theirs: Times of the default in the same rounds.

    Returns:
        Medians, minima and the number of rounds.
    """
    return Times(statistics.median(ours), min(ours), statistics.median(theirs), min(theirs), len(ours))


def _rank(count: int) -> int:
    """The largest rank k whose interval keeps to the doubt, 0 where none does."""
    rank, missed = 0, 0.0
    while rank <= count // 2:
        missed += 2 * math.comb(count, rank) / 2**count
        if missed > DOUBT:
            break
        rank += 1
    return rank
