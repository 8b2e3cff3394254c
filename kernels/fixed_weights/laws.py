"""Radial laws in their own units: with t = (r / scale)^2, every density is exp(-steepness * profile(t))."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nntk.kernels.fixed_weights.quantiles import gamma_quantile

EDGE = 1e-6
"""Relative width of an edge (horizon or cutoff): what lies so near counts as inside. Displacements are scaled in the
model's dtype, and those of a ball in many dimensions all lie next to its surface."""


@dataclass(frozen=True)
class Law:
    """One family of radial laws.

    Attributes:
        parameters: Arguments of FixedKernel that belong to it.
        profile: The function of :math:`t = (r / scale)^2`; infinite where the density is zero.
        draw: Lengths in units of the scale, from two uniform numbers, the dimension and the order.
    """

    parameters: tuple[str, ...]
    profile: Callable[[Tensor], Tensor]
    draw: Callable[[Tensor, Tensor, int, float], Tensor]


def _draw_gaussian(uniform1: Tensor, uniform2: Tensor, d: int, order: float) -> Tensor:
    return gamma_quantile(d / 2, uniform1).sqrt()


def _draw_exponential(uniform1: Tensor, uniform2: Tensor, d: int, order: float) -> Tensor:
    # e^(-sqrt(d) r) times the surface r^(d - 1): a gamma distribution of shape d.
    return gamma_quantile(d, uniform1) / math.sqrt(d)


def _draw_cauchy(uniform1: Tensor, uniform2: Tensor, d: int, order: float) -> Tensor:
    # A normal vector over the magnitude of one more normal number, whose square is twice a gamma number of shape 1/2.
    return (gamma_quantile(d / 2, uniform1) / gamma_quantile(0.5, uniform2)).sqrt()


def _draw_ball(uniform1: Tensor, uniform2: Tensor, d: int, order: float) -> Tensor:
    return torch.exp(uniform1.log() / d)


def _draw_power(uniform1: Tensor, uniform2: Tensor, d: int, order: float) -> Tensor:
    return torch.exp(-uniform1.log() / order)


# The comparisons are such that NaN stays NaN.
def _ball_profile(t: Tensor) -> Tensor:
    return torch.where(t > 1 + 2 * EDGE, math.inf, 0 * t)


def _power_profile(t: Tensor) -> Tensor:
    return torch.where(t < 1 - 2 * EDGE, math.inf, t.log())


LAWS: dict[str, Law] = {
    "gaussian": Law(("gamma",), torch.clone, _draw_gaussian),
    "exponential": Law(("gamma",), torch.sqrt, _draw_exponential),
    "cauchy": Law(("gamma",), torch.log1p, _draw_cauchy),
    "ball": Law(("gamma", "horizon"), _ball_profile, _draw_ball),
    "power": Law(("gamma", "order", "cutoff"), _power_profile, _draw_power),
}
"""Every law by its name."""


def log_density(squared_lengths: Tensor, law: str, scale: float, steepness: float) -> Tensor:
    """The logarithm of a density, up to a constant; minus infinity where the density is zero.

    Args:
        squared_lengths: Squared lengths of displacements, [M], float64.
        law: Name of the law.
        scale: Its length scale.
        steepness: What multiplies its profile.

    Returns:
        [M], float64.
    """
    return -steepness * LAWS[law].profile(squared_lengths / scale**2)
