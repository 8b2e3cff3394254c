"""Running products, sums of exponentials and integrals along an axis."""

from collections.abc import Callable
from typing import Any

import torch

from nntk.propagation.displaced_tensor import primal
from nntk.propagation.registry import NoRule, composed


def _scan(x: Any, dim: int, combine: Callable[[Any, Any], Any]) -> Any:
    """Return the running results of an associative function, which combines parts of twice the length each time."""
    if not x.dim() or not x.shape[dim]:
        return x * 1
    shift = 1
    while shift < (length := x.shape[dim]):
        later = combine(x.narrow(dim, 0, length - shift), x.narrow(dim, shift, length - shift))
        x = torch.cat((x.narrow(dim, 0, shift), later), dim)
        shift *= 2
    return x * 1 if shift == 1 else x


@composed("cumprod")
def _cumprod(x: Any, dim: int) -> Any:
    return _scan(x, dim, torch.mul)


@composed("logcumsumexp")
def _logcumsumexp(x: Any, dim: int) -> Any:
    if not bool(primal(x).isfinite().all()):
        raise NoRule("model calls logcumsumexp on values that are not finite, which has no rule.")
    return _scan(x, dim, torch.logaddexp)


def _intervals(y: Any, x: Any, dx: float, dim: int) -> Any:
    """Return the integral of a piecewise linear function over each interval."""
    length = y.shape[dim]
    means = (y.narrow(dim, 1, length - 1) + y.narrow(dim, 0, length - 1)) / 2
    if x is None:
        return means * dx
    steps = torch.diff(x) if x.dim() == 1 else torch.diff(x, dim=dim)
    return means * (steps.reshape(-1, *[1] * (-1 - dim % -y.dim())) if x.dim() == 1 else steps)


@composed("trapezoid", "trapz")
def _trapezoid(y: Any, x: Any = None, *, dx: float = 1.0, dim: int = -1) -> Any:
    return _intervals(y, x, dx, dim).sum(dim)


@composed("cumulative_trapezoid")
def _cumulative_trapezoid(y: Any, x: Any = None, *, dx: float = 1.0, dim: int = -1) -> Any:
    return _intervals(y, x, dx, dim).cumsum(dim)
