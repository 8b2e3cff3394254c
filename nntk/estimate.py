"""A kernel with its error bars: groups of displacements, whose means scatter as the kernel errs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from nntk.kernels import checks

LEAST_GROUPS = 16
"""Fewer means of groups than this say little of their own scatter."""
_GROWTH = 1.25
"""Between two looks at the error: looking after every group would stop at lucky ones more often."""


@dataclass(frozen=True)
class Estimate:
    """A kernel and what is known of its error.

    Attributes:
        kernel: The kernel, the mean over groups.
        standard_error: Of each entry: the scatter of the groups' means over the root of their number.
        relative_error: The standard error of the whole matrix over its Frobenius norm.
        samples: Displacements that it took.
        evaluations: Displaced evaluations of the model for each input.
        groups: Groups of equally many displacements.
        converged: Whether the tolerance was met.
        trace: Samples and relative error at each look.
    """

    kernel: Tensor
    standard_error: Tensor
    relative_error: float
    samples: int
    evaluations: int
    groups: int
    converged: bool
    trace: tuple[tuple[int, float], ...]

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Bounds that hold each entry of the kernel of infinitely many displacements with this probability.

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


def estimate(
    groups: Iterator[Tensor],
    size: int,
    evaluations: int,
    rtol: float,
    max_samples: int,
    progress: Callable[[Estimate], None] | None,
) -> Estimate:
    """Average the means of groups until the error of their average is small enough.

    Args:
        groups: Kernels of groups of displacements, without end.
        size: Displacements of a group.
        evaluations: Evaluations of a displacement.
        rtol: Relative error of the matrix that ends it.
        max_samples: Displacements that end it.
        progress: Is given the estimate at each look.

    Returns:
        The estimate.
    """
    mean: Tensor | None = None
    scatter, trace, look, count = torch.zeros(()), [], LEAST_GROUPS, 0
    while True:
        group, count = next(groups), count + 1
        # Welford's update: sums of squares about a mean that moves.
        made = group.double()
        step = made if mean is None else made - mean
        mean = step / count if mean is None else mean + step / count
        scatter = scatter + step * (made - mean)
        last = (count + 1) * size > max_samples and count >= LEAST_GROUPS
        if count < look and not last:
            continue
        look = max(count + 1, int(count * _GROWTH))
        error = (scatter / (count - 1) / count).clamp(min=0).sqrt()
        relative = float(error.norm() / mean.norm()) if bool(mean.any()) else 0.0
        trace.append((count * size, relative))
        found = Estimate(
            mean.to(group.dtype), error.to(group.dtype), relative, count * size, count * size * evaluations, count,
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
