"""Groups of displacements: independent ones of equal weight, whose scatter is the error of their mean."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

LEAST_GROUPS = 16
"""Least number of groups: the scatter of fewer says little."""


class ErrorEstimator(Protocol):
    """Groups of displacements of one size, and the kernel and the error that follow from them.

    Attributes:
        size: Displacements of a group.
        growth: Growth of the number of samples between error checks: a check after every group would stop at lucky ones
            more often.
    """

    size: int
    growth: float

    @property
    def count(self) -> int:
        """Number of groups."""

    def draw(self) -> None:
        """Draw another group of the stream; the groups may become fewer and larger by it."""

    def evaluate(self) -> tuple[Tensor, Tensor, float]:
        """Return the kernel and its standard error in float64, and the effective samples."""


@dataclass
class GroupMeans:
    """Mean and scatter of groups whose kernels are independent and of equal weight; no group is kept.

    Attributes:
        make: Returns the kernel of a range of displacements alone.
        size: Displacements of a group.
        count: Number of groups.
        growth: Growth of the number of samples between error checks.
        mean: Mean of the groups' kernels, float64.
        scatter: Sum of squared deviations from the mean.
    """

    make: Callable[[range], Tensor]
    size: int
    count: int = 0
    growth: float = 1.25
    mean: Tensor | None = None
    scatter: Tensor | None = None

    def draw(self) -> None:
        """Add a group by Welford's update of a mean and its sum of squared deviations."""
        kernel = self.make(range(self.count * self.size, (self.count + 1) * self.size)).double()
        self.count += 1
        step = kernel if self.mean is None else kernel - self.mean
        self.mean = step / self.count if self.mean is None else self.mean + step / self.count
        square = step * (kernel - self.mean)
        self.scatter = square if self.scatter is None else self.scatter + square

    def evaluate(self) -> tuple[Tensor, Tensor, float]:
        """Return the mean, its standard error, and the number of samples."""
        assert self.mean is not None and self.scatter is not None, "groups were drawn"
        error = (self.scatter / (self.count - 1) / self.count).clamp(min=0).sqrt()
        return self.mean, error, float(self.count * self.size)
