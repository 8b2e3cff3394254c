r"""Entries of a kernel that rest on few events: their bounds, where the scatter of groups says nothing.

A jump that no displacement crossed leaves no trace: every group of displacements agrees on zero, and a standard error
from their scatter would be zero too. An event is a contribution of a group that is not zero. An entry rests on too few
events if fewer than :data:`LEAST_EVENTS` groups contribute to it, or if the contributions w are so unequal that their
effective number :math:`(\sum |w|)^2 / \sum w^2` is below :data:`LEAST_EFFECTIVE_EVENTS`. It is then never called
converged, and its bounds are those of a weighted sum of Poisson counts (Fay and Feuer, Statistics in Medicine 16, 1997,
pages 791 to 801). With :math:`y = \sum w`, :math:`v = \sum w^2`, the size a of the largest event, and quantiles
:math:`g_k(p)` of a gamma distribution of shape k and scale one, they are

.. math::
    \frac{v}{y} g_{y^2 / v}\left(\frac{1 - p}{2}\right) \le E[y] \le
    \frac{v + a^2}{y + a} g_{(y + a)^2 / (v + a^2)}\left(\frac{1 + p}{2}\right).

Without an event the lower bound is zero. The upper one is 3.7 a for p = 95 %, and 3 a for a one-sided bound: the rule
of three. Contributions of either sign are bounded apart. The size a is that of the largest contribution to any entry of
the matrix, or of the largest that longer displacements show (:mod:`nntk.estimators.errors.event_size`): an event
that is larger than these is not covered. Where the weights of groups are unequal, both limits are lower, since an
:class:`nntk.EffectiveSampleWarning` tells of few weights.

A true zero, such as the entry of a unit that never matters, cannot be told from an event that is rare. An estimate of
such an entry ends at ``max_samples``, with ``converged=False`` and with this bound.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from scipy.special import gammaincinv
from torch import Tensor

LEAST_EVENTS = 10
"""Least number of groups that contribute to an entry whose error is taken from the scatter of groups."""
LEAST_EFFECTIVE_EVENTS = 4
"""Least effective number of contributions: fewer than these are one large event and what it hides."""


class RareEvents(Protocol):
    """Entries of a kernel that rest on too few events, with their errors and bounds."""

    @property
    def too_few(self) -> Tensor:
        """True where an entry rests on too few events, in the shape of the kernel."""

    @property
    def error(self) -> Tensor:
        """Least standard error of an entry that rests on too few events, in the shape of the kernel; may be inf."""

    def interval(self, level: float) -> tuple[Tensor, Tensor]:
        """Return lower and upper bounds of all entries by their events, for a probability ``level``."""


@dataclass(frozen=True)
class Contributions:
    """Sums over the contributions of groups, to each of several values.

    Attributes:
        sums: Sums of the positive contributions, and of the magnitudes of the negative ones, [2, ...], float64.
        squares: Sums of their squares, [2, ...].
        groups: Number of groups whose contribution is not zero, [...].
        largest: Magnitude of the largest contribution to any of the values; inf where nothing is known about it.
        least_groups: Least number of groups with a contribution.
        least_effective: Least effective number of contributions.
    """

    sums: Tensor
    squares: Tensor
    groups: Tensor
    largest: float
    least_groups: float = LEAST_EVENTS
    least_effective: float = LEAST_EFFECTIVE_EVENTS

    @classmethod
    def of(cls, contributions: Iterable[Tensor]) -> "Contributions":
        """Return the sums over contributions that are made one after another, of which there is at least one."""
        total: Contributions | None = None
        for contribution in contributions:
            total = total.add(contribution) if total else cls._of_one(contribution)
        assert total is not None, "there are groups"
        return total

    @classmethod
    def _of_one(cls, contribution: Tensor) -> "Contributions":
        parts = _by_sign(contribution)
        largest = float(parts.amax()) if parts.numel() else 0.0
        return cls(parts, parts.square(), (contribution != 0).double(), largest)

    def add(self, contribution: Tensor) -> "Contributions":
        """Add the contribution of another group, in place, and return the sums."""
        other = self._of_one(contribution)
        self.sums.add_(other.sums)
        self.squares.add_(other.squares)
        self.groups.add_(other.groups)
        return replace(self, largest=max(self.largest, other.largest))

    def scaled(self, factor: float) -> "Contributions":
        """Return the sums of contributions that are multiplied by a factor."""
        sums, squares = self.sums * factor, self.squares * factor**2
        return replace(self, sums=sums, squares=squares, largest=self.largest * factor)

    def with_event_size(self, size: float) -> "Contributions":
        """Return the same sums with a size of events that was found in another way."""
        return replace(self, largest=size)

    def under_shares(self, shares: Tensor) -> "Contributions":
        """Return the sums with limits for groups of unequal weight, which the effective samples already warn about.

        No more groups can contribute than have a weight, and the contributions are no more equal than the weights.

        Args:
            shares: Shares of the groups in the weights, [G, J].
        """
        if not shares.numel():
            return self
        groups = float((shares > 0).sum(0).min())
        effective = float((shares.sum(0).square() / shares.square().sum(0)).min())
        return replace(
            self, least_groups=min(LEAST_EVENTS, groups), least_effective=min(LEAST_EFFECTIVE_EVENTS, effective / 4)
        )

    @property
    def too_few(self) -> Tensor:
        """True where a value rests on too few events."""
        squares = self.squares.sum(0)
        effective = self.sums.sum(0).square() / torch.where(squares == 0, 1.0, squares)
        return (self.groups < self.least_groups) | (effective < self.least_effective)

    @property
    def error(self) -> Tensor:
        """Root of the sum of squared contributions, at least the size of one event; see the module for a size."""
        return self.squares.sum(0).clamp(min=self.largest**2).sqrt()

    def interval(self, level: float, nonnegative: Tensor) -> tuple[Tensor, Tensor]:
        """Return bounds of the expectation of each value.

        Args:
            level: Probability, in (0, 1).
            nonnegative: True for values to which no contribution can be negative.

        Returns:
            Lower and upper bounds.
        """
        lower, upper = (
            torch.stack([bound(y, v, self.largest, tail) for y, v in zip(self.sums, self.squares, strict=True)])
            for bound, tail in ((_lower_bound, (1 - level) / 2), (_upper_bound, (1 + level) / 2))
        )
        negative_upper = torch.where(nonnegative, 0.0, upper[1])
        return lower[0] - negative_upper, upper[0] - torch.where(nonnegative, 0.0, lower[1])


@dataclass(frozen=True)
class EventsOfEntries:
    """Events of the energy form, whose contributions to an entry are the kernels of the groups.

    Attributes:
        contributions: Contributions of the groups to the entries.
        symmetric: Rows and columns belong to the same inputs, so that nothing is subtracted from diagonal entries.
    """

    contributions: Contributions
    symmetric: bool

    @property
    def too_few(self) -> Tensor:
        """True where an entry rests on too few events."""
        return self.contributions.too_few

    @property
    def error(self) -> Tensor:
        """Least standard error of an entry that rests on too few events."""
        return self.contributions.error

    def interval(self, level: float) -> tuple[Tensor, Tensor]:
        """Return lower and upper bounds of all entries by their events."""
        nonnegative = diagonal_entries(self.contributions.groups)
        return self.contributions.interval(level, nonnegative if self.symmetric else torch.zeros_like(nonnegative))


@dataclass(frozen=True)
class EventsOfInputs:
    r"""Events of plugin and unbiased, whose entries are products of gradients: an entry rests on the events of both.

    The bounds follow from those of the energy form, which is never smaller: for every kernel
    :math:`|\langle G f(x), G f(x') \rangle|^2 \le K_\text{energy}(x, x) K_\text{energy}(x', x')`, since isotropic
    directions u have :math:`|E[D u]|^2 \le E[D^2] / d`.

    Attributes:
        contributions: Contributions of the groups to diagonal entries of the energy form, [J], or [J, C] for kernels
            with axes of outputs, at the inputs of the rows followed by those of the columns.
        rows: Number of inputs of the rows.
        symmetric: Rows and columns belong to the same inputs.
        axes: Number of axes of the kernel.
        factor: Factor of the bounds: the expectation of plugin exceeds that of unbiased by d / M of the energy form.
    """

    contributions: Contributions
    rows: int
    symmetric: bool
    axes: int
    factor: float

    @property
    def too_few(self) -> Tensor:
        """True where the input of the row or that of the column rests on too few events."""
        first, second = self._sides(self.contributions.too_few)
        return first | second

    @property
    def error(self) -> Tensor:
        """Least standard error of an entry that rests on too few events: half of its bound for 95 %."""
        return self.interval(0.95)[1] / 2

    def interval(self, level: float) -> tuple[Tensor, Tensor]:
        """Return lower and upper bounds of all entries by the events of both inputs."""
        energies = self.contributions
        _, upper = energies.interval(level, torch.ones_like(energies.groups, dtype=torch.bool))
        first, second = self._sides(upper.sqrt())
        bound = self.factor * first * second
        nonnegative = diagonal_entries(bound) & self.symmetric
        return torch.where(nonnegative, 0.0, -bound), bound

    def _sides(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return values at the rows and at the columns, with axes of size 1 where the other has its inputs."""
        first, second = values[: self.rows], values if self.symmetric else values[self.rows :]
        if self.axes == 4:
            return first[:, None, :, None], second[None, :, None, :]
        return first[:, None], second[None]


def diagonal_entries(kernel: Tensor) -> Tensor:
    """Return True for the entries of one input (and one output) with itself, in the shape of the kernel.

    Args:
        kernel: [N1, N2], [N1, N2, C] or [N1, N2, C, C].
    """
    same = torch.eye(*kernel.shape[:2], dtype=torch.bool, device=kernel.device)
    if kernel.dim() < 4:
        return same.view(*same.shape, *[1] * (kernel.dim() - 2)).expand(kernel.shape)
    return same[:, :, None, None] & torch.eye(kernel.shape[-1], dtype=torch.bool, device=kernel.device)


def _by_sign(contribution: Tensor) -> Tensor:
    return torch.stack((contribution.clamp(min=0), (-contribution).clamp(min=0)))


def _lower_bound(y: Tensor, v: Tensor, size: float, probability: float) -> Tensor:
    """Return lower bounds of sums y whose terms have squares v; zero for no term."""
    none = y == 0
    y, v = torch.where(none, 1.0, y), torch.where(none, 1.0, v)
    return torch.where(none, 0.0, v / y * _gamma_quantile(y.square() / v, probability))


def _upper_bound(y: Tensor, v: Tensor, size: float, probability: float) -> Tensor:
    """Return upper bounds of sums y whose terms have squares v, where one more term is of the given size."""
    if size == torch.inf:
        return torch.full_like(y, torch.inf)
    if size == 0:
        return torch.zeros_like(y)
    y, v = y + size, v + size**2
    return v / y * _gamma_quantile(y.square() / v, probability)


def _gamma_quantile(shape: Tensor, probability: float) -> Tensor:
    return torch.from_numpy(gammaincinv(shape.cpu().numpy(), probability)).to(shape)
