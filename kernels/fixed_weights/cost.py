"""Least work of norms, lengths and weights; see nntk.kernels.cost."""

from typing import Any

from torch import Tensor

from nntk.kernels.cost import Cost, read
from nntk.kernels.philox.cost import noise
from nntk.kernels.philox.directions import parse


def squared_norms(
    parameters: list[Tensor], ordinals: list[int], rows: Tensor, low: int, high: int, directions: str
) -> Cost:  # fmt: skip
    """Every number of a gaussian displacement; nothing where the norm is known."""
    if parse(directions).has_fixed_norm:
        return Cost()
    return noise(parameters, len(rows), directions) + Cost(bytes=read(rows))


def radii(rows: Tensor, *law: Any) -> Cost:
    """Two uniform numbers a row, which count as neither normals nor signs."""
    return Cost(bytes=read(rows))


def radial_weights(squared_lengths: Tensor, *laws: Any) -> Cost:
    """The lengths, once."""
    return Cost(bytes=read(squared_lengths))
