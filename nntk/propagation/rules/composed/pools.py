"""Pools that are composed of slices and windows, and views that are other views."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nntk.propagation.registry import RULES, NoRule, composed
from nntk.propagation.rules.window import per_axis


def _extreme(z: Any, *arguments: Any, name: str, **options: Any) -> Any:
    """Return the extreme of two tensors or of all values; along an axis, with places, there may be a rule."""
    operand = (*arguments, *options.values(), None)[0]
    if isinstance(operand, Tensor):
        return getattr(torch, f"{name}imum")(z, operand)
    if operand is None:
        return getattr(torch, f"a{name}")(z)
    if (rule := RULES.get(getattr(torch, name))) is None:
        raise NoRule(f"model calls {name} along an axis, which returns places and has no rule.")
    with torch._C.DisableTorchFunctionSubclass():
        return rule(z.ctx, z, *arguments, **options)


for _name in ("max", "min"):
    composed(_name)(partial(_extreme, name=_name))


def _adaptive_max_pool(x: Any, output_size: Any, return_indices: bool, dims: int) -> Any:
    """Return the largest value of each bin; bin i of an axis of length L reaches from i L / n to (i + 1) L / n."""
    if return_indices:
        raise NoRule("model calls an adaptive maximum pool with indices, which has no rule.")
    for axis, size in zip(range(-dims, 0), per_axis(output_size, dims), strict=True):
        length = x.shape[axis]
        bins = length if size is None else size
        # Negated twice, the division rounds up.
        edges = [(n * length // bins, -(-(n + 1) * length // bins)) for n in range(bins)]
        x = torch.stack([x.narrow(axis, low, high - low).amax(axis) for low, high in edges], axis)
    return x


@composed("adaptive_max_pool1d")
def _adaptive_max_pool1d(x: Any, output_size: Any, return_indices: bool = False) -> Any:
    return _adaptive_max_pool(x, output_size, return_indices, 1)


@composed("adaptive_max_pool2d")
def _adaptive_max_pool2d(x: Any, output_size: Any, return_indices: bool = False) -> Any:
    return _adaptive_max_pool(x, output_size, return_indices, 2)


@composed("adaptive_max_pool3d")
def _adaptive_max_pool3d(x: Any, output_size: Any, return_indices: bool = False) -> Any:
    return _adaptive_max_pool(x, output_size, return_indices, 3)


@composed("max_pool3d")
def _max_pool3d(
    x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:  # fmt: skip
    if ceil_mode or return_indices:
        raise NoRule("model calls max_pool3d with ceil_mode or indices, which has no rule.")
    kernel, distance = per_axis(kernel_size, 3), per_axis(dilation, 3)
    steps = per_axis(stride or kernel_size, 3)
    margins = [length for pad in reversed(per_axis(padding, 3)) for length in (pad, pad)]
    # The fill is far below all values, but finite: two infinite ones would differ by NaN.
    h = F.pad(x, margins, value=torch.finfo(torch.float32).min / 4) if any(margins) else x
    for axis, length, step, skip in zip((-3, -2, -1), kernel, steps, distance, strict=True):
        # The window is a new last axis, which the maximum removes at once.
        h = h.unfold(axis, skip * (length - 1) + 1, step)[..., ::skip].amax(-1)
    return h


@composed("local_response_norm")
def _local_response_norm(x: Any, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Any:
    last = torch.square(x).movedim(1, -1)
    means = F.pad(last, (size // 2, (size - 1) // 2)).unfold(-1, size, 1).mean(-1).movedim(-1, 1)
    return x / (means * alpha + k) ** beta


@composed("column_stack")
def _column_stack(tensors: Any) -> Any:
    return torch.cat([part.reshape(-1, 1) if part.dim() < 2 else part for part in tensors], 1)


@composed("take")
def _take(x: Any, index: Any) -> Any:
    return x.flatten()[index]


@composed("moveaxis")
def _moveaxis(x: Any, source: Any, destination: Any) -> Any:
    return torch.movedim(x, source, destination)
