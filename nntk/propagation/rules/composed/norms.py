"""Norms of layers, and norms and variances of values."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nntk.kernels.cpu.elementwise import scaled_difference
from nntk.propagation.context import PropagationContext
from nntk.propagation.displaced_tensor import is_displaced, primal, rounded_primal, with_tangent
from nntk.propagation.registry import COMPOSED, NoRule, composed


@composed("layer_norm")
def _layer_norm(x: Any, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    axes = tuple(range(-len(shape), 0))
    return _scale_and_shift(_standardize(x, axes, eps), weight, bias)


@composed("rms_norm")
def _rms_norm(x: Any, shape: Any, weight: Any = None, eps: Any = None) -> Any:
    # The guard of an evaluation sets an epsilon that the model leaves out.
    axes = tuple(range(-len(shape), 0))
    return _scale_and_shift(x * torch.rsqrt(torch.square(x).mean(axes, keepdim=True) + eps), weight, None)


@composed("group_norm")
def _group_norm(x: Any, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    n, channels, *size = x.shape
    standardized = _standardize(x.reshape(n, groups, -1), (-1,), eps).reshape(n, channels, *size)
    return _scale_and_shift_channels(standardized, weight, bias, channels)


@composed("batch_norm")
def _batch_norm(
    x: Any, mean: Any, variance: Any, weight: Any = None, bias: Any = None, training: bool = False,
    momentum: float = 0.1, eps: float = 1e-5,
) -> Any:  # fmt: skip
    if training or mean is None:
        raise NoRule("model calls batch_norm with the statistics of the batch, so that outputs depend on other inputs.")
    if is_displaced(x) and not is_displaced(mean) and not is_displaced(variance):
        return _batch_norm_of_displaced(x.ctx, x, primal(mean), primal(variance), weight, bias, eps)
    shape = (1, -1, *[1] * (x.dim() - 2))
    scale = torch.rsqrt(variance + eps).reshape(shape)
    # The weight is multiplied by a number for each channel, and the values once by both.
    scale = scale if weight is None else weight.reshape(shape) * scale
    return _scale_and_shift((x - mean.reshape(shape)) * scale, None, None if bias is None else bias.reshape(shape))


def _batch_norm_of_displaced(
    ctx: PropagationContext, x: Any, mean: Tensor, variance: Tensor, weight: Any, bias: Any, eps: float
) -> Any:
    """Return a batch norm of displaced values; its difference is da b' + a db + dc for each channel."""
    w, b = (None if part is None else primal(part) for part in (weight, bias))
    value = ctx.cached(lambda: F.batch_norm(primal(x), mean, variance, w, b, False, 0.0, eps))

    def standardize() -> tuple[Tensor, Tensor]:
        factor = torch.rsqrt(variance + eps)
        shape = (-1, *[1] * (value.dim() - 2))
        return ((primal(x) - mean.view(shape)) * factor.view(shape)).to(ctx.dtype), factor.to(ctx.dtype)

    standardized, factor = ctx.cached(standardize)
    zero = ctx.cached(lambda: torch.zeros_like(factor))
    dw, db = (part.tangent if is_displaced(part) else zero.expand(*ctx.leading_shape, -1) for part in (weight, bias))
    slope = dw * ctx.broadcast_scales(1) + (1.0 if weight is None else rounded_primal(ctx, weight))
    slope = slope * factor
    tangent = scaled_difference(standardized, x.tangent, slope, dw, db, ctx.row_scales)
    if tangent is None:
        shape = (*ctx.leading_shape, 1, -1, *[1] * (value.dim() - 2))
        slope, dw, db = (part.reshape(shape) for part in (slope, dw, db))
        tangent = (x.tangent * slope).addcmul_(standardized, dw).add_(db)
    return with_tangent(ctx, value, tangent)


def _standardize(x: Any, axes: tuple[int, ...], eps: float) -> Any:
    """Return values with mean zero and variance one over some axes."""
    centred = x - x.mean(axes, keepdim=True)
    return centred * torch.rsqrt(torch.square(centred).mean(axes, keepdim=True) + eps)


def _scale_and_shift(x: Any, weight: Any, bias: Any) -> Any:
    """Multiply by a weight and add a bias, where they are given."""
    scaled = x if weight is None else x * weight
    return scaled if bias is None else scaled + bias


def _scale_and_shift_channels(x: Any, weight: Any, bias: Any, channels: int) -> Any:
    """Multiply by a weight and add a bias for each channel, where they are given."""
    shape = (1, channels, *[1] * (x.dim() - 2))
    return _scale_and_shift(x, *(None if part is None else part.reshape(shape) for part in (weight, bias)))


@composed("_weight_norm")
def _weight_norm(v: Any, g: Any, dim: int = 0) -> Any:
    axes = [axis for axis in range(v.dim()) if dim == -1 or axis != dim]
    return v * (g / torch.square(v).sum(axes, keepdim=True).sqrt())


@composed("instance_norm")
def _instance_norm(
    x: Any, running_mean: Any = None, running_var: Any = None, weight: Any = None, bias: Any = None,
    use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5, cudnn_enabled: bool = False,
) -> Any:  # fmt: skip
    if not use_input_stats:
        return _batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    if running_mean is not None:
        raise NoRule("model calls instance_norm such that it writes running statistics.")
    return _scale_and_shift_channels(_standardize(x, tuple(range(2, x.dim())), eps), weight, bias, x.shape[1])


def vector_norm(x: Any, p: Any = 2, dim: Any = None, keepdim: bool = False, out: None = None) -> Any:
    """Return the norm of vectors along some axes, or of all values.

    Args:
        x: Values.
        p: Exponent, a number other than zero.
        dim: The axes; None for all.
        keepdim: True if the axes are kept, with the length one.
        out: None, as another tensor cannot hold the result.

    Returns:
        The norms.

    Raises:
        NoRule: If the exponent is another one.
    """
    axes = tuple(range(x.dim())) if dim is None else dim
    if p in (2, "fro", None):
        return torch.square(x).sum(axes, keepdim=keepdim).sqrt()
    if isinstance(p, str) or p == 0:
        raise NoRule(f"model calls a norm with the exponent {p}, which has no rule.")
    size = torch.abs(x)
    if p in (torch.inf, -torch.inf):
        return torch.amax(size, axes, keepdim) if p > 0 else torch.amin(size, axes, keepdim)
    return size.sum(axes, keepdim=keepdim) if p == 1 else (size**p).sum(axes, keepdim=keepdim) ** (1 / p)


def _linalg_norm(x: Any, ord: Any = None, dim: Any = None, keepdim: bool = False) -> Any:
    """Return a norm of vectors; of matrices only that of all entries, the one of Frobenius."""
    num_axes = x.dim() if dim is None else 1 if isinstance(dim, int) else len(dim)
    if ord not in (None, "fro") and num_axes == 2:
        raise NoRule(f"model calls linalg.norm of matrices with the order {ord}, which has no rule.")
    return vector_norm(x, ord, dim, keepdim)


def _matrix_norm(x: Any, ord: Any = "fro", dim: Any = (-2, -1), keepdim: bool = False) -> Any:
    """Return the norm of all entries of matrices."""
    return _linalg_norm(x, ord, dim, keepdim)


composed("norm")(vector_norm)
COMPOSED[torch.linalg.matrix_norm] = _matrix_norm
COMPOSED[torch.linalg.vector_norm] = vector_norm
COMPOSED[torch.linalg.norm] = _linalg_norm


@composed("normalize")
def _normalize(x: Any, p: float = 2.0, dim: Any = 1, eps: float = 1e-12, out: None = None) -> Any:
    return x / torch.clamp(vector_norm(x, p, dim, keepdim=True), min=eps)


@composed("cosine_similarity")
def _cosine_similarity(a: Any, b: Any, dim: int = 1, eps: float = 1e-8) -> Any:
    return (_normalize(a, 2.0, dim, eps) * _normalize(b, 2.0, dim, eps)).sum(dim)


@composed("pairwise_distance")
def _pairwise_distance(a: Any, b: Any, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> Any:
    return vector_norm(a - b + eps, p, -1, keepdim)


@composed("cdist")
def _cdist(a: Any, b: Any, p: float = 2.0, compute_mode: Any = None) -> Any:
    return vector_norm(a.unsqueeze(-2) - b.unsqueeze(-3), p, -1)


@composed("var_mean")
def _var_mean(
    x: Any, dim: Any = None, unbiased: bool | None = None, keepdim: bool = False, *, correction: float | None = None
) -> Any:  # fmt: skip
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    axes = tuple(range(x.dim())) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    mean = x.mean(axes, keepdim=True)
    if correction is None:
        correction = 0 if unbiased is False else 1
    count = math.prod(x.shape[axis] for axis in axes)
    if count <= correction:
        raise NoRule("model calls var over too few values, whose variance is not defined.")
    variance = torch.square(x - mean).sum(axes, keepdim=keepdim) / (count - correction)
    return variance, mean if keepdim else x.mean(axes)


@composed("var")
def _var(x: Any, *arguments: Any, **options: Any) -> Any:
    return _var_mean(x, *arguments, **options)[0]


@composed("std")
def _std(x: Any, *arguments: Any, **options: Any) -> Any:
    return _var(x, *arguments, **options).sqrt()


@composed("std_mean")
def _std_mean(x: Any, *arguments: Any, **options: Any) -> Any:
    variance, mean = _var_mean(x, *arguments, **options)
    return variance.sqrt(), mean
