"""Functions of one displaced value, by the difference forms of activations; softmax, and the largest of several."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nntk.activations import activate
from nntk.kernels.perturb import activations as functions
from nntk.moved import NoRule, Pass, plain, rule

Unary = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Unit difference of a function, from z, dz and s."""


def _activation(at: Pass, function: Any, form: functions.Activation, z: Any, *arguments: Any, **options: Any) -> Any:
    inside = plain(z)
    value = at.once(lambda: function(inside, *arguments, **options))
    state = at.once(lambda: form.state(inside, at.dtype))
    return at.result(value, form.difference(state, z.unit, at.scale(inside.dim())))


@rule(also=[activate])
def _activate(at: Pass, z: Any, function: functions.Activation) -> Any:
    return _activation(at, function.value, function, z)


_FORMS: dict[str, functions.Activation] = {
    "relu": functions.Relu(),
    "tanh": functions.Tanh(),
    "sigmoid": functions.Sigmoid(),
    "silu": functions.Silu(),
    "sin": functions.Sin(),
    "abs": functions.LeakyRelu(-1.0),
}
for _name, _form in _FORMS.items():

    @rule(_name)
    def _simple(at: Pass, z: Any, inplace: bool = False, *, form: Any = _form, name: str = _name) -> Any:
        return _activation(at, getattr(F if name == "silu" else torch, name), form, z)


@rule("gelu")
def _gelu(at: Pass, z: Any, *, approximate: str = "none") -> Any:
    form = functions.Gelu() if approximate == "none" else functions.GeluTanh()
    return _activation(at, F.gelu, form, z, approximate=approximate)


@rule("leaky_relu")
def _leaky_relu(at: Pass, z: Any, negative_slope: float = 0.01, inplace: bool = False) -> Any:
    return _activation(at, F.leaky_relu, functions.LeakyRelu(negative_slope), z, negative_slope)


@rule("softplus")
def _softplus(at: Pass, z: Any, beta: float = 1, threshold: float = 20) -> Any:
    return _activation(at, F.softplus, functions.Softplus(beta), z, beta, threshold)


def _between(low: float | None, high: float | None) -> Callable[[Tensor, Tensor, Tensor, Pass], Tensor]:
    """Z cut off at both ends is low + relu(z - low) - relu(z - high)."""
    relu = functions.Relu()

    def unit(z: Tensor, dz: Tensor, s: Tensor, at: Pass) -> Tensor:
        made = dz
        if low is not None:
            made = relu.difference(at.once(lambda: relu.state(z - low, at.dtype)), dz, s)
        if high is not None:
            made = made - relu.difference(at.once(lambda: relu.state(z - high, at.dtype)), dz, s)
        return made

    return unit


@rule("clamp", "clip", "hardtanh", "clamp_min", "clamp_max")
def _clamp(at: Pass, z: Any, min: Any = None, max: Any = None, inplace: bool = False, **options: Any) -> Any:
    low, high = options.get("min_val", min), options.get("max_val", max)
    if any(isinstance(end, Tensor) for end in (low, high)) or (low is None and high is None):
        raise NoRule("model clamps displaced values at tensors.")
    inside = plain(z)
    value = at.once(lambda: torch.clamp(inside, low, high))
    return at.result(value, _between(low, high)(inside, z.unit, at.scale(inside.dim()), at))


@rule("relu6")
def _relu6(at: Pass, z: Any, inplace: bool = False) -> Any:
    return _clamp(at, z, 0.0, 6.0, inplace)


_UNARY: dict[str, Unary] = {
    "exp": lambda z, dz, s: z.exp() * torch.expm1(s * dz) / s,
    "log": lambda z, dz, s: torch.log1p(s * dz / z) / s,
    "sqrt": lambda z, dz, s: dz / ((z + s * dz).sqrt() + z.sqrt()),
    "rsqrt": lambda z, dz, s: -dz * _rsqrt_slope(z.rsqrt(), (z + s * dz).rsqrt()),
    "square": lambda z, dz, s: dz * (2 * z + s * dz),
    "reciprocal": lambda z, dz, s: -dz / (z * (z + s * dz)),
}


def _rsqrt_slope(r: Tensor, moved: Tensor) -> Tensor:
    return (r * moved).square() / (r + moved)


def _unary(at: Pass, name: str, z: Any) -> Any:
    inside = plain(z)
    value = at.once(lambda: getattr(torch, name)(inside))
    return at.result(value, _UNARY[name](z.single, z.unit, at.scale(inside.dim())))


for _name in _UNARY:

    @rule(_name)
    def _by_name(at: Pass, z: Any, *, name: str = _name) -> Any:
        return _unary(at, name, z)


_POWERS = {2: "square", 0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal"}


@rule("pow", "__pow__")
def _pow(at: Pass, z: Any, exponent: Any) -> Any:
    if isinstance(exponent, Tensor) or exponent not in _POWERS:
        raise NoRule(f"model raises displaced values to the power {exponent}.")
    return _unary(at, _POWERS[exponent], z)


@rule("softmax")
def _softmax(at: Pass, z: Any, dim: int, *arguments: Any, **options: Any) -> Any:
    r"""With u = s dz, less its largest: p (expm1(u) - t) / (1 + t) / s, where t is the mean of expm1(u) under p."""
    value = at.once(lambda: torch.softmax(plain(z), dim))
    p, s, axis = at.once(lambda: value.to(at.dtype)), at.scale(value.dim()), _axis(value, dim)
    u = torch.where(p > 0, s * z.unit, -torch.inf)
    rise = torch.expm1(u - u.amax(axis, keepdim=True))
    mean = (p * rise).sum(axis, keepdim=True)
    return at.result(value, p * (rise - mean) / ((1 + mean) * s))


@rule("log_softmax")
def _log_softmax(at: Pass, z: Any, dim: int, *arguments: Any, **options: Any) -> Any:
    value = at.once(lambda: torch.log_softmax(plain(z), dim))
    p, s, axis = at.once(lambda: value.exp().to(at.dtype)), at.scale(value.dim()), _axis(value, dim)
    u = s * z.unit
    u = u - u.amax(axis, keepdim=True)
    return at.result(value, (u - torch.log1p((p * torch.expm1(u)).sum(axis, keepdim=True))) / s)


def _axis(value: Tensor, dim: int) -> int:
    """The same axis of a difference."""
    return dim % value.dim() - value.dim()


@rule("amax")
def _amax(at: Pass, z: Any, dim: Any = (), keepdim: bool = False) -> Any:
    inside = plain(z)
    value = at.once(lambda: inside.amax(dim, keepdim))
    axes = tuple(_axis(inside, d) for d in ((dim,) if isinstance(dim, int) else dim or range(inside.dim())))
    below = at.once(lambda: (inside - inside.amax(axes, keepdim=True)).to(at.dtype))
    return at.result(value, (below / at.scale(inside.dim()) + z.unit).amax(axes, keepdim))
