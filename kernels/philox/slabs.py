"""Slabs: consecutive slices of a tensor whose noise is generated together, so that it stays in the caches."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nntk.kernels.philox.integers import DISPLACEMENT

TILE = 1 << 19
"""Random coefficients generated together: their integer words and they themselves then stay in a core's caches."""

_GPU_TILES = 16


def tile_of(device: torch.device) -> int:
    """Return how many entries of a matrix are computed together on a device: ``TILE`` on a CPU, for its caches.

    On a GPU it is 16 times that, 64 MiB in float64, since a small operation takes as long as its launch.
    """
    return TILE if device.type == "cpu" else _GPU_TILES * TILE


@dataclass(frozen=True)
class Slab:
    """Slices [start, stop) along the leading axis of one tensor.

    Attributes:
        ordinal: Position of the tensor in registration order.
        shape: Shape of the whole tensor.
        start: First slice, a multiple of ``alignment(shape)``.
        stop: End of the slices.
        purpose: Purpose of the words in the stream.
    """

    ordinal: int
    shape: tuple[int, ...]
    start: int
    stop: int
    purpose: int = DISPLACEMENT

    @classmethod
    def whole(cls, ordinal: int, shape: tuple[int, ...], purpose: int = DISPLACEMENT) -> "Slab":
        """Return the slab of a whole tensor. A scalar counts as a vector of length one."""
        shape = shape or (1,)
        return cls(ordinal, shape, 0, shape[0], purpose)

    @property
    def width(self) -> int:
        """Number of coefficients in a slice."""
        return math.prod(self.shape[1:])

    @property
    def size(self) -> int:
        """Number of coefficients in the slab."""
        return (self.stop - self.start) * self.width

    @property
    def is_matrix(self) -> bool:
        """True if the tensor has more than one axis; it is then viewed as [H, K] = [shape[0], rest]."""
        return len(self.shape) > 1


def alignment(shape: tuple[int, ...]) -> int:
    """Return the number of leading slices that one block of words may span; slabs start at its multiples."""
    return 4 if len(shape) > 1 else 128


def slabs_of(
    ordinal: int, shape: tuple[int, ...], max_coefficients: int, purpose: int = DISPLACEMENT
) -> Iterator[Slab]:
    """Cut a tensor along its leading axis into slabs.

    Args:
        ordinal: Position of the tensor in registration order.
        shape: Shape of the tensor.
        max_coefficients: Largest number of coefficients of a slab; a slab has at least the slices of one block.
        purpose: Purpose of the words in the stream.

    Yields:
        Slabs in order; none for an empty tensor.
    """
    whole = Slab.whole(ordinal, shape, purpose)
    if not whole.size:
        return
    align = alignment(whole.shape)
    step = max(align, max_coefficients // whole.width // align * align)
    for start in range(0, whole.stop, step):
        yield replace(whole, start=start, stop=min(start + step, whole.stop))


def _batches(tensors: Sequence[Slab], max_coefficients: int) -> Iterator[list[Slab]]:
    """Gather slabs of all tensors, in order, into batches of ``max_coefficients``: small tensors share a batch."""
    batch: list[Slab] = []
    size = 0
    for tensor in tensors:
        for slab in slabs_of(tensor.ordinal, tensor.shape, max_coefficients, tensor.purpose):
            if batch and size + slab.size > max_coefficients:
                yield batch
                batch, size = [], 0
            batch.append(slab)
            size += slab.size
    if batch:
        yield batch


Generator = Callable[[Tensor, list[Slab]], list[Tensor]]
"""Function from sample ids [M] and slabs to the noise of each slab, [M, stop - start, *shape[1:]]."""


def slab_by_slab(
    generator: Generator, sample_ids: Tensor, tensors: Sequence[Slab], max_coefficients: int
) -> Iterator[tuple[Slab, Tensor]]:
    """Generate the noise of several tensors slab by slab.

    Args:
        generator: Function that generates the noise of slabs.
        sample_ids: Stream numbers m of the samples, [M], int64.
        tensors: Whole tensors, as slabs.
        max_coefficients: Approximate number of coefficients to generate together, over all samples.

    Yields:
        Each slab with its noise, in order.
    """
    for batch in _batches(tensors, max(1, max_coefficients // max(1, len(sample_ids)))):
        yield from zip(batch, generator(sample_ids, batch), strict=True)


def whole_tensors(
    generator: Generator, sample_ids: Tensor, tensors: Sequence[Slab], max_coefficients: int
) -> list[Tensor]:
    """Generate the noise of several whole tensors, [M, *shape] each; see :func:`slab_by_slab`."""
    parts: dict[tuple[int, int], list[Tensor]] = {(tensor.ordinal, tensor.purpose): [] for tensor in tensors}
    for slab, noise in slab_by_slab(generator, sample_ids, tensors, max_coefficients):
        parts[slab.ordinal, slab.purpose].append(noise)
    return [noises[0] if len(noises) == 1 else torch.cat(noises, dim=1) for noises in parts.values()]
