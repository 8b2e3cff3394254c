r"""Error bars of kernels that are no means over groups: what they become when a group of displacements is left out.

A group has a share :math:`\beta_g(x) = \sum_{m \in g} \alpha_m(x)` of the weights, which is a softmax over groups. The
energy form of all displacements follows from those of the groups by themselves,

.. math::
    K(x, x') = \sum_g \sqrt{\beta_g(x) \beta_g(x')} K_g(x, x'),

and so does that of all groups but one, :math:`K_{-g}`, whose shares grow by :math:`1 / (1 - \beta_g)`. From the G of
them the standard error is :math:`\sqrt{\tfrac{G - 1}{G} \sum_g (K_{-g} - \overline{K_{-g}})^2}`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Generic, TypeVar

import torch
from torch import Tensor

from nntk.estimators.estimate import LEAST_GROUPS
from nntk.kernels.assemble.reference import mirror
from nntk.kernels.fixed_weights import check_statistics, effective_samples, merge

_LOST = 1e-8
"""Where the others' part of the weights is smaller, what they make of the kernel is lost to the rounding of the sum."""

Group = TypeVar("Group")


@dataclass
class Jackknife(Generic[Group]):
    """Groups that are kept, at least 16 and less than 32: when there are as many, pairs of neighbours become one.

    Attributes:
        make: Makes a group of some displacements.
        join: Makes one group of two that follow each other.
        tell: Kernel and standard error in float64, and the effective samples, of groups of so many displacements.
        size: Displacements of a group.
        growth: Of the samples between two looks.
        groups: Those drawn.
    """

    make: Callable[[range], Group]
    join: Callable[[Group, Group], Group]
    tell: Callable[[Sequence[Group], int], tuple[Tensor, Tensor, float]]
    size: int
    growth: float = 1.25
    groups: list[Group] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Number of groups."""
        return len(self.groups)

    def draw(self) -> None:
        """Draw another group, and join pairs of them when they have become too many."""
        start = self.count * self.size
        self.groups.append(self.make(range(start, start + self.size)))
        if self.count == 2 * LEAST_GROUPS:
            self.groups = [self.join(*self.groups[first : first + 2]) for first in range(0, self.count, 2)]
            self.size *= 2

    def look(self) -> tuple[Tensor, Tensor, float]:
        """What the groups tell."""
        return self.tell(self.groups, self.count * self.size)


@dataclass(frozen=True)
class Energy:
    """The energy form of a group by itself.

    Attributes:
        kernel: [N1, N2] with the axes of the outputs.
        statistics: Of the softmax over its displacements, [3, J], at the inputs of the lines and of the entries one
            after the other (or once, where they are the same); [3, 1] where weights do not depend on the input.
    """

    kernel: Tensor
    statistics: Tensor

    def part(self, share: Tensor) -> Tensor:
        """What it adds to a kernel of which it has a share, [J]."""
        return self.kernel.double() * outer(share.sqrt(), self.kernel)


def join_energies(first: Energy, second: Energy) -> Energy:
    """The energy form of two groups together."""
    both = (first, second)
    share = shares([group.statistics for group in both])
    kernel = sum_of(group.part(own) for group, own in zip(both, share, strict=True))
    return Energy(kernel.to(first.kernel.dtype), merge(first.statistics, second.statistics))


def tell_of_energies(groups: Sequence[Energy], samples: int, symmetric: bool) -> tuple[Tensor, Tensor, float]:
    """The energy form of all groups, and its error.

    Args:
        groups: The groups.
        samples: Displacements of all of them.
        symmetric: Whether lines and entries are of the same inputs.

    Returns:
        Kernel, standard error and effective samples.
    """
    share, effective = judge([group.statistics for group in groups], samples)
    kernel = sum_of(group.part(own) for group, own in zip(groups, share, strict=True))
    parts = (group.part(own) for group, own in zip(groups, share, strict=True))
    rests = (outer(rest.sqrt(), kernel) for rest in but_one(share))
    error = standard_error(kernel, parts, rests)
    return (mirror(kernel), mirror(error), effective) if symmetric else (kernel, error, effective)


def standard_error(total: Tensor, parts: Iterable[Tensor], rests: Iterable[Tensor]) -> Tensor:
    r"""The jackknife's error of a ratio.

    Args:
        total: Its numerator, over all groups.
        parts: What it loses with each group, in turn.
        rests: What is left of its denominator then, in turn.

    Returns:
        Like ``total``. Where a group has all the weight the others tell nothing: the error is as large as the ratio.
    """
    mean, scatter, count = torch.zeros_like(total), torch.zeros_like(total), 0
    for part, rest in zip(parts, rests, strict=True):
        left = torch.where(rest > _LOST, (total - part) / rest, 0.0)
        count, step = count + 1, left - mean
        mean = mean + step / count
        scatter = scatter + step * (left - mean)
    return (scatter * (count - 1) / count).clamp(min=0).sqrt()


def judge(statistics: Sequence[Tensor], samples: int) -> tuple[Tensor, float]:
    """Shares of groups, and how many displacements count.

    Args:
        statistics: Of the groups' softmaxes, [3, J] each.
        samples: Displacements of all groups.

    Returns:
        Shares [G, J], and the effective samples, at the input where they are the fewest.

    Raises:
        ValueError: If at an input no displacement has a weight.
    """
    merged = reduce(merge, statistics)
    if not merged.shape[1]:
        return shares(statistics), float(samples)
    effective = effective_samples(merged)
    check_statistics(merged[:, int(effective.argmin())], samples)
    return shares(statistics), float(effective.min())


def shares(statistics: Sequence[Tensor]) -> Tensor:
    """Shares of groups in the weights, [G, J], from their statistics [3, J]: zeros where nothing has a weight."""
    return torch.softmax(torch.stack([own[0] + own[1].log() for own in statistics]), 0).nan_to_num(0.0)


def but_one(share: Tensor) -> Tensor:
    """Sums over all groups but one, [G, ...]: added up, since one minus the share of nearly all has no digits."""
    others = 1 - torch.eye(len(share), dtype=share.dtype, device=share.device)
    made: Tensor = torch.tensordot(others, share, dims=1)
    return made


def sum_of(parts: Iterable[Tensor]) -> Tensor:
    """Their sum: one after the other, so that no two need be held."""
    return reduce(torch.add, parts)


def outer(factors: Tensor, like: Tensor) -> Tensor:
    """Products of the factors, [J] or [1], of lines and of entries, with axes for the outputs of a kernel."""
    lines, entries = ends(factors, like.shape[:2])
    return with_axes(lines[:, None] * entries, like)


def ends(columns: Tensor, inputs: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Of something at all inputs, [..., J] or [..., 1], that of the lines' inputs and that of the entries'."""
    if columns.shape[-1] == 1:
        return columns, columns
    return columns[..., : inputs[0]], columns[..., columns.shape[-1] - inputs[1] :]


def with_axes(pairs: Tensor, like: Tensor) -> Tensor:
    """Numbers of pairs of inputs, with further axes of size 1 as a kernel has them."""
    return pairs.view(*pairs.shape, *[1] * (like.dim() - 2))
