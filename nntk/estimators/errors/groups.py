"""Groups of displacements: independent ones of equal weight, whose scatter is the error of their mean."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from nntk.estimators.errors.events import Contributions, EventsOfEntries, RareEvents

LEAST_GROUPS = 16
"""Least number of groups: the scatter of fewer says little."""


class Evaluation(NamedTuple):
    """Kernel of all groups with its error.

    Attributes:
        kernel: Kernel, float64.
        error: Standard error of each entry by the scatter of groups, float64.
        effective_samples: Effective number of displacements.
        events: Entries that rest on too few events, with their bounds.
        replicates: Kernels without one group each, [G, ...], float64, if they were asked for.
    """

    kernel: Tensor
    error: Tensor
    effective_samples: float
    events: RareEvents
    replicates: Tensor | None = None


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

    def evaluate(self) -> Evaluation:
        """Return the kernel with its error."""


@dataclass
class GroupMeans:
    """Mean and scatter of groups whose kernels are independent and of equal weight; no group is kept.

    Attributes:
        make: Returns the kernel of a range of displacements alone.
        size: Displacements of a group.
        symmetric: Rows and columns belong to the same inputs.
        event_size: Returns the size that an event has where none was seen, for one displacement of weight one.
        count: Number of groups.
        growth: Growth of the number of samples between error checks.
        mean: Mean of the groups' kernels, float64.
        scatter: Sum of squared deviations from the mean.
        contributions: Sums over the groups' kernels.
    """

    make: Callable[[range], Tensor]
    size: int
    symmetric: bool
    event_size: Callable[[], float]
    count: int = 0
    growth: float = 1.25
    mean: Tensor | None = None
    scatter: Tensor | None = None
    contributions: Contributions | None = None

    def draw(self) -> None:
        """Add a group by Welford's update of a mean and its sum of squared deviations."""
        kernel = self.make(range(self.count * self.size, (self.count + 1) * self.size)).double()
        self.count += 1
        step = kernel if self.mean is None else kernel - self.mean
        self.mean = step / self.count if self.mean is None else self.mean + step / self.count
        square = step * (kernel - self.mean)
        self.scatter = square if self.scatter is None else self.scatter + square
        self.contributions = self.contributions.add(kernel) if self.contributions else Contributions.of([kernel])

    def evaluate(self) -> Evaluation:
        """Return the mean, its standard error, the number of samples, and the entries of few events."""
        assert self.mean is not None and self.scatter is not None and self.contributions, "groups were drawn"
        error, samples = (self.scatter / (self.count - 1) / self.count).clamp(min=0).sqrt(), self.count * self.size
        contributions = with_known_size(self.contributions.scaled(1 / self.count), samples, self.event_size)
        return Evaluation(self.mean, error, float(samples), EventsOfEntries(contributions, self.symmetric))


def with_known_size(contributions: Contributions, samples: int, event_size: Callable[[], float]) -> Contributions:
    """Return contributions whose largest event is known, even if too few were seen to show it.

    Args:
        contributions: Contributions of all groups.
        samples: Number of displacements of all groups.
        event_size: Returns the size that an event has where few were seen, for one displacement of weight one.
    """
    if not bool((contributions.groups < contributions.least_groups).any()):
        return contributions
    return contributions.with_event_size(max(contributions.largest, event_size() / samples))
