r"""Activations with the difference :math:`\varphi(z + u) - \varphi(z)`, accurate for every size of u.

Plain subtraction loses a digit for every decade by which u is smaller than z. Each class below states the value, the
derivative, the state that must be kept of the unperturbed z (computed in float64 and rounded once), and the difference
quotient :math:`[\varphi(z + s\,dz) - \varphi(z)] / s` in a form without cancellation.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

State = tuple[Tensor, ...]
"""Tensors that an activation keeps of the unperturbed pre-activations; each has their shape."""


def round_keeping_sign(z: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float64 to ``dtype``; a number that underflows becomes the smallest normal number of its sign."""
    rounded = z.to(dtype)
    tiny = torch.copysign(torch.full_like(rounded, torch.finfo(dtype).tiny), rounded)
    return torch.where((rounded == 0) & (z != 0), tiny, rounded)


def _sigmoid_difference(z: Tensor, u: Tensor) -> Tensor:
    high, low = torch.maximum(z, z + u), torch.minimum(z, z + u)
    return torch.copysign(-torch.expm1(-u.abs()), u) * torch.sigmoid(high) * torch.sigmoid(-low)


def _tanh_difference(z: Tensor, u: Tensor) -> Tensor:
    # tanh(z) = 2 sigmoid(2 z) - 1. Unlike tanh(u) (1 - tanh(z) tanh(z + u)), this keeps its digits in saturation.
    return 2 * _sigmoid_difference(2 * z, 2 * u)


def _signs(z: Tensor, size: float) -> Tensor:
    """Return ``size`` where z >= 0, else ``-size``."""
    # A comparison with a cast takes three times as long on a CPU. The sum turns -0 into +0.
    return torch.copysign(torch.full((), size, dtype=z.dtype, device=z.device), z + 0.0)


def _sign_difference(z: Tensor, dz: Tensor, s: Tensor, size: float) -> Tensor:
    return _signs(z + s * dz, size).sub_(_signs(z, size)).div_(s)


def _normal_cdf(z: Tensor) -> Tensor:
    return 0.5 * torch.erfc(z * -math.sqrt(0.5))


def _normal_cdf_difference(z: Tensor, u: Tensor, displaced_cdf: Tensor) -> Tensor:
    # Taylor series about the midpoint m = z + u/2: odd in u, the next term is u^7 / 322560 times a polynomial in m.
    u2, m2 = u * u, (z + 0.5 * u) ** 2
    density = torch.exp(-0.5 * m2) / math.sqrt(2 * math.pi)
    series = u * density * (1 + u2 * ((m2 - 1) / 24 + u2 * (m2 * m2 - 6 * m2 + 3) / 1920))
    small = 0.25 if u.dtype == torch.float32 else 0.01
    return torch.where(u.abs() < small, series, displaced_cdf - _normal_cdf(z))


@dataclass(frozen=True)
class Activation:
    """Activation function and its difference; this base class is the identity."""

    name: ClassVar[str] = "identity"
    jumps: ClassVar[bool] = False
    """True for a discontinuous function; a rounding error may then carry a pre-activation across a jump."""
    state_parts: ClassVar[int] = 1
    """Number of tensors of its state."""

    @property
    def parameters(self) -> tuple[float, float]:
        """Both parameters; zero where there is none."""
        first, second, *_ = (*(float(getattr(self, field.name)) for field in fields(self)), 0.0, 0.0)
        return first, second

    @property
    def jump_offset(self) -> float:
        """Number that is added to z to find its place between jumps; a larger one blurs the jumps by its rounding."""
        return 0.0

    def value(self, z: Tensor) -> Tensor:
        r"""Return :math:`\varphi(z)`, elementwise."""
        return z

    def derivative(self, z: Tensor) -> Tensor:
        r"""Return :math:`\varphi'(z)` as autograd defines it: zero at a jump, on a flat part and at relu's kink."""
        return torch.ones_like(z)

    def state(self, z: Tensor, dtype: torch.dtype) -> State:
        """Return the state that the difference needs of the float64 pre-activations ``z``, rounded to ``dtype``."""
        return (round_keeping_sign(z, dtype),)

    def difference(self, state: State, dz: Tensor, s: Tensor) -> Tensor:
        r"""Return :math:`[\varphi(z + s\,dz) - \varphi(z)] / s`; ``dz`` and ``s`` broadcast against the state."""
        return dz

    def jump_distance(self, state: State, dz: Tensor, s: Tensor) -> Tensor:
        r"""Return the distance of :math:`z + s\,dz` from the nearest jump, in units of z; infinity without jumps."""
        return torch.full_like(dz, math.inf)

    def difference_of_values(self, z: Tensor, displaced_z: Tensor, dz: Tensor, s: Tensor) -> Tensor:
        r"""Return :math:`[\varphi(z') - \varphi(z)] / s` for a function that jumps.

        Args:
            z: Unperturbed pre-activations.
            displaced_z: Displaced pre-activations z', which say what is jumped over.
            dz: Their difference divided by s, which says the same more precisely between jumps.
            s: Divisor.
        """
        return (self.value(displaced_z) - self.value(z)) / s


@dataclass(frozen=True)
class Relu(Activation):
    """max(z, 0)."""

    name: ClassVar[str] = "relu"

    def value(self, z: Tensor) -> Tensor:
        return z.clamp(min=0)

    def derivative(self, z: Tensor) -> Tensor:
        return (z > 0).to(z.dtype)

    def difference(self, state: State, dz: Tensor, s: Tensor) -> Tensor:
        # For z > 0 this is max(dz, -z/s), for z <= 0 it is max(dz + z/s, 0): exact where no kink is crossed.
        largest = torch.finfo(dz.dtype).max
        kink = (state[0] / s).clamp(-largest, largest)
        return torch.maximum(dz, -kink).add_(kink.clamp(max=0))


@dataclass(frozen=True)
class LeakyRelu(Activation):
    """max(z, 0) + slope min(z, 0)."""

    slope: float = 0.01
    name: ClassVar[str] = "leaky_relu"

    def value(self, z: Tensor) -> Tensor:
        return torch.where(z > 0, z, self.slope * z)

    def derivative(self, z: Tensor) -> Tensor:
        return torch.where(z > 0, torch.ones_like(z), self.slope)

    def difference(self, state: State, dz: Tensor, s: Tensor) -> Tensor:
        return self.slope * dz + (1 - self.slope) * Relu().difference(state, dz, s)


@dataclass(frozen=True)
class Tanh(Activation):
    """tanh(z), as 2 sigmoid(2 z) - 1."""

    name: ClassVar[str] = "tanh"

    def value(self, z: Tensor) -> Tensor:
        return torch.tanh(z)

    def derivative(self, z: Tensor) -> Tensor:
        return 1 - torch.tanh(z) ** 2

    def difference(self, state: State, dz: Tensor, s: Tensor) -> Tensor:
        return _tanh_difference(state[0], s * dz) / s


@dataclass(frozen=True)
class Sigmoid(Activation):
    """1 / (1 + exp(-z)); for a > b the difference is (1 - exp(b - a)) sigmoid(a) sigmoid(-b)."""

    name: ClassVar[str] = "sigmoid"

    def value(self, z: Tensor) -> Tensor:
        return torch.sigmoid(z)

    def derivative(self, z: Tensor) -> Tensor:
        return torch.sigmoid(z) * torch.sigmoid(-z)

    def difference(self, state: State, dz: Tensor, s: Tensor) -> Tensor:
        return _sigmoid_difference(state[0], s * dz) / s


@dataclass(frozen=True)
class Silu(Activation):
    """z sigmoid(z)."""

    name: ClassVar[str] = "silu"

    def value(self, z: Tensor) -> Tensor:
        return z * torch.sigmoid(z)

    def derivative(self, z: Tensor) -> Tensor:
        return torch.sigmoid(z) * (1 + z * torch.sigmoid(-z))

    def difference(self, state: State, dz: Tensor, s: Tensor) -> Tensor:
        z, u = state[0], s * dz
        return (u * torch.sigmoid(z + u) + z * _sigmoid_difference(z, u)) / s


@dataclass(frozen=True)
class Softplus(Activation):
    """log(1 + exp(beta z)) / beta; the difference is log1p(sigmoid(beta z) expm1(beta u)) / beta for beta |u| < 1."""

    beta: float = 1.0
    name: ClassVar[str] = "softplus"

    def value(self, z: Tensor) -> Tensor:
        return torch.logaddexp(self.beta * z, torch.zeros_like(z)) / self.beta

    def derivative(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.beta * z)

    def difference(self, state: State, dz: Tensor, s: Tensor) -> Tensor:
        z, u = self.beta * state[0], (self.beta * s) * dz
        small = torch.log1p(torch.sigmoid(z) * torch.expm1(u))
        zero = torch.zeros_like(u)
        return torch.where(u.abs() < 1, small, torch.logaddexp(z + u, zero) - torch.logaddexp(z, zero)) / (
            self.beta * s
        )


@dataclass(frozen=True)
class Gelu(Activation):
    r"""z :math:`\Phi(z)` with the normal distribution function; difference by a Taylor series about the midpoint."""

    name: ClassVar[str] = "gelu"

    def value(self, z: Tensor) -> Tensor:
        return z * _normal_cdf(z)

    def derivative(self, z: Tensor) -> Tensor:
        return _normal_cdf(z) + z * torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)

    def difference(self, state: State, dz: Tensor, s: Tensor) -> Tensor:
        z, u = state[0], s * dz
        displaced_cdf = _normal_cdf(z + u)
        return (u * displaced_cdf + z * _normal_cdf_difference(z, u, displaced_cdf)) / s


@dataclass(frozen=True)
class GeluTanh(Activation):
    """Tanh form of gelu: z (1 + tanh(v)) / 2 = z sigmoid(2 v) with v = sqrt(2 / pi) (z + 0.044715 z^3)."""

    name: ClassVar[str] = "gelu_tanh"

    def _inner(self, z: Tensor) -> Tensor:
        return math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)

    def value(self, z: Tensor) -> Tensor:
        return 0.5 * z * (1 + torch.tanh(self._inner(z)))

    def derivative(self, z: Tensor) -> Tensor:
        t = torch.tanh(self._inner(z))
        slope = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * z * z)
        return 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * slope

    def difference(self, state: State, dz: Tensor, s: Tensor) -> Tensor:
        z, u = state[0], s * dz
        dv = math.sqrt(2 / math.pi) * u * (1 + 0.044715 * (3 * z * z + 3 * z * u + u * u))
        v = self._inner(z)
        # (1 + tanh(v)) / 2 is sigmoid(2 v).
        return (u * torch.sigmoid(2 * (v + dv)) + z * _sigmoid_difference(2 * v, 2 * dv)) / s


@dataclass(frozen=True)
class Sin(Activation):
    """sin(z); the difference is 2 cos(z + u/2) sin(u/2), with z reduced to one period in float64."""

    name: ClassVar[str] = "sin"

    def value(self, z: Tensor) -> Tensor:
        return torch.sin(z)

    def derivative(self, z: Tensor) -> Tensor:
        return torch.cos(z)

    def state(self, z: Tensor, dtype: torch.dtype) -> State:
        return (torch.remainder(z + math.pi, 2 * math.pi).sub(math.pi).to(dtype),)

    def difference(self, state: State, dz: Tensor, s: Tensor) -> Tensor:
        half = (0.5 * s) * dz
        return 2 * torch.cos(state[0] + half) * torch.sin(half) / s


@dataclass(frozen=True)
class Step(Activation):
    """1 where z >= 0, else 0."""

    name: ClassVar[str] = "step"
    jumps: ClassVar[bool] = True

    def value(self, z: Tensor) -> Tensor:
        return _signs(z, 0.5) + 0.5

    def derivative(self, z: Tensor) -> Tensor:
        return torch.zeros_like(z)

    def difference(self, state: State, dz: Tensor, s: Tensor) -> Tensor:
        return _sign_difference(state[0], dz, s, 0.5)

    def jump_distance(self, state: State, dz: Tensor, s: Tensor) -> Tensor:
        return (state[0] + s * dz).abs_()


@dataclass(frozen=True)
class Sign(Activation):
    """1 where z >= 0, else -1: sign(0) = 1."""

    name: ClassVar[str] = "sign"
    jumps: ClassVar[bool] = True

    def value(self, z: Tensor) -> Tensor:
        return _signs(z, 1.0)

    def derivative(self, z: Tensor) -> Tensor:
        return torch.zeros_like(z)

    def difference(self, state: State, dz: Tensor, s: Tensor) -> Tensor:
        return _sign_difference(state[0], dz, s, 1.0)

    def jump_distance(self, state: State, dz: Tensor, s: Tensor) -> Tensor:
        return Step().jump_distance(state, dz, s)


def _cells(v: Tensor, dtype: torch.dtype) -> State:
    """Return the nearest cell boundary of v and the signed distance from it, which is precise however near it is."""
    boundary = torch.round(v)
    return boundary.to(dtype), round_keeping_sign(v - boundary, dtype)


@dataclass(frozen=True)
class Quantise(Activation):
    """Nearest of ``levels`` values spaced evenly from -clamp to clamp; a tie is rounded up."""

    levels: int = 16
    clamp: float = 1.0
    name: ClassVar[str] = "quantise"
    jumps: ClassVar[bool] = True
    state_parts: ClassVar[int] = 2

    @property
    def jump_offset(self) -> float:
        return self.clamp

    def _spacing(self) -> float:
        return 2 * self.clamp / (self.levels - 1)

    def _level(self, z: Tensor) -> Tensor:
        return (z + self.clamp) / self._spacing() + 0.5

    def value(self, z: Tensor) -> Tensor:
        return torch.floor(self._level(z)).clamp(0, self.levels - 1) * self._spacing() - self.clamp

    def derivative(self, z: Tensor) -> Tensor:
        return torch.zeros_like(z)

    def state(self, z: Tensor, dtype: torch.dtype) -> State:
        return _cells(self._level(z), dtype)

    def difference(self, state: State, dz: Tensor, s: Tensor) -> Tensor:
        boundary, offset = state
        displaced_cell = boundary + torch.floor(offset + (s / self._spacing()) * dz)
        base_cell = boundary + torch.floor(offset)
        top = self.levels - 1
        return (displaced_cell.clamp(0, top) - base_cell.clamp(0, top)) * (self._spacing() / s)

    def jump_distance(self, state: State, dz: Tensor, s: Tensor) -> Tensor:
        displaced_offset = state[1] + (s / self._spacing()) * dz
        return (displaced_offset - torch.round(displaced_offset)).abs_() * self._spacing()


@dataclass(frozen=True)
class Sawtooth(Activation):
    """z / period minus its floor, in [0, 1)."""

    period: float = 1.0
    name: ClassVar[str] = "sawtooth"
    jumps: ClassVar[bool] = True

    def value(self, z: Tensor) -> Tensor:
        return z / self.period - torch.floor(z / self.period)

    def derivative(self, z: Tensor) -> Tensor:
        return torch.full_like(z, 1 / self.period)

    def state(self, z: Tensor, dtype: torch.dtype) -> State:
        return _cells(z / self.period, dtype)[1:]

    def difference(self, state: State, dz: Tensor, s: Tensor) -> Tensor:
        (offset,) = state
        dv = dz / self.period
        return dv - (torch.floor(offset + s * dv) - torch.floor(offset)) / s

    def jump_distance(self, state: State, dz: Tensor, s: Tensor) -> Tensor:
        displaced_offset = state[0] + s * (dz / self.period)
        return (displaced_offset - torch.round(displaced_offset)).abs_() * self.period

    def difference_of_values(self, z: Tensor, displaced_z: Tensor, dz: Tensor, s: Tensor) -> Tensor:
        return dz / self.period - (torch.floor(displaced_z / self.period) - torch.floor(z / self.period)) / s


ACTIVATIONS: dict[str, type[Activation]] = {
    cls.name: cls
    for cls in (
        Activation, Relu, LeakyRelu, Tanh, Sigmoid, Silu, Softplus, Gelu, GeluTanh, Sin, Step, Sign, Quantise, Sawtooth,
    )
}  # fmt: skip
"""Every activation that the ops know, by name."""


def encode(activations: Sequence[Activation]) -> tuple[list[str], list[float]]:
    """Return names and parameters (two a layer, zero where unused), as the ops' schemas carry them."""
    parameters = [parameter for activation in activations for parameter in activation.parameters]
    return [activation.name for activation in activations], parameters


def decode(names: Sequence[str], parameters: Sequence[float]) -> list[Activation]:
    """Return the activations that :func:`encode` turned into names and parameters."""
    pairs = zip(parameters[::2], parameters[1::2], strict=True)
    return [ACTIVATIONS[name](*pair[: len(fields(ACTIVATIONS[name]))]) for name, pair in zip(names, pairs, strict=True)]
