"""Norms, lengths and weights of displacements in plain torch: the definition, the CPU backend and the tests' oracle."""

import math

import torch
from torch import Tensor

from nntk.kernels.fixed_weights.laws import LAWS, log_density
from nntk.kernels.fixed_weights.softmax import summarise, weigh
from nntk.kernels.philox.directions import parse
from nntk.kernels.philox.reference import RADIUS, TILE, generate, stream_words

NORM_DTYPE = torch.float64


def squared_norms(
    parameters: list[Tensor], ordinals: list[int], rows: Tensor, seed_low: int, seed_high: int, directions: str
) -> Tensor:
    """Sum of squares of the generated numbers; a sum of signs is their count."""
    total = torch.zeros(len(rows), dtype=NORM_DTYPE, device=rows.device)
    num_params = sum(parameter.numel() for parameter in parameters)
    if parse(directions).has_fixed_norm:
        return total + num_params
    shapes = {ordinal: tuple(parameter.shape) for ordinal, parameter in zip(ordinals, parameters, strict=True)}
    rows_at_once = max(1, TILE // max(1, num_params))
    for first in range(0, len(rows), rows_at_once):
        chunk = slice(first, first + rows_at_once)
        for _, noise in generate(directions, rows[chunk], shapes, (seed_low, seed_high), torch.float32):
            total[chunk] += noise.flatten(1).square().sum(1)
    return total


def uniforms(rows: Tensor, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
    r"""Two uniform numbers of each row: :math:`u = 2^{-52} (k + \tfrac12)` of 52 bits k, exact, as is 1 - u.

    Args:
        rows: Row numbers m, [M], int64.
        key: Low and high 32 bits of the seed.

    Returns:
        Twice [M], float64, in [2^-53, 1 - 2^-53].
    """
    zero = torch.zeros(1, dtype=torch.int64, device=rows.device)
    w0, w1, w2, w3 = (word[:, 0] for word in stream_words(rows, zero, zero, key, RADIUS))
    first, second = (((high << 20 | low >> 12).double() + 0.5) * 2.0**-52 for high, low in ((w0, w1), (w2, w3)))
    return first, second


def radii(rows: Tensor, seed_low: int, seed_high: int, law: str, num_params: int, scale: float, order: float) -> Tensor:
    """The op ``nntk::radii`` for every backend: lengths from the two uniform numbers of each row."""
    return scale * LAWS[law].draw(*uniforms(rows, (seed_low, seed_high)), num_params, order)


def log_ratio(
    squared_lengths: Tensor, law: str, parameters: list[float], proposal_law: str, proposal_parameters: list[float]
) -> Tensor:
    """Log densities of a law over those of a proposal; where the law's is zero, so is the ratio."""
    target = log_density(squared_lengths, law, *parameters)
    proposal = log_density(squared_lengths, proposal_law, *proposal_parameters)
    return torch.where(target == -math.inf, target, target - proposal)


def radial_weights(
    squared_lengths: Tensor, law: str, parameters: list[float], proposal_law: str, proposal_parameters: list[float]
) -> tuple[Tensor, Tensor]:
    """The op ``nntk::radial_weights``: the softmax of the log ratios, and its statistics."""
    log_weights = log_ratio(squared_lengths, law, parameters, proposal_law, proposal_parameters)
    statistics = summarise(log_weights)
    return weigh(log_weights, statistics), statistics
