"""The ops on a CPU by compiled kernels: whole displacements, and their squared norms without them."""

import math

import torch
from torch import Tensor

from nntk.kernels.cpu import lanes
from nntk.kernels.philox import reference
from nntk.kernels.philox.cpu import noise
from nntk.kernels.philox.cpu.noise import TASK
from nntk.kernels.philox.cpu.stream import Stream
from nntk.kernels.philox.directions import parse
from nntk.kernels.philox.slabs import Slab
from nntk.kernels.philox.source import source_of
from nntk.kernels.slices import slices


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
    family, key, size = parse(directions), (seed_low, seed_high), tuple(shape)
    if family.count:
        source = source_of(sample_ids.device)
        return reference.unit_displacements(sample_ids, ordinal, shape, seed_low, seed_high, directions, dtype, source)
    if not math.prod(size):
        return torch.empty(len(sample_ids), *size, dtype=dtype)
    # Nothing but the result is held, so it is generated at once.
    fill = noise.normals if family.name == "gaussian" else noise.signs
    return fill(sample_ids, [Slab.whole(ordinal, size)], key, dtype)[0].view(len(sample_ids), *size)


def squared_norms(
    parameters: list[Tensor], ordinals: list[int], sample_ids: Tensor, seed_low: int, seed_high: int, directions: str
) -> Tensor:
    """Sum the squares of coefficients that are not kept: the op ``nntk::squared_norms`` for CPU tensors."""
    num_params = sum(parameter.numel() for parameter in parameters)
    if parse(directions).has_fixed_norm:
        return torch.full(sample_ids.shape, num_params, dtype=torch.float64)
    stream, samples = Stream((seed_low, seed_high)), sample_ids.contiguous().numpy()
    tensors = [Slab.whole(o, tuple(p.shape)) for o, p in zip(ordinals, parameters, strict=True) if p.numel()]
    # Each sum is that of one tensor, in one order, however the samples are shared out.
    squares = torch.zeros(len(tensors), len(samples), dtype=torch.float64)

    def add(task: tuple[int, slice]) -> None:
        number, group = task
        slab, out = tensors[number], squares.numpy()[number, group]
        rows = slice(slab.start, slab.stop)
        if slab.is_matrix:
            call = stream.matrix(True, samples[group], slab.ordinal, rows, slab.width, None, squares=out)
        else:
            call = stream.vector(True, samples[group], slab.ordinal, rows, None, squares=out)
        call[0](*call[1:])

    tasks = [
        (number, group)
        for number, slab in enumerate(tensors)
        for group in slices(len(samples), max(1, TASK // slab.size))
    ]
    lanes.run(tasks, lambda: add, len(tasks), products=False)
    return squares.sum(0)
