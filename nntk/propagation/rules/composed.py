"""Norms, attention and further activations, expressed by functions that have rules."""

from typing import Any

import torch
import torch.nn.functional as F

from nntk.propagation.registry import NoRule, composed


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
    shape = (1, -1, *[1] * (x.dim() - 2))
    scale = torch.rsqrt(variance + eps).reshape(shape)
    return _scale_and_shift_channels((x - mean.reshape(shape)) * scale, weight, bias, x.shape[1])


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


@composed("scaled_dot_product_attention")
def _attention(
    query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    if dropout_p or enable_gqa:
        raise NoRule("model calls scaled_dot_product_attention with dropout or grouped queries.")
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    return torch.softmax(_apply_mask(scores, attn_mask, keep=True), -1) @ value


def _apply_mask(scores: Any, mask: Any, keep: bool) -> Any:
    """Return scores under a mask.

    Args:
        scores: Scores of the attention.
        mask: Mask that is added to them; or a boolean one; or None.
        keep: True if a boolean mask is true at the scores to keep, False if at those to leave out.

    Returns:
        The masked scores.
    """
    if mask is None:
        return scores
    if mask.dtype != torch.bool:
        return scores + mask
    return scores.masked_fill(~mask if keep else mask, -torch.inf)


@composed("multi_head_attention_forward")
def _multi_head_attention(
    query: Any, key: Any, value: Any, width: int, heads: int, in_weight: Any, in_bias: Any, bias_k: Any, bias_v: Any,
    add_zero_attn: bool, dropout_p: float, out_weight: Any, out_bias: Any, training: bool = True,
    key_padding_mask: Any = None, need_weights: bool = True, attn_mask: Any = None,
    use_separate_proj_weight: bool = False, q_proj_weight: Any = None, k_proj_weight: Any = None,
    v_proj_weight: Any = None, static_k: Any = None, static_v: Any = None, average_attn_weights: bool = True,
    is_causal: bool = False,
) -> Any:  # fmt: skip
    unsupported = (bias_k, bias_v, static_k, static_v, key_padding_mask)
    if any(part is not None for part in unsupported) or add_zero_attn or query.dim() != 3 or (training and dropout_p):
        raise NoRule("model calls multi-head attention with dropout, padding, or additional keys and values.")
    if query is key and key is value and not use_separate_proj_weight:
        parts = F.linear(query, in_weight, in_bias).chunk(3, -1)
    else:
        weights = (q_proj_weight, k_proj_weight, v_proj_weight) if use_separate_proj_weight else in_weight.chunk(3)
        biases = (None,) * 3 if in_bias is None else in_bias.chunk(3)
        parts = tuple(map(F.linear, (query, key, value), weights, biases))
    length, n = query.shape[:2]
    # [length, n, width] becomes [n, heads, length, width / heads].
    q, k, v = (part.reshape(part.shape[0], n, heads, -1).permute(1, 2, 0, 3) for part in parts)
    scores = _apply_mask(q @ k.mT * q.shape[-1] ** -0.5, _mask_per_head(attn_mask, n, heads), keep=False)
    weights = torch.softmax(scores, -1)
    values = (weights @ v).permute(2, 0, 1, 3).reshape(length, n, -1)
    out = F.linear(values, out_weight, out_bias)
    if not need_weights:
        return out, None
    return out, weights.mean(1) if average_attn_weights else weights


def _mask_per_head(mask: Any, n: int, heads: int) -> Any:
    """Return a mask that broadcasts to scores [n, heads, length, length]."""
    return mask if mask is None or mask.dim() == 2 else mask.reshape(n, heads, *mask.shape[1:])


@composed("elu")
def _elu(z: Any, alpha: float = 1.0, inplace: bool = False) -> Any:
    return torch.relu(z) + (torch.exp(torch.clamp(z, max=0.0)) - 1) * alpha


@composed("celu")
def _celu(z: Any, alpha: float = 1.0, inplace: bool = False) -> Any:
    return torch.relu(z) + (torch.exp(torch.clamp(z, max=0.0) / alpha) - 1) * alpha


@composed("selu")
def _selu(z: Any, inplace: bool = False) -> Any:
    return _elu(z, 1.6732632423543772) * 1.0507009873554805


@composed("hardsigmoid")
def _hardsigmoid(z: Any, inplace: bool = False) -> Any:
    return torch.clamp(z + 3.0, 0.0, 6.0) / 6.0


@composed("hardswish")
def _hardswish(z: Any, inplace: bool = False) -> Any:
    return z * _hardsigmoid(z)


@composed("mish")
def _mish(z: Any, inplace: bool = False) -> Any:
    return z * torch.tanh(F.softplus(z))


@composed("logsigmoid", "log_sigmoid")
def _logsigmoid(z: Any) -> Any:
    return -F.softplus(-z)


@composed("prelu")
def _prelu(z: Any, slopes: Any) -> Any:
    slope_per_channel = slopes if slopes.numel() == 1 else slopes.reshape(-1, *[1] * (z.dim() - 2))
    return torch.relu(z) - torch.relu(-z) * slope_per_channel


@composed("glu")
def _glu(z: Any, dim: int = -1) -> Any:
    linear, gate = z.chunk(2, dim)
    return linear * torch.sigmoid(gate)


@composed("addmm", "baddbmm")
def _add_product(x: Any, a: Any, b: Any, *, beta: float = 1.0, alpha: float = 1.0) -> Any:
    return x * beta + (a @ b) * alpha


@composed("normalize")
def _normalize(x: Any, p: float = 2.0, dim: Any = 1, eps: float = 1e-12, out: None = None) -> Any:
    if p != 2:
        raise NoRule(f"model calls normalize with the norm {p}; only the norm 2 has a rule.")
    return x / torch.clamp(torch.square(x).sum(dim, keepdim=True).sqrt(), min=eps)


@composed("_weight_norm")
def _weight_norm(v: Any, g: Any, dim: int = 0) -> Any:
    axes = [axis for axis in range(v.dim()) if dim == -1 or axis != dim]
    return v * (g / torch.square(v).sum(axes, keepdim=True).sqrt())
