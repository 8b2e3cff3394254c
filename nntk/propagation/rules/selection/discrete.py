"""Booleans and integers that a displacement changes, such as the outcome of a comparison.

A discrete displaced tensor holds its displaced values exactly, in its own dtype.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from nntk.propagation.context import PropagationContext
from nntk.propagation.displaced_tensor import DisplacedTensor, is_displaced, primal, with_tangent
from nntk.propagation.registry import NoRule, Rule

_LARGEST_INTEGER = 2**22
"""Integers below this size have exact differences in float32."""


def is_discrete(operand: Any) -> bool:
    """Return True if an argument of a function is a boolean or integer tensor that a displacement changes."""
    return isinstance(operand, DisplacedTensor) and operand.is_discrete


def discrete_result(ctx: PropagationContext, value: Any, displaced: Any) -> Any:
    """Return booleans or integers from their displaced values, [M, members, *shape]; lists and tuples of them too."""
    if not isinstance(value, Tensor):
        return type(value)(discrete_result(ctx, *pair) for pair in zip(value, displaced, strict=True))
    if value.is_floating_point() or value.is_complex():
        raise NoRule("model computes floating values from displaced booleans or integers by a function without a rule.")
    if value.dtype == torch.bool:
        difference = displaced.to(ctx.dtype) - ctx.cached(lambda: value.to(ctx.dtype))
    else:
        difference = (displaced - value).to(ctx.dtype)
    return with_tangent(ctx, value, difference / ctx.broadcast_scales(value.dim()), lambda: displaced)


def as_float(ctx: PropagationContext, operand: Any) -> Any:
    """Return displaced booleans or integers as floating displaced values; anything else as it is."""
    if not is_discrete(operand):
        return operand
    base, displaced = primal(operand), operand.displaced
    if base.dtype != torch.bool:
        sizes = (int(part.abs().max()) if part.numel() else 0 for part in (base, displaced))
        if max(sizes) >= _LARGEST_INTEGER:
            raise NoRule("model casts very large displaced integers to floating values.")
    value = ctx.cached(lambda: base.to(torch.float64))
    return with_tangent(ctx, value, operand.tangent, lambda: displaced.to(ctx.dtype))


def exact_rule(function: Any) -> Rule:
    """Return the rule of a function of discrete tensors, which is called with their displaced values."""

    def apply(ctx: PropagationContext, *arguments: Any, **options: Any) -> Any:
        value = ctx.cached(lambda: function(*primal(arguments), **primal(options)), function)
        leaves, tree = tree_flatten((arguments, options))
        positions = [position for position, leaf in enumerate(leaves) if is_displaced(leaf)]
        if not all(is_discrete(leaves[position]) for position in positions):
            raise NoRule("model combines displaced booleans or integers with displaced values without a rule.")

        def apply_to_displaced(*parts: Tensor) -> Any:
            displaced_leaves = list(primal(leaves))
            for position, part in zip(positions, parts, strict=True):
                displaced_leaves[position] = part
            displaced_arguments, displaced_options = tree_unflatten(displaced_leaves, tree)
            # Displaced values have other strides, and a view may not exist.
            call = Tensor.reshape if function is Tensor.view else function
            return call(*displaced_arguments, **displaced_options)

        return discrete_result(ctx, value, mapped(ctx, apply_to_displaced, *(leaves[i].displaced for i in positions)))

    return apply


def mapped(ctx: PropagationContext, function: Callable[..., Any], *parts: Tensor) -> Any:
    """Return a function of tensors [M, members, ...], evaluated for each displacement and member."""
    try:
        results = torch.vmap(function)(*(part.flatten(0, 1) for part in parts))
    except (RuntimeError, IndexError) as error:
        raise NoRule(f"model selects in a way that has no rule: {error}.") from error
    return tree_map(lambda result: result.unflatten(0, ctx.leading_shape), results)
