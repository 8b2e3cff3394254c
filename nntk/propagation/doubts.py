"""What an evaluation by rules cannot decide in the dtype of its differences, so that float64 must decide it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_ULPS = 8
"""Rounding error of a difference, in units of the dtype's epsilon times the largest difference of the same input."""
_CONTINUOUS_RATE = 1e-5
"""Share of values within rounding of a jump that a continuous law of the values explains: a density of order one times
the width of the interval, which is a few epsilons of float32."""
_CONTINUOUS_COUNT = 3 * 10**6
"""Number of values that a judgement by that share needs; for fewer, computing anew takes little time."""
_CHEAP_SHARE = 1 / 32
"""Share of displacements that are always computed anew, because that takes little time."""
_SHORT_BITS = 10
"""Fractional bits of a short number, whose sums and differences float32 represents exactly."""


def is_short(z: Tensor) -> Tensor:
    """Return True where a value has few bits, so that float32 carries its sums and differences exactly."""
    scaled = z * 2.0**_SHORT_BITS
    return (scaled == scaled.round()) & (scaled.abs() < 2.0**22)


@dataclass(eq=False)
class Doubts:
    """Values of an evaluation that rounding may have decided, counted for each displacement.

    Attributes:
        jumps_met: Number of values a displacement that met a function with jumps.
        near_jumps: Number of them whose displaced value lies within rounding of a jump, [M], int64.
        lost: True for a displacement where a value has lost its digits to cancellation before a function that needs
            them, [M].
    """

    jumps_met: int
    near_jumps: Tensor
    lost: Tensor

    @classmethod
    def none(cls, displacements: int, device: torch.device) -> "Doubts":
        """Return no doubts for a number of displacements."""
        near_jumps = torch.zeros(displacements, dtype=torch.int64, device=device)
        return cls(0, near_jumps, torch.zeros_like(near_jumps, dtype=torch.bool))

    def meet_jumps_of_inputs(
        self, least: Tensor, most: Tensor, dz: Tensor, scales: Tensor, value: Tensor, exact: Tensor
    ) -> None:
        """Count what :meth:`meet_jumps` counts for a jump at zero, looking only at inputs that come near to it.

        Args:
            least: Least distance from the jump of each input, [M, members, N].
            most: Largest difference (not over the scale) of each input.
            dz: Unit differences, [M, members, N, ...].
            scales: Scales, [M].
            value: Unperturbed values, [N, ...].
            exact: True where the unperturbed value is a short number, [N, ...].
        """
        self.jumps_met += dz[0].numel()
        reach = most * (_ULPS * torch.finfo(most.dtype).eps)
        m, member, n = (least <= reach).nonzero(as_tuple=True)
        if not len(m):
            return
        change = dz[m, member, n].flatten(1) * scales[m, None]
        size = (change + value[n].flatten(1)).abs()
        tie = (size == 0) & exact[n].flatten(1) & is_short(change).all(1, keepdim=True)
        near = (size <= reach[m, member, n][:, None]) & ~tie
        self.near_jumps.index_add_(0, m, near.sum(1))

    def meet_jumps(
        self, distance: Tensor, difference: Tensor, exact: Tensor, reachable: Callable[[], Tensor] | None = None
    ) -> None:
        """Count the values whose distance from a jump is within rounding: 8 epsilons of the largest difference.

        The unperturbed value keeps its digits relative to itself, and so the error of a displaced value is that of its
        difference. Where the unperturbed value and all differences of the same input are short numbers, a distance of
        exactly zero is a tie that was carried exactly; otherwise it is within rounding too: a sum that is zero in
        float32, such as 0.7 + 1.4 - 2.1, need not be zero in float64.

        Args:
            distance: Displaced values less the nearest jump, [M, members, *shape].
            difference: Differences (not over the scale), or a bound of them, in the same unit.
            exact: True where the unperturbed value is a short number, [*shape].
            reachable: Function that returns True where there is a jump at that place, in the shape of ``distance``;
                None if there is one everywhere.
        """
        self.jumps_met += distance[0].numel()
        if not distance.numel():
            return
        size, rows = distance.abs(), 3 if distance.dim() > 3 else 2
        # A number has no axis that could be flattened.
        reach = difference.abs().reshape(*difference.shape[:rows], -1).amax(rows) * (
            _ULPS * torch.finfo(size.dtype).eps
        )
        if (size.reshape(*size.shape[:rows], -1).amin(rows) <= reach).any():
            are_short = is_short(difference).reshape(*difference.shape[:rows], -1).all(rows)
            reach, are_short = (part.view(*part.shape, *[1] * (size.dim() - rows)) for part in (reach, are_short))
            near = (size <= reach) & ~((size == 0) & exact & are_short)
            if reachable is not None:
                near &= reachable()
            self.near_jumps += near.flatten(1).sum(1)

    def meet_sensitive(self, displaced: Tensor, value: Tensor, smallest: float, zero_is_exact: bool) -> None:
        """Note the displacements where a displaced value is a small share of the unperturbed one.

        Args:
            displaced: Displaced values, [M, members, *shape].
            value: Unperturbed values, broadcastable to that shape.
            smallest: The share, below which too few digits are left.
            zero_is_exact: True if a displaced value of exactly zero was computed without cancellation.
        """
        size = displaced.abs()
        is_lost = size < smallest * value.abs()
        if is_lost.any():
            self.lost |= ((is_lost & (size != 0)) if zero_is_exact else is_lost).flatten(1).any(1)

    def add(self, position: slice, part: "Doubts") -> None:
        """Add the doubts of an evaluation for the displacements at a position."""
        self.near_jumps[position] += part.near_jumps
        self.lost[position] |= part.lost

    def uncertain(self) -> Tensor:
        """Return True for each displacement whose differences must be computed in float64, [M].

        A few displacements are always worth it. If there are many, then they are kept where a continuous law explains
        the number of their values within rounding of a jump: in float32 about one value in a million is so close.
        """
        near, displacements = self.near_jumps > 0, len(self.near_jumps)
        if int(near.sum()) > _CHEAP_SHARE * displacements:
            met, count = displacements * self.jumps_met, int(self.near_jumps.sum())
            if met > _CONTINUOUS_COUNT and count <= _CONTINUOUS_RATE * met:
                near = self.near_jumps > 3 + _CONTINUOUS_RATE * self.jumps_met
        return near | self.lost
