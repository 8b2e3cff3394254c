"""Launcher of the weights of displacements on a GPU: sizes to grids."""

import math

import torch
from torch import Tensor

from nntk.kernels.fixed_weights.triton import config, kernel


def radial_weights(
    squared_lengths: Tensor,
    distribution: str,
    parameters: list[float],
    proposal_distribution: str,
    proposal_parameters: list[float],
) -> tuple[Tensor, Tensor]:
    """Compute weights in two passes over the lengths: the op ``nntk::radial_weights`` for CUDA tensors."""
    lengths, count = squared_lengths.contiguous(), len(squared_lengths)
    weights, statistics = torch.empty_like(lengths), torch.zeros(3, dtype=lengths.dtype, device=lengths.device)
    if not count:
        statistics[0] = -math.inf
        return weights, statistics
    size = config.pick(count)
    partials = torch.empty(3, size.programs, dtype=lengths.dtype, device=lengths.device)
    (scale, steepness), (proposal_scale, proposal_steepness) = parameters, proposal_parameters
    densities = (scale**-2, steepness, proposal_scale**-2, proposal_steepness, distribution, proposal_distribution)
    grid, options = (size.programs,), {"num_warps": size.num_warps, **config.OPTIONS}
    kernel.reduce_weights[grid](partials, lengths, count, *densities, size.block, **options)
    kernel.write_weights[grid](
        weights, statistics, partials, lengths, count, *densities, config.PROGRAMS, size.block, **options
    )
    return weights, statistics
