"""Claims: sentences about a number, each with its interval over seeds, which supports or contradicts it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LEVEL = 0.95
"""Probability of the intervals."""


@dataclass(frozen=True)
class Interval:
    """Mean over seeds, and bounds that contain the true mean with probability ``LEVEL``."""

    mean: float
    low: float
    high: float


def interval(values: Sequence[float] | np.ndarray, ratio: bool = False) -> Interval:
    """Return Student's interval for the mean of independent values.

    Args:
        values: One value for each seed, at least two.
        ratio: True if the values are ratios, all positive. The interval is then computed from their logarithms, and the
            mean is geometric.

    Returns:
        The interval.

    Raises:
        ValueError: If there are fewer than two values, one is not finite, or a ratio is not positive.
    """
    from scipy.stats import t

    numbers = np.asarray(values, dtype=float)
    if numbers.ndim != 1 or len(numbers) < 2 or not np.isfinite(numbers).all() or ratio and numbers.min() <= 0:
        requirement = "finite and positive" if ratio else "finite"
        raise ValueError(f"values must be {requirement}, two at least; got {numbers.tolist()}.")
    x = np.log(numbers) if ratio else numbers
    half = float(t.ppf((1 + LEVEL) / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))
    ends = [float(x.mean()) + step for step in (0.0, -half, half)]
    return Interval(*(np.exp(ends) if ratio else ends))


@dataclass(frozen=True)
class Claim:
    """Claim that the mean of a number over seeds lies in a range.

    Attributes:
        name: Short name, unique in its study.
        text: Sentence of the claim; ``{}`` stands for the mean with its interval.
        values: Values of the number, one for each seed.
        low: Lower end of the claimed range. Times are reported without a range, so that both ends are infinite.
        high: Upper end of the claimed range.
        form: Format specification of the number.
        ratio: True if the number is a ratio; see :func:`interval`.
    """

    name: str
    text: str
    values: Sequence[float] | np.ndarray
    low: float = -math.inf
    high: float = math.inf
    form: str = ".3g"
    ratio: bool = False

    @property
    def interval(self) -> Interval:
        """Mean over seeds with its interval."""
        return interval(self.values, self.ratio)

    @property
    def verdict(self) -> str:
        """Verdict: ``supported`` if the interval is in the range, ``contradicted`` if it is outside, else ``open``."""
        bounds = self.interval
        if self.low <= bounds.low and bounds.high <= self.high:
            return "supported"
        return "contradicted" if bounds.high < self.low or bounds.low > self.high else "open"

    @property
    def sentence(self) -> str:
        """Text of the claim with its number."""
        mean, low, high = (format(value, self.form) for value in vars(self.interval).values())
        return self.text.replace("{}", f"{mean} [{low}, {high}]")

    def summary(self) -> dict[str, Any]:
        """Return the claim as plain data for JSON; infinite ends of the range are null."""
        ends = {name: value if math.isfinite(value := getattr(self, name)) else None for name in ("low", "high")}
        return {
            "name": self.name,
            "sentence": self.sentence,
            "verdict": self.verdict,
            "claimed": ends,
            **{key: value for key, value in vars(self.interval).items()},
            "level": LEVEL,
            "ratio": self.ratio,
            "values": [float(value) for value in self.values],
        }
