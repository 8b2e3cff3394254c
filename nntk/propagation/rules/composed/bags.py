"""Bags of rows that are looked up in a table: their sum, their mean or the largest of each entry."""

from typing import Any

import torch
import torch.nn.functional as F

from nntk.propagation.displaced_tensor import is_displaced
from nntk.propagation.registry import COMPOSED, NoRule

_MODES = ("sum", "mean", "max")


def _embedding_bag(
    tokens: Any, weight: Any, offsets: Any = None, max_norm: Any = None, norm_type: float = 2.0,
    scale_grad_by_freq: bool = False, mode: str = "mean", sparse: bool = False, per_sample_weights: Any = None,
    include_last_offset: bool = False, padding_idx: int | None = None,
) -> Any:  # fmt: skip
    if max_norm is not None or is_displaced(tokens):
        raise NoRule("model calls embedding_bag with max_norm or with displaced tokens, which have no rule.")
    if tokens.is_floating_point():
        tokens, weight = weight, tokens  # An older order of the arguments.
    if tokens.dim() == 2:
        count, size = tokens.shape
        bags = torch.arange(count, device=tokens.device).repeat_interleave(size)
    else:
        count = len(offsets) - 1 if include_last_offset else len(offsets)
        positions = torch.arange(len(tokens), device=tokens.device)
        bags = torch.searchsorted(offsets[:count].contiguous(), positions, right=True) - 1
    flat = tokens.reshape(-1)
    factors = None if per_sample_weights is None else per_sample_weights.reshape(-1, 1)
    if padding_idx is not None:
        kept = (flat != padding_idx % weight.shape[0]).nonzero()[:, 0]
        flat, bags = flat[kept], bags[kept]
        factors = None if factors is None else factors[kept]
    rows = F.embedding(flat, weight)
    rows = rows if factors is None else rows * factors
    zeros = torch.zeros(count, weight.shape[1], dtype=weight.dtype, device=weight.device)
    places = bags.unsqueeze(1).expand(len(bags), weight.shape[1])
    if mode == "max":
        # An empty bag is zero.
        return torch.scatter_reduce(zeros, 0, places, rows, "amax", include_self=False)
    sums = torch.scatter_add(zeros, 0, places, rows)
    if mode == "sum":
        return sums
    sizes = torch.bincount(bags, minlength=count).clamp(min=1)
    return sums / sizes.to(sums.dtype).unsqueeze(1)


def _operator(
    weight: Any, tokens: Any, offsets: Any, scale_grad_by_freq: bool = False, mode: int = 0, sparse: bool = False,
    per_sample_weights: Any = None, include_last_offset: bool = False, padding_idx: int | None = None,
) -> Any:  # fmt: skip
    """Return the bags of ``torch.embedding_bag``, and for its further results None."""
    padding = None if padding_idx is None or padding_idx == -1 and not include_last_offset else padding_idx
    bags = _embedding_bag(
        tokens, weight, offsets, mode=_MODES[mode], per_sample_weights=per_sample_weights,
        include_last_offset=include_last_offset, padding_idx=padding,
    )  # fmt: skip
    return bags, None, None, None


COMPOSED[F.embedding_bag] = _embedding_bag
COMPOSED[torch.embedding_bag] = _operator
