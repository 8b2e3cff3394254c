"""Masks: of values that are not finite, and selections by masks that no displacement changes."""

from typing import Any

import torch
from torch import Tensor

from nntk.propagation.context import PropagationContext
from nntk.propagation.displaced_tensor import constant, is_displaced, primal, with_tangent
from nntk.propagation.registry import COMPLEX, DISCRETE, RULES, NoRule, composed, rule
from nntk.propagation.rules.selection.discrete import is_discrete


def _check_finite_differences(ctx: PropagationContext, z: Any) -> None:
    """Raise NoRule unless finite values stay finite, and others what they are."""
    if not bool(z.tangent.isfinite().all()):
        raise NoRule("model asks whether displaced values are finite, and their differences are not.")


def _register_question(name: str) -> None:
    function = getattr(torch, name)

    @rule(name)
    def ask(ctx: PropagationContext, z: Any) -> Any:
        _check_finite_differences(ctx, z)
        return constant(ctx, ctx.cached(lambda: function(primal(z))))


for _name in ("isnan", "isinf", "isfinite", "isposinf", "isneginf"):
    _register_question(_name)


@rule("nan_to_num")
def _nan_to_num(ctx: PropagationContext, z: Any, *arguments: Any, **options: Any) -> Any:
    _check_finite_differences(ctx, z)
    base = primal(z)
    value, is_finite = ctx.cached(lambda: (torch.nan_to_num(base, *arguments, **options), base.isfinite()))
    return with_tangent(ctx, value, torch.where(is_finite, z.tangent, 0.0))


@composed("masked_select")
def _masked_select(x: Any, mask: Any) -> Any:
    shape = torch.broadcast_shapes(x.shape, mask.shape)
    return x.expand(shape)[mask.expand(shape)]


@composed("masked_scatter")
def _masked_scatter(x: Any, mask: Any, source: Any) -> Any:
    """Write the first entries of a source where a mask holds."""
    if is_displaced(mask):
        raise NoRule("model calls masked_scatter with a displaced mask, which has no rule.")
    shape = torch.broadcast_shapes(x.shape, mask.shape)
    positions = primal(mask).expand(shape).flatten().nonzero()[:, 0]
    written = torch.index_copy(x.expand(shape).flatten(), 0, positions, source.flatten()[: len(positions)])
    return written.reshape(shape)


@composed("index_fill")
def _index_fill(x: Any, dim: int, index: Any, value: Any) -> Any:
    if not x.dim():
        raise NoRule("model calls index_fill on a number, which has no rule.")
    is_filled = torch.zeros(x.shape[dim], dtype=torch.bool, device=x.device)
    is_filled[primal(index)] = True
    return torch.where(is_filled.reshape(-1, *[1] * (-1 - (dim % x.dim() - x.dim()))), value, x)


@composed("index_put")
def _index_put(x: Any, indices: Any, values: Any, accumulate: bool = False) -> Any:
    """Write values to positions, or add them there."""
    if any(is_displaced(index) for index in indices):
        raise NoRule("model calls index_put at displaced positions, which has no rule.")
    positions = torch.arange(x.numel(), device=x.device).reshape(x.shape)[primal(tuple(indices))]
    source = values.expand(positions.shape).flatten()
    write = torch.index_add if accumulate else torch.index_copy
    return write(x.flatten(), 0, positions.flatten(), source).reshape(x.shape)


def _register_shape_of_other(name: str, function: Any) -> None:
    """Register a function that gives a tensor the shape of another one, whose values do not matter."""

    def apply(ctx: PropagationContext, x: Any, other: Any) -> Any:
        shape = primal(other).shape
        if not is_displaced(x):
            return constant(ctx, ctx.cached(lambda: function(primal(x), shape)))
        table = DISCRETE if is_discrete(x) else COMPLEX if primal(x).is_complex() else RULES
        return table[function](ctx, x, shape)

    for table in (RULES, DISCRETE, COMPLEX):
        table[getattr(Tensor, name)] = apply


for _name, _function in {"expand_as": Tensor.expand, "view_as": Tensor.view, "reshape_as": Tensor.reshape}.items():
    _register_shape_of_other(_name, _function)
