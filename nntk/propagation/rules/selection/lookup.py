"""Places of the largest displaced values, and values that are looked up at displaced places."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from nntk.propagation.context import PropagationContext
from nntk.propagation.displaced_tensor import is_displaced, primal, with_tangent
from nntk.propagation.registry import DISCRETE, RULES, NoRule, Rule, discrete, functions_named, rule
from nntk.propagation.rules.selection.discrete import discrete_result, exact_rule, is_discrete, mapped


def _lookup_rule(function: Any) -> Rule:
    """Return the rule of a function that looks up values at displaced places."""
    exact = exact_rule(function)

    def apply(ctx: PropagationContext, *arguments: Any, **options: Any) -> Any:
        value = ctx.cached(lambda: function(*primal(arguments), **primal(options)), function)
        if not value.is_floating_point():
            return exact(ctx, *arguments, **options)
        leaves, tree = tree_flatten((arguments, options))
        places = [i for i, leaf in enumerate(leaves) if is_discrete(leaf)]
        sources = [i for i, leaf in enumerate(leaves) if is_displaced(leaf) and not is_discrete(leaf)]
        tensors = [primal(leaf) for leaf in leaves if isinstance(leaf, Tensor)]
        if any(leaves[i].dtype == torch.bool for i in places):
            raise NoRule("model looks up values by a displaced mask, so that their number may change.")
        if not ctx.cached(lambda: all(bool(tensor.isfinite().all()) for tensor in tensors)):
            raise NoRule("model looks up values that are not finite at displaced places.")

        def look_up(positions: list[int]) -> Callable[..., Any]:
            def call(*parts: Tensor) -> Any:
                own = list(primal(leaves))
                for position, part in zip(positions, parts, strict=True):
                    own[position] = part
                own_arguments, own_options = tree_unflatten(own, tree)
                return function(*own_arguments, **own_options)

            return call

        displaced = [leaves[i].displaced for i in places]
        # A value that stays where it is has the difference zero exactly.
        moved = (mapped(ctx, look_up(places), *displaced) - value).to(ctx.dtype) / ctx.broadcast_scales(value.dim())
        if sources:
            tangents = [leaves[i].tangent for i in sources]
            moved = moved + mapped(ctx, look_up(places + sources), *displaced, *tangents)
        return with_tangent(ctx, ctx.cached(lambda: value.to(torch.float64)), moved)

    return apply


for _function in functions_named("gather", "index_select", "take_along_dim", "__getitem__"):
    DISCRETE[_function] = _lookup_rule(_function)


@discrete("scatter")
def _scatter(ctx: PropagationContext, x: Any, dim: int, index: Any, src: Any) -> Any:
    if not is_discrete(index) or is_discrete(x) or is_discrete(src):
        raise NoRule("model calls scatter on displaced booleans or integers.")
    axis = dim % max(1, primal(x).dim()) - primal(x).dim()
    if isinstance(src, Tensor) and any(_repeats(places, axis) for places in (primal(index), index.displaced)):
        raise NoRule("model scatters several values to the same place, of which any may remain.")
    moved = _lookup_rule(torch.scatter)(ctx, primal(x), axis, index, primal(src))
    if not is_displaced(x) and not is_displaced(src):
        return moved
    sources = [_tangent_or_zero(ctx, part) for part in (x, src) if isinstance(part, Tensor)]

    def scatter(places: Tensor, target: Tensor, source: Any = 0.0) -> Tensor:
        return torch.scatter(target, axis, places, source)

    return with_tangent(ctx, primal(moved), moved.tangent + mapped(ctx, scatter, index.displaced, *sources))


def _repeats(places: Tensor, axis: int) -> bool:
    """Return True if a place occurs twice along an axis."""
    return bool((places.sort(axis).values.diff(dim=axis) == 0).any())


def _tangent_or_zero(ctx: PropagationContext, part: Any) -> Tensor:
    """Return the difference of a tensor, [M, members, *shape], which is zero for a constant."""
    if is_displaced(part):
        tangent: Tensor = part.tangent
        return tangent
    return torch.zeros((*ctx.leading_shape, *part.shape), dtype=ctx.dtype, device=part.device)


@discrete("embedding")
def _embedding(
    ctx: PropagationContext,
    tokens: Any,
    weight: Any,
    padding_idx: Any = None,
    max_norm: Any = None,
    *unused: Any,
    **options: Any,
) -> Any:
    if max_norm is not None:
        raise NoRule("model calls embedding with max_norm, which writes into the weight.")
    return _lookup_rule(F.embedding)(ctx, tokens, weight)


@discrete("one_hot")
def _one_hot(ctx: PropagationContext, places: Any, num_classes: int = -1) -> Any:
    displaced = places.displaced
    if num_classes < 0 or bool(((displaced < 0) | (displaced >= num_classes)).any()):
        raise NoRule("model calls one_hot on displaced integers without their number, or beyond it.")
    value = ctx.cached(lambda: F.one_hot(primal(places), num_classes))
    return discrete_result(ctx, value, (displaced[..., None] == torch.arange(num_classes, device=value.device)).long())


Choice = Callable[[Tensor], Tensor]


def meet_ties(ctx: PropagationContext, gaps: Tensor, change: Tensor, axis: int) -> None:
    """Count the gaps between values along an axis that are within rounding of zero.

    Args:
        ctx: Context of the evaluation.
        gaps: Gaps, [M, members, *shape], where the axis may have another length.
        change: Differences (not over the scale) of the values, [M, members, *shape].
        axis: The axis, counted from the end.
    """
    if axis + change.dim() == 2:
        # Along the first axis, a gap does not belong to one of its entries.
        change = change.abs().amax(axis, keepdim=True)
    # Which of two equal values comes first is left to the function itself.
    ctx.doubts.meet_jumps(gaps, change, torch.zeros((), dtype=torch.bool, device=gaps.device))


def find_largest(ctx: PropagationContext, choose: Choice, z: Any, k: int, axis: int, largest: bool) -> tuple[Any, Any]:
    """Return some of the k largest or smallest values along an axis, and their places.

    Args:
        ctx: Context of the evaluation.
        choose: Function from values to the places of what is returned.
        z: Displaced values.
        k: Number of values whose order decides what is returned.
        axis: The axis, counted from the end.
        largest: True for the largest values, False for the smallest.

    Returns:
        The values and their places.

    Raises:
        NoRule: If a value is not finite.
    """
    base, s = primal(z), ctx.broadcast_scales(primal(z).dim())
    if not ctx.cached(lambda: bool(base.isfinite().all())):
        raise NoRule("model looks for the largest of displaced values that are not finite.")
    change = z.tangent * s
    # In float64, so that the order of values that are close to each other is known.
    displaced = base + change.double()
    ctx.tangent_sizes.append(2 * displaced.numel())
    if (count := min(k + 1, base.shape[axis]) - 1) > 0:
        top = displaced.topk(count + 1, axis, largest).values
        gaps = (top.narrow(axis, 0, count) - top.narrow(axis, 1, count)).to(ctx.dtype)
        meet_ties(ctx, gaps, change, axis)
    chosen, places = ctx.cached(lambda: choose(base)), choose(displaced)
    value = ctx.cached(lambda: base.gather(axis, chosen))
    step = (base.expand_as(displaced).gather(axis, places) - value).to(ctx.dtype) / s
    return with_tangent(ctx, value, step + z.tangent.gather(axis, places)), discrete_result(ctx, chosen, places)


def _extreme(ctx: PropagationContext, z: Any, dim: Any, keepdim: bool, largest: bool) -> tuple[Any, Any]:
    """Return the largest or smallest value along an axis and its place, the first of several."""
    if not isinstance(dim, int) or not primal(z).dim():
        raise NoRule("model looks for the largest of displaced values without an axis, or of two tensors.")
    axis = dim % primal(z).dim() - primal(z).dim()
    function = torch.argmax if largest else torch.argmin
    value, place = find_largest(ctx, lambda t: function(t, axis, keepdim=True), z, 1, axis, largest)
    if keepdim:
        return value, place
    squeeze = torch.squeeze
    return RULES[squeeze](ctx, value, axis), DISCRETE[squeeze](ctx, place, axis)


@rule("argmax")
def _argmax(ctx: PropagationContext, z: Any, dim: Any = None, keepdim: bool = False) -> Any:
    return _extreme(ctx, z, dim, keepdim, True)[1]


@rule("argmin")
def _argmin(ctx: PropagationContext, z: Any, dim: Any = None, keepdim: bool = False) -> Any:
    return _extreme(ctx, z, dim, keepdim, False)[1]


@rule("max")
def _max(ctx: PropagationContext, z: Any, dim: Any = None, keepdim: bool = False) -> Any:
    if dim is None:
        return RULES[torch.amax](ctx, z)
    return torch.return_types.max(_extreme(ctx, z, dim, keepdim, True))


@rule("min")
def _min(ctx: PropagationContext, z: Any, dim: Any = None, keepdim: bool = False) -> Any:
    if dim is None:
        return RULES[torch.neg](ctx, RULES[torch.amax](ctx, RULES[torch.neg](ctx, z)))
    return torch.return_types.min(_extreme(ctx, z, dim, keepdim, False))


@rule("topk")
def _topk(
    ctx: PropagationContext, z: Any, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> Any:  # fmt: skip
    if not sorted or not primal(z).dim():
        raise NoRule("model calls topk on displaced values without an order, or on a number.")
    axis = dim % primal(z).dim() - primal(z).dim()
    return torch.return_types.topk(find_largest(ctx, lambda t: t.topk(k, axis, largest).indices, z, k, axis, largest))


@rule("sort")
def _sort(ctx: PropagationContext, z: Any, dim: int = -1, descending: bool = False, *, stable: bool = False) -> Any:
    if not primal(z).dim():
        raise NoRule("model sorts a number.")
    axis = dim % primal(z).dim() - primal(z).dim()

    def order(t: Tensor) -> Tensor:
        return t.sort(dim=axis, descending=descending, stable=True).indices

    return torch.return_types.sort(find_largest(ctx, order, z, primal(z).shape[axis], axis, descending))


@rule("argsort")
def _argsort(ctx: PropagationContext, z: Any, dim: int = -1, descending: bool = False, *, stable: bool = False) -> Any:
    return _sort(ctx, z, dim, descending)[1]
