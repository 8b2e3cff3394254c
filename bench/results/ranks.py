"""Rank statistics of two samples: the Mann-Whitney test, the Hodges-Lehmann shift, Holm's correction."""

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

EXACT = 80
"""Largest number of values for which the distribution of ranks is exact; beyond, it is approximated as normal."""

Samples = Sequence[float]


class Tails(NamedTuple):
    """Probabilities, if both samples have one distribution, of second ranks no higher, and no lower, than observed."""

    no_higher: float
    no_lower: float

    @property
    def two_sided(self) -> float:
        """Two-sided p value of a difference."""
        return min(1.0, 2 * min(self))


class Shift(NamedTuple):
    """Shift from the first sample to the second: the Hodges-Lehmann estimate and an interval that covers it."""

    estimate: float
    low: float
    high: float


def mann_whitney(first: Samples, second: Samples) -> Tails:
    """Test by their ranks whether two samples have the same distribution.

    Args:
        first: At least one value.
        second: At least one value.

    Returns:
        Exact probabilities, given the ties, for up to ``EXACT`` values; else the normal approximation with the
        corrections for ties and continuity.
    """
    values = np.concatenate([first, second])
    if len(values) > EXACT:
        if np.ptp(values) == 0:
            return Tails(1.0, 1.0)
        less, greater = (
            float(stats.mannwhitneyu(second, first, alternative=side, method="asymptotic").pvalue)
            for side in ("less", "greater")
        )
        return Tails(less, greater)
    # SciPy has no exact distribution for tied values. Twice the mean rank of tied values is an integer.
    ranks = np.rint(2 * stats.rankdata(values)).astype(int)
    rank_sum = int(ranks[len(first) :].sum())
    sums = _rank_sums(tuple(sorted(ranks.tolist())), len(second))
    return Tails(float(sums[: rank_sum + 1].sum()), float(sums[rank_sum:].sum()))


@lru_cache(maxsize=64)
def _rank_sums(ranks: tuple[int, ...], chosen: int) -> NDArray[np.float64]:
    """Return the probability of every sum of ``chosen`` of the ranks, where all choices are equally likely."""
    counts = np.zeros((chosen + 1, sum(ranks) + 1))
    counts[0, 0] = 1
    for rank in ranks:
        counts[1:, rank:] += counts[:-1, :-rank].copy()
    return np.asarray(counts[-1] / math.comb(len(ranks), chosen))


def shift(first: Samples, second: Samples, level: float) -> Shift | None:
    """Estimate the shift from the first sample to the second: the median difference of all pairs, with an interval.

    Args:
        first: At least one value.
        second: At least one value.
        level: Probability that the interval misses the shift, in (0, 1).

    Returns:
        Estimate and interval; None if there are too few values for an interval at this level.
    """
    pairs = _pairs(first, second)
    dropped = _critical(len(first), len(second), level / 2)
    if dropped < 0:
        return None
    return Shift(float(np.median(pairs)), float(pairs[dropped]), float(pairs[-1 - dropped]))


def median_shift(first: Samples, second: Samples) -> float:
    """Return the Hodges-Lehmann estimate of the shift from the first sample to the second."""
    return float(np.median(_pairs(first, second)))


def _pairs(first: Samples, second: Samples) -> NDArray[np.float64]:
    """Return the differences of all pairs, sorted."""
    return np.sort(np.subtract.outer(np.asarray(second, float), np.asarray(first, float)).ravel())


def _critical(first: int, second: int, tail: float) -> int:
    """Return the largest U with P(U or less) <= tail; -1 if there is none."""
    total = first + second
    if total <= EXACT:
        sums = _rank_sums(tuple(range(2, 2 * total + 1, 2)), second)[::2]
        return int(np.searchsorted(np.cumsum(sums)[second * (second + 1) // 2 :], tail, side="right")) - 1
    deviation = math.sqrt(first * second * (total + 1) / 12)
    return math.floor(first * second / 2 - 0.5 + NormalDist().inv_cdf(tail) * deviation)


def smallest_p(first: int, second: int) -> float:
    """Return the two-sided p value of samples that do not overlap, the smallest of samples of these sizes."""
    return min(1.0, 2 / math.comb(first + second, second))


def samples_needed(level: float) -> int:
    """Return the number of values that both samples need so that a difference can be significant at a level above 0."""
    number = 1
    while smallest_p(number, number) > level:
        number += 1
    return number


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p values by Holm's correction: rejecting all <= L makes any error with a probability of at most L."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for position, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - position) * p_values[index]))
        adjusted[index] = largest
    return adjusted
