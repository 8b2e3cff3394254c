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
        (rounded,) = state
        short, steps = ctx.cached(lambda: (_is_short(base), (rounded >= 0).to(ctx.dtype)))
        change = dz * s
        displaced = rounded + change
        ctx.doubts.meet_jumps(displaced, change, short)
        height = 2 if isinstance(function, functions.Sign) else 1
        return with_tangent(ctx, value, (displaced >= 0).to(ctx.dtype).sub_(steps).mul_(height / s))
    unit = _length_of_cell(function)
    offset = state[-1]
    short = ctx.cached(lambda: _is_short(base) & (math.frexp(unit)[0] == 0.5))
    change = dz * (s / unit)
    displaced = offset + change
    distance = displaced - displaced.round()
    if isinstance(function, functions.Quantise):
        # There is no jump below the lowest level, nor above the highest.
        cell = state[0] + displaced.round()
        distance = torch.where((cell >= 1) & (cell <= function.levels - 1), distance, 0.5)
    ctx.doubts.meet_jumps(distance, change, short)
    return with_tangent(ctx, value, function.difference(state, dz, s))


def _length_of_cell(function: functions.Activation) -> float:
    """Return the distance of neighbouring jumps of a quantisation or a sawtooth."""
    if isinstance(function, functions.Quantise):
        return 2 * function.clamp / (function.levels - 1)
    if isinstance(function, functions.Sawtooth):
        return function.period
    raise NoRule(f"model calls {function.name}, whose jumps are not known to rules.")


def _is_short(z: Tensor) -> Tensor:
    """Return True where a value has few bits, so that float32 carries its sums and differences exactly."""
    scaled = z * 2.0**_SHORT_BITS
    return (scaled == scaled.round()) & (scaled.abs() < 2.0**22)
