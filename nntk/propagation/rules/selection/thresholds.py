"""Functions that jump at thresholds: quotients without fractions, shrinking, buckets, signs of others."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nntk.propagation.context import PropagationContext
from nntk.propagation.displaced_tensor import is_displaced, primal, with_tangent
from nntk.propagation.registry import RULES, NoRule, composed, rule

_STEEPEST_THRESHOLD = 20
"""Least threshold of softplus beyond which nothing jumps that float32 could tell."""


def _quotient(ctx: PropagationContext, a: Any, b: Any, rounding: str) -> Any:
    """Return a quotient that is rounded down (``"floor"``) or towards zero (``"trunc"``)."""
    value = ctx.cached(lambda: torch.div(_as_tensor(a, b), primal(b), rounding_mode=rounding))
    rounded = RULES[getattr(torch, rounding)](ctx, RULES[torch.div](ctx, a, b))
    if not ctx.cached(lambda: torch.equal(value, primal(rounded))):
        # PyTorch divides with a remainder, whose rounding differs from that of a quotient.
        raise NoRule("model divides values that are within rounding of a multiple of the divisor.")
    return with_tangent(ctx, value, rounded.tangent)


def _as_tensor(a: Any, b: Any) -> Tensor:
    """Return the unperturbed value of a dividend, a tensor or a number, as a tensor."""
    if isinstance(a, Tensor):
        return primal(a)
    return torch.tensor(a, dtype=primal(b).dtype, device=b.device)


def _remainder(ctx: PropagationContext, a: Any, b: Any, *, function: Any, rounding: str) -> Any:
    value = ctx.cached(lambda: function(_as_tensor(a, b), primal(b)))
    multiple = RULES[torch.mul](ctx, _quotient(ctx, a, b, rounding), b)
    rest = RULES[torch.sub](ctx, a, multiple) if isinstance(a, Tensor) else RULES[torch.rsub](ctx, multiple, a)
    return with_tangent(ctx, value, rest.tangent)


rule("remainder", "__mod__")(partial(_remainder, function=torch.remainder, rounding="floor"))
rule("fmod")(partial(_remainder, function=torch.fmod, rounding="trunc"))
rule("floor_divide", "__floordiv__")(partial(_quotient, rounding="floor"))


@rule("__rmod__")
def _reversed_remainder(ctx: PropagationContext, b: Any, a: Any) -> Any:
    return _remainder(ctx, a, b, function=torch.remainder, rounding="floor")


@rule("__rfloordiv__")
def _reversed_quotient(ctx: PropagationContext, b: Any, a: Any) -> Any:
    return _quotient(ctx, a, b, "floor")


_divide = RULES[torch.div]


@rule("div", "divide")
def _div(ctx: PropagationContext, a: Any, b: Any, *, rounding_mode: str | None = None) -> Any:
    return _divide(ctx, a, b) if rounding_mode is None else _quotient(ctx, a, b, rounding_mode)


@composed("hardshrink")
def _hardshrink(z: Any, lambd: float = 0.5) -> Any:
    return torch.where((z >= -lambd) & (z <= lambd), 0.0, z)


@composed("threshold")
def _threshold(z: Any, threshold: float, value: float, inplace: bool = False) -> Any:
    if threshold == value:
        return torch.clamp(z, min=threshold)
    return torch.where(z <= threshold, value, z)


_softplus_rule = RULES[F.softplus]


@composed("softplus")
def _softplus(z: Any, beta: float = 1, threshold: float = _STEEPEST_THRESHOLD) -> Any:
    """Return softplus; with a low threshold there is a jump where it becomes linear."""
    if threshold >= _STEEPEST_THRESHOLD:
        with torch._C.DisableTorchFunctionSubclass():
            return _softplus_rule(z.ctx, z, beta, threshold)
    return torch.where(z * beta > threshold, z, F.softplus(z, beta))


@composed("copysign")
def _copysign(a: Any, b: Any) -> Any:
    """Return values with the signs of others."""
    size = torch.abs(a) if isinstance(a, Tensor) else abs(a)
    if not isinstance(b, Tensor):
        return size * (1.0 if torch.tensor(b).signbit().logical_not() else -1.0)
    return size * torch.where(_signbit(b), -1.0, 1.0)


@composed("signbit")
def _signbit(z: Any) -> Any:
    base = primal(z)
    if bool((base.signbit() & (base == 0)).any()):
        raise NoRule("model asks for the sign of a negative zero, which has no rule.")
    return z < 0


@composed("bucketize")
def _bucketize(z: Any, boundaries: Any, *, out_int32: bool = False, right: bool = False) -> Any:
    return _searchsorted(boundaries, z, out_int32=out_int32, right=right)


@composed("searchsorted")
def _searchsorted(
    ordered: Any, z: Any, *, out_int32: bool = False, right: bool = False, side: str | None = None, sorter: Any = None
) -> Any:
    """Return the number of entries of an ordered sequence that are smaller, or not larger, than a value."""
    if is_displaced(ordered):
        limits = ordered.displaced
        if bool((limits.diff(dim=-1) < 0).any()):
            raise NoRule("model looks for places in a displaced sequence that is not ordered.")
    if sorter is not None:
        raise NoRule("model calls searchsorted with a sorter, which has no rule.")
    includes_equal = right or side == "right"
    values = z if isinstance(z, Tensor) else torch.tensor(z, dtype=ordered.dtype, device=ordered.device)
    limits = ordered if ordered.dim() == 1 else ordered.unsqueeze(-2)
    is_beyond = values.unsqueeze(-1) >= limits if includes_equal else values.unsqueeze(-1) > limits
    counts = is_beyond.sum(-1)
    return counts.int() if out_int32 else counts


@composed("isclose")
def _isclose(a: Any, b: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> Any:
    return torch.abs(a - b) <= torch.abs(b) * rtol + atol
