"""The op on a CPU by compiled kernels."""

import math

import torch
from torch import Tensor

from nntk.kernels.philox.directions import parse
from nntk.kernels.philox.reference import displacements, unit_displacements_from
from nntk.kernels.philox.source import source_of


def unit_displacements(
    sample_ids: Tensor,
    ordinal: int,
    shape: list[int],
    seed_low: int,
    seed_high: int,
    directions: str,
    dtype: torch.dtype,
) -> Tensor:
    """Generate one whole parameter: the op ``nntk::unit_displacements`` for CPU tensors."""
    source, size = source_of(sample_ids.device), tuple(shape)
    if parse(directions).count:
        return unit_displacements_from(source, sample_ids, ordinal, size, (seed_low, seed_high), directions, dtype)
    # Nothing but the result is held, so it is generated at once.
    numbers = max(1, len(sample_ids) * math.prod(size))
    noise = displacements(directions, sample_ids, {ordinal: size}, (seed_low, seed_high), dtype, numbers, source)
    return noise[ordinal]
