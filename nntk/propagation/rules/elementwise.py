"""Functions of one displaced value, entry by entry: activations in their difference forms, clamps, powers, exp, log."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nntk.activations import activate
from nntk.kernels import activations as functions
from nntk.kernels.cpu.elementwise import difference
from nntk.propagation.context import PropagationContext
from nntk.propagation.displaced_tensor import displaced_with_digits, primal, with_tangent
from nntk.propagation.registry import NoRule, rule
from nntk.propagation.rules.jumps import jump
from nntk.propagation.rules.linear import aligned_tangent

DifferenceForm = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def _activation(
    ctx: PropagationContext, function: Any, form: functions.Activation, z: Any, *arguments: Any,
    displaced: Callable[[], Tensor] | None = None, **options: Any
) -> Any:  # fmt: skip
    """Return a function's value with the difference form of the activation that it is."""
    base = primal(z)
    value = ctx.cached(lambda: function(base, *arguments, **options))
    state = ctx.cached(lambda: form.state(base, ctx.dtype))
    tangent = difference(form, state, z.tangent, ctx.broadcast_scales(base.dim()), ctx.row_scales)
    return with_tangent(ctx, value, tangent, displaced)


@rule(also=[activate])
def _activate(ctx: PropagationContext, z: Any, function: functions.Activation) -> Any:
    if function.jumps:
        return jump(ctx, function, z)
    return _activation(ctx, function.value, function, z)


_FORMS: dict[str, functions.Activation] = {
    "relu": functions.Relu(),
    "tanh": functions.Tanh(),
    "sigmoid": functions.Sigmoid(),
    "silu": functions.Silu(),
    "sin": functions.Sin(),
}
for _name, _form in _FORMS.items():

    @rule(_name)
    def _named_activation(
        ctx: PropagationContext, z: Any, inplace: bool = False, *, form: Any = _form, name: str = _name
    ) -> Any:
        return _activation(ctx, getattr(F if name == "silu" else torch, name), form, z)


@rule("abs", "absolute")
def _abs(ctx: PropagationContext, z: Any) -> Any:
    return _activation(ctx, torch.abs, functions.LeakyRelu(-1.0), z, displaced=lambda: z.displaced.abs())


@rule("gelu")
def _gelu(ctx: PropagationContext, z: Any, *, approximate: str = "none") -> Any:
    form = functions.Gelu() if approximate == "none" else functions.GeluTanh()
    return _activation(ctx, F.gelu, form, z, approximate=approximate)


@rule("leaky_relu")
def _leaky_relu(ctx: PropagationContext, z: Any, negative_slope: float = 0.01, inplace: bool = False) -> Any:
    return _activation(ctx, F.leaky_relu, functions.LeakyRelu(negative_slope), z, negative_slope)


@rule("softplus")
def _softplus(ctx: PropagationContext, z: Any, beta: float = 1, threshold: float = 20) -> Any:
    if threshold < 20:
        raise NoRule("model calls softplus with a threshold below 20, where it is not yet linear.")
    return _activation(ctx, F.softplus, functions.Softplus(beta), z, beta, threshold)


@rule("cos")
def _cos(ctx: PropagationContext, z: Any) -> Any:
    base, form = primal(z), functions.Sin()
    value, state = ctx.cached(lambda: (torch.cos(base), form.state(base + math.pi / 2, ctx.dtype)))
    return with_tangent(ctx, value, form.difference(state, z.tangent, ctx.broadcast_scales(base.dim())))


def _clamp_tangent(ctx: PropagationContext, z: Any, low: float | None, high: float | None) -> Tensor:
    """Return the difference of z clamped at both ends, which is low + relu(z - low) - relu(z - high)."""
    relu, base, dz = functions.Relu(), primal(z), z.tangent
    s = ctx.broadcast_scales(base.dim())
    tangent: Tensor = dz
    if low is not None:
        tangent = relu.difference(ctx.cached(lambda: relu.state(base - low, ctx.dtype)), dz, s)
    if high is not None:
        tangent = tangent - relu.difference(ctx.cached(lambda: relu.state(base - high, ctx.dtype)), dz, s)
    return tangent


@rule("clamp", "clip")
def _clamp(ctx: PropagationContext, z: Any, min: Any = None, max: Any = None) -> Any:
    if any(isinstance(limit, Tensor) for limit in (min, max)):
        return _clamp_at_tensors(ctx, z, min, max)
    if min is not None and max is not None and min > max:
        raise NoRule(f"model calls clamp with limits in the wrong order, {min} and {max}, which have no rule.")
    base = primal(z)
    value = ctx.cached(lambda: torch.clamp(base, min, max))
    displaced = (lambda: z.displaced.clamp(min, max)) if z.keeps_digits else None
    return with_tangent(ctx, value, _clamp_tangent(ctx, z, min, max), displaced)


def _clamp_at_tensors(ctx: PropagationContext, z: Any, low: Any, high: Any) -> Any:
    for limit, function in ((low, torch.maximum), (high, torch.minimum)):
        if limit is not None:
            z = _extremum(ctx, z, limit, function=function)
    return z


@rule("clamp_min")
def _clamp_min(ctx: PropagationContext, z: Any, min: Any) -> Any:
    return _clamp(ctx, z, min)


@rule("clamp_max")
def _clamp_max(ctx: PropagationContext, z: Any, max: Any) -> Any:
    return _clamp(ctx, z, None, max)


@rule("hardtanh")
def _hardtanh(
    ctx: PropagationContext, z: Any, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Any:
    return _clamp(ctx, z, min_val, max_val)


@rule("relu6")
def _relu6(ctx: PropagationContext, z: Any, inplace: bool = False) -> Any:
    return _clamp(ctx, z, 0.0, 6.0)


def _log_difference(z: Tensor, dz: Tensor, displaced: Tensor, s: Tensor) -> Tensor:
    # Where little is left of a value, the quotient has lost the digits that the displaced value has.
    return torch.where(displaced < 0.5 * z, displaced.log() - z.log(), torch.log1p(s * dz / z)) / s


def _sqrt_difference(z: Tensor, dz: Tensor, displaced: Tensor, s: Tensor) -> Tensor:
    # A value that is displaced to zero may be rounded to slightly less than zero, which has no root.
    displaced = torch.where(displaced.abs() < 4 * torch.finfo(z.dtype).eps * z, displaced.abs(), displaced)
    # At z = 0 without a displacement the quotient would be 0 / 0.
    return torch.where(dz == 0, 0.0, dz / (displaced.sqrt() + z.sqrt()))


def _rsqrt_difference(z: Tensor, dz: Tensor, displaced: Tensor, s: Tensor) -> Tensor:
    base_root, displaced_root = z.rsqrt(), displaced.rsqrt()
    product = base_root * displaced_root
    return -dz * product * (product / (base_root + displaced_root))


_SENSITIVE: dict[str, DifferenceForm] = {
    "log": _log_difference,
    "sqrt": _sqrt_difference,
    "rsqrt": _rsqrt_difference,
    "reciprocal": lambda z, dz, displaced, s: -dz / z / displaced,
}
"""Unit differences of functions that need the digits of a small argument, from z, dz, z + s dz and s."""


def _sensitive_function(ctx: PropagationContext, name: str, z: Any) -> Any:
    base, function = primal(z), getattr(torch, name)
    value = ctx.cached(lambda: function(base))
    displaced = displaced_with_digits(ctx, z)
    tangent = _SENSITIVE[name](z.rounded_primal, z.tangent, displaced, ctx.broadcast_scales(base.dim()))
    return with_tangent(ctx, value, tangent, (lambda: function(displaced)) if z.keeps_digits else None)


def _square(ctx: PropagationContext, z: Any) -> Any:
    base = primal(z)
    tangent = z.tangent * (2 * z.rounded_primal + ctx.broadcast_scales(base.dim()) * z.tangent)
    return with_tangent(ctx, ctx.cached(lambda: torch.square(base)), tangent, lambda: z.displaced.square())


for _name in _SENSITIVE:

    @rule(_name)
    def _named_function(ctx: PropagationContext, z: Any, *, name: str = _name) -> Any:
        return _sensitive_function(ctx, name, z)


@rule("square")
def _square_rule(ctx: PropagationContext, z: Any) -> Any:
    return _square(ctx, z)


@rule("exp")
def _exp(ctx: PropagationContext, z: Any) -> Any:
    base = primal(z)
    value, s = ctx.cached(lambda: torch.exp(base)), ctx.broadcast_scales(base.dim())
    # The value is rounded after exp: rounding a large z before would change exp(z) by z times as much.
    return with_tangent(ctx, value, ctx.cached(lambda: value.to(ctx.dtype)) * torch.expm1(s * z.tangent) / s)


@rule("expm1")
def _expm1(ctx: PropagationContext, z: Any) -> Any:
    base = primal(z)
    value, slope = ctx.cached(lambda: (torch.expm1(base), torch.exp(base).to(ctx.dtype)))
    s = ctx.broadcast_scales(base.dim())
    return with_tangent(ctx, value, slope * torch.expm1(s * z.tangent) / s)


@rule("log1p")
def _log1p(ctx: PropagationContext, z: Any) -> Any:
    base = primal(z)
    value, shifted = ctx.cached(lambda: (torch.log1p(base), base + 1))
    return with_tangent(ctx, value, _sensitive_function(ctx, "log", with_tangent(ctx, shifted, z.tangent)).tangent)


def _hyperbolic(ctx: PropagationContext, z: Any, *, function: Any, other: Any) -> Any:
    """Return a hyperbolic function f with its difference 2 g(z + u/2) sinh(u/2) / s, where g is the derivative."""
    base, s = primal(z), ctx.broadcast_scales(primal(z).dim())
    value = ctx.cached(lambda: function(base))
    half = (0.5 * s) * z.tangent
    # The values are rounded after f and g: rounding a large z before would change them by z times as much.
    f, g = ctx.cached(lambda: (value.to(ctx.dtype), other(base).to(ctx.dtype)))
    middle = torch.where(half.abs() < 1, g * half.cosh() + f * half.sinh(), other(z.rounded_primal + half))
    return with_tangent(ctx, value, 2 * middle * half.sinh() / s)


rule("sinh")(partial(_hyperbolic, function=torch.sinh, other=torch.cosh))
rule("cosh")(partial(_hyperbolic, function=torch.cosh, other=torch.sinh))


@rule("tan")
def _tan(ctx: PropagationContext, z: Any) -> Any:
    """Return the tangent with its difference sin(u) / (cos(z) cos(z + u)) / s."""
    base, s = primal(z), ctx.broadcast_scales(primal(z).dim())
    value, u = ctx.cached(lambda: torch.tan(base)), s * z.tangent
    cos, sin = ctx.cached(lambda: (base.cos().to(ctx.dtype), base.sin().to(ctx.dtype)))
    return with_tangent(ctx, value, u.sin() / (cos * (cos * u.cos() - sin * u.sin()) * s))


@rule("atan", "arctan")
def _atan(ctx: PropagationContext, z: Any) -> Any:
    """Return the arc tangent; the difference of two is the angle of u over 1 + z (z + u)."""
    base, s = primal(z), ctx.broadcast_scales(primal(z).dim())
    u, rounded = s * z.tangent, z.rounded_primal
    return with_tangent(ctx, ctx.cached(lambda: torch.atan(base)), torch.atan2(u, 1 + rounded * (rounded + u)) / s)


_NODES, _WEIGHTS = (part.tolist() for part in np.polynomial.legendre.leggauss(7))


@rule("erf")
def _erf(ctx: PropagationContext, z: Any) -> Any:
    """Return the error function: for |u| < 1/2 the difference is an integral, whose terms do not cancel."""
    base, s = primal(z), ctx.broadcast_scales(primal(z).dim())
    value, a = ctx.cached(lambda: torch.erf(base)), z.rounded_primal
    u = s * z.tangent
    b = a + u
    mean = torch.zeros_like(u)
    for node, weight in zip(_NODES, _WEIGHTS, strict=True):
        mean += torch.exp(-((a + (0.5 + 0.5 * node) * u) ** 2)) * weight
    # On one side of zero the tails are subtracted, which keep their digits.
    far = torch.where(a * b > 0, torch.copysign(torch.erfc(a.abs()) - torch.erfc(b.abs()), u), b.erf() - a.erf())
    tangent = torch.where(u.abs() < 0.5, z.tangent * mean / math.sqrt(math.pi), far / s)
    return with_tangent(ctx, value, tangent)


def positive_power(z: Any, exponent: float) -> Any:
    """Return a power of values that are not negative, with its difference z^p expm1(p log(1 + u/z)) / s.

    Args:
        z: Displaced values.
        exponent: The exponent p, any number but zero.

    Returns:
        The power.

    Raises:
        NoRule: If the exponent is zero.
    """
    if exponent == 0:
        raise NoRule("model calls pow with the exponent 0, whose result does not depend on the displacement.")
    ctx, base = z.ctx, primal(z)
    value, rounded, s = ctx.cached(lambda: base**exponent), z.rounded_primal, ctx.broadcast_scales(base.dim())
    power, u = ctx.cached(lambda: value.to(ctx.dtype)), s * z.tangent
    # A power above one needs no digits of a small argument, but one that is rounded to below zero would have no power.
    displaced = z.displaced if exponent > 1 else displaced_with_digits(ctx, z)
    tiny = 4 * torch.finfo(ctx.dtype).eps * rounded
    displaced = torch.where(displaced.abs() <= tiny, displaced.abs(), displaced)
    near = power * torch.expm1(exponent * torch.log1p(u / rounded))
    tangent = torch.where(u.abs() < 0.5 * rounded, near, displaced**exponent - power) / s
    return with_tangent(ctx, value, tangent)


def _extremum(ctx: PropagationContext, a: Any, b: Any, *, function: Any) -> Any:
    """Return the larger or smaller of two values; its difference is that of (a - value) / s + da and the same of b."""
    value = ctx.cached(lambda: function(primal(a), primal(b)))
    s = ctx.broadcast_scales(value.dim())
    # Two infinite values differ by zero.
    gaps = ctx.cached(
        lambda: [torch.where(part == value, 0.0, part - value).to(ctx.dtype) for part in (primal(a), primal(b))]
    )
    terms = [gap / s + aligned_tangent(ctx, part, value.dim()) for gap, part in zip(gaps, (a, b), strict=True)]
    return with_tangent(ctx, value, function(*terms))


rule("maximum", "fmax")(partial(_extremum, function=torch.maximum))
rule("minimum", "fmin")(partial(_extremum, function=torch.minimum))
