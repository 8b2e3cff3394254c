"""Least work of making displacements; see nntk.kernels.cost."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from nntk.kernels.cost import Cost, read
from nntk.kernels.philox.directions import parse


def noise(parameters: Iterable[Tensor], num_rows: int, directions: str) -> Cost:
    """Random numbers of unit displacements of some parameters, and the products that make them of factors.

    Args:
        parameters: The parameters, of which only shapes count.
        num_rows: Number M of displacements.
        directions: Family of the displacements.

    Returns:
        Normals and signs; flipout's bases as if every row had one of its own, up to their number.
    """
    family, total = parse(directions), Cost()
    for parameter in parameters:
        count = parameter.numel()
        if family.name == "gaussian":
            total += Cost(normals=num_rows * count)
        elif family.name == "rademacher" or parameter.dim() < 2:
            total += Cost(signs=num_rows * count)
        elif count:
            height, width = parameter.shape[0], math.prod(parameter.shape[1:])
            if family.name == "flipout":
                total += Cost(signs=num_rows * (height + width) + min(num_rows, family.count) * count)
            else:
                total += Cost(normals=num_rows * family.count * (height + width))
    return total


def factors(parameters: Iterable[Tensor], num_rows: int, directions: str) -> float:
    """Operations for the scales of low rank: the products of each factor with itself."""
    family = parse(directions)
    if family.name != "lowrank":
        return 0.0
    matrices = [p for p in parameters if p.dim() > 1 and p.numel()]
    return sum(2.0 * num_rows * family.count**2 * (p.shape[0] + math.prod(p.shape[1:])) for p in matrices)


def unit_displacements(
    rows: Tensor, ordinal: int, size: list[int], low: int, high: int, directions: str, dtype: torch.dtype
) -> Cost:  # fmt: skip
    """Random numbers; of low rank the product of the factors too."""
    parameter, family = rows.new_empty(size), parse(directions)
    made = noise([parameter], len(rows), directions)
    if family.name != "lowrank" or parameter.dim() < 2:
        return made + Cost(bytes=read(rows))
    products = 2.0 * len(rows) * family.count * parameter.numel()
    return made + Cost(products + factors([parameter], len(rows), directions), read(rows))
