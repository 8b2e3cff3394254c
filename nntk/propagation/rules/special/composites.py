"""Functions of values that are composed of others with rules, and of the factor of a unit of measurement."""

import math
from typing import Any

import torch
from torch import Tensor

from nntk.propagation.displaced_tensor import is_displaced, primal
from nntk.propagation.registry import NoRule, composed


@composed("deg2rad")
def _deg2rad(z: Any) -> Any:
    return z * (math.pi / 180)


@composed("rad2deg")
def _rad2deg(z: Any) -> Any:
    return z * (180 / math.pi)


@composed("ldexp")
def _ldexp(z: Any, exponent: Any) -> Any:
    if is_displaced(exponent):
        raise NoRule("model calls ldexp with a displaced exponent, which has no rule.")
    return z * torch.exp2(exponent if isinstance(exponent, Tensor) else torch.tensor(float(exponent)))


@composed("xlogy")
def _xlogy(a: Any, b: Any) -> Any:
    """Return a log(b), which is zero where a constant a is zero, whatever b is."""
    if is_displaced(a):
        logarithm = torch.log(b) if isinstance(b, Tensor) else math.log(b)
        return a * logarithm
    if not isinstance(a, Tensor):
        return torch.log(b) * a if a else b * 0
    return a * torch.log(torch.where(a == 0, 1.0, b))


@composed("entr")
def _entr(z: Any) -> Any:
    if not bool((primal(z) > 0).all()):
        raise NoRule("model calls entr on values that are not all positive, which has no rule.")
    return -z * torch.log(z)


@composed("expit")
def _expit(z: Any) -> Any:
    return torch.sigmoid(z)


@composed("xlog1py")
def _xlog1py(a: Any, b: Any) -> Any:
    if not isinstance(b, Tensor):
        return a * math.log1p(b)
    return a * torch.log1p(b)
