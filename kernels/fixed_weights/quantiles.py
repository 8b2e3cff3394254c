"""Quantiles of the gamma distribution in float64, for shapes from a half to those of models with 1e9 parameters."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

LARGE_SHAPE = 500.0
"""Shape from which the expansion alone is exact to 1e-11. Smaller shapes need Newton steps with ``gammainc``."""

_NEWTON_STEPS = 3
"""Number of Newton steps: the second leaves an error of 1e-7 at worst (shape 1/2), and convergence is quadratic."""

# Temme's inversion, eta = eta_0 + sum_k epsilon_k(eta_0) / a^k: the Maclaurin coefficients of epsilon_1 to epsilon_4
# (A. Gil, J. Segura, N. M. Temme, SIAM J. Sci. Comput. 34 (2012) A2965).
_EPSILON = (
    (-1 / 3, 1 / 36, 1 / 1620, -7 / 6480, 5 / 18144, -11 / 382725, -101 / 16329600),
    (-7 / 405, -7 / 2592, 533 / 204120, -1579 / 2099520, 109 / 1749600, 10217 / 251942400),
    (449 / 102060, -63149 / 20995200, 29233 / 36741600, 346793 / 5290790400, -18442139 / 130947062400),
    (319 / 183708, -269383 / 4232632320, -449882243 / 982102968000),
)


def gamma_quantile(shape: float, probability: Tensor) -> Tensor:
    r"""Return the x at which the gamma distribution of unit scale reaches a probability: :math:`P(a, x) = u`.

    With :math:`\tfrac12 \eta^2 = \lambda - 1 - \ln \lambda` for :math:`\lambda = x / a`, the distribution of
    :math:`\eta \sqrt a` is nearly normal, and Temme's expansion corrects the rest in powers of 1/a. From
    ``LARGE_SHAPE`` on that is the result. Below, it is the start of Newton's method for :math:`\ln P` (in the upper
    half :math:`\ln Q`) as a function of :math:`\ln x`. Both functions are concave, so the steps converge.

    Args:
        shape: Shape parameter a, at least 1/2.
        probability: Probabilities u in (0, 1), float64, of any shape; the upper tail is as accurate as 1 - u.

    Returns:
        x, float64, of the same shape. README.md beside this file lists the measured error.

    Example:
        >>> gamma_quantile(1.0, torch.tensor([0.5], dtype=torch.float64))  # ln 2
        tensor([0.6931], dtype=torch.float64)
    """
    lower = probability < 0.5
    tail = torch.where(lower, probability, 1 - probability)
    eta = torch.where(lower, 1.0, -1.0) * torch.special.ndtri(tail) / math.sqrt(shape)
    if shape >= LARGE_SHAPE:
        corrections: Tensor | float = 0.0
        for coefficients in reversed(_EPSILON):
            corrections = (corrections + _polynomial(coefficients, eta)) / shape
        return shape * _log_ratio(eta + corrections).exp()
    log_x = _log_ratio(eta + _first_correction(eta) / shape) + math.log(shape)
    for _ in range(_NEWTON_STEPS):
        log_x = _newton_step(shape, log_x, tail, lower)
    return log_x.exp()


def _newton_step(shape: float, log_x: Tensor, tail: Tensor, lower: Tensor) -> Tensor:
    """Take one step towards P(a, x) = tail where ``lower``, else Q(a, x) = tail."""
    x, a = log_x.exp(), torch.full_like(log_x, shape)
    reached = torch.where(lower, torch.special.gammainc(a, x), torch.special.gammaincc(a, x))
    slope = torch.where(lower, 1.0, -1.0) * torch.exp(shape * log_x - x - math.lgamma(shape)) / reached
    return log_x - torch.log(reached / tail) / slope


def _log_ratio(eta: Tensor) -> Tensor:
    r"""Return the :math:`L = \ln \lambda`, with the sign of eta, that solves :math:`e^L - 1 - L = \tfrac12 \eta^2`."""
    # The left side is convex: from beyond the root, Newton's method approaches from one side. The starts lie near it.
    half = 0.5 * eta.square()
    start = torch.where(eta > -1.5, eta - half / 3, torch.exp(-1 - half) - 1 - half)
    log = torch.where(eta > 0, torch.log1p(eta.clamp(min=0) + half), start)
    for _ in range(5):
        slope = torch.expm1(log)
        log = log - (slope - log - half) / torch.where(slope == 0, 1.0, slope)
    return log


def _first_correction(eta: Tensor) -> Tensor:
    r"""Return :math:`\epsilon_1 = \ln(\eta / (\lambda - 1)) / \eta` in full, since small shapes have large eta."""
    near = eta.abs() < 1e-3
    safe = torch.where(near, 1.0, eta)
    return torch.where(near, _polynomial(_EPSILON[0], eta), torch.log(safe / torch.expm1(_log_ratio(safe))) / safe)


def _polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    total = torch.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        total = total * x + coefficient
    return total
