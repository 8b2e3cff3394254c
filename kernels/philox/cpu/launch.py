"""The op on a CPU by compiled kernels."""

import math

import torch
from torch import Tensor

from nntk.kernels.philox import reference
from nntk.kernels.philox.directions import parse
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
        return reference.unit_displacements(sample_ids, ordinal, shape, seed_low, seed_high, directions, dtype, source)
    # Nothing but the result is held, so it is generated at once.
    numbers = max(1, len(sample_ids) * math.prod(size))
    key = (seed_low, seed_high)
    return reference.displacements(directions, sample_ids, {ordinal: size}, key, dtype, numbers, source)[ordinal]
