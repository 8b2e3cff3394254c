"""Functions that jump: sign, step, quantise and sawtooth, with a count of the values that rounding may have decided."""

import math
from typing import Any

import torch
from torch import Tensor

from nntk.kernels import activations as functions
from nntk.propagation.context import PropagationContext
from nntk.propagation.displaced_tensor import primal, with_tangent
from nntk.propagation.registry import NoRule

_SHORT_BITS = 10
"""Fractional bits of a short number, whose sums and differences float32 represents exactly."""


def jump(ctx: PropagationContext, function: functions.Activation, z: Any) -> Any:
    """Return the value of an activation that jumps, with its difference.

    Args:
        ctx: Context of the evaluation.
        function: The activation: sign, step, quantise or sawtooth.
        z: Displaced pre-activations.

    Returns:
        The activations.

    Raises:
        NoRule: If the activation is another one.
    """
    base = primal(z)
    value, state = ctx.cached(lambda: function.value(base)), ctx.cached(lambda: function.state(base, ctx.dtype))
    s, dz = ctx.broadcast_scales(base.dim()), z.tangent
    if isinstance(function, functions.Step | functions.Sign):
        height = 2 if isinstance(function, functions.Sign) else 1
        tangent = _step_difference(ctx, base, state, dz, s).mul_(height / s)
    elif isinstance(function, functions.Quantise):
        spacing = 2 * function.clamp / (function.levels - 1)
        tangent = _cell_difference(ctx, base, state, dz * (s / spacing), spacing, function.levels - 1)
        tangent.mul_(spacing / s)
    elif isinstance(function, functions.Sawtooth):
        change = dz * (s / function.period)
        tangent = (change - _cell_difference(ctx, base, state, change, function.period, None)).div_(s)
    else:
        raise NoRule(f"model calls {function.name}, whose jumps are not known to rules.")
    return with_tangent(ctx, value, tangent)


def _step_difference(ctx: PropagationContext, base: Tensor, state: functions.State, dz: Tensor, s: Tensor) -> Tensor:
    """Return the difference of the unit step: 1, 0 or -1, [M, members, *shape]."""
    # A sum with +0 is never -0, so that the sign bit of the displaced value tells on which side of the jump it lies. A
    # comparison with a cast would take three times as long on a CPU.
    half = torch.full((), 0.5, dtype=ctx.dtype, device=base.device)
    rounded = ctx.cached(lambda: state[0] + 0.0)
    short, sides = ctx.cached(lambda: (_is_short(base), torch.copysign(half, rounded)))
    change = dz * s
    displaced = change + rounded
    ctx.doubts.meet_jumps(displaced, change, short)
    return torch.copysign(half, displaced).sub_(sides)


def _cell_difference(
    ctx: PropagationContext, base: Tensor, state: functions.State, change: Tensor, length: float, top: int | None
) -> Tensor:
    """Return the number of cells that a displacement crosses, [M, members, *shape].

    Args:
        ctx: Context of the evaluation.
        base: Unperturbed values, [*shape].
        state: State of the activation: the nearest boundary (if ``top`` is given), and the offset from it.
        change: Differences in units of a cell, [M, members, *shape].
        length: Length of a cell.
        top: Number of the last cell, beyond which nothing changes; None if there is no last one.

    Returns:
        The number of cells.
    """
    # The jumps are exact in float32 only if their distance is a power of two.
    short, offset = ctx.cached(lambda: _is_short(base) & (math.frexp(length)[0] == 0.5)), state[-1]
    displaced = change + offset
    nearest = displaced.round()
    if top is None:
        ctx.doubts.meet_jumps(displaced - nearest, change, short)
        return displaced.floor_().sub_(torch.floor(offset))
    boundary = state[0]
    first_cells = ctx.cached(lambda: (boundary + torch.floor(offset)).clamp(0, top))

    def reachable() -> Tensor:
        cell = boundary + nearest
        return (cell >= 1) & (cell <= top)

    ctx.doubts.meet_jumps(displaced - nearest, change, short, reachable)
    return displaced.floor_().add_(boundary).clamp_(0, top).sub_(first_cells)


def _is_short(z: Tensor) -> Tensor:
    """Return True where a value has few bits, so that float32 carries its sums and differences exactly."""
    scaled = z * 2.0**_SHORT_BITS
    return (scaled == scaled.round()) & (scaled.abs() < 2.0**22)
