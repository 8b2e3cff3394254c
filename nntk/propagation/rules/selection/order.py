"""Values by their rank along an axis: medians, quantiles, running maxima."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nntk.propagation.context import PropagationContext
from nntk.propagation.displaced_tensor import is_displaced, primal, with_tangent
from nntk.propagation.registry import DISCRETE, RULES, NoRule, composed, rule
from nntk.propagation.rules.selection.discrete import discrete_result
from nntk.propagation.rules.selection.lookup import find_largest, meet_ties


def _axis(z: Any, dim: int) -> int:
    """Return an axis, counted from the end."""
    if not primal(z).dim() or not primal(z).shape[dim]:
        raise NoRule("model looks for ranks of displaced values along an axis without entries, or of a number.")
    dims: int = primal(z).dim()
    return dim % dims - dims


def _ranked(ctx: PropagationContext, choose: Callable[[Tensor], Tensor], z: Any, k: int, axis: int, keep: bool) -> Any:
    """Return the k-th smallest value along an axis and its place; ``choose`` returns the place, and keeps the axis."""
    value, place = find_largest(ctx, choose, z, k, axis, largest=False)
    if keep:
        return value, place
    return RULES[torch.squeeze](ctx, value, axis), DISCRETE[torch.squeeze](ctx, place, axis)


@rule("kthvalue")
def _kthvalue(ctx: PropagationContext, z: Any, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    axis = _axis(z, dim)
    pair = _ranked(ctx, lambda t: t.kthvalue(k, axis, keepdim=True).indices, z, k, axis, keepdim)
    return torch.return_types.kthvalue(pair)


def _median(ctx: PropagationContext, z: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    """Return the lower median; values that are not finite are refused, and so there is no NaN to leave out."""
    if dim is None:
        flat = RULES[torch.flatten](ctx, z)
        return _median(ctx, flat, 0).values
    axis = _axis(z, dim)
    rank = (primal(z).shape[axis] - 1) // 2 + 1
    pair = _ranked(ctx, lambda t: t.median(axis, keepdim=True).indices, z, rank, axis, keepdim)
    return torch.return_types.median(pair)


rule("median", "nanmedian")(_median)


@rule("aminmax")
def _aminmax(ctx: PropagationContext, z: Any, *, dim: int | None = None, keepdim: bool = False) -> Any:
    axes = () if dim is None else dim
    return torch.return_types.aminmax(tuple(RULES[f](ctx, z, axes, keepdim) for f in (torch.amin, torch.amax)))


def _running_extreme(ctx: PropagationContext, z: Any, dim: int, largest: bool) -> tuple[Any, Any]:
    """Return the largest or smallest value so far, and its place, the last of several."""
    axis, base, s = _axis(z, dim), primal(z), ctx.broadcast_scales(primal(z).dim())
    if not ctx.cached(lambda: bool(base.isfinite().all())):
        raise NoRule("model looks for the largest of displaced values that are not finite.")
    run = torch.cummax if largest else torch.cummin
    value, chosen = ctx.cached(lambda: run(base, axis))
    change = z.tangent * s
    # In float64, so that the order of values that are close to each other is known.
    displaced = base + change.double()
    ctx.tangent_sizes.append(2 * displaced.numel())
    extremes, places = run(displaced, axis)
    later = base.shape[axis] - 1
    if later:
        gaps = displaced.narrow(axis, 1, later) - extremes.narrow(axis, 0, later)
        meet_ties(ctx, gaps.to(ctx.dtype), change, axis)
    step = (base.expand_as(displaced).gather(axis, places) - value).to(ctx.dtype) / s
    return with_tangent(ctx, value, step + z.tangent.gather(axis, places)), discrete_result(ctx, chosen, places)


@rule("cummax")
def _cummax(ctx: PropagationContext, z: Any, dim: int) -> Any:
    return torch.return_types.cummax(_running_extreme(ctx, z, dim, True))


@rule("cummin")
def _cummin(ctx: PropagationContext, z: Any, dim: int) -> Any:
    return torch.return_types.cummin(_running_extreme(ctx, z, dim, False))


_ROUNDING: dict[str, Callable[[float], float]] = {"lower": math.floor, "higher": math.ceil, "nearest": round}


@composed("quantile", "nanquantile")
def _quantile(
    z: Any, q: Any, dim: int | None = None, keepdim: bool = False, *, interpolation: str = "linear", out: None = None
) -> Any:
    """Return values between those of two neighbouring ranks."""
    if is_displaced(q):
        raise NoRule("model calls quantile at a displaced rank, which has no rule.")
    is_number = not isinstance(q, Tensor) or not primal(q).dim()
    shares = [float(q)] if is_number else primal(q).tolist()
    flat = z.flatten() if dim is None else z
    axis = _axis(flat, 0 if dim is None else dim)
    ordered, quantiles = torch.sort(flat, dim=axis)[0], []
    for share in shares:
        rank = share * (primal(flat).shape[axis] - 1)
        low, high = math.floor(rank), math.ceil(rank)
        if interpolation in _ROUNDING:
            low = high = int(_ROUNDING[interpolation](rank))
        part = ordered.narrow(axis, low, 1)
        if high > low:
            weight = 0.5 if interpolation == "midpoint" else rank - low
            part = part + (ordered.narrow(axis, high, 1) - part) * weight
        if dim is None:
            part = part.reshape([1] * z.dim() if keepdim else [])
        elif not keepdim:
            part = part.squeeze(axis)
        quantiles.append(part)
    return quantiles[0] * 1 if is_number else torch.stack(quantiles)
