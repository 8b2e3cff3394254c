"""Kernel with error bars: displacements are drawn in groups until the error is small enough."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.stats import t as student_t
from torch import Tensor

from nntk.estimators.errors.groups import LEAST_GROUPS, ErrorEstimator
from nntk.kernels import checks


@dataclass(frozen=True)
class Estimate:
    r"""Kernel with its Monte-Carlo error.

    Attributes:
        kernel: Kernel of all displacements.
        standard_error: Standard error of each entry: the standard deviation of kernels of this many displacements, from
            the scatter of the groups' means, or, for plugin, unbiased and weighted kernels, from the kernels without
            one group.
        relative_error: Standard error of the whole matrix over its Frobenius norm.
        samples: Number of displacements.
        effective_samples: Number of displacements of equal weight with the same error,
            :math:`1 / \sum_m \alpha_m^2`; where weights depend on the input, the least over the inputs.
        evaluations: Displaced evaluations of the model for each input.
        groups: Number of groups of displacements.
        converged: True if the tolerance was met.
        trace: Samples and relative error at each error check.
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
        r"""Return bounds that hold the expectation of each entry with a given probability.

        For the energy and unbiased forms the expectation is the kernel of infinitely many displacements; weighted
        kernels miss it by a term of 1 / M, which is small against the error of :math:`1 / \sqrt M`. For plugin it is
        the mean of plugin kernels of **as many** displacements, which for a linear model exceeds the limit by
        (d - 1) / M: the scatter does not show that bias. Use the unbiased form for bounds of the limit.

        Args:
            level: Probability, in (0, 1).

        Returns:
            Lower and upper bounds, each like ``kernel``, by quantiles of Student's t distribution.

        Raises:
            ValueError: If ``level`` is out of range.
        """
        if not 0 < level < 1:
            raise ValueError(f"level must be between 0 and 1, got {level!r}.")
        half_width = float(student_t.ppf(0.5 + level / 2, self.groups - 1)) * self.standard_error
        return self.kernel - half_width, self.kernel + half_width


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
        kernel, error, effective = errors.evaluate()
        checks.finite("the kernel, from the model's outputs at displaced parameters,", kernel)
        relative = float(error.norm() / kernel.norm()) if bool(kernel.any()) else 0.0
        trace.append((samples, relative))
        result = Estimate(
            kernel.to(dtype), error.to(dtype), relative, samples, effective, samples * evaluations, errors.count,
            relative <= rtol, tuple(trace),
        )  # fmt: skip
        if progress:
            progress(result)
        if result.converged or is_last:
            return result


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
