"""Maxima, over axes and over windows: max of (a - max a) / s + da is the difference of the maximum."""

from functools import partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nntk.propagation.context import PropagationContext
from nntk.propagation.displaced_tensor import primal, with_tangent
from nntk.propagation.registry import NoRule, rule
from nntk.propagation.rules.window import Window, per_axis


def _extreme_over_axes(
    ctx: PropagationContext, z: Any, dim: Any = (), keepdim: bool = False, *, extreme: Any
) -> Any:  # fmt: skip
    """Return the largest or smallest value over some axes, or over all of them; ``extreme`` is amax or amin."""
    base = primal(z)
    value = ctx.cached(lambda: extreme(base, dim, keepdim))
    dims = (dim,) if isinstance(dim, int) else dim or range(base.dim())
    # Counted from the end, an axis is the same one of the difference.
    axes = tuple(d % base.dim() - base.dim() for d in dims)
    gap = ctx.cached(lambda: (base - extreme(base, axes, keepdim=True)).to(ctx.dtype))
    return with_tangent(ctx, value, extreme(gap / ctx.broadcast_scales(base.dim()) + z.tangent, axes, keepdim))


rule("amax")(partial(_extreme_over_axes, extreme=torch.amax))
rule("amin")(partial(_extreme_over_axes, extreme=torch.amin))


def _max_pool(
    ctx: PropagationContext, x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False, return_indices: bool = False, *, dims: int,
) -> Any:  # fmt: skip
    base = primal(x)
    if return_indices or base.dim() != dims + 2:
        raise NoRule(f"model calls max_pool{dims}d with indices, or without a batch axis, which has no rule.")
    pool = F.max_pool1d if dims == 1 else F.max_pool2d
    value = ctx.cached(lambda: pool(base, kernel_size, stride, padding, dilation, ceil_mode))
    kernel, steps, skips = (per_axis(setting, dims) for setting in (kernel_size, stride or kernel_size, dilation))
    window, margins = Window.from_settings(kernel, steps, 0, skips), []
    for axis, pad in zip(range(-1, -dims - 1, -1), reversed(per_axis(padding, dims)), strict=True):
        # With ceil_mode the last window may reach beyond the padding.
        reach = (value.shape[axis] - 1) * steps[axis] + skips[axis] * (kernel[axis] - 1) + 1
        margins += [pad, max(pad, reach - base.shape[axis] - pad)]

    def unfold(t: Tensor, fill: float) -> Any:
        """Return the entries of each window, [n, C, k, P]; positions outside of the input have the value ``fill``."""
        return window.columns(F.pad(t, margins, value=fill)).unflatten(1, (value.shape[1], -1))

    def gap_to_maximum() -> Tensor:
        # The fill is far below all values, but finite: an infinity times a zero of the unfolding would be NaN.
        values: Tensor = unfold(base, torch.finfo(ctx.dtype).min / 4)
        return (values - values.amax(2, keepdim=True)).to(ctx.dtype)

    def positions(place: tuple[int, ...]) -> list[slice]:
        return [_every(*axis) for axis in zip(place, skips, steps, value.shape[2:], strict=True)]

    # One tensor of gaps for each entry of the window, in the order of the places below.
    gaps = ctx.cached(lambda: gap_to_maximum().movedim(2, 0).reshape(-1, *value.shape).contiguous())
    padded = F.pad(x.tangent, margins) if any(margins) else x.tangent
    s, tangent = ctx.broadcast_scales(value.dim()), None
    for gap, place in zip(gaps, product(*map(range, kernel)), strict=True):
        # Entries of all windows at one place, without a copy: an unfolding would take six times as long on a CPU.
        entries = padded[(*[slice(None)] * 4, *positions(place))]
        candidate = gap / s + entries
        tangent = candidate if tangent is None else torch.maximum(tangent, candidate, out=tangent)
    assert tangent is not None, "a window has entries"
    return with_tangent(ctx, value, tangent)


def _every(place: int, skip: int, step: int, count: int) -> slice:
    """Return the positions of one entry of all windows along an axis."""
    first = place * skip
    return slice(first, first + (count - 1) * step + 1, step)


for _dims in (1, 2):
    rule(f"max_pool{_dims}d")(partial(_max_pool, dims=_dims))
