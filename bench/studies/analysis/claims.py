"""Claims: sentences about a number, each with its interval over seeds, which supports or contradicts it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """Mean over seeds, and the bounds that hold the true one with probability ``LEVEL``."""

    mean: float
    low: float
    high: float


def interval(values: Sequence[float] | np.ndarray, ratio: bool = False) -> Interval:
    """Student's interval for the mean of independent values.

    Args:
        values: One a seed, two at least.
        ratio: Whether they are ratios, all positive: mean and interval are of their logarithms then, and the mean is
            the geometric one.

    Returns:
        The interval.

    Raises:
        ValueError: If there are fewer than two values, one is not finite, or a ratio is not positive.
    """
    from scipy.stats import t

    given = np.asarray(values, dtype=float)
    if given.ndim != 1 or len(given) < 2 or not np.isfinite(given).all() or ratio and given.min() <= 0:
        need = "finite and positive" if ratio else "finite"
        raise ValueError(f"values must be {need}, two at least; got {given.tolist()}.")
    x = np.log(given) if ratio else given
    half = float(t.ppf((1 + LEVEL) / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))
    ends = [float(x.mean()) + step for step in (0.0, -half, half)]
    return Interval(*(np.exp(ends) if ratio else ends))


@dataclass(frozen=True)
class Claim:
    """Claim that the mean of a number over seeds lies in a range.

    Attributes:
        name: Short and unique in its study.
        text: The sentence; ``{}`` in it becomes the mean with its interval.
        values: The number, one a seed.
        low: Lower end of the range that is claimed; a time is reported, and of no range.
        high: Upper end of it.
        form: How the number is written.
        ratio: Whether it is a ratio; see :func:`interval`.
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
        """Mean and its interval."""
        return interval(self.values, self.ratio)

    @property
    def verdict(self) -> str:
        """``supported`` if the whole interval is in the range, ``contradicted`` if none of it is, else ``open``."""
        found = self.interval
        if self.low <= found.low and found.high <= self.high:
            return "supported"
        return "contradicted" if found.high < self.low or found.low > self.high else "open"

    @property
    def sentence(self) -> str:
        """Text of the claim with its number."""
        mean, low, high = (format(value, self.form) for value in vars(self.interval).values())
        return self.text.replace("{}", f"{mean} [{low}, {high}]")

    def summary(self) -> dict[str, Any]:
        """For JSON: ends of the range that are infinite are null."""
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
