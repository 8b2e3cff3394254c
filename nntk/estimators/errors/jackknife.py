r"""Jackknife: error bars of weighted energy kernels, from the kernels that leave one group of displacements out.

A group has a share :math:`\beta_g(x) = \sum_{m \in g} \alpha_m(x)` of the weights, which is a softmax over groups. The
energy form of all displacements follows from the energy forms of the groups alone,

.. math::
    K(x, x') = \sum_g \sqrt{\beta_g(x) \beta_g(x')} K_g(x, x'),

and so does that of all groups but one, :math:`K_{-g}`, whose shares grow by :math:`1 / (1 - \beta_g)`. From these G
kernels the standard error is :math:`\sqrt{\tfrac{G - 1}{G} \sum_g (K_{-g} - \overline{K_{-g}})^2}`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Generic, TypeVar

import torch
from torch import Tensor

from nntk.estimators.errors.events import Contributions, EventsOfEntries, RareEvents
from nntk.estimators.errors.groups import LEAST_GROUPS, Evaluation, with_known_size
from nntk.kernels.assemble.reference import mirror
from nntk.kernels.fixed_weights import check_statistics, effective_samples, merge

_NEGLIGIBLE_REST = 1e-8
"""Where the share of the other groups is smaller, their part of the kernel is lost to the rounding of the sum."""

Group = TypeVar("Group")


@dataclass
class Jackknife(Generic[Group]):
    """Groups that are kept, 16 to 31 of them: when there are 32, pairs of neighbours are joined to one.

    Attributes:
        make: Returns the group of a range of displacements.
        join: Returns one group for two that follow each other in the stream.
        combine: Returns the kernel with its error for groups of a given total number of displacements.
        size: Displacements of a group.
        growth: Growth of the number of samples between error checks.
        groups: Groups drawn so far.
    """

    make: Callable[[range], Group]
    join: Callable[[Group, Group], Group]
    combine: Callable[[Sequence[Group], int], Evaluation]
    size: int
    growth: float = 1.25
    groups: list[Group] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Number of groups."""
        return len(self.groups)

    def draw(self) -> None:
        """Draw another group, and join pairs of groups when there are too many."""
        start = self.count * self.size
        self.groups.append(self.make(range(start, start + self.size)))
        if self.count == 2 * LEAST_GROUPS:
            self.groups = [self.join(*self.groups[first : first + 2]) for first in range(0, self.count, 2)]
            self.size *= 2

    def evaluate(self) -> Evaluation:
        """Return the kernel of all groups with its error."""
        return self.combine(self.groups, self.count * self.size)


@dataclass(frozen=True)
class EnergyGroup:
    """Energy form of a group alone.

    Attributes:
        kernel: [N1, N2] with the axes of the outputs.
        statistics: Statistics of the softmax over the group's displacements, [3, J], at the inputs of the rows followed
            by those of the columns (or once, for a symmetric kernel); [3, 1] where weights ignore the input.
    """

    kernel: Tensor
    statistics: Tensor

    def part(self, share: Tensor) -> Tensor:
        """Return the group's part of a kernel in which it has a share of the weights, [J]."""
        return self.kernel.double() * outer_product(share.sqrt(), self.kernel)


def join_energies(first: EnergyGroup, second: EnergyGroup) -> EnergyGroup:
    """Return the energy form of two groups together."""
    both = (first, second)
    shares = group_shares([group.statistics for group in both])
    kernel = running_sum(group.part(share) for group, share in zip(both, shares, strict=True))
    return EnergyGroup(kernel.to(first.kernel.dtype), merge(first.statistics, second.statistics))


def jackknife_energy(
    groups: Sequence[EnergyGroup],
    samples: int,
    symmetric: bool,
    event_size: Callable[[], float],
    keep_replicates: bool = False,
) -> Evaluation:
    """Return the energy form of all groups and its error.

    Args:
        groups: The groups.
        samples: Number of displacements of all groups.
        symmetric: Rows and columns belong to the same inputs.
        event_size: Returns the size that an event has where none was seen, for one displacement of weight one.
        keep_replicates: Keep the kernels without one group each.

    Returns:
        The kernel with its error.
    """
    shares, effective = combine_weights([group.statistics for group in groups], samples)
    kernel = running_sum(group.part(share) for group, share in zip(groups, shares, strict=True))
    contributions = Contributions.of(group.part(share) for group, share in zip(groups, shares, strict=True))
    contributions = with_known_size(contributions.under_shares(shares), samples, event_size)
    events = EventsOfEntries(contributions, symmetric)
    parts = (group.part(share) for group, share in zip(groups, shares, strict=True))
    rests = (outer_product(rest.sqrt(), kernel) for rest in leave_one_out(shares))
    error, replicates = standard_error(kernel, parts, rests, keep_replicates)
    return evaluation_of(kernel, error, effective, events, symmetric, replicates)


def evaluation_of(
    kernel: Tensor,
    error: Tensor,
    effective: float,
    events: RareEvents,
    symmetric: bool,
    replicates: Sequence[Tensor] = (),
) -> Evaluation:
    """Return a kernel with its error, all exactly symmetric if rows and columns belong to the same inputs."""
    if symmetric:
        kernel, error, replicates = mirror(kernel), mirror(error), [mirror(replicate) for replicate in replicates]
    return Evaluation(kernel, error, effective, events, torch.stack(list(replicates)) if replicates else None)


def standard_error(
    total: Tensor, parts: Iterable[Tensor], rests: Iterable[Tensor], keep_replicates: bool = False
) -> tuple[Tensor, list[Tensor]]:
    r"""Return the jackknife's error of a ratio.

    Args:
        total: Numerator of the ratio, over all groups.
        parts: Part of the numerator that is lost with each group, in turn.
        rests: Denominator that is left without each group, in turn.
        keep_replicates: Keep the ratios without one group each.

    Returns:
        Error of each entry, like ``total``; where one group has all the weight, the other groups say nothing, and the
        error is as large as the ratio. Then the ratios without one group each, if they are kept.
    """
    mean, scatter, count, replicates = torch.zeros_like(total), torch.zeros_like(total), 0, []
    for part, rest in zip(parts, rests, strict=True):
        ratio = torch.where(rest > _NEGLIGIBLE_REST, (total - part) / rest, 0.0)
        count, step = count + 1, ratio - mean
        mean = mean + step / count
        scatter = scatter + step * (ratio - mean)
        if keep_replicates:
            replicates.append(ratio)
    return (scatter * (count - 1) / count).clamp(min=0).sqrt(), replicates


def combine_weights(statistics: Sequence[Tensor], samples: int) -> tuple[Tensor, float]:
    """Return the shares of groups in the weights, and the effective number of displacements.

    Args:
        statistics: Statistics of the groups' softmaxes, [3, J] each.
        samples: Number of displacements of all groups.

    Returns:
        Shares [G, J], and the effective samples at the input where they are fewest.

    Raises:
        ValueError: If no displacement has a weight at some input.
    """
    merged = reduce(merge, statistics)
    if not merged.shape[1]:
        return group_shares(statistics), float(samples)
    effective = effective_samples(merged)
    check_statistics(merged[:, int(effective.argmin())], samples)
    return group_shares(statistics), float(effective.min())


def group_shares(statistics: Sequence[Tensor]) -> Tensor:
    """Return the shares of groups in the weights, [G, J], from statistics [3, J]; zeros where nothing has a weight."""
    logarithms = torch.stack([group[0] + group[1].log() for group in statistics])
    return torch.softmax(logarithms, 0).nan_to_num(0.0)


def leave_one_out(shares: Tensor) -> Tensor:
    """Return sums over all groups but one, [G, ...]."""
    # Summed, not subtracted: one minus the share of nearly everything has no digits.
    others = 1 - torch.eye(len(shares), dtype=shares.dtype, device=shares.device)
    sums: Tensor = torch.tensordot(others, shares, dims=1)
    return sums


def running_sum(parts: Iterable[Tensor]) -> Tensor:
    """Return the sum of tensors that are made one after another, so that no more than two are held."""
    return reduce(torch.add, parts)


def outer_product(factors: Tensor, kernel: Tensor) -> Tensor:
    """Return products of factors, [J] or [1], of rows and columns, with further axes of size 1 as the kernel has."""
    rows, columns = split_rows_and_columns(factors, kernel.shape[:2])
    return with_output_axes(rows[:, None] * columns, kernel)


def split_rows_and_columns(values: Tensor, inputs: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Split values at all inputs, [..., J] or [..., 1], into those of the rows and those of the columns."""
    if values.shape[-1] == 1:
        return values, values
    return values[..., : inputs[0]], values[..., values.shape[-1] - inputs[1] :]


def with_output_axes(matrix: Tensor, kernel: Tensor) -> Tensor:
    """Return a matrix [N1, N2] with further axes of size 1, as many as the kernel has axes of outputs."""
    return matrix.view(*matrix.shape, *[1] * (kernel.dim() - 2))
