"""Products of matrices and tensors: the difference of f(a, b) is f(da, b) + f(a + s da, db)."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from nntk.propagation.context import PropagationContext
from nntk.propagation.displaced_tensor import constant, is_displaced, primal, rounded_primal, with_tangent
from nntk.propagation.registry import rule
from nntk.propagation.rules.bilinear.operands import difference_operand, displaced_operand, value_operand
from nntk.propagation.rules.linear import linear_rule, split_leading_axis, with_axes


@rule("matmul", "bmm", "mm", "mv", "dot", "vdot", "__matmul__")
def _matmul(ctx: PropagationContext, a: Any, b: Any) -> Any:
    return _bilinear(ctx, torch.matmul, a, b)


@rule("einsum")
def _einsum(ctx: PropagationContext, equation: str, *operands: Any) -> Any:
    if len(operands) == 1 and isinstance(operands[0], tuple | list):
        operands = tuple(operands[0])
    if len(operands) == 1:
        return linear_rule(torch.einsum)(ctx, equation, *operands)
    first, *rest = operands
    for step, operand in zip(_steps(equation), rest, strict=True):
        first = _einsum_of_two(ctx, step, first, operand)
    return first


def _steps(equation: str) -> list[str]:
    """Return the equations of two operands each that compute an equation of many from left to right."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    first, *others = left.split(",")
    if not arrow:
        letters = left.replace("...", "").replace(",", "")
        right = "..." * ("..." in left) + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    steps = []
    for n, operand in enumerate(others):
        later = "".join((*others[n + 1 :], right))
        both = (first + operand).replace("...", "")
        kept = "..." * ("..." in first + operand) + "".join(c for c in dict.fromkeys(both) if c in later)
        result = right if n + 1 == len(others) else kept
        steps.append(f"{first},{operand}->{result}")
        first = result
    return steps


def _einsum_of_two(ctx: PropagationContext, equation: str, a: Any, b: Any) -> Any:
    if is_displaced(a) or is_displaced(b):
        return _bilinear(ctx, lambda x, y: torch.einsum(equation, x, y), a, b)
    return constant(ctx, ctx.cached(lambda: torch.einsum(equation, primal(a), primal(b))))


for _name in ("outer", "ger", "inner", "kron", "cross"):

    @rule(_name)
    def _named_product(ctx: PropagationContext, a: Any, b: Any, *, name: str = _name, **options: Any) -> Any:
        return _bilinear(ctx, partial(getattr(torch, name), **options), a, b, rounds=name == "inner")


@rule("tensordot")
def _tensordot(ctx: PropagationContext, a: Any, b: Any, dims: Any = 2, out: None = None) -> Any:
    return _bilinear(ctx, lambda x, y: torch.tensordot(x, y, dims), a, b)


def _bilinear(ctx: PropagationContext, function: Any, a: Any, b: Any, rounds: bool = True) -> Any:
    """Return a function that is linear in each of two operands; its difference is f(da, b) + f(a + s da, db).

    Args:
        ctx: Context of the evaluation.
        function: The function.
        a: First operand.
        b: Second operand.
        rounds: True if operands are rounded to the precision of products; False for functions that sum nothing.

    Returns:
        The value with its difference.
    """
    value = ctx.cached(lambda: function(primal(a), primal(b)))
    rounded_a, rounded_b = rounded_primal(ctx, a), rounded_primal(ctx, b)
    if rounds and ctx.products.rounds:
        return with_tangent(ctx, value, _rounded_bilinear(ctx, function, a, b, value.dim()))
    scales = ctx.scales.repeat_interleave(ctx.members)
    with ctx.products.switched(value.device):
        if not is_displaced(b):
            tangent = torch.vmap(lambda da: function(da, rounded_b))(a.tangent.flatten(0, 1))
        elif not is_displaced(a):
            tangent = torch.vmap(lambda db: function(rounded_a, db))(b.tangent.flatten(0, 1))
        else:
            tangent = torch.vmap(lambda da, db, s: function(da, rounded_b) + function(rounded_a + s * da, db))(
                a.tangent.flatten(0, 1), b.tangent.flatten(0, 1), scales
            )
    return with_tangent(ctx, value, split_leading_axis(ctx, tangent))


def _rounded_bilinear(ctx: PropagationContext, function: Any, a: Any, b: Any, dims: int) -> Tensor:
    """Return the difference of a bilinear function whose operands are rounded, for a result of ``dims`` axes."""
    terms: list[Tensor] = []
    if is_displaced(a):
        terms.append(_product(ctx, function, (difference_operand(ctx, a), a), (value_operand(ctx, b), None), dims))
    if is_displaced(b):
        left = (displaced_operand(ctx, a), a) if is_displaced(a) else (value_operand(ctx, a), None)
        terms.append(_product(ctx, function, left, (difference_operand(ctx, b), b), dims))
    return (terms[0] if len(terms) == 1 else terms[0].add_(terms[1])).mul_(ctx.broadcast_factors(dims))


_Operand = tuple[Tensor, Any]
"""Rounded operand with the displaced tensor that it belongs to, [M, members, *shape]; None for one of all members."""


def _product(ctx: PropagationContext, function: Any, left: _Operand, right: _Operand, dims: int) -> Tensor:
    """Return the products of operands, one or both of them for each displacement and member, [M, members, *shape]."""
    operands = (left, right)
    if function is torch.matmul and all(part.dim() - 2 * (z is not None) >= 2 for part, z in operands):
        return ctx.products.matmul(*(part if z is None else with_axes(ctx, part, dims) for part, z in operands))
    parts = [part if z is None else part.flatten(0, 1) for part, z in operands]
    each = torch.vmap(function, in_dims=tuple(None if z is None else 0 for _, z in operands))
    products: Tensor = split_leading_axis(ctx, ctx.products.multiply(each, *parts))
    return products
