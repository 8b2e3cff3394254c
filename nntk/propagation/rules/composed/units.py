"""Activations, powers and logarithms of other bases."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nntk.propagation.displaced_tensor import primal
from nntk.propagation.registry import NoRule, composed
from nntk.propagation.rules.elementwise import positive_power

_POWERS = {0.5: torch.sqrt, -0.5: torch.rsqrt, -1: torch.reciprocal, 2: torch.square}
_LARGEST_EXPONENT = 64
"""Largest integer exponent whose power is a product of squares; a larger one must be of positive values."""


@composed("elu")
def _elu(z: Any, alpha: float = 1.0, inplace: bool = False) -> Any:
    return torch.relu(z) + (torch.exp(torch.clamp(z, max=0.0)) - 1) * alpha


@composed("celu")
def _celu(z: Any, alpha: float = 1.0, inplace: bool = False) -> Any:
    return torch.relu(z) + (torch.exp(torch.clamp(z, max=0.0) / alpha) - 1) * alpha


@composed("selu")
def _selu(z: Any, inplace: bool = False) -> Any:
    return _elu(z, 1.6732632423543772) * 1.0507009873554805


@composed("hardsigmoid")
def _hardsigmoid(z: Any, inplace: bool = False) -> Any:
    return torch.clamp(z + 3.0, 0.0, 6.0) / 6.0


@composed("hardswish")
def _hardswish(z: Any, inplace: bool = False) -> Any:
    return z * _hardsigmoid(z)


@composed("mish")
def _mish(z: Any, inplace: bool = False) -> Any:
    return z * torch.tanh(F.softplus(z))


@composed("logsigmoid", "log_sigmoid")
def _logsigmoid(z: Any) -> Any:
    return -F.softplus(-z)


@composed("prelu")
def _prelu(z: Any, slopes: Any) -> Any:
    slope_per_channel = slopes if slopes.numel() == 1 else slopes.reshape(-1, *[1] * (z.dim() - 2))
    return torch.relu(z) - torch.relu(-z) * slope_per_channel


@composed("rrelu")
def _rrelu(
    z: Any, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, inplace: bool = False
) -> Any:  # fmt: skip
    if training:
        raise NoRule("model calls rrelu in training mode, which draws random slopes.")
    return F.leaky_relu(z, (lower + upper) / 2)


@composed("glu")
def _glu(z: Any, dim: int = -1) -> Any:
    linear, gate = z.chunk(2, dim)
    return linear * torch.sigmoid(gate)


@composed("softsign")
def _softsign(z: Any) -> Any:
    return z / (torch.abs(z) + 1)


@composed("tanhshrink")
def _tanhshrink(z: Any) -> Any:
    return z - torch.tanh(z)


@composed("softshrink")
def _softshrink(z: Any, lambd: float = 0.5) -> Any:
    return z - torch.clamp(z, -lambd, lambd)


@composed("threshold")
def _threshold(z: Any, threshold: float, value: float, inplace: bool = False) -> Any:
    if threshold != value:
        raise NoRule("model calls threshold with another value than the threshold, which jumps.")
    return torch.clamp(z, min=threshold)


@composed("softmin")
def _softmin(z: Any, dim: Any = None, *arguments: Any, **options: Any) -> Any:
    if dim is None:
        raise NoRule("model calls softmin without an axis, which has no rule.")
    return torch.softmax(-z, dim)


@composed("logit")
def _logit(z: Any, eps: float | None = None) -> Any:
    limited = z if eps is None else torch.clamp(z, eps, 1 - eps)
    return torch.log(limited) - torch.log(1 - limited)


@composed("log2")
def _log2(z: Any) -> Any:
    return torch.log(z) / math.log(2)


@composed("log10")
def _log10(z: Any) -> Any:
    return torch.log(z) / math.log(10)


@composed("exp2")
def _exp2(z: Any) -> Any:
    return torch.exp(z * math.log(2))


@composed("logaddexp")
def _logaddexp(a: Any, b: Any) -> Any:
    return torch.logsumexp(torch.stack(torch.broadcast_tensors(a, b)), 0)


@composed("erfc")
def _erfc(z: Any) -> Any:
    return 1 - torch.erf(z)


@composed("asin", "arcsin")
def _asin(z: Any) -> Any:
    return torch.atan(z / torch.sqrt((1 - z) * (1 + z)))


@composed("acos", "arccos")
def _acos(z: Any) -> Any:
    return math.pi / 2 - _asin(z)


@composed("atanh", "arctanh")
def _atanh(z: Any) -> Any:
    return (torch.log(1 + z) - torch.log(1 - z)) / 2


@composed("hypot")
def _hypot(a: Any, b: Any) -> Any:
    return (torch.square(a) + torch.square(b)).sqrt()


@composed("pow", "__pow__", "float_power")
def _pow(base: Any, exponent: Any) -> Any:
    if isinstance(exponent, Tensor):
        return _power_of_tensor(base, exponent)
    if exponent in _POWERS:
        return _POWERS[exponent](base)
    if exponent == int(exponent) and 0 < abs(exponent) <= _LARGEST_EXPONENT:
        power = _integer_power(base, int(abs(exponent)))
        return power if exponent > 0 else torch.reciprocal(power)
    return positive_power(base, exponent)


@composed("__rpow__")
def _rpow(exponent: Any, base: Any) -> Any:
    return _pow(base, exponent)


def _integer_power(base: Any, exponent: int) -> Any:
    """Return a product of repeated squares, for an exponent of at least one."""
    power = None
    while True:
        if exponent % 2:
            power = base if power is None else power * base
        exponent //= 2
        if not exponent:
            return power * 1 if power is base else power
        base = torch.square(base)


def _power_of_tensor(base: Any, exponent: Any) -> Any:
    """Return the power of a positive base, a number or a tensor, whose exponent is a tensor."""
    if not bool((primal(base) > 0).all() if isinstance(base, Tensor) else base > 0):
        raise NoRule("model calls pow with a tensor as exponent of values that are not all positive.")
    return torch.exp(exponent * (torch.log(base) if isinstance(base, Tensor) else math.log(base)))


@composed("fake_quantize_per_tensor_affine")
def _fake_quantize(x: Any, scale: Any, zero_point: Any, quant_min: int, quant_max: int) -> Any:
    cells = torch.clamp(torch.round(x / scale) + zero_point, quant_min, quant_max)
    return (cells - zero_point) * scale


@composed("fake_quantize_per_channel_affine")
def _fake_quantize_channels(
    x: Any, scale: Any, zero_point: Any, axis: int, quant_min: int, quant_max: int
) -> Any:  # fmt: skip
    shape = [-1 if a == axis % x.dim() else 1 for a in range(x.dim())]
    return _fake_quantize(x, scale.reshape(shape), zero_point.reshape(shape), quant_min, quant_max)
