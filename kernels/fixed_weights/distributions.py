"""Radial distributions in units of their scale: with t = (r / scale)^2, a density is exp(-steepness * profile(t))."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nntk.kernels.fixed_weights.quantiles import gamma_quantile

EDGE = 1e-6
"""Relative tolerance of an edge (horizon or cutoff): a length within it counts as inside. Displacements are scaled in
the dtype of the model, and in many dimensions all displacements of a ball lie next to its surface."""


@dataclass(frozen=True)
class RadialDistribution:
    """Family of radial distributions.

    Attributes:
        parameters: Names of the arguments of FixedKernel that belong to the family.
        profile: Function of :math:`t = (r / scale)^2`, infinite where the density is zero.
        draw: Function from two uniform numbers, the dimension and the order to lengths in units of the scale.
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
    # A normal vector divided by the magnitude of another normal, whose square is twice a gamma variable of shape 1/2.
    return (gamma_quantile(d / 2, uniform1) / gamma_quantile(0.5, uniform2)).sqrt()


def _draw_ball(uniform1: Tensor, uniform2: Tensor, d: int, order: float) -> Tensor:
    return torch.exp(uniform1.log() / d)


def _draw_power(uniform1: Tensor, uniform2: Tensor, d: int, order: float) -> Tensor:
    return torch.exp(-uniform1.log() / order)


# These comparisons keep NaN as NaN.
def _ball_profile(t: Tensor) -> Tensor:
    return torch.where(t > 1 + 2 * EDGE, math.inf, 0 * t)


def _power_profile(t: Tensor) -> Tensor:
    return torch.where(t < 1 - 2 * EDGE, math.inf, t.log())


DISTRIBUTIONS: dict[str, RadialDistribution] = {
    "gaussian": RadialDistribution(("gamma",), torch.clone, _draw_gaussian),
    "exponential": RadialDistribution(("gamma",), torch.sqrt, _draw_exponential),
    "cauchy": RadialDistribution(("gamma",), torch.log1p, _draw_cauchy),
    "ball": RadialDistribution(("gamma", "horizon"), _ball_profile, _draw_ball),
    "power": RadialDistribution(("gamma", "order", "cutoff"), _power_profile, _draw_power),
}
"""Radial distributions by name."""


def log_density(squared_lengths: Tensor, distribution: str, scale: float, steepness: float) -> Tensor:
    """Return the logarithm of a density, up to a constant; minus infinity where the density is zero.

    Args:
        squared_lengths: Squared lengths of displacements, [M], float64.
        distribution: Name of the distribution.
        scale: Length scale of the distribution, in parameter units.
        steepness: Factor of the profile in the log density.

    Returns:
        [M], float64.
    """
    return -steepness * DISTRIBUTIONS[distribution].profile(squared_lengths / scale**2)
