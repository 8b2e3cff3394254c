"""Minimum work of norms, lengths and weights; see nntk.kernels.cost."""

from typing import Any

from torch import Tensor

from nntk.kernels.cost import Cost, read
from nntk.kernels.philox.cost import noise
from nntk.kernels.philox.directions import parse


def squared_norms(
    parameters: list[Tensor], ordinals: list[int], sample_ids: Tensor, low: int, high: int, directions: str
) -> Cost:
    """Count every coefficient of a gaussian displacement, and nothing where the norm is known."""
    if parse(directions).has_fixed_norm:
        return Cost()
    return noise(parameters, len(sample_ids), directions) + Cost(bytes=read(sample_ids))


def radii(sample_ids: Tensor, *distribution: Any) -> Cost:
    """Count the bytes read. The two uniform numbers of a sample are neither normals nor signs."""
    return Cost(bytes=read(sample_ids))


def radial_weights(squared_lengths: Tensor, *distributions: Any) -> Cost:
    """Count the lengths, read once."""
    return Cost(bytes=read(squared_lengths))
