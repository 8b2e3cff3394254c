"""Functions that are linear in their displaced values, so that f(da) is the difference; choices; changes of dtype."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from nntk.propagation.context import PropagationContext
from nntk.propagation.displaced_tensor import constant, is_displaced, primal, with_tangent
from nntk.propagation.registry import RULES, NoRule, Rule, functions_named, rule


def linear_rule(function: Any, integers_are_indices: bool = True) -> Rule:
    """Return the rule of a function that is linear in all its tensors together; constants have the difference zero.

    Args:
        function: The function.
        integers_are_indices: True if integer tensors among its arguments are indices, which keep their values.

    Returns:
        The rule.
    """

    def apply(ctx: PropagationContext, *arguments: Any, **options: Any) -> Any:
        value = ctx.cached(lambda: function(*primal(arguments), **primal(options)), function)
        leaves, tree = tree_flatten((arguments, options))
        positions = [position for position, leaf in enumerate(leaves) if is_displaced(leaf)]
        if len(positions) == 1 and not leaves[positions[0]].keeps_digits:
            views = _views(leaves[positions[0]], value)
            if views is not None:
                return with_tangent(ctx, value, views)
        tangents = [leaves[position].tangent.flatten(0, 1) for position in positions]

        def apply_to_tangents(*parts: Tensor) -> Any:
            tangent_leaves = [_zero(ctx, leaf, integers_are_indices) for leaf in leaves]
            for position, part in zip(positions, parts, strict=True):
                tangent_leaves[position] = part
            tangent_arguments, tangent_options = tree_unflatten(tangent_leaves, tree)
            # A difference has other strides than its value, and a view may not exist.
            return (Tensor.reshape if function is Tensor.view else function)(*tangent_arguments, **tangent_options)

        tangent = split_leading_axis(ctx, torch.vmap(apply_to_tangents)(*tangents))
        return with_tangent(ctx, value, tangent, _displaced_by(ctx, leaves, value, apply_to_tangents))

    return apply


def _views(operand: Any, value: Any) -> Any:
    """Return the same views of a difference that a function took of the value; None if it did not take views alone.

    A view by strides takes a tenth of the time of the function under ``torch.vmap``.
    """
    base, tangent = primal(operand), operand.tangent
    if isinstance(value, tuple | list):
        parts = [_views(operand, part) for part in value]
        return None if any(part is None for part in parts) else type(value)(parts)
    lengths = zip(base.shape, base.stride(), tangent.stride()[2:], strict=True)
    if (
        not isinstance(value, Tensor)
        or value.untyped_storage().data_ptr() != base.untyped_storage().data_ptr()
        or any(length > 1 and stride != other for length, stride, other in lengths)
        or not base.numel()
        or value.is_neg()
    ):
        return None
    offset = tangent.storage_offset() + value.storage_offset() - base.storage_offset()
    size, strides = (*tangent.shape[:2], *value.shape), (*tangent.stride()[:2], *value.stride())
    return tangent.as_strided(size, strides, offset)


def _displaced_by(
    ctx: PropagationContext, leaves: Sequence[Any], value: Any, function: Callable[[Tensor], Any]
) -> Callable[[], Tensor] | None:
    """Return a function that computes a linear function of the only tensor in ``leaves``, which keeps its digits."""
    tensors: list[Any] = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if len(tensors) != 1 or not isinstance(value, Tensor) or not (tensor := tensors[0]).keeps_digits:
        return None
    return lambda: torch.vmap(function)(tensor.displaced.flatten(0, 1)).unflatten(0, ctx.leading_shape)


def _zero(ctx: PropagationContext, leaf: Any, integers_are_indices: bool) -> Any:
    """Return the difference zero of a constant tensor; indices, and what is no tensor, as they are."""
    if not isinstance(leaf, Tensor):
        return leaf
    value = primal(leaf)
    if integers_are_indices and not value.is_floating_point():
        return value
    return torch.zeros((), dtype=ctx.dtype, device=value.device).expand(value.shape)


def split_leading_axis(ctx: PropagationContext, tangents: Any) -> Any:
    """Split the first axis, [M members, ...], into [M, members, ...]; of a tensor, or of each in a tuple or list."""
    if isinstance(tangents, Tensor):
        return tangents.unflatten(0, ctx.leading_shape)
    return type(tangents)(split_leading_axis(ctx, part) for part in tangents)


def aligned_tangent(ctx: PropagationContext, operand: Any, dims: int) -> Any:
    """Return an operand's difference, shaped for a result that has ``dims`` axes; zero for a constant."""
    if not is_displaced(operand):
        return torch.zeros((), dtype=ctx.dtype, device=ctx.sample_ids.device)
    return with_axes(ctx, operand.tangent, dims)


def with_axes(ctx: PropagationContext, tangent: Tensor, dims: int) -> Tensor:
    """Return a difference, shaped for a result that has ``dims`` axes."""
    if tangent.dim() == dims + 2:
        return tangent
    return tangent.reshape(*ctx.leading_shape, *[1] * (dims + 2 - tangent.dim()), *tangent.shape[2:])


LINEAR_FUNCTIONS = (
    "reshape", "view", "flatten", "unflatten", "transpose", "swapaxes", "permute", "movedim", "squeeze", "unsqueeze",
    "expand", "expand_as", "view_as", "reshape_as", "broadcast_to", "repeat", "repeat_interleave", "tile", "chunk",
    "split", "unbind", "narrow", "select", "roll", "flip", "contiguous", "clone", "detach", "neg", "mean", "sum",
    "cumsum", "diagonal", "tril", "triu", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "adaptive_avg_pool3d", "pixel_shuffle", "pixel_unshuffle", "interpolate", "unfold",
    "index_select", "gather", "take_along_dim", "__getitem__", "t", "ravel", "swapdims", "adjoint", "rot90",
    "fliplr", "flipud", "diag", "diag_embed", "trace", "diff", "positive", "hsplit", "vsplit", "dsplit",
    "tensor_split", "split_with_sizes", "fold", "channel_shuffle", "upsample", "upsample_nearest", "upsample_bilinear",
    "scatter_add", "index_add", "index_copy", "select_scatter", "slice_scatter", "diagonal_scatter", "sum_to_size",
    "atleast_1d", "atleast_2d", "atleast_3d", "broadcast_tensors", "block_diag",
)  # fmt: skip
"""Names of the functions whose rule is :func:`linear_rule`."""
for _function in functions_named(*LINEAR_FUNCTIONS):
    RULES[_function] = linear_rule(_function)
for _function in functions_named("cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack", "row_stack"):
    RULES[_function] = linear_rule(_function, integers_are_indices=False)
for _attribute in ("T", "mT", "H", "mH"):
    _function = getattr(Tensor, _attribute).__get__
    RULES[_function] = linear_rule(_function)


@rule("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout", "feature_alpha_dropout")
def _dropout(ctx: PropagationContext, x: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    if training and p:
        raise NoRule("model calls dropout in training mode, which drops values at random.")
    return x


@rule("pad")
def _pad(ctx: PropagationContext, x: Any, pad: Any, mode: str = "constant", value: float | None = None) -> Any:
    result = linear_rule(F.pad)(ctx, x, pad, mode)
    if value:
        result = with_tangent(ctx, ctx.cached(lambda: F.pad(primal(x), pad, mode, value)), result.tangent)
    return result


@rule("scatter")
def _scatter(ctx: PropagationContext, x: Any, dim: int, index: Any, src: Any = None, **options: Any) -> Any:
    """Scatter values, or a number in ``src`` or ``value``, whose difference is zero."""
    number = options.pop("value", src)
    if options or number is None:
        raise NoRule("model calls scatter with a reduction, which has no rule.")
    if isinstance(number, Tensor):
        return linear_rule(torch.scatter)(ctx, x, dim, index, number)
    value = ctx.cached(lambda: torch.scatter(primal(x), dim, primal(index), number))
    return with_tangent(ctx, value, linear_rule(torch.scatter)(ctx, x, dim, index, 0).tangent)


@rule("masked_fill")
def _masked_fill(ctx: PropagationContext, x: Any, mask: Any, value: Any) -> Any:
    filled = ctx.cached(lambda: torch.masked_fill(primal(x), primal(mask), primal(value)))
    return _select(ctx, filled, mask, value, x)


@rule(also=[torch.where])
def _where(ctx: PropagationContext, condition: Any, a: Any, b: Any) -> Any:
    value = ctx.cached(lambda: torch.where(primal(condition), primal(a), primal(b)))
    return _select(ctx, value, condition, a, b)


@rule(also=[Tensor.where])
def _method_where(ctx: PropagationContext, a: Any, condition: Any, b: Any) -> Any:
    return _where(ctx, condition, a, b)


def _select(ctx: PropagationContext, value: Tensor, condition: Any, a: Any, b: Any) -> Any:
    """Return a value with the difference of ``a`` where the condition holds, else that of ``b``."""
    tangents = (aligned_tangent(ctx, part, value.dim()) for part in (a, b))
    return with_tangent(ctx, value, torch.where(primal(condition), *tangents))


_TYPES = {"torch.FloatTensor": torch.float32, "torch.DoubleTensor": torch.float64}
"""Dtypes by the names that ``Tensor.type`` knows them by."""


@rule("to", "type_as", "float", "double", "type")
def _cast(ctx: PropagationContext, x: Any, *arguments: Any, **options: Any) -> Any:
    """Keep displaced values in float64, whichever of float32 and float64 is asked for."""
    if not is_displaced(x):
        # The target is a displaced value; only its dtype and device matter.
        return constant(ctx, ctx.cached(lambda: primal(x).to(*primal(arguments), **primal(options))))
    targets = [_TYPES.get(target, target) if isinstance(target, str) else target for target in arguments]
    targets += options.values()
    dtypes = [target.dtype if isinstance(target, Tensor) else target for target in targets]
    for dtype in dtypes:
        if isinstance(dtype, torch.dtype) and dtype not in (torch.float32, torch.float64):
            raise NoRule(f"model casts displaced values to {dtype}, which rounds them.")
    x.shares_memory = True
    return x
