"""Comparisons of displaced values, and what is done with their outcome: logic, sums, casts and choices."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from nntk.propagation.context import PropagationContext
from nntk.propagation.displaced_tensor import constant, is_displaced, primal, with_tangent
from nntk.propagation.doubts import is_short
from nntk.propagation.registry import DISCRETE, RULES, NoRule, Rule, discrete, functions_named, rule
from nntk.propagation.rules.linear import aligned_tangent
from nntk.propagation.rules.selection.discrete import as_float, discrete_result, exact_rule, is_discrete

_FLOATS = (torch.float32, torch.float64)

EXACT_FUNCTIONS = (
    "logical_and", "logical_or", "logical_xor", "logical_not", "bitwise_and", "bitwise_or", "bitwise_xor",
    "bitwise_not", "__and__", "__rand__", "__or__", "__ror__", "__xor__", "__rxor__", "__invert__", "any", "all",
    "reshape", "view", "flatten", "unflatten", "transpose", "swapaxes", "permute", "movedim", "squeeze", "unsqueeze",
    "expand", "broadcast_to", "repeat", "tile", "chunk", "split", "unbind", "narrow", "select", "roll", "flip",
    "contiguous", "clone", "detach", "sum", "cumsum", "diagonal", "tril", "triu", "t", "remainder", "floor_divide",
    "__floordiv__", "__mod__", "neg", "abs", "prod", "clamp", "clamp_min", "clamp_max", "minimum", "maximum",
)  # fmt: skip
"""Names of functions of discrete tensors alone."""
for _function in functions_named(*EXACT_FUNCTIONS):
    DISCRETE[_function] = exact_rule(_function)
for _attribute in ("T", "mT"):
    _function = getattr(Tensor, _attribute).__get__
    DISCRETE[_function] = exact_rule(_function)

COMPARISONS = {
    torch.gt: ("gt", "greater", "__gt__"),
    torch.ge: ("ge", "greater_equal", "__ge__"),
    torch.lt: ("lt", "less", "__lt__"),
    torch.le: ("le", "less_equal", "__le__"),
    torch.eq: ("eq", "__eq__"),
    torch.ne: ("ne", "not_equal", "__ne__"),
}
"""Comparisons, each with the names that it has."""


def _float64(operand: Any, like: Tensor) -> Tensor:
    """Return the unperturbed value of an operand, a tensor or a number, as a tensor in float64."""
    return torch.as_tensor(primal(operand), dtype=torch.float64, device=like.device)


def _compare(ctx: PropagationContext, function: Any, a: Any, b: Any) -> Any:
    """Return the outcome of a comparison, which jumps where the two are equal."""
    value = ctx.cached(lambda: function(primal(a), primal(b)))

    def state() -> tuple[Tensor, Tensor]:
        base_a, base_b = (_float64(part, value) for part in (a, b))
        offset = base_a - base_b
        if offset.isnan().any():
            raise NoRule("model compares displaced values that are not finite.")
        return offset.to(ctx.dtype), is_short(base_a) & is_short(base_b)

    offset, short = ctx.cached(state)
    s = ctx.broadcast_scales(value.dim())
    shape = (*ctx.leading_shape, *value.shape)
    da, db = (aligned_tangent(ctx, part, value.dim()) * s for part in (a, b))
    displaced = (da - db + offset).expand(shape)
    # A tie is trusted where both differences are short, and their sum is an upper bound of the larger one.
    bound = (da.abs() + db.abs()).expand(shape)
    ctx.doubts.meet_jumps(displaced, bound, short)
    return discrete_result(ctx, value, function(displaced, 0))


def _register_comparison(function: Any, names: tuple[str, ...]) -> None:
    @rule(*names)
    def compare(ctx: PropagationContext, a: Any, b: Any) -> Any:
        return _compare(ctx, function, a, b)


for _comparison, _names in COMPARISONS.items():
    _register_comparison(_comparison, _names)


@rule("logical_not")
def _logical_not(ctx: PropagationContext, z: Any) -> Any:
    return _compare(ctx, torch.eq, z, 0)


def _promoting_rule(function: Any) -> Rule:
    """Return the rule of a function for discrete operands, as floats where it takes or returns floating values."""
    exact = exact_rule(function)

    def apply(ctx: PropagationContext, *arguments: Any, **options: Any) -> Any:
        value = ctx.cached(lambda: function(*primal(arguments), **primal(options)), function)
        leaves, tree = tree_flatten(arguments)
        are_exact = all(is_discrete(leaf) for leaf in leaves if is_displaced(leaf))
        if are_exact and not value.is_floating_point():
            return exact(ctx, *arguments, **options)
        if value.is_floating_point() and value.dtype not in _FLOATS:
            raise NoRule(f"model computes displaced values in {value.dtype}, which rounds them.")
        rounds = value.dtype == torch.float32
        are_masks = all(primal(leaf).dtype == torch.bool for leaf in leaves if is_discrete(leaf))
        if rounds and ctx.dtype == torch.float64 and not (are_masks and function in MULTIPLICATIONS):
            raise NoRule("model computes in float32 with displaced booleans or integers, but otherwise in float64.")
        # PyTorch rounds a number to the dtype of the result.
        leaves = [as_float(ctx, _round_number(leaf) if rounds else leaf) for leaf in leaves]
        return RULES[function](ctx, *tree_unflatten(leaves, tree), **options)

    return apply


def _round_number(leaf: Any) -> Any:
    return torch.tensor(leaf, dtype=torch.float32).item() if isinstance(leaf, float) else leaf


MULTIPLICATIONS = set(functions_named("mul", "multiply"))
"""Functions that round nothing where one factor is zero or one."""
PROMOTING_FUNCTIONS = (
    "add", "sub", "subtract", "rsub", "__rsub__", "mul", "multiply", "div", "divide", "true_divide", "__rdiv__",
    "__rtruediv__", *(name for names in COMPARISONS.values() for name in names),
)  # fmt: skip
"""Names of functions of two operands, some of which are discrete."""
for _function in functions_named(*PROMOTING_FUNCTIONS):
    DISCRETE[_function] = _promoting_rule(_function)
for _function in functions_named("cat", "concat", "stack"):
    DISCRETE[_function] = _promoting_rule(_function)


def _cast_rule(function: Any) -> Rule:
    def cast(ctx: PropagationContext, x: Any, *arguments: Any, **options: Any) -> Any:
        value = ctx.cached(lambda: function(primal(x), *primal(arguments), **primal(options)))
        if not is_displaced(x):
            return constant(ctx, value)
        if not is_discrete(x) or (value.is_floating_point() and value.dtype not in _FLOATS):
            raise NoRule(f"model casts displaced values to {value.dtype}, which rounds them.")
        if value.is_floating_point():
            return as_float(ctx, x)
        return discrete_result(ctx, value, x.displaced.to(value.dtype))

    return cast


for _function in functions_named("to", "type", "type_as", "float", "double", "long", "int", "bool"):
    if not isinstance(_function, type | torch.dtype):
        DISCRETE[_function] = _cast_rule(_function)


def _choose(ctx: PropagationContext, function: Any, condition: Any, a: Any, b: Any) -> Any:
    """Return ``a`` where a condition holds, else ``b``; the condition is displaced, or one of them is discrete."""
    value = ctx.cached(lambda: function(primal(condition), primal(a), primal(b)))
    if not value.is_floating_point():
        return exact_rule(torch.where)(ctx, condition, a, b)
    if value.dtype not in _FLOATS:
        raise NoRule(f"model selects displaced values in {value.dtype}, which rounds them.")
    a, b = (as_float(ctx, part) for part in (a, b))
    if not is_displaced(condition):
        return RULES[torch.where](ctx, condition, a, b)

    def state() -> tuple[Tensor, Tensor, Tensor]:
        # A number is rounded to the dtype of the result.
        parts = (
            torch.as_tensor(primal(part), dtype=value.dtype, device=value.device).to(torch.float64) for part in (a, b)
        )
        base_a, base_b = parts
        if not bool(base_a.isfinite().all() and base_b.isfinite().all()):
            raise NoRule("model selects by a displaced condition among values that are not finite.")
        gap, holds = base_a - base_b, primal(condition)
        onto_a, onto_b = torch.where(holds, 0.0, gap), torch.where(holds, -gap, 0.0)
        return value.to(torch.float64), onto_a.to(ctx.dtype), onto_b.to(ctx.dtype)

    chosen = condition.displaced
    wide, onto_a, onto_b = ctx.cached(state)
    chosen = chosen.reshape(*ctx.leading_shape, *[1] * (value.dim() + 2 - chosen.dim()), *chosen.shape[2:])
    s, (da, db) = ctx.broadcast_scales(value.dim()), (aligned_tangent(ctx, part, value.dim()) for part in (a, b))
    return with_tangent(ctx, wide, torch.where(chosen, onto_a / s + da, onto_b / s + db))


@discrete(also=[torch.where])
def _where(ctx: PropagationContext, condition: Any, input: Any = None, other: Any = None) -> Any:
    if input is None:
        raise NoRule("model selects by a displaced condition, so that the number of what it selects may change.")
    return _choose(ctx, torch.where, condition, input, other)


@discrete(also=[Tensor.where])
def _method_where(ctx: PropagationContext, input: Any, condition: Any, other: Any) -> Any:
    return _choose(ctx, torch.where, condition, input, other)


@discrete("masked_fill")
def _masked_fill(ctx: PropagationContext, x: Any, mask: Any, value: Any) -> Any:
    def fill(mask: Any, value: Any, x: Any) -> Any:
        return torch.masked_fill(x, mask, value)

    if not primal(x).is_floating_point():
        return exact_rule(torch.masked_fill)(ctx, x, mask, value)
    return _choose(ctx, fill, mask, value, x)
