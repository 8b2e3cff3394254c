"""Special functions: the integral of the derivative for small displacements, a subtraction in float64 for others."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nntk.propagation.context import PropagationContext
from nntk.propagation.displaced_tensor import primal, with_tangent
from nntk.propagation.registry import NoRule, function_name, rule

Function = Callable[[Tensor], Tensor]

_NODES, _WEIGHTS = (part.tolist() for part in np.polynomial.legendre.leggauss(5))
_NEAR = 0.02
"""Largest displacement, relative to the distance from a singularity, for which five places give all digits."""
_DIGITS_LEFT = 2.0**13
"""Smallest share that may be left of the distance from a singularity, in epsilons."""


def _smooth(ctx: PropagationContext, z: Any, *, function: Function, derivative: Function, reach: Function) -> Any:
    """Return a smooth function of values.

    Args:
        ctx: Context of the evaluation.
        z: Displaced values.
        function: The function, in float64.
        derivative: Its derivative.
        reach: Function from values to the distance within which the function is analytic.

    Returns:
        The value with its difference.

    Raises:
        NoRule: If a value lies on a singularity, or is not finite.
    """
    base, s = primal(z), ctx.broadcast_scales(primal(z).dim())

    def state() -> tuple[Tensor, Tensor]:
        value = function(base)
        if not bool(value.isfinite().all() and base.isfinite().all()):
            raise NoRule(f"model calls {function_name(function)} at a singularity, or on values that are not finite.")
        return value, reach(base)

    value, distance = ctx.cached(state)
    u = s.double() * z.tangent
    displaced = base + u
    smallest = _DIGITS_LEFT * torch.finfo(ctx.dtype).eps
    ctx.doubts.meet_sensitive(reach(displaced), distance, smallest, zero_is_exact=False)
    # Nodes of the integral lie between 0 and 1.
    places = ((0.5 + 0.5 * node, 0.5 * weight) for node, weight in zip(_NODES, _WEIGHTS, strict=True))
    mean = sum(derivative(base + place * u) * weight for place, weight in places)
    near = u.abs() < _NEAR * distance
    tangent = torch.where(near, z.tangent * mean, (function(displaced) - value) / s)
    return with_tangent(ctx, value, tangent.to(ctx.dtype))


def _to_poles(z: Tensor) -> Tensor:
    """Return the distance from the nearest of 0, -1, -2, ..."""
    return (z - z.round().clamp(max=0)).abs()


def _to_ends(z: Tensor) -> Tensor:
    """Return the distance from the nearest of -1 and 1."""
    return 1 - z.abs()


def _to_zero_and_one(z: Tensor) -> Tensor:
    """Return the distance from the nearest of 0 and 1."""
    return torch.minimum(z, 1 - z)


def _sinc_slope(z: Tensor) -> Tensor:
    """Return the derivative of sin(pi z) / (pi z), by its series near zero."""
    x = math.pi * z
    squares = torch.where(x.abs() < 1, x, 0.0).square()
    coefficients = [(-1) ** k * 2 * k / math.factorial(2 * k + 1) for k in range(1, 9)]
    series = torch.zeros_like(x)
    for coefficient in reversed(coefficients):
        series = series * squares + coefficient
    return math.pi * torch.where(x.abs() < 1, x * series, (x.cos() - torch.sinc(z)) / torch.where(x == 0, 1.0, x))


def _polygamma(n: int) -> Function:
    def derivative(z: Tensor) -> Tensor:
        return torch.polygamma(n, z)

    return derivative


_ROOT_PI = math.sqrt(math.pi)
_FUNCTIONS: dict[str, tuple[Function, Function]] = {
    "lgamma": (torch.digamma, _to_poles),
    "digamma": (_polygamma(1), _to_poles),
    "erfinv": (lambda z: 0.5 * _ROOT_PI * torch.erfinv(z).square().exp(), _to_ends),
    "ndtri": (lambda z: math.sqrt(2 * math.pi) * (0.5 * torch.special.ndtri(z).square()).exp(), _to_zero_and_one),
    "ndtr": (lambda z: (-0.5 * z.square()).exp() / math.sqrt(2 * math.pi), torch.ones_like),
    "erfcx": (lambda z: 2 * z * torch.special.erfcx(z) - 2 / _ROOT_PI, torch.ones_like),
    "i0": (torch.special.i1, torch.ones_like),
    "sinc": (_sinc_slope, torch.ones_like),
    "bessel_j0": (lambda z: -torch.special.bessel_j1(z), torch.ones_like),
}
"""Derivative of each function, and the distance within which it is analytic."""
_ALIASES = {"lgamma": ("gammaln",), "digamma": ("psi",)}
for _name, (_derivative, _reach) in _FUNCTIONS.items():
    _function = getattr(torch, _name, None) or getattr(torch.special, _name)
    rule(_name, *_ALIASES.get(_name, ()))(partial(_smooth, function=_function, derivative=_derivative, reach=_reach))
