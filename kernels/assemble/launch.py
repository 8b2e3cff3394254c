"""The Gram of displacements on a GPU: products of noise that kernels write, slab by slab."""

import math

import torch
from torch import Tensor

from nntk.kernels.assemble import reference
from nntk.kernels.philox import launch as philox
from nntk.kernels.philox.directions import parse
from nntk.kernels.philox.reference import DISPLACEMENT, slabs_of

_SLAB_BYTES = 64 * 2**20
"""Noise of all rows that is held at once; four lines of each weight at least."""


def displacement_gram(
    parameters: list[Tensor], ordinals: list[int], rows: Tensor, seed_low: int, seed_high: int, directions: str
) -> Tensor:
    """The op ``nntk::displacement_gram`` for CUDA tensors; flipout and lowrank have closed forms in the reference."""
    family, key = parse(directions), (seed_low, seed_high)
    if family.name not in ("gaussian", "rademacher"):
        return reference.displacement_gram(parameters, ordinals, rows, seed_low, seed_high, directions)
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    signs, numbers = family.name == "rademacher", _SLAB_BYTES // 4 // max(1, len(rows))
    for parameter, ordinal in zip(parameters, ordinals, strict=True):
        if parameter.dim() < 2:
            noise = torch.empty(len(rows), parameter.numel(), device=rows.device)
            philox.write_vector(noise, rows, ordinal, parameter.numel(), key, signs)
            reference.add_products(gram, noise)
            continue
        width = math.prod(parameter.shape[1:])
        for slab in slabs_of(ordinal, tuple(parameter.shape), numbers):
            noise = torch.empty(len(rows), slab.stop - slab.start, width, device=rows.device)
            philox.write_matrix(noise, rows, ordinal, width, key, signs, DISPLACEMENT, slab.start)
            reference.add_products(gram, noise.flatten(1))
    return reference.mirror(gram)
