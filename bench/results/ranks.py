"""Rank statistics of two samples: the Mann-Whitney test, the Hodges-Lehmann shift, Holm's correction."""

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

EXACT = 80
"""Up to this many values in all, the distribution of ranks is counted out; beyond, it is taken for normal."""

Samples = Sequence[float]


class Tails(NamedTuple):
    """Probabilities, if both samples are alike, of ranks of the second no higher, and no lower, than seen."""

    no_higher: float
    no_lower: float

    @property
    def two_sided(self) -> float:
        """The p value of a difference either way."""
        return min(1.0, 2 * min(self))


class Shift(NamedTuple):
    """By how much the second sample is larger: the Hodges-Lehmann estimate and an interval that covers it."""

    estimate: float
    low: float
    high: float


def mann_whitney(first: Samples, second: Samples) -> Tails:
    """Test whether the values of two samples are alike, by their ranks.

    Args:
        first: At least one value.
        second: At least one value.

    Returns:
        Exact probabilities, given the ties, for up to ``EXACT`` values; else the normal approximation with the
        corrections for ties and continuity.
    """
    values = np.concatenate([first, second])
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    # Twice the mean rank of tied values, so that it is whole.
    ranks = (2 * np.cumsum(counts) - counts + 1)[inverse]
    seen = int(ranks[len(first) :].sum())
    if len(values) <= EXACT:
        sums = _rank_sums(tuple(sorted(ranks.tolist())), len(second))
        return Tails(float(sums[: seen + 1].sum()), float(sums[seen:].sum()))
    total = len(values)
    # The mean of `seen` is len(second) (total + 1), its variance four times that of the rank sum.
    ties = float((counts.astype(float) ** 3 - counts).sum()) / (total * (total - 1))
    deviation = math.sqrt(len(first) * len(second) * (total + 1 - ties) / 3)
    if deviation == 0:
        return Tails(1.0, 1.0)
    offset, normal = seen - len(second) * (total + 1), NormalDist()
    return Tails(normal.cdf((offset + 1) / deviation), normal.cdf((1 - offset) / deviation))


@lru_cache(maxsize=64)
def _rank_sums(ranks: tuple[int, ...], chosen: int) -> NDArray[np.float64]:
    """Probability of every sum of ``chosen`` of the ranks, all choices being equally likely."""
    ways = np.zeros((chosen + 1, sum(ranks) + 1))
    ways[0, 0] = 1
    for rank in ranks:
        ways[1:, rank:] += ways[:-1, :-rank].copy()
    return np.asarray(ways[-1] / math.comb(len(ranks), chosen))


def shift(first: Samples, second: Samples, level: float) -> Shift | None:
    """How much larger the second sample is: the median of all pairs' differences, and those that the test allows.

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
    """How much larger the second sample is, by the Hodges-Lehmann estimate alone."""
    return float(np.median(_pairs(first, second)))


def _pairs(first: Samples, second: Samples) -> NDArray[np.float64]:
    """Differences of all pairs, sorted."""
    return np.sort(np.subtract.outer(np.asarray(second, float), np.asarray(first, float)).ravel())


def _critical(first: int, second: int, tail: float) -> int:
    """The largest U with P(U or less) <= tail; -1 if there is none."""
    total = first + second
    if total <= EXACT:
        sums = _rank_sums(tuple(range(2, 2 * total + 1, 2)), second)[::2]
        return int(np.searchsorted(np.cumsum(sums)[second * (second + 1) // 2 :], tail, side="right")) - 1
    deviation = math.sqrt(first * second * (total + 1) / 12)
    return math.floor(first * second / 2 - 0.5 + NormalDist().inv_cdf(tail) * deviation)


def smallest_p(first: int, second: int) -> float:
    """The two-sided p value of samples that do not overlap: none of these sizes has a smaller one."""
    return min(1.0, 2 / math.comb(first + second, second))


def samples_needed(level: float) -> int:
    """How many values both samples must have for any difference to be seen at a level above 0."""
    number = 1
    while smallest_p(number, number) > level:
        number += 1
    return number


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p values: rejecting those <= L errs anywhere among them with a probability of at most L."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for done, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - done) * p_values[place]))
        adjusted[place] = largest
    return adjusted
