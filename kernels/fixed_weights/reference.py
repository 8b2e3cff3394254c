"""Norms, lengths and weights of displacements in plain torch: the definition, the CPU backend and the tests' oracle."""

import math

import torch
from torch import Tensor

from nntk.kernels.fixed_weights.distributions import DISTRIBUTIONS, log_density
from nntk.kernels.fixed_weights.softmax import summarise, weigh
from nntk.kernels.philox.directions import parse
from nntk.kernels.philox.integers import RADIUS, stream_words
from nntk.kernels.philox.reference import generate
from nntk.kernels.philox.slabs import TILE
from nntk.kernels.philox.source import PLAIN, Source

NORM_DTYPE = torch.float64
"""Dtype of norms, lengths and weights."""


def squared_norms(
    parameters: list[Tensor],
    ordinals: list[int],
    sample_ids: Tensor,
    seed_low: int,
    seed_high: int,
    directions: str,
    source: Source = PLAIN,
) -> Tensor:
    """Sum the squares of the generated coefficients; squares of signs are counted. The op ``nntk::squared_norms``."""
    total = torch.zeros(len(sample_ids), dtype=NORM_DTYPE, device=sample_ids.device)
    num_params = sum(parameter.numel() for parameter in parameters)
    if parse(directions).has_fixed_norm:
        return total + num_params
    shapes = {ordinal: tuple(parameter.shape) for ordinal, parameter in zip(ordinals, parameters, strict=True)}
    chunk_size = max(1, TILE // max(1, num_params))
    for first in range(0, len(sample_ids), chunk_size):
        chunk = slice(first, first + chunk_size)
        slabs = generate(directions, sample_ids[chunk], shapes, (seed_low, seed_high), torch.float32, source=source)
        for _, noise in slabs:
            # Squares of bfloat16 numbers are exact in float32; their sum needs float64.
            total[chunk] += noise.flatten(1).square().sum(1, dtype=NORM_DTYPE)
    return total


def uniforms(sample_ids: Tensor, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
    r"""Return two uniform numbers of each sample: :math:`u = 2^{-52} (k + \tfrac12)` of 52 bits k, exact, as is 1 - u.

    Args:
        sample_ids: Stream numbers m of the samples, [M], int64.
        key: Low and high 32 bits of the seed.

    Returns:
        Two tensors [M], float64, in [2^-53, 1 - 2^-53].
    """
    zero = torch.zeros(1, dtype=torch.int64, device=sample_ids.device)
    w0, w1, w2, w3 = (word[:, 0] for word in stream_words(sample_ids, zero, zero, key, RADIUS))
    first, second = (((high << 20 | low >> 12).double() + 0.5) * 2.0**-52 for high, low in ((w0, w1), (w2, w3)))
    return first, second


def radii(
    sample_ids: Tensor, seed_low: int, seed_high: int, distribution: str, num_params: int, scale: float, order: float
) -> Tensor:
    """Compute lengths from the two uniform numbers of each sample: the op ``nntk::radii`` for every backend."""
    return scale * DISTRIBUTIONS[distribution].draw(*uniforms(sample_ids, (seed_low, seed_high)), num_params, order)


def log_ratio(
    squared_lengths: Tensor,
    distribution: str,
    parameters: list[float],
    proposal_distribution: str,
    proposal_parameters: list[float],
) -> Tensor:
    """Return log density ratios of a distribution and a proposal; minus infinity where the distribution is zero."""
    target = log_density(squared_lengths, distribution, *parameters)
    proposal = log_density(squared_lengths, proposal_distribution, *proposal_parameters)
    return torch.where(target == -math.inf, target, target - proposal)


def radial_weights(
    squared_lengths: Tensor,
    distribution: str,
    parameters: list[float],
    proposal_distribution: str,
    proposal_parameters: list[float],
) -> tuple[Tensor, Tensor]:
    """Return the softmax of the log ratios and its statistics: the op ``nntk::radial_weights`` for every backend."""
    log_weights = log_ratio(squared_lengths, distribution, parameters, proposal_distribution, proposal_parameters)
    statistics = summarise(log_weights)
    return weigh(log_weights, statistics), statistics
