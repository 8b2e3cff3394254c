"""Functions of one displaced value, by the difference forms of activations; softmax, and the largest of several."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nntk.activations import activate
from nntk.kernels import activations as functions
from nntk.propagation.displaced_tensor import NoRule, Pass, plain, rule

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
    if threshold < 20:
        raise NoRule("model has a softplus that is linear from where it is not yet.")
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


@rule("clamp", "clip")
def _clamp(at: Pass, z: Any, min: Any = None, max: Any = None) -> Any:
    if any(isinstance(end, Tensor) for end in (min, max)) or (min is None and max is None):
        raise NoRule("model clamps displaced values at tensors.")
    inside = plain(z)
    value = at.once(lambda: torch.clamp(inside, min, max))
    return at.result(value, _between(min, max)(inside, z.unit, at.scale(inside.dim()), at))


@rule("clamp_min")
def _clamp_min(at: Pass, z: Any, min: Any) -> Any:
    return _clamp(at, z, min)


@rule("clamp_max")
def _clamp_max(at: Pass, z: Any, max: Any) -> Any:
    return _clamp(at, z, None, max)


@rule("hardtanh")
def _hardtanh(at: Pass, z: Any, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Any:
    return _clamp(at, z, min_val, max_val)


@rule("relu6")
def _relu6(at: Pass, z: Any, inplace: bool = False) -> Any:
    return _clamp(at, z, 0.0, 6.0)


def _sqrt(z: Tensor, dz: Tensor, s: Tensor) -> Tensor:
    moved = torch.addcmul(z, s, dz)
    # What moves to zero may be rounded to less than that, and at zero nothing over nothing is none.
    moved = torch.where(moved.abs() < 4 * torch.finfo(z.dtype).eps * z, moved.abs(), moved)
    return torch.where(dz == 0, 0.0, dz / (moved.sqrt() + z.sqrt()))


def _rsqrt(z: Tensor, dz: Tensor, s: Tensor) -> Tensor:
    r, moved = z.rsqrt(), torch.addcmul(z, s, dz).rsqrt()
    product = r * moved
    return -dz * product * (product / (r + moved))


_UNARY: dict[str, Unary] = {
    "log": lambda z, dz, s: torch.log1p(s * dz / z) / s,
    "sqrt": _sqrt,
    "rsqrt": _rsqrt,
    "square": lambda z, dz, s: dz * (2 * z + s * dz),
    "reciprocal": lambda z, dz, s: -dz / z / torch.addcmul(z, s, dz),
}


def _unary(at: Pass, name: str, z: Any) -> Any:
    inside = plain(z)
    value = at.once(lambda: getattr(torch, name)(inside))
    return at.result(value, _UNARY[name](z.single, z.unit, at.scale(inside.dim())))


for _name in _UNARY:

    @rule(_name)
    def _by_name(at: Pass, z: Any, *, name: str = _name) -> Any:
        return _unary(at, name, z)


@rule("exp")
def _exp(at: Pass, z: Any) -> Any:
    inside = plain(z)
    value, s = at.once(lambda: torch.exp(inside)), at.scale(inside.dim())
    # Of a large z rounded before, its exponential would be off by as much more.
    return at.result(value, at.once(lambda: value.to(at.dtype)) * torch.expm1(s * z.unit) / s)


@rule("cos")
def _cos(at: Pass, z: Any) -> Any:
    inside, form = plain(z), functions.Sin()
    value, state = at.once(lambda: (torch.cos(inside), form.state(inside + math.pi / 2, at.dtype)))
    return at.result(value, form.difference(state, z.unit, at.scale(inside.dim())))


_POWERS = {2: "square", 0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal"}


@rule("pow", "__pow__")
def _pow(at: Pass, z: Any, exponent: Any) -> Any:
    if isinstance(exponent, Tensor) or exponent not in (*_POWERS, 3):
        raise NoRule(f"model raises displaced values to the power {exponent}.")
    if exponent == 3:
        inside, first = plain(z), z.single
        moved = torch.addcmul(first, at.scale(inside.dim()), z.unit)
        slope = first * first + moved * first + moved * moved
        return at.result(at.once(lambda: inside**3), z.unit * slope)
    return _unary(at, _POWERS[exponent], z)


_FAR = 60.0
"""Exponent, near the largest that float32 has, from which on exponentials are subtracted."""


class _Shares:
    r"""A softmax along an axis, p, and how it moves.

    By v, the difference of the logits less that of the largest: t is the mean of expm1(v) under p, and nothing is
    subtracted from what belongs to the largest, however little is left for the others.
    """

    def __init__(self, at: Pass, z: Any, dim: int) -> None:
        inside, self.axis = plain(z), dim % z.dim() - z.dim()
        shares = at.once(lambda: torch.log_softmax(inside, dim))
        self.log_p, most = at.once(lambda: (shares.to(at.dtype), inside.argmax(self.axis, keepdim=True)))
        self.p, self.s = at.once(lambda: shares.exp().to(at.dtype)), at.scale(inside.dim())
        unit = z.unit
        self.base = unit.gather(self.axis, most.expand(*at.lanes, *most.shape))
        # A logit of minus infinity stays there.
        self.v = torch.where(self.log_p == -torch.inf, 0.0, self.s * (unit - self.base))
        self.rise = torch.expm1(self.v)
        self.mean = (self.p * self.rise).sum(self.axis, keepdim=True)
        self.far = self.v.amax(self.axis, keepdim=True) > _FAR
        self.some_far = bool(self.far.any())

    def grown(self) -> Tensor:
        """How the logarithm of the sum of p exp(v) grows from zero."""
        grown = torch.log1p(self.mean)
        if not self.some_far:
            return grown
        return torch.where(self.far, (self.log_p + self.v).logsumexp(self.axis, keepdim=True), grown)


@rule("softmax")
def _softmax(at: Pass, z: Any, dim: int, *arguments: Any, **options: Any) -> Any:
    """The difference is p (expm1(v) - t) / (1 + t) / s."""
    value, shares = at.once(lambda: torch.softmax(plain(z), dim)), _Shares(at, z, dim)
    made = shares.p * (shares.rise - shares.mean) / ((1 + shares.mean) * shares.s)
    if shares.some_far:
        apart = torch.softmax(shares.log_p + shares.v, shares.axis) - shares.p
        made = torch.where(shares.far, apart / shares.s, made)
    return at.result(value, made)


@rule("log_softmax")
def _log_softmax(at: Pass, z: Any, dim: int, *arguments: Any, **options: Any) -> Any:
    value, shares = at.once(lambda: torch.log_softmax(plain(z), dim)), _Shares(at, z, dim)
    return at.result(value, (shares.v - shares.grown()) / shares.s)


@rule("logsumexp")
def _logsumexp(at: Pass, z: Any, dim: Any, keepdim: bool = False) -> Any:
    if not isinstance(dim, int):
        raise NoRule("model takes the logarithm of a sum of exponentials over several axes.")
    value, shares = at.once(lambda: torch.logsumexp(plain(z), dim, keepdim)), _Shares(at, z, dim)
    made = shares.base + shares.grown() / shares.s
    return at.result(value, made if keepdim else made.squeeze(shares.axis))


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
