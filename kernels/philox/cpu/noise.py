"""Normals and random signs of slabs by compiled kernels, with the interface of nntk.kernels.philox.noise."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from nntk.kernels.cpu import lanes
from nntk.kernels.philox.cpu.stream import Array, Stream
from nntk.kernels.philox.slabs import Slab, alignment
from nntk.kernels.slices import slices

TASK = 1 << 17
"""Random coefficients of a task, which take about a tenth of a millisecond, or half of that if they are signs."""

Task = tuple[Slab, Array, slice, slice]
"""A slab, the array for all of its noise [M, rows, columns], and the ranges of samples and rows of the task."""


def normals(sample_ids: Tensor, slabs: Sequence[Slab], key: tuple[int, int], dtype: torch.dtype) -> list[Tensor]:
    """Generate unit normals as :func:`nntk.kernels.philox.noise.normals`; some differ by one rounding to bfloat16."""
    return _fill(True, sample_ids, slabs, key, dtype)


def signs(sample_ids: Tensor, slabs: Sequence[Slab], key: tuple[int, int], dtype: torch.dtype) -> list[Tensor]:
    """Generate random signs as :func:`nntk.kernels.philox.noise.signs`, bit for bit."""
    return _fill(False, sample_ids, slabs, key, dtype)


def _fill(
    is_gaussian: bool, sample_ids: Tensor, slabs: Sequence[Slab], key: tuple[int, int], dtype: torch.dtype
) -> list[Tensor]:
    samples: Array = sample_ids.contiguous().numpy()
    written = dtype if dtype in (torch.float32, torch.float64) else torch.float32
    results = [torch.empty(len(samples), *_rows_and_columns(slab), dtype=written) for slab in slabs]
    stream = Stream(key)

    def fill(task: Task) -> None:
        slab, noise, group, part = task
        # Either all rows of some samples, or some rows of one: contiguous, which the kernels are compiled for.
        into = noise[group, part] if slab.is_matrix else noise[group, :, part]
        begin = slice(slab.start + part.start, slab.start + part.stop)
        if slab.is_matrix:
            call = stream.matrix(
                is_gaussian, samples[group], slab.ordinal, begin, slab.width, into, purpose=slab.purpose
            )
        else:
            call = stream.vector(is_gaussian, samples[group], slab.ordinal, begin, into, purpose=slab.purpose)
        call[0](*call[1:])

    tasks = [task for slab, result in zip(slabs, results, strict=True) for task in _tasks(slab, result.numpy())]
    lanes.run(tasks, lambda: fill, len(tasks), products=False)
    return [
        result.view(len(samples), slab.stop - slab.start, *slab.shape[1:]).to(dtype)
        for slab, result in zip(slabs, results, strict=True)
    ]


def _rows_and_columns(slab: Slab) -> tuple[int, int]:
    length = slab.stop - slab.start
    return (length, slab.width) if slab.is_matrix else (1, length)


def _tasks(slab: Slab, noise: Array) -> Iterator[Task]:
    """Cut the noise of a slab into tasks; rows are cut only where those of one sample are too many."""
    if not noise.size:
        return
    align, length = alignment(slab.shape), slab.stop - slab.start
    rows = min(length, max(align, TASK // slab.width // align * align))
    group = max(1, TASK // (rows * slab.width))
    for samples in slices(len(noise), group):
        for part in slices(length, rows):
            yield slab, noise, samples, part
