"""Minimum work of generating displacements; see nntk.kernels.cost."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from nntk.kernels.cost import Cost, read
from nntk.kernels.philox.directions import parse


def noise(parameters: Iterable[Tensor], num_samples: int, directions: str) -> Cost:
    """Count the random coefficients of unit displacements.

    Args:
        parameters: The parameters; only their shapes are read.
        num_samples: Number M of displacements.
        directions: Family of the displacements.

    Returns:
        Normals and signs. For flipout, a base counts for each sample, up to the number of bases.
    """
    family, total = parse(directions), Cost()
    for parameter in parameters:
        count = parameter.numel()
        if family.name == "gaussian":
            total += Cost(normals=num_samples * count)
        elif family.name == "rademacher" or parameter.dim() < 2:
            total += Cost(signs=num_samples * count)
        elif count:
            height, width = parameter.shape[0], math.prod(parameter.shape[1:])
            if family.name == "flipout":
                total += Cost(signs=num_samples * (height + width) + min(num_samples, family.count) * count)
            else:
                total += Cost(normals=num_samples * family.count * (height + width))
    return total


def factors(parameters: Iterable[Tensor], num_samples: int, directions: str) -> float:
    """Count the operations for the scales of low rank: the products of each factor with itself."""
    family = parse(directions)
    if family.name != "lowrank":
        return 0.0
    matrices = [p for p in parameters if p.dim() > 1 and p.numel()]
    return sum(2.0 * num_samples * family.count**2 * (p.shape[0] + math.prod(p.shape[1:])) for p in matrices)


def unit_displacements(
    sample_ids: Tensor, ordinal: int, size: list[int], low: int, high: int, directions: str, dtype: torch.dtype
) -> Cost:
    """Count the random coefficients and, for low rank, the product of the factors."""
    parameter, family = sample_ids.new_empty(size), parse(directions)
    coefficients = noise([parameter], len(sample_ids), directions)
    if family.name != "lowrank" or parameter.dim() < 2:
        return coefficients + Cost(bytes=read(sample_ids))
    products = 2.0 * len(sample_ids) * family.count * parameter.numel()
    flops = products + factors([parameter], len(sample_ids), directions)
    return coefficients + Cost(flops, read(sample_ids))
