"""Floating values as booleans and integers, and booleans and integers as numbers of Python."""

from typing import Any

import torch
from torch import Tensor

from nntk.propagation.context import PropagationContext
from nntk.propagation.displaced_tensor import is_displaced, primal
from nntk.propagation.registry import DISCRETE, RULES, NoRule, Rule, functions_named, rule
from nntk.propagation.rules.selection.discrete import discrete_result

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_TYPES = {f"torch.{name}Tensor": dtype for name, dtype in (
    ("Long", torch.int64), ("Int", torch.int32), ("Short", torch.int16), ("Char", torch.int8), ("Byte", torch.uint8),
    ("Bool", torch.bool),
)}  # fmt: skip
"""Dtypes by the names that ``Tensor.type`` knows them by."""


def _discrete_cast(ctx: PropagationContext, z: Any, dtype: torch.dtype) -> Any:
    """Return values without their fractions, as integers; or as a boolean whether they differ from zero."""
    if dtype == torch.bool:
        return RULES[torch.ne](ctx, z, 0)
    truncated = RULES[torch.trunc](ctx, z)
    value = ctx.cached(lambda: primal(z).to(dtype))
    smallest, largest = torch.iinfo(dtype).min, torch.iinfo(dtype).max
    change = (truncated.tangent * ctx.broadcast_scales(value.dim())).round().long()
    displaced = ctx.cached(lambda: primal(truncated).long()) + change
    if displaced.numel() and (int(displaced.min()) < smallest or int(displaced.max()) > largest):
        raise NoRule(f"model casts displaced values to {dtype}, which cannot hold them.")
    return discrete_result(ctx, value, displaced.to(dtype))


def _with_discrete_casts(floating: Rule) -> Rule:
    """Return the rule of a cast to any dtype; ``floating`` is the rule for floating dtypes."""

    def cast(ctx: PropagationContext, z: Any, *arguments: Any, **options: Any) -> Any:
        targets = [_TYPES.get(target, target) if isinstance(target, str) else target for target in arguments]
        targets += options.values()
        dtypes = [target.dtype if isinstance(target, Tensor) else target for target in targets]
        chosen = [dtype for dtype in dtypes if dtype in (torch.bool, *_INTEGERS)]
        if chosen and is_displaced(z):
            return _discrete_cast(ctx, z, chosen[0])
        return floating(ctx, z, *arguments, **options)

    return cast


for _function in functions_named("to", "type", "type_as"):
    if _function in RULES:
        RULES[_function] = _with_discrete_casts(RULES[_function])


def _register_cast(name: str, dtype: torch.dtype) -> None:
    @rule(also=[getattr(Tensor, name)])
    def cast(ctx: PropagationContext, z: Any, **options: Any) -> Any:
        return _discrete_cast(ctx, z, dtype)


for _name, _dtype in {
    "long": torch.int64, "int": torch.int32, "short": torch.int16, "char": torch.int8, "byte": torch.uint8,
    "bool": torch.bool,
}.items():  # fmt: skip
    _register_cast(_name, _dtype)


@rule("any")
def _any(ctx: PropagationContext, z: Any, *arguments: Any, **options: Any) -> Any:
    return DISCRETE[torch.any](ctx, _discrete_cast(ctx, z, torch.bool), *arguments, **options)


@rule("all")
def _all(ctx: PropagationContext, z: Any, *arguments: Any, **options: Any) -> Any:
    return DISCRETE[torch.all](ctx, _discrete_cast(ctx, z, torch.bool), *arguments, **options)


@rule("count_nonzero")
def _count_nonzero(ctx: PropagationContext, z: Any, dim: Any = None) -> Any:
    axes = tuple(range(z.dim())) if dim is None else dim
    return DISCRETE[torch.sum](ctx, _discrete_cast(ctx, z, torch.bool), axes)


def _register_logic(function: Any) -> None:
    """Register the logic of floating values, which hold where they differ from zero."""

    @rule(function.__name__)
    def combine(ctx: PropagationContext, a: Any, b: Any) -> Any:
        parts = (_discrete_cast(ctx, part, torch.bool) if is_displaced(part) else primal(part) != 0 for part in (a, b))
        return DISCRETE[function](ctx, *parts)


for _function in (torch.logical_and, torch.logical_or, torch.logical_xor):
    _register_logic(_function)


def _number(function: Any) -> Rule:
    """Return the rule of a function that returns a number of Python, which a model may branch on."""

    def read(ctx: PropagationContext, z: Any) -> Any:
        if not bool((z.displaced == primal(z)).all()):
            raise NoRule("model branches on a displaced boolean or integer, which a displacement changes.")
        return ctx.cached(lambda: function(primal(z)), function)

    return read


for _function in functions_named("__bool__", "__int__", "__index__", "item", "tolist"):
    DISCRETE[_function] = _number(_function)


@rule("nonzero", "argwhere")
def _nonzero(ctx: PropagationContext, z: Any, **options: Any) -> Any:
    raise NoRule("model selects by a displaced condition, so that the number of what it selects may change.")


for _function in functions_named("nonzero", "argwhere"):
    DISCRETE[_function] = _nonzero
