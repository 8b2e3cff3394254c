"""Sums, products and quotients: the differences da + db, da b + (a + s da) db, (da - (a / b) db) / (b + s db)."""

from typing import Any

import torch
from torch import Tensor

from nntk.kernels.cpu.elementwise import product_difference
from nntk.propagation.context import PropagationContext
from nntk.propagation.displaced_tensor import (
    DisplacedTensor,
    displaced_with_digits,
    is_displaced,
    primal,
    rounded_primal,
    with_tangent,
)
from nntk.propagation.registry import rule
from nntk.propagation.rules.linear import aligned_tangent, with_axes


def _sum(ctx: PropagationContext, function: Any, a: Any, b: Any, factor_a: float, factor_b: float) -> Any:
    """Return function(a, b) = factor_a a + factor_b b with its difference."""
    value = ctx.cached(lambda: function(primal(a), primal(b)))
    if not is_displaced(b):
        da = aligned_tangent(ctx, a, value.dim())
        # A positive number that is added to a sum of squares, such as an epsilon, cancels nothing.
        is_positive = isinstance(b, int | float) and factor_a > 0 and factor_b * b >= 0
        keeps_digits = is_positive and a.keeps_digits
        displaced = (lambda: a.displaced * factor_a + factor_b * b) if keeps_digits else None
        return with_tangent(ctx, value, da if factor_a == 1 else da * factor_a, displaced)
    if not is_displaced(a):
        db = aligned_tangent(ctx, b, value.dim())
        return with_tangent(ctx, value, db if factor_b == 1 else db * factor_b)
    return with_tangent(ctx, value, _combined(ctx, a, b, value.dim(), factor_a, factor_b))


def _combined(ctx: PropagationContext, a: Any, b: Any, dims: int, factor_a: float, factor_b: float) -> Tensor:
    """Return the difference of factor_a a + factor_b b in one pass, where one of the factors is one."""
    (da, multiple_a), (db, multiple_b) = a.multiple, b.multiple
    da, db = with_axes(ctx, da, dims), with_axes(ctx, db, dims)
    factor_a, factor_b = factor_a * multiple_a, factor_b * multiple_b
    if factor_b == 1:
        return torch.add(db, da, alpha=factor_a)
    return torch.add(da if factor_a == 1 else da * factor_a, db, alpha=factor_b)


@rule("add")
def _add(ctx: PropagationContext, a: Any, b: Any, *, alpha: float = 1) -> Any:
    return _sum(ctx, lambda x, y: x + alpha * y, a, b, 1, alpha)


@rule("sub", "subtract")
def _sub(ctx: PropagationContext, a: Any, b: Any, *, alpha: float = 1) -> Any:
    return _sum(ctx, lambda x, y: x - alpha * y, a, b, 1, -alpha)


@rule("rsub", "__rsub__")
def _rsub(ctx: PropagationContext, a: Any, b: Any) -> Any:
    return _sum(ctx, lambda x, y: y - x, a, b, -1, 1)


@rule("mul", "multiply")
def _mul(ctx: PropagationContext, a: Any, b: Any) -> Any:
    value = ctx.cached(lambda: primal(a) * primal(b))
    rounded_a, rounded_b = rounded_primal(ctx, a), rounded_primal(ctx, b)
    if not is_displaced(a) or (is_displaced(b) and a.keeps_digits and not b.keeps_digits):
        # The first factor is displaced; of a vector and its norm it is the vector, which may be exactly zero.
        a, b, rounded_a, rounded_b = b, a, rounded_b, rounded_a
    if isinstance(b, int | float) and not a.keeps_digits:
        tangent, factor = a.multiple
        result = DisplacedTensor.create(ctx, value)
        result._multiple = tangent, factor * b
        return result
    da = aligned_tangent(ctx, a, value.dim())
    if not is_displaced(b):
        keeps_digits = a.keeps_digits and primal(a).dim() == value.dim()
        return with_tangent(ctx, value, da * rounded_b, (lambda: a.displaced * rounded_b) if keeps_digits else None)
    s, db = ctx.broadcast_scales(value.dim()), aligned_tangent(ctx, b, value.dim())
    if db.numel() < da.numel() and not (a.keeps_digits or b.keeps_digits):
        # A displaced weight costs less than displaced values.
        return with_tangent(ctx, value, (da * torch.addcmul(rounded_b, db, s)).addcmul_(rounded_a, db))
    if not b.keeps_digits and a is not b:
        tangent = product_difference(rounded_a, rounded_b, da, db, ctx.row_scales)
        if tangent is not None:
            return with_tangent(ctx, value, tangent)
    displaced_a = torch.addcmul(rounded_a, da, s)
    if a is b:
        return with_tangent(ctx, value, da * (rounded_b + displaced_a), lambda: displaced_a.square())
    if b.keeps_digits:
        displaced_b = _align(ctx, b.displaced, value.dim())
        shrinks = displaced_b.abs() < 0.5 * rounded_b.abs()
        if shrinks.any():
            # The difference is da b' + a db as well, in which nothing cancels where b' is much smaller than b.
            tangent = da * torch.where(shrinks, displaced_b, rounded_b)
            return with_tangent(ctx, value, tangent + torch.where(shrinks, rounded_a, displaced_a) * db)
    return with_tangent(ctx, value, torch.addcmul(da * rounded_b, displaced_a, db))


@rule("div", "divide", "true_divide")
def _div(ctx: PropagationContext, a: Any, b: Any) -> Any:
    value = ctx.cached(lambda: primal(a) / primal(b))
    da, rounded_b = aligned_tangent(ctx, a, value.dim()), rounded_primal(ctx, b)
    if not is_displaced(b):
        keeps_digits = a.keeps_digits and primal(a).dim() == value.dim()
        return with_tangent(ctx, value, da / rounded_b, (lambda: a.displaced / rounded_b) if keeps_digits else None)
    quotient, db = ctx.cached(lambda: value.to(ctx.dtype)), aligned_tangent(ctx, b, value.dim())
    s, displaced_b = ctx.broadcast_scales(value.dim()), _align(ctx, displaced_with_digits(ctx, b), value.dim())
    tangent = (da - quotient * db) / displaced_b
    is_small = displaced_b.abs() < 0.5 * rounded_b.abs()
    if is_small.any():
        # Where little is left of the denominator, the numerator of that form has lost its digits.
        displaced_a = rounded_primal(ctx, a) + s * da
        tangent = torch.where(is_small, (displaced_a / displaced_b - quotient) / s, tangent)
    return with_tangent(ctx, value, tangent)


def _align(ctx: PropagationContext, displaced: Tensor, dims: int) -> Tensor:
    """Return displaced values [M, members, *shape], shaped for a result that has ``dims`` axes."""
    return displaced.reshape(*ctx.leading_shape, *[1] * (dims + 2 - displaced.dim()), *displaced.shape[2:])


@rule("__rdiv__", "__rtruediv__")
def _rdiv(ctx: PropagationContext, a: Any, b: Any) -> Any:
    return _div(ctx, b, a)
