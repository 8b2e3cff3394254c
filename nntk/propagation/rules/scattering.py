"""Reductions of values to places: their sum, mean, largest or smallest one; grids, copies and new tensors."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from nntk.propagation.context import PropagationContext
from nntk.propagation.displaced_tensor import constant, is_displaced, primal, with_tangent
from nntk.propagation.registry import RULES, NoRule, rule
from nntk.propagation.rules.linear import linear_rule


def _counts(ctx: PropagationContext, x: Any, axis: int, index: Any, include_self: bool) -> Tensor:
    """Return the number of values that each place receives, at least one."""

    def count() -> Tensor:
        ones = torch.ones(index.shape, dtype=torch.float64, device=primal(x).device)
        start = torch.full(x.shape, float(include_self), dtype=torch.float64, device=ones.device)
        return start.scatter_add(axis, primal(index), ones).clamp(min=1)

    return ctx.cached(count)


def _kept(ctx: PropagationContext, x: Any, axis: int, index: Any) -> Any:
    """Return values that are zero where a place receives others."""
    is_kept = ctx.cached(lambda: torch.ones(x.shape, dtype=torch.float64).to(x.device).scatter(axis, primal(index), 0))
    value = ctx.cached(lambda: torch.where(is_kept > 0, primal(x), 0.0))
    if not is_displaced(x):
        return constant(ctx, value)
    return with_tangent(ctx, value, torch.where(is_kept > 0, x.tangent, 0.0))


@rule("scatter_reduce")
def _scatter_reduce(
    ctx: PropagationContext, x: Any, dim: int, index: Any, src: Any, reduce: str, *, include_self: bool = True
) -> Any:
    """Reduce values to places; of the largest, the difference is that of ``(a - value) / s + da``, as in a maximum."""
    if not primal(x).dim() or reduce == "prod":
        raise NoRule("model calls scatter_reduce with prod, or on a number, which has no rule.")
    axis = dim % primal(x).dim() - primal(x).dim()
    if reduce in ("amax", "amin"):
        return _scatter_extreme(ctx, x, axis, index, src, reduce, include_self)
    target = x if include_self else _kept(ctx, x, axis, index)
    total = linear_rule(torch.scatter_add)(ctx, target, axis, index, src)
    if reduce == "sum":
        return total
    return RULES[torch.div](ctx, total, constant(ctx, _counts(ctx, x, axis, index, include_self)))


def _scatter_extreme(
    ctx: PropagationContext, x: Any, axis: int, index: Any, src: Any, reduce: str, include_self: bool
) -> Any:
    places, base, source = primal(index), primal(x), primal(src)

    def state() -> tuple[Tensor, Tensor, Tensor]:
        value = torch.scatter_reduce(base, axis, places, source, reduce, include_self=include_self)
        if not bool(value.isfinite().all()):
            raise NoRule("model looks for the largest of displaced values that are not finite.")
        # A source may be larger than what is scattered.
        part = source[tuple(slice(length) for length in places.shape)]
        return value, (base - value).to(ctx.dtype), (part - value.gather(axis, places)).to(ctx.dtype)

    value, gap, source_gap = ctx.cached(state)
    s = ctx.broadcast_scales(value.dim())
    dx = x.tangent if is_displaced(x) else torch.zeros_like(gap).expand(*ctx.leading_shape, *gap.shape)
    own = gap / s + dx
    terms = source_gap / s
    if is_displaced(src):
        terms = terms + src.tangent[(..., *(slice(length) for length in places.shape))]
    wide = (*ctx.leading_shape, *places.shape)
    tangent = torch.scatter_reduce(
        own, axis, places.expand(wide), terms.expand(wide), reduce, include_self=include_self
    )
    return with_tangent(ctx, value, tangent)


@rule("contiguous")
def _contiguous(ctx: PropagationContext, z: Any, *, memory_format: Any = torch.contiguous_format) -> Any:
    return _copy(ctx, z, memory_format=memory_format)


@rule("clone")
def _copy(ctx: PropagationContext, z: Any, *, memory_format: Any = torch.preserve_format) -> Any:
    """Return a copy in some layout of the memory, which the difference does not have."""
    value = ctx.cached(lambda: primal(z).clone(memory_format=memory_format))
    return with_tangent(ctx, value, z.tangent, (lambda: z.displaced) if z.keeps_digits else None)


@rule("new_tensor")
def _new_tensor(ctx: PropagationContext, like: Any, data: Any, **options: Any) -> Any:
    """Return a tensor of the dtype and on the device of displaced values, from numbers that are not displaced."""
    if any(is_displaced(leaf) for leaf in tree_leaves((data, options))):
        raise NoRule("model calls Tensor.new_tensor on displaced values, which loses their differences.")
    return constant(ctx, ctx.cached(lambda: primal(like).new_tensor(primal(data), **options)))


for _function in (torch.meshgrid, torch._VF.meshgrid):  # type: ignore[attr-defined]
    RULES[_function] = linear_rule(_function, integers_are_indices=False)
