"""Families of unit displacements in plain torch: the definition of the stream, and the tests' oracle.

README.md beside this file draws the layout. Everything is a function of (seed, sample, tensor, index) alone, so any
part of a displacement can be generated anywhere, in any order. The functions take their normals and signs from a
source, which is plain torch unless the caller gives a faster one.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from nntk.kernels.philox.directions import parse
from nntk.kernels.philox.integers import BASE, INPUT_SIGNS, LEFT, OUTPUT_SIGNS, RIGHT
from nntk.kernels.philox.slabs import TILE, Slab, slab_by_slab, whole_tensors
from nntk.kernels.philox.source import PLAIN, Source


def flipout_signs(
    sample_ids: Tensor,
    shapes: Mapping[int, tuple[int, ...]],
    key: tuple[int, int],
    dtype: torch.dtype,
    max_coefficients: int = TILE,
    source: Source = PLAIN,
) -> dict[int, tuple[Tensor, Tensor]]:
    r"""Generate the sign vectors r and s of flipout, :math:`E_m = S_b \circ r_m s_m^T` with b = m mod B.

    Args:
        sample_ids: Stream numbers m of the samples, [M], int64.
        shapes: Shapes of matrices by ordinal.
        key: Low and high 32 bits of the seed.
        dtype: Floating dtype of the result.
        max_coefficients: Approximate number of coefficients to generate together, over all samples.
        source: Source of normals and signs.

    Returns:
        For each matrix r [M, H] and s [M, K].
    """
    vectors = [
        Slab.whole(ordinal, (length,), purpose)
        for ordinal, shape in shapes.items()
        for length, purpose in ((shape[0], OUTPUT_SIGNS), (math.prod(shape[1:]), INPUT_SIGNS))
    ]
    noise = whole_tensors(partial(source.signs, key=key, dtype=dtype), sample_ids, vectors, max_coefficients)
    return dict(zip(shapes, zip(noise[::2], noise[1::2], strict=True), strict=True))


def flipout_bases(
    bases: Tensor,
    shapes: Mapping[int, tuple[int, ...]],
    key: tuple[int, int],
    dtype: torch.dtype,
    max_coefficients: int = TILE,
    source: Source = PLAIN,
) -> dict[int, Tensor]:
    """Generate the signs :math:`S_b` that displacements of flipout share; see :func:`flipout_signs`.

    Args:
        bases: Base numbers b, [B], int64.
        shapes: Shapes of matrices by ordinal.
        key: Low and high 32 bits of the seed.
        dtype: Floating dtype of the result.
        max_coefficients: Approximate number of coefficients to generate together, over all bases.
        source: Source of signs.

    Returns:
        The bases, [B, *shape] for each matrix. ``signs(bases, [Slab(ordinal, shape, start, stop, BASE)], key, dtype)``
        generates a slab of one.
    """
    matrices = [Slab.whole(ordinal, shape, BASE) for ordinal, shape in shapes.items()]
    generator = partial(source.signs, key=key, dtype=dtype)
    return dict(zip(shapes, whole_tensors(generator, bases, matrices, max_coefficients), strict=True))


def lowrank_factors(
    sample_ids: Tensor,
    shapes: Mapping[int, tuple[int, ...]],
    rank: int,
    key: tuple[int, int],
    dtype: torch.dtype,
    max_coefficients: int = TILE,
    source: Source = PLAIN,
) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
    r"""Generate the factors of displacements of low rank, :math:`E_m = c_m A_m^T B_m` with :math:`|E_m|^2 = H K`.

    Args:
        sample_ids: Stream numbers m of the samples, [M], int64.
        shapes: Shapes of matrices by ordinal.
        rank: Rank R.
        key: Low and high 32 bits of the seed.
        dtype: Floating dtype of the factors; it represents their values exactly.
        max_coefficients: Approximate number of coefficients to generate together, over all samples.
        source: Source of normals and signs.

    Returns:
        For each matrix A [M, R, H], B [M, R, K] and c [M], float64; c is zero where :math:`A_m^T B_m` is zero.
    """
    factors = [
        Slab.whole(ordinal, (rank, length), purpose)
        for ordinal, shape in shapes.items()
        for length, purpose in ((shape[0], LEFT), (math.prod(shape[1:]), RIGHT))
    ]
    noise = whole_tensors(partial(source.normals, key=key, dtype=dtype), sample_ids, factors, max_coefficients)
    return {
        ordinal: (left, right, lowrank_scale(left, right))
        for ordinal, left, right in zip(shapes, noise[::2], noise[1::2], strict=True)
    }


def lowrank_scale(left: Tensor, right: Tensor) -> Tensor:
    r"""Return the scales :math:`c_m = \sqrt{H K} / |A_m^T B_m|` of displacements of low rank.

    Args:
        left: A, [M, R, H].
        right: B, [M, R, K].

    Returns:
        [M], float64, zero where the product is zero. The squared norm of the product is
        :math:`\sum_{jk} (A A^T)_{jk} (B B^T)_{jk}`.
    """
    if left.shape[1] == 1:
        a, b = (torch.linalg.vector_norm(factor, dim=(1, 2), dtype=torch.float64) for factor in (left, right))
        norm = a * b
    else:
        left, right = left.double(), right.double()
        norm = ((left @ left.mT) * (right @ right.mT)).sum((1, 2)).sqrt()
    scale: Tensor = math.sqrt(left.shape[2] * right.shape[2]) / norm
    return scale.nan_to_num_(posinf=0.0)


def _flipout_slabs(
    bases: int, sample_ids: Tensor, slabs: Sequence[Slab], key: tuple[int, int], dtype: torch.dtype, source: Source
) -> Iterator[Tensor]:
    base_ids, index = torch.unique(sample_ids % bases, return_inverse=True)
    per_sample = flipout_signs(sample_ids, {slab.ordinal: slab.shape for slab in slabs}, key, dtype, source=source)
    shared = source.signs(base_ids, [replace(slab, purpose=BASE) for slab in slabs], key, dtype)
    for slab, base in zip(slabs, shared, strict=True):
        r, s = per_sample[slab.ordinal]
        noise = base.flatten(2)[index].mul_(r[:, slab.start : slab.stop, None]).mul_(s[:, None])
        yield noise.view(len(sample_ids), -1, *slab.shape[1:])


def _lowrank_slabs(
    rank: int, sample_ids: Tensor, slabs: Sequence[Slab], key: tuple[int, int], dtype: torch.dtype, source: Source
) -> Iterator[Tensor]:
    shapes = {slab.ordinal: slab.shape for slab in slabs}
    factors = lowrank_factors(sample_ids, shapes, rank, key, torch.float64, source=source)
    for slab in slabs:
        left, right, scale = factors[slab.ordinal]
        noise = torch.matmul(left[:, :, slab.start : slab.stop].mT, right).mul_(scale[:, None, None])
        yield noise.to(dtype).view(len(sample_ids), -1, *slab.shape[1:])


def unit_slabs(
    directions: str,
    sample_ids: Tensor,
    slabs: Sequence[Slab],
    key: tuple[int, int],
    dtype: torch.dtype,
    source: Source = PLAIN,
) -> list[Tensor]:
    """Generate the unit displacements of several slabs together.

    Args:
        directions: ``"gaussian"``, ``"rademacher"``, ``"flipout(B)"`` or ``"lowrank(R)"``.
        sample_ids: Stream numbers m of the samples, [M], int64.
        slabs: Slabs to generate.
        key: Low and high 32 bits of the seed.
        dtype: Floating dtype of the result. It represents the values exactly, except for lowrank, whose values are
            rounded to it.
        source: Source of normals and signs.

    Returns:
        For each slab [M, stop - start, *shape[1:]].
    """
    family = parse(directions)
    if family.name == "gaussian":
        return source.normals(sample_ids, slabs, key, dtype)
    if family.name == "rademacher":
        return source.signs(sample_ids, slabs, key, dtype)
    # A vector has no rows and columns to share: its displacement is that of rademacher.
    vectors, matrices = ([slab for slab in slabs if slab.is_matrix == is_matrix] for is_matrix in (False, True))
    generator = _flipout_slabs if family.name == "flipout" else _lowrank_slabs
    noise = dict(zip(matrices, generator(family.count, sample_ids, matrices, key, dtype, source), strict=True))
    noise.update(zip(vectors, source.signs(sample_ids, vectors, key, dtype), strict=True))
    return [noise[slab] for slab in slabs]


def generate(
    directions: str,
    sample_ids: Tensor,
    shapes: Mapping[int, tuple[int, ...]],
    key: tuple[int, int],
    dtype: torch.dtype,
    max_coefficients: int = TILE,
    source: Source = PLAIN,
) -> Iterator[tuple[int, Tensor]]:
    """Generate the unit displacements of several parameters slab by slab; small parameters are generated together.

    Args:
        directions: Name of the family, as for :func:`unit_slabs`.
        sample_ids: Stream numbers m of the samples, [M], int64.
        shapes: Shapes of the parameters by ordinal.
        key: Low and high 32 bits of the seed.
        dtype: Floating dtype of the result.
        max_coefficients: Approximate number of coefficients to generate together, over all samples.
        source: Source of normals and signs.

    Yields:
        The ordinal and the noise [M, slices, *shape[1:]] of each slab, in order.
    """
    tensors = [Slab.whole(ordinal, shape) for ordinal, shape in shapes.items()]
    generator = partial(unit_slabs, directions, key=key, dtype=dtype, source=source)
    for slab, noise in slab_by_slab(generator, sample_ids, tensors, max_coefficients):
        yield slab.ordinal, noise


def displacements(
    directions: str,
    sample_ids: Tensor,
    shapes: Mapping[int, tuple[int, ...]],
    key: tuple[int, int],
    dtype: torch.dtype,
    max_coefficients: int = TILE,
    source: Source = PLAIN,
) -> dict[int, Tensor]:
    """Generate whole unit displacements of several parameters, [M, *shape] by ordinal; see :func:`generate`."""
    nonempty = {ordinal: shape for ordinal, shape in shapes.items() if math.prod(shape)}
    tensors = [Slab.whole(ordinal, shape) for ordinal, shape in nonempty.items()]
    generator = partial(unit_slabs, directions, key=key, dtype=dtype, source=source)
    noise = dict(zip(nonempty, whole_tensors(generator, sample_ids, tensors, max_coefficients), strict=True))
    return {
        ordinal: noise[ordinal].reshape(len(sample_ids), *shape)
        if ordinal in noise
        else torch.empty(len(sample_ids), *shape, dtype=dtype, device=sample_ids.device)
        for ordinal, shape in shapes.items()
    }


def unit_displacements(
    sample_ids: Tensor,
    ordinal: int,
    shape: list[int],
    seed_low: int,
    seed_high: int,
    directions: str,
    dtype: torch.dtype,
    source: Source = PLAIN,
) -> Tensor:
    """Generate one whole parameter, ``TILE`` coefficients at a time: the op ``nntk::unit_displacements``."""
    size, key = tuple(shape), (seed_low, seed_high)
    out = torch.empty(len(sample_ids), *size, dtype=dtype, device=sample_ids.device)
    chunk_size = max(1, TILE // max(1, math.prod(size)))
    for first in range(0, len(sample_ids), chunk_size):
        chunk = slice(first, first + chunk_size)
        noise = displacements(directions, sample_ids[chunk], {ordinal: size}, key, dtype, source=source)
        out[chunk] = noise[ordinal]
    return out
