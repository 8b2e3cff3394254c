"""Squared norms of unit displacements in plain torch: the definition, the CPU backend and the tests' oracle."""

import torch
from torch import Tensor

from nntk.kernels.philox.directions import parse
from nntk.kernels.philox.reference import TILE, generate

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
