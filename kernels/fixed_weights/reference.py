"""Squared norms of unit displacements in plain torch: the definition, the CPU backend and the tests' oracle."""

import torch
from torch import Tensor

from nntk.kernels.philox.reference import TILE, slabs, unit_slab

NORM_DTYPE = torch.float64


def squared_norms(
    parameters: list[Tensor], ordinals: list[int], rows: Tensor, seed_low: int, seed_high: int, directions: str
) -> Tensor:
    """Sum of squares of the generated numbers; a sum of signs is their count."""
    total = torch.zeros(len(rows), dtype=NORM_DTYPE, device=rows.device)
    if directions == "rademacher":
        return total + sum(parameter.numel() for parameter in parameters)
    for parameter, ordinal in zip(parameters, ordinals, strict=True):
        if not parameter.numel():
            continue
        shape = tuple(parameter.shape) or (1,)
        rows_at_once = max(1, TILE // parameter.numel())
        for first in range(0, len(rows), rows_at_once):
            chunk = slice(first, first + rows_at_once)
            for start, stop in slabs(shape, TILE):
                noise = unit_slab(
                    directions, rows[chunk], ordinal, shape, (seed_low, seed_high), start, stop, torch.float32
                )
                total[chunk] += noise.flatten(1).square().sum(1, dtype=NORM_DTYPE)
    return total
