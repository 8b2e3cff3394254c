"""Functions that jump: signs, steps, rounding, with a count of the values that rounding may have decided."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nntk.kernels import activations as functions
from nntk.kernels.cpu.elementwise import step_difference
from nntk.propagation.context import PropagationContext
from nntk.propagation.displaced_tensor import is_displaced, primal, with_tangent
from nntk.propagation.doubts import is_short
from nntk.propagation.registry import IN_PLACE, NoRule, functions_named, rule


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
        tangent = _step_difference(ctx, base, state, dz, s, height / s)
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


def _step_difference(
    ctx: PropagationContext, base: Tensor, state: functions.State, dz: Tensor, s: Tensor, height: Tensor
) -> Tensor:
    """Return the difference of the unit step times a height, [M, members, *shape]."""
    # A sum with +0 is never -0, so that the sign bit of the displaced value tells on which side of the jump it lies. A
    # comparison with a cast would take three times as long on a CPU.
    half = torch.full((), 0.5, dtype=ctx.dtype, device=base.device)
    rounded = ctx.cached(lambda: state[0] + 0.0)
    short, sides = ctx.cached(lambda: (is_short(base), torch.copysign(half, rounded)))
    compiled = step_difference(rounded, dz, height, ctx.row_scales)
    if compiled is not None:
        tangent, least, most = compiled
        ctx.doubts.meet_jumps_of_inputs(least, most, dz, ctx.scales, rounded, short)
        return tangent
    change = dz * s
    displaced = change + rounded
    ctx.doubts.meet_jumps(displaced, change, short)
    return torch.copysign(half, displaced).sub_(sides).mul_(height)


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
    short, offset = ctx.cached(lambda: is_short(base) & (math.frexp(length)[0] == 0.5)), state[-1]
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


@rule("sign", "sgn")
def _sign(ctx: PropagationContext, z: Any) -> Any:
    return _step(ctx, torch.sign, z)


@rule("heaviside")
def _heaviside(ctx: PropagationContext, z: Any, values: Any) -> Any:
    if is_displaced(values) or primal(z).shape != torch.broadcast_shapes(z.shape, values.shape):
        raise NoRule("model calls heaviside with displaced values at zero, or with values of another shape.")
    at_zero = ctx.cached(lambda: primal(values).to(primal(z).dtype))
    return _step(ctx, lambda t: torch.heaviside(t, at_zero.to(t.dtype)), z)


def _step(ctx: PropagationContext, function: Callable[[Tensor], Tensor], z: Any) -> Any:
    """Return a function that is constant on both sides of zero, with its difference."""
    base, s = primal(z), ctx.broadcast_scales(primal(z).dim())
    value, short, rounded = ctx.cached(lambda: (function(base), is_short(base), base.to(ctx.dtype)))
    change = z.tangent * s
    displaced = change + rounded
    ctx.doubts.meet_jumps(displaced, change, short)
    return with_tangent(ctx, value, (function(displaced) - ctx.cached(lambda: value.to(ctx.dtype))) / s)


def _round_half_even(boundary: Tensor, offset: Tensor) -> Tensor:
    """Return round(boundary + offset) - boundary - 1/2, where the boundary is an integer and a half."""
    upper = torch.floor(offset)
    is_tie_to_lower = (upper == offset) & ((boundary + upper + 0.5).remainder(2) == 1)
    return upper - is_tie_to_lower.to(offset.dtype)


def _truncate(boundary: Tensor, offset: Tensor) -> Tensor:
    """Return trunc(boundary + offset) - boundary, where the boundary is an integer."""
    return torch.where(boundary + offset >= 0, torch.floor(offset), torch.ceil(offset))


_CELLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "floor": lambda boundary, offset: torch.floor(offset),
    "ceil": lambda boundary, offset: torch.ceil(offset),
    "trunc": _truncate,
    "round": _round_half_even,
}
"""Functions of the nearest boundary and of the offset from it, which give the number of the cell up to a constant."""
_LARGEST_CELL = 2.0**22


def _cells(ctx: PropagationContext, name: str, z: Any) -> Tensor:
    """Return the unit difference of a function that rounds to integers, [M, members, *shape]."""
    base, s = primal(z), ctx.broadcast_scales(primal(z).dim())
    cell = _CELLS[name]

    def state() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if not bool((base.abs() < _LARGEST_CELL).all()):
            raise NoRule("model rounds displaced values that are very large or not finite.")
        # The offset is taken from the nearest boundary, so that float32 keeps its digits where they matter.
        boundary = base.floor() + 0.5 if name == "round" else base.round()
        first = cell(boundary, base - boundary)
        return boundary.to(ctx.dtype), (base - boundary).to(ctx.dtype), first.to(ctx.dtype), is_short(base)

    boundary, offset, first, short = ctx.cached(state)
    change = z.tangent * s
    displaced = change + offset
    nearest = displaced.round()
    reachable = (lambda: boundary + nearest != 0) if name == "trunc" else None
    ctx.doubts.meet_jumps(displaced - nearest, change, short, reachable)
    return (cell(boundary, displaced) - first).div_(s)


def _register_rounding(name: str, *names: str) -> None:
    """Register the rule of a function that rounds to integers, which has several names."""
    function = getattr(torch, name)

    @rule(*names)
    def apply(ctx: PropagationContext, z: Any) -> Any:
        base = primal(z)
        return with_tangent(ctx, ctx.cached(lambda: function(base)), _cells(ctx, name, z))


for _names in (("round",), ("floor",), ("ceil",), ("trunc", "fix")):
    _register_rounding(*_names[:1], *_names)


@rule("frac")
def _frac(ctx: PropagationContext, z: Any) -> Any:
    base = primal(z)
    return with_tangent(ctx, ctx.cached(lambda: torch.frac(base)), z.tangent - _cells(ctx, "trunc", z))


for _name in ("sign", "round", "floor", "ceil", "trunc"):
    IN_PLACE.update(dict.fromkeys(functions_named(f"{_name}_"), getattr(torch, _name)))
