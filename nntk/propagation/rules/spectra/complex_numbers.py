"""Complex values: their parts, sums, products, quotients, exponentials, absolute values and angles."""

from typing import Any

import torch
from torch import Tensor

from nntk.propagation.context import PropagationContext
from nntk.propagation.displaced_tensor import (
    displaced_with_digits,
    is_displaced,
    primal,
    rounded_primal,
    with_tangent,
)
from nntk.propagation.registry import COMPLEX, COMPOSED, RULES, Rule, complex_rule, composed, functions_named, rule
from nntk.propagation.rules.linear import LINEAR_FUNCTIONS, aligned_tangent

_AS_FOR_REAL_NUMBERS = (
    *LINEAR_FUNCTIONS, "add", "sub", "subtract", "rsub", "__rsub__", "matmul", "bmm", "mm", "mv", "dot", "__matmul__",
    "einsum", "tensordot", "outer", "kron", "cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack",
    "where", "masked_fill", "pad",
)  # fmt: skip
"""Names of functions whose rule is the same as for real numbers."""
for _function in functions_named(*_AS_FOR_REAL_NUMBERS):
    if _function in RULES:
        COMPLEX[_function] = RULES[_function]
for _attribute in ("T", "mT"):
    _function = getattr(Tensor, _attribute).__get__
    COMPLEX[_function] = RULES[_function]
# A float or a number of channels is not asked of complex values.
for _function in functions_named("avg_pool1d", "avg_pool2d", "avg_pool3d", "interpolate", "vdot", "inner"):
    COMPLEX.pop(_function, None)


def part_rule(function: Any) -> Rule:
    """Return the rule of a function that is linear over the real numbers, of one tensor, entry by entry."""

    def apply(ctx: PropagationContext, z: Any) -> Any:
        value = ctx.cached(lambda: function(primal(z)).clone(), function)
        return with_tangent(ctx, value, function(z.tangent).expand(*ctx.leading_shape, *value.shape))

    return apply


def _conjugate(z: Tensor) -> Tensor:
    return torch.conj_physical(z) if z.is_complex() else z


def _is_same(z: Any) -> Any:
    return z * 1


_REAL, _IMAG = (getattr(Tensor, name).__get__ for name in ("real", "imag"))
for _function in (torch.real, _REAL):
    COMPLEX[_function] = part_rule(torch.real)
    COMPOSED[_function] = _is_same
for _function in (torch.imag, _IMAG):
    COMPLEX[_function] = part_rule(torch.imag)
for _function in (torch.conj, Tensor.conj, torch.conj_physical, Tensor.conj_physical, torch.resolve_conj):
    COMPLEX[_function] = part_rule(_conjugate)
    COMPOSED[_function] = _is_same
for _attribute in ("H", "mH"):
    _function = getattr(Tensor, _attribute).__get__
    COMPLEX[_function] = part_rule(lambda z: _conjugate(z).mT)
for _function in functions_named("adjoint"):
    COMPLEX[_function] = part_rule(lambda z: _conjugate(z).mT)


@complex_rule("view_as_real")
def _view_as_real(ctx: PropagationContext, z: Any) -> Any:
    value = ctx.cached(lambda: torch.stack((primal(z).real, primal(z).imag), -1))
    return with_tangent(ctx, value, torch.stack((z.tangent.real, z.tangent.imag), -1))


@rule("view_as_complex")
def _view_as_complex(ctx: PropagationContext, z: Any) -> Any:
    base, tangent = primal(z), z.tangent
    value = ctx.cached(lambda: torch.complex(base[..., 0], base[..., 1]))
    return with_tangent(ctx, value, torch.complex(*(tangent[..., k].contiguous() for k in range(2))))


@rule("complex")
def _complex(ctx: PropagationContext, real: Any, imag: Any) -> Any:
    value = ctx.cached(lambda: torch.complex(primal(real), primal(imag)))
    shape = (*ctx.leading_shape, *value.shape)
    parts = (aligned_tangent(ctx, part, value.dim()).expand(shape) for part in (real, imag))
    return with_tangent(ctx, value, torch.complex(*parts))


@composed("polar")
def _polar(radius: Any, angle: Any) -> Any:
    return torch.complex(radius * torch.cos(angle), radius * torch.sin(angle))


@complex_rule("mul", "multiply")
def _mul(ctx: PropagationContext, a: Any, b: Any) -> Any:
    value = ctx.cached(lambda: primal(a) * primal(b))
    rounded_a, rounded_b = rounded_primal(ctx, a), rounded_primal(ctx, b)
    da, db = (aligned_tangent(ctx, part, value.dim()) for part in (a, b))
    if not is_displaced(b):
        return with_tangent(ctx, value, da * rounded_b)
    if not is_displaced(a):
        return with_tangent(ctx, value, rounded_a * db)
    return with_tangent(ctx, value, da * rounded_b + (rounded_a + ctx.broadcast_scales(value.dim()) * da) * db)


@complex_rule("div", "divide", "true_divide")
def _div(ctx: PropagationContext, a: Any, b: Any) -> Any:
    """Return a quotient, with its difference (da - (a / b) db) / (b + s db)."""
    value = ctx.cached(lambda: primal(a) / primal(b))
    da, db = (aligned_tangent(ctx, part, value.dim()) for part in (a, b))
    if not is_displaced(b):
        return with_tangent(ctx, value, da / rounded_primal(ctx, b))
    quotient = ctx.cached(lambda: value.to(ctx.dtype.to_complex()))
    displaced = displaced_with_digits(ctx, b)
    displaced = displaced.reshape(*ctx.leading_shape, *[1] * (value.dim() + 2 - displaced.dim()), *displaced.shape[2:])
    return with_tangent(ctx, value, (da - quotient * db) / displaced)


@complex_rule("__rdiv__", "__rtruediv__", "reciprocal")
def _reversed_div(ctx: PropagationContext, b: Any, a: Any = 1.0) -> Any:
    return _div(ctx, a, b)


@complex_rule("square")
def _square(ctx: PropagationContext, z: Any) -> Any:
    return _mul(ctx, z, z)


@complex_rule("neg")
def _neg(ctx: PropagationContext, z: Any) -> Any:
    return with_tangent(ctx, ctx.cached(lambda: -primal(z)), -z.tangent)


@complex_rule("exp")
def _exp(ctx: PropagationContext, z: Any) -> Any:
    """Return exp(z) with its difference exp(z) expm1(u) / s, where expm1 has no term that cancels."""
    base = primal(z)
    value, s = ctx.cached(lambda: torch.exp(base)), ctx.broadcast_scales(base.dim())
    u, v = s * z.tangent.real, s * z.tangent.imag
    growth = torch.expm1(u) * v.cos() - 2 * (v / 2).sin().square()
    change = torch.complex(growth, u.exp() * v.sin())
    return with_tangent(ctx, value, ctx.cached(lambda: value.to(ctx.dtype.to_complex())) * change / s)


def _parts(ctx: PropagationContext, z: Any) -> Any:
    """Return the parts of complex values along a new last axis."""
    return _view_as_real(ctx, z)


@complex_rule("abs", "absolute")
def _abs(ctx: PropagationContext, z: Any) -> Any:
    squares = RULES[torch.square](ctx, _parts(ctx, z))
    return RULES[torch.sqrt](ctx, RULES[torch.sum](ctx, squares, -1))


@complex_rule("angle")
def _angle(ctx: PropagationContext, z: Any) -> Any:
    real, imag = (RULES[torch.select](ctx, _parts(ctx, z), -1, k) for k in range(2))
    return RULES[torch.atan2](ctx, imag, real)


@complex_rule("log")
def _log(ctx: PropagationContext, z: Any) -> Any:
    return _complex(ctx, RULES[torch.log](ctx, _abs(ctx, z)), _angle(ctx, z))


@complex_rule("pow", "__pow__")
def _pow(ctx: PropagationContext, z: Any, exponent: Any) -> Any:
    if exponent != 2:
        raise TypeError("complex values have no rule but for squares")
    return _mul(ctx, z, z)


@complex_rule("to", "type", "type_as")
def _cast(ctx: PropagationContext, z: Any, *arguments: Any, **options: Any) -> Any:
    dtypes = [part.dtype if isinstance(part, Tensor) else part for part in (*arguments, *options.values())]
    if any(isinstance(dtype, torch.dtype) and dtype not in (torch.complex64, torch.complex128) for dtype in dtypes):
        raise TypeError("complex values are cast to another kind of number")
    return z
