"""A kernel with its error bars: groups of displacements, whose means scatter as the kernel errs."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Protocol

import torch
from torch import Tensor

from nntk.kernels import checks

LEAST_GROUPS = 16
"""Fewer means of groups than this say little of their own scatter."""


@dataclass(frozen=True)
class Estimate:
    r"""A kernel and what is known of its error.

    Attributes:
        kernel: The kernel of all displacements.
        standard_error: Of each entry: the standard deviation of kernels of so many displacements, by the scatter of the
            groups' means, or (plugin, unbiased and weighted kernels) of the kernels without one group.
        relative_error: The standard error of the whole matrix over its Frobenius norm.
        samples: Displacements that it took.
        effective_samples: How many of equal weight would err as much, :math:`1 / \sum_m \alpha_m^2`; where weights
            depend on the input, the least over the inputs.
        evaluations: Displaced evaluations of the model for each input.
        groups: Groups of equally many displacements.
        converged: Whether the tolerance was met.
        trace: Samples and relative error at each look.
    """

    kernel: Tensor
    standard_error: Tensor
    relative_error: float
    samples: int
    effective_samples: float
    evaluations: int
    groups: int
    converged: bool
    trace: tuple[tuple[int, float], ...]

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        r"""Bounds that hold the expectation of each entry with this probability.

        Of the energy and unbiased forms that is the kernel of infinitely many displacements; weighted ones miss it by a
        term of 1 / M, small against the error of :math:`1 / \sqrt M`. Of plugin it is the mean of plugin kernels of
        **as many** displacements, which for a linear model exceeds the limit by (d - 1) / M: no scatter tells that
        bias. Bounds of the limit are those of the unbiased form.

        Args:
            level: The probability, in (0, 1).

        Returns:
            Lower and upper bounds, each like ``kernel``, by quantiles of Student's t.

        Raises:
            ValueError: If ``level`` is out of range.
        """
        if not 0 < level < 1:
            raise ValueError(f"level must be between 0 and 1, got {level!r}.")
        half = t_quantile(0.5 + level / 2, self.groups - 1) * self.standard_error
        return self.kernel - half, self.kernel + half


def t_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t by its expansion around the normal law (Abramowitz & Stegun 26.7.5).

    Args:
        probability: In (0, 1).
        freedom: Degrees of freedom; from 15 on the expansion is off by 2e-5 at most between 0.5 % and 99.5 %.

    Returns:
        The quantile.

    Example:
        >>> round(t_quantile(0.975, 15), 4)
        2.1314
    """
    z, n = NormalDist().inv_cdf(probability), freedom
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * n**4)
    )


class Tally(Protocol):
    """Groups of displacements of one size, and what they tell of the kernel and of its error."""

    size: int
    growth: float
    """Of the samples between two looks: looking after every group would stop at lucky ones more often."""

    @property
    def count(self) -> int:
        """Number of groups."""

    def draw(self) -> None:
        """Draw another group of the stream; the groups may become fewer and larger by it."""

    def look(self) -> tuple[Tensor, Tensor, float]:
        """Kernel and standard error in float64, and the effective samples."""


@dataclass
class Means:
    """Groups whose kernels are independent and of equal weight: their mean and its scatter, none of them kept.

    Attributes:
        make: The kernel of some displacements alone.
        size: Displacements of a group.
        count: Groups.
        mean: Of their kernels, float64.
        scatter: Squares of deviations from it.
    """

    make: Callable[[range], Tensor]
    size: int
    count: int = 0
    growth: float = 1.25
    mean: Tensor | None = None
    scatter: Tensor | None = None

    def draw(self) -> None:
        """Welford's update: sums of squares about a mean that moves."""
        made = self.make(range(self.count * self.size, (self.count + 1) * self.size)).double()
        self.count += 1
        step = made if self.mean is None else made - self.mean
        self.mean = step / self.count if self.mean is None else self.mean + step / self.count
        square = step * (made - self.mean)
        self.scatter = square if self.scatter is None else self.scatter + square

    def look(self) -> tuple[Tensor, Tensor, float]:
        """The mean, and the scatter over the root of the number of groups."""
        assert self.mean is not None and self.scatter is not None, "groups were drawn"
        error = (self.scatter / (self.count - 1) / self.count).clamp(min=0).sqrt()
        return self.mean, error, float(self.count * self.size)


def estimate(
    tally: Tally,
    dtype: torch.dtype,
    evaluations: int,
    rtol: float,
    max_samples: int,
    progress: Callable[[Estimate], None] | None,
) -> Estimate:
    """Draw groups until the error of what they tell together is small enough.

    Args:
        tally: The groups, none of them drawn yet.
        dtype: Of the kernel.
        evaluations: Evaluations of a displacement.
        rtol: Relative error of the matrix that ends it.
        max_samples: Displacements that end it.
        progress: Is given the estimate at each look.

    Returns:
        The estimate.

    Raises:
        ValueError: If no displacement has a weight, or the kernel is not finite.
    """
    trace: list[tuple[int, float]] = []
    next_look = LEAST_GROUPS * tally.size
    while True:
        tally.draw()
        samples = tally.count * tally.size
        last = samples + tally.size > max_samples and tally.count >= LEAST_GROUPS
        if samples < next_look and not last:
            continue
        next_look = tally.size * max(tally.count + 1, int(tally.count * tally.growth))
        kernel, error, effective = tally.look()
        checks.finite("the kernel, from the model's outputs at displaced parameters,", kernel)
        relative = float(error.norm() / kernel.norm()) if bool(kernel.any()) else 0.0
        trace.append((samples, relative))
        found = Estimate(
            kernel.to(dtype), error.to(dtype), relative, samples, effective, samples * evaluations, tally.count,
            relative <= rtol, tuple(trace),
        )  # fmt: skip
        if progress:
            progress(found)
        if found.converged or last:
            return found


def check_limits(rtol: float, max_samples: int, samples: int) -> tuple[float, int]:
    """Check what ends an estimate.

    Returns:
        Both as numbers.

    Raises:
        ValueError: If the tolerance is out of range, or the limit below the first look.
        TypeError: If one is no number.
    """
    rtol = checks.positive_float("rtol", rtol, 1e-6, 1e6, "It is the standard error of the matrix over its norm.")
    least = LEAST_GROUPS * max(1, samples // LEAST_GROUPS)
    return rtol, checks.integer("max_samples", max_samples, least, 2**32, "The first look is at 16 groups.")
