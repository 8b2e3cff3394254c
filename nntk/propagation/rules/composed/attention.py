"""Attention, with its masks."""

from typing import Any

import torch
import torch.nn.functional as F

from nntk.propagation.registry import NoRule, composed


@composed("scaled_dot_product_attention")
def _attention(
    query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    if dropout_p:
        raise NoRule("model calls scaled_dot_product_attention with dropout.")
    if enable_gqa:
        key, value = (_repeat_heads(part, query.shape[-3]) for part in (key, value))
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    return torch.softmax(_apply_mask(scores, attn_mask, keep=True), -1) @ value


def _repeat_heads(x: Any, heads: int) -> Any:
    """Repeat heads [..., few heads, length, width], each of which serves a group of queries."""
    repeated: Any = x if x.shape[-3] == heads else x.repeat_interleave(heads // x.shape[-3], -3)
    return repeated


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
    if static_k is not None or static_v is not None or query.dim() != 3 or (training and dropout_p):
        raise NoRule("model calls multi-head attention with dropout, static keys or values, or without a batch.")
    if query is key and key is value and not use_separate_proj_weight:
        parts = F.linear(query, in_weight, in_bias).chunk(3, -1)
    else:
        weights = (q_proj_weight, k_proj_weight, v_proj_weight) if use_separate_proj_weight else in_weight.chunk(3)
        biases = (None,) * 3 if in_bias is None else in_bias.chunk(3)
        parts = tuple(map(F.linear, (query, key, value), weights, biases))
    length, n = query.shape[:2]
    parts = (parts[0], *map(_with_more_keys, parts[1:], (bias_k, bias_v), (add_zero_attn,) * 2))
    num_new = len(parts[1]) - len(key)
    attn_mask, key_padding_mask = (_with_more_columns(mask, num_new) for mask in (attn_mask, key_padding_mask))
    # [length, n, width] becomes [n, heads, length, width / heads].
    q, k, v = (part.reshape(part.shape[0], n, heads, -1).permute(1, 2, 0, 3) for part in parts)
    scores = _apply_mask(q @ k.mT * q.shape[-1] ** -0.5, _mask_per_head(attn_mask, n, heads), keep=False)
    # A mask of the keys has the shape [n, length of the keys].
    padding = None if key_padding_mask is None else key_padding_mask[:, None, None]
    weights = torch.softmax(_apply_mask(scores, padding, keep=False), -1)
    values = (weights @ v).permute(2, 0, 1, 3).reshape(length, n, -1)
    out = F.linear(values, out_weight, out_bias)
    if not need_weights:
        return out, None
    return out, weights.mean(1) if average_attn_weights else weights


def _with_more_keys(keys: Any, bias: Any, add_zero: bool) -> Any:
    """Append to keys or values [length, n, width] a row that is learned, and one of zeros."""
    n, width = keys.shape[1:]
    rows = [] if bias is None else [bias.expand(1, n, width)]
    if add_zero:
        rows.append(torch.zeros(1, n, width, dtype=keys.dtype, device=keys.device))
    return torch.cat((keys, *rows)) if rows else keys


def _with_more_columns(mask: Any, num_new: int) -> Any:
    """Append to a mask columns of further keys, which it does not touch."""
    return mask if mask is None or not num_new else F.pad(mask, (0, num_new))


def _mask_per_head(mask: Any, n: int, heads: int) -> Any:
    """Return a mask that broadcasts to scores [n, heads, length, length]."""
    return mask if mask is None or mask.dim() == 2 else mask.reshape(n, heads, *mask.shape[1:])
