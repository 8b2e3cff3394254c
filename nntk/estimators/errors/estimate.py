"""Kernel with error bars: displacements are drawn in groups until the error is small enough."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.stats import t as student_t
from torch import Tensor

from nntk.estimators.errors.events import RareEvents
from nntk.estimators.errors.groups import LEAST_GROUPS, ErrorEstimator
from nntk.kernels import checks


@dataclass(frozen=True)
class Estimate:
    r"""Kernel with its Monte-Carlo error.

    Attributes:
        kernel: Kernel of all displacements.
        standard_error: Standard error of each entry: the standard deviation of kernels of this many displacements, from
            the scatter of the groups' means, or, for plugin, unbiased and weighted kernels, from the kernels without
            one group. For entries that rest on too few events it is at least the size of one event: see
            :mod:`nntk.estimators.errors.events`.
        relative_error: Standard error of the whole matrix over its Frobenius norm; inf for a matrix of zeros.
        samples: Number of displacements.
        effective_samples: Number of displacements of equal weight with the same error,
            :math:`1 / \sum_m \alpha_m^2`; where weights depend on the input, the least over the inputs.
        evaluations: Displaced evaluations of the model for each input.
        groups: Number of groups of displacements.
        converged: True if the tolerance was met, and no entry rests on too few events.
        trace: Samples and relative error at each error check.
        events: Entries that rest on too few events, ``events.too_few``, with their bounds. Such an entry may be a true
            zero, or rest on jumps that few displacements crossed: these cannot be told apart.
        replicates: Kernels of all displacements but those of one group each, [G, ...] with 16 to 31 groups, in the
            dtype of ``kernel``; None unless they were asked for. For any function of the kernel, the sum of its squared
            deviations over them, times :math:`(G - 1) / G`, is the jackknife's variance: see :func:`nntk.compare`.
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
    events: RareEvents
    replicates: Tensor | None = None

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        r"""Return bounds that hold the expectation of each entry with a given probability.

        For the energy and unbiased forms the expectation is the kernel of infinitely many displacements; weighted
        kernels miss it by a term of 1 / M, which is small against the error of :math:`1 / \sqrt M`. For plugin it is
        the mean of plugin kernels of **as many** displacements, which for a linear model exceeds the limit by
        (d - 1) / M: the scatter does not show that bias. Use the unbiased form for bounds of the limit.

        The bounds are quantiles of Student's t distribution. Where an entry rests on too few events, they are widened
        to those of a weighted sum of Poisson counts. Without any event these are [0, b] for diagonal entries and
        [-b, b] for others, where b is 3.7 times the size of one event for ``level=0.95``.

        Args:
            level: Probability, in (0, 1).

        Returns:
            Lower and upper bounds, each like ``kernel``. They are infinite where no event of any size is known.

        Raises:
            ValueError: If ``level`` is out of range.
        """
        if not 0 < level < 1:
            raise ValueError(f"level must be between 0 and 1, got {level!r}.")
        half_width = float(student_t.ppf(0.5 + level / 2, self.groups - 1)) * self.standard_error
        lower, upper = self.kernel - half_width, self.kernel + half_width
        few = self.events.too_few
        if not bool(few.any()):
            return lower, upper
        rare_lower, rare_upper = (bound.to(lower.dtype) for bound in self.events.interval(level))
        return torch.where(few, rare_lower, lower), torch.where(few, rare_upper, upper)


def estimate(
    errors: ErrorEstimator,
    dtype: torch.dtype,
    evaluations: int,
    rtol: float,
    max_samples: int,
    progress: Callable[[Estimate], None] | None,
) -> Estimate:
    """Draw groups of displacements until the error of their kernel is small enough.

    Args:
        errors: Error estimator without groups.
        dtype: Dtype of the kernel.
        evaluations: Evaluations of a displacement.
        rtol: Relative error of the matrix that ends the estimate.
        max_samples: Number of displacements that ends the estimate.
        progress: Receives the estimate at each error check.

    Returns:
        The estimate.

    Raises:
        ValueError: If no displacement has a weight, or the kernel is not finite.
    """
    trace: list[tuple[int, float]] = []
    next_check = LEAST_GROUPS * errors.size
    while True:
        errors.draw()
        samples = errors.count * errors.size
        is_last = samples + errors.size > max_samples and errors.count >= LEAST_GROUPS
        if samples < next_check and not is_last:
            continue
        next_check = errors.size * max(errors.count + 1, int(errors.count * errors.growth))
        kernel, error, effective, events, replicates = errors.evaluate()
        checks.finite("the kernel, from the model's outputs at displaced parameters,", kernel)
        few = events.too_few
        if is_uncertain := bool(few.any()):
            error = torch.where(few, torch.maximum(error, events.error), error)
        relative = relative_error(error, kernel)
        trace.append((samples, relative))
        result = Estimate(
            kernel.to(dtype), error.to(dtype), relative, samples, effective, samples * evaluations, errors.count,
            relative <= rtol and not is_uncertain, tuple(trace), events,
            None if replicates is None else replicates.to(dtype),
        )  # fmt: skip
        if progress:
            progress(result)
        if result.converged or is_last:
            return result


def relative_error(error: Tensor, kernel: Tensor) -> float:
    """Return the norm of an error over that of a kernel: inf for a kernel of zeros, zero if there is no entry."""
    if not kernel.numel():
        return 0.0
    return float(error.norm() / kernel.norm()) if bool(kernel.any()) else math.inf


def check_limits(rtol: float, max_samples: int, samples: int) -> tuple[float, int]:
    """Check the limits that end an estimate.

    Args:
        rtol: Relative error.
        max_samples: Number of displacements.
        samples: Number of displacements of the kernel, of which a group is a sixteenth.

    Returns:
        Both limits as numbers.

    Raises:
        ValueError: If the tolerance is out of range, or the limit below the first error check.
        TypeError: If a limit is not a number.
    """
    rtol = checks.positive_float("rtol", rtol, 1e-6, 1e6, "It is the standard error of the matrix over its norm.")
    least = LEAST_GROUPS * max(1, samples // LEAST_GROUPS)
    return rtol, checks.integer("max_samples", max_samples, least, 2**32, "The first look is at 16 groups.")
