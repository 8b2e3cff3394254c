"""Launcher of the random stream on a GPU: shapes to grids. It also generates noise for kernels of other ops."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from nntk.kernels.gpu.launches import PartOf, launch
from nntk.kernels.offsets import is_wide
from nntk.kernels.philox import reference
from nntk.kernels.philox.directions import parse
from nntk.kernels.philox.integers import BASE, DISPLACEMENT, INPUT_SIGNS, LEFT, OUTPUT_SIGNS, RIGHT
from nntk.kernels.philox.slabs import TILE, slabs_of
from nntk.kernels.philox.triton import kernel
from nntk.kernels.slices import count, slices
from nntk.kernels.target import target_of

Key = tuple[int, int]
Factors = tuple[Tensor, Tensor, Tensor]
"""Left and right factors, and scales, of low rank."""

_TRITON_TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
_LARGEST_GRID = 2**31 - 1

OPTIONS = {"enable_fp_fusion": True}
"""Options of the Triton compiler. Products and sums are fused: Philox is of integers, and normals are rounded to
bfloat16 behind approximate functions anyway."""
NORMALS_TILE = (64, 64)
"""Rows and columns of normals that one program of four warps writes: eight blocks of words a thread."""
SIGNS_TILE = (64, 128)
"""Rows and columns of signs that one program writes: one block of words for every other thread. With one block for
each thread, stores of float32 spill."""
_SLAB_BYTES = 64 * 2**20
"""Bytes of noise that ``generate`` holds for all samples together; a slab has at least four rows of a weight."""
_WIDE_BLOCKS = 2**29
"""Least number of blocks whose normals are counted in 64 bits."""
VECTOR_BLOCK = 256
"""Positions of a vector that one program writes."""
VECTORS = 8
"""Most vectors, or matrices of rank one, of a launch: its code grows with their number."""
FACTOR_BLOCK = 512
"""Columns of a factor of rank one that a program writes in a step: one block of words a thread."""
WORDS_BLOCK = 128
"""Blocks of words that one program writes."""
SQUARES_BLOCK = 1024
"""Blocks of normals whose squares one program sums in a step."""


def triton_type(dtype: torch.dtype) -> tl.dtype:
    """Return the Triton type of a dtype of noise."""
    return _TRITON_TYPES[dtype]


def signed(word: int) -> int:
    """Return a 32-bit word as the int32 that kernels require."""
    return word - 2**32 if word >= 2**31 else word


def keys(key: Key) -> tuple[int, int]:
    """Return both words of the seed as int32."""
    return signed(key[0]), signed(key[1])


def padded(length: int) -> int:
    """Return the length of a row in memory: a multiple of 16 elements, as descriptors and wide stores require."""
    return -(-length // 16) * 16


def has_wide_blocks(height: int, width: int) -> bool:
    """Return True if block numbers of a matrix exceed int32."""
    return is_wide(height * padded(width) // 4)


def write_matrix(
    out: Tensor, sample_ids: Tensor, ordinal: int, width: int, key: Key, signs: bool, purpose: int, start: int = 0
) -> None:
    """Write noise of rows [start, start + height) of a matrix into ``out``.

    Args:
        out: Result, [M, height, columns]; columns beyond ``width`` receive noise that is never read.
        sample_ids: Stream numbers m of the samples, [M], int64; nothing is written for a sample of -1.
        ordinal: Position of the matrix in registration order.
        width: Columns K of the matrix.
        key: Low and high 32 bits of the seed.
        signs: True for random signs, False for normals.
        purpose: Purpose of the words in the stream.
        start: First row, a multiple of 4.
    """
    is_ptx, height = target_of(out.device).ptx, out.shape[1]
    tiles = matrix_tiles(height, out.shape[2], signs)
    for ids, chunk in _launches(sample_ids, out, tiles):
        arguments = matrix_arguments(chunk, ids, ordinal, width, key, signs, purpose, is_ptx, start)
        launch(kernel.write_noise, ids.shape[0] * tiles, *arguments, **OPTIONS)


def matrix_tiles(height: int, columns: int, signs: bool) -> int:
    """Return the number of programs that write the noise of one matrix."""
    block_h, block_k = SIGNS_TILE if signs else NORMALS_TILE
    return count(height, block_h) * count(columns, block_k)


def matrix_arguments(
    out: Tensor, sample_ids: Tensor | PartOf, ordinal: int, width: int, key: Key, signs: bool, purpose: int,
    is_ptx: bool, start: int = 0,
) -> tuple[Any, ...]:  # fmt: skip
    """Return the arguments of the kernel behind :func:`write_matrix`; ``is_ptx`` is ``Target.ptx``."""
    height, columns = out.shape[1:]
    return (
        out, out.stride(0), out.stride(1), columns, sample_ids, *keys(key), signed(ordinal), start, height, width,
        signs, purpose, triton_type(out.dtype), is_ptx, has_wide_blocks(start + height, width),
        *(SIGNS_TILE if signs else NORMALS_TILE),
    )  # fmt: skip


def unspecialised(numbers: Sequence[int]) -> tuple[int, ...]:
    """Return 2 n + 3 for each number n of a tuple: Triton compiles kernels anew for ones and multiples of 16 in it."""
    return tuple(2 * number + 3 for number in numbers)


@dataclass(frozen=True)
class Vector:
    """A vector of noise.

    Attributes:
        ordinal: Position of the parameter in registration order.
        length: Length of the vector.
        purpose: Purpose of the words of signs in the stream.
    """

    ordinal: int
    length: int
    purpose: int = DISPLACEMENT


def vectors(sample_ids: Tensor, wanted: Sequence[Vector], key: Key, signs: bool, dtype: torch.dtype) -> list[Tensor]:
    """Generate several vectors for every sample: a launch for eight of them.

    Args:
        sample_ids: Stream numbers m of the samples, [M], int64.
        wanted: The vectors.
        key: Low and high 32 bits of the seed.
        signs: True for random signs, False for normals.
        dtype: Floating dtype of the noise.

    Returns:
        The noise of each vector, [M, length], contiguous.
    """
    samples, is_ptx = len(sample_ids), target_of(sample_ids.device).ptx
    sizes = [samples * vector.length for vector in wanted]
    out = torch.empty(sum(sizes), dtype=dtype, device=sample_ids.device)
    parts, sample_ids = out.split(sizes), sample_ids.contiguous()
    for batch in slices(len(wanted), VECTORS):
        group = wanted[batch]
        lengths, first = [vector.length for vector in group], sum(sizes[: batch.start])
        tiles = sum(count(length, VECTOR_BLOCK) for length in lengths)
        for rows in slices(samples if tiles else 0, max(1, _LARGEST_GRID // max(1, tiles))):
            launch(
                kernel.write_vectors, (rows.stop - rows.start) * tiles, out[first:], samples, rows.start,
                sample_ids[rows], *keys(key), unspecialised([vector.ordinal for vector in group]),
                unspecialised(lengths), signs, tuple(vector.purpose for vector in group), is_ptx, VECTOR_BLOCK,
                **OPTIONS,
            )  # fmt: skip
    return [part.view(samples, vector.length) for part, vector in zip(parts, wanted, strict=True)]


def packed_signs(sample_ids: Tensor, ordinal: int, length: int, key: Key, purpose: int) -> Tensor:
    """Generate packed signs of a vector for every sample: [M, words], int32, 32 signs a word, four words a block."""
    blocks = count(length, 128)
    out = torch.empty(len(sample_ids), 4 * blocks, dtype=torch.int32, device=sample_ids.device)
    tiles = count(blocks, WORDS_BLOCK)
    for ids, chunk in _launches(sample_ids, out, tiles):
        launch(
            kernel.write_words, ids.shape[0] * tiles, chunk, ids, *keys(key), signed(ordinal), blocks, purpose,
            WORDS_BLOCK, **OPTIONS,
        )  # fmt: skip
    return out


def _launches(sample_ids: Tensor, out: Tensor, tiles: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Split samples and their results into launches that a grid can hold; there are none for an empty result."""
    chunk_size, sample_ids = max(1, _LARGEST_GRID // max(1, tiles)), sample_ids.contiguous()
    if sample_ids.shape[0] <= chunk_size:
        if sample_ids.shape[0] and tiles:
            yield sample_ids, out
    else:
        yield from zip(sample_ids.split(chunk_size), out.split(chunk_size), strict=True)


def signs_of(packed: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """Unpack signs [M, words], int32, to values [M, length]."""
    bits = packed[:, :, None] >> torch.arange(32, device=packed.device, dtype=torch.int32)
    return (1 - 2 * (bits & 1)).flatten(1)[:, :length].to(dtype)


def flipout_bases(bases: Tensor, ordinal: int, height: int, width: int, key: Key, dtype: torch.dtype) -> Tensor:
    """Generate bases of flipout, [bases, height, padded(width)]; a base number of -1 leaves its place unwritten."""
    out = torch.empty(len(bases), height, padded(width), dtype=dtype, device=bases.device)
    write_matrix(out, bases, ordinal, width, key, True, BASE)
    return out


def lowrank_factors(
    sample_ids: Tensor,
    rank: int,
    ordinal: int,
    height: int,
    width: int,
    key: Key,
    dtype: torch.dtype,
    rows_per_factor: int,
    slab_bytes: int = _SLAB_BYTES,
) -> Factors:
    """Generate the factors of low rank as operands of kernels, with zeros beyond their rank and padded rows.

    The sums of the scales are in float64. One launch generates factors of rank one and their scales.

    Args:
        sample_ids: Stream numbers m of the samples, [M], int64.
        rank: Rank R.
        ordinal: Position of the matrix in registration order.
        height: Rows H of the matrix.
        width: Columns K of the matrix.
        key: Low and high 32 bits of the seed.
        dtype: Floating dtype of the factors.
        rows_per_factor: Rows of each factor in memory, at least R.
        slab_bytes: Bytes of float64 copies that are held together for the scales.

    Returns:
        Left factors [M, rows_per_factor, padded(height)], right factors [M, rows_per_factor, padded(width)], and
        the scales [M], float64.
    """
    if rank == 1:
        (factors,) = rank_one_factors(sample_ids, [Matrix(ordinal, height, width, rows_per_factor)], key, dtype)
        return factors
    lengths, columns = (height, width), (padded(height), padded(width))
    shape = (len(sample_ids), rows_per_factor, sum(columns))
    # A small operation takes as long as its launch, so that both factors share a tensor.
    left, right = torch.zeros(shape, dtype=dtype, device=sample_ids.device).split(columns, dim=2)
    for factor, length, purpose in zip((left, right), lengths, (LEFT, RIGHT), strict=True):
        write_matrix(factor[:, :rank], sample_ids, ordinal, length, key, False, purpose)
    chunk_size = max(1, slab_bytes // (8 * rank * (height + width)))
    if sample_ids.shape[0] <= chunk_size:
        return left, right, reference.lowrank_scale(left[:, :rank, :height], right[:, :rank, :width])
    chunks = zip(left.split(chunk_size), right.split(chunk_size), strict=True)
    scales = [reference.lowrank_scale(a[:, :rank, :height], b[:, :rank, :width]) for a, b in chunks]
    return left, right, torch.cat(scales)


@dataclass(frozen=True)
class Matrix:
    """A matrix of rank one.

    Attributes:
        ordinal: Position of the parameter in registration order.
        height: Rows H.
        width: Columns K.
        rows: Rows of each factor in memory.
    """

    ordinal: int
    height: int
    width: int
    rows: int

    @property
    def columns(self) -> tuple[int, int]:
        """Columns of both factors in memory."""
        return padded(self.height), padded(self.width)


def rank_one_factors(sample_ids: Tensor, wanted: Sequence[Matrix], key: Key, dtype: torch.dtype) -> list[Factors]:
    """Generate factors of rank one of several matrices, with zeros behind their row: a launch for eight matrices.

    Args:
        sample_ids: Stream numbers m of the samples, [M], int64.
        wanted: The matrices.
        key: Low and high 32 bits of the seed.
        dtype: Floating dtype of the factors.

    Returns:
        What :func:`lowrank_factors` returns, for each matrix.
    """
    samples, device = len(sample_ids), sample_ids.device
    sizes = [samples * matrix.rows * sum(matrix.columns) for matrix in wanted]
    out = torch.empty(sum(sizes), dtype=dtype, device=device)
    scales = torch.empty(len(wanted), samples, dtype=torch.float64, device=device)
    sample_ids, is_ptx = sample_ids.contiguous(), target_of(device).ptx
    for batch in slices(len(wanted), VECTORS):
        group, first = wanted[batch], sum(sizes[: batch.start])
        numbers = [(matrix.ordinal, matrix.height, matrix.width) for matrix in group]
        for rows in slices(samples, _LARGEST_GRID // len(group)):
            launch(
                kernel.write_rank_one, (rows.stop - rows.start) * len(group), out[first:], scales[batch], samples,
                rows.start, sample_ids[rows], *keys(key), *map(unspecialised, zip(*numbers, strict=True)),
                tuple(matrix.rows for matrix in group), is_ptx, FACTOR_BLOCK, **OPTIONS,
            )  # fmt: skip
    factors = []
    for part, matrix, scale in zip(out.split(sizes), wanted, scales, strict=True):
        left, right = part.view(samples, matrix.rows, sum(matrix.columns)).split(matrix.columns, dim=2)
        factors.append((left, right, scale))
    return factors


def generate(
    directions: str, sample_ids: Tensor, parameters: Sequence[Tensor], ordinals: Sequence[int], key: Key
) -> Iterator[tuple[int, Tensor]]:
    """Generate unit displacements of several parameters in float32, slab by slab; see ``reference.generate``.

    Args:
        directions: Name of the family.
        sample_ids: Stream numbers m of the samples, [M], int64.
        parameters: The parameters; only their shapes are read.
        ordinals: Positions of the parameters in registration order.
        key: Low and high 32 bits of the seed.

    Yields:
        The ordinal and the noise, [M, slices, width] or [M, length], of each slab in order.
    """
    family, shapes = parse(directions), {o: tuple(p.shape) for o, p in zip(ordinals, parameters, strict=True)}
    if family.name not in ("gaussian", "rademacher"):
        yield from reference.generate(directions, sample_ids, shapes, key, torch.float32, 4 * TILE)
        return
    signs, max_coefficients = family.name == "rademacher", _SLAB_BYTES // 4 // max(1, len(sample_ids))
    for ordinal, shape in shapes.items():
        if len(shape) < 2:
            (noise,) = vectors(sample_ids, [Vector(ordinal, math.prod(shape))], key, signs, torch.float32)
            yield ordinal, noise
            continue
        width = math.prod(shape[1:])
        for slab in slabs_of(ordinal, shape, max_coefficients):
            noise = torch.empty(
                len(sample_ids), slab.stop - slab.start, width, dtype=torch.float32, device=sample_ids.device
            )
            write_matrix(noise, sample_ids, ordinal, width, key, signs, DISPLACEMENT, slab.start)
            yield ordinal, noise


def unit_displacements(
    sample_ids: Tensor,
    ordinal: int,
    shape: list[int],
    seed_low: int,
    seed_high: int,
    directions: str,
    dtype: torch.dtype,
) -> Tensor:
    """Generate one whole parameter: the op ``nntk::unit_displacements`` for CUDA tensors."""
    family, key = parse(directions), (seed_low, seed_high)
    signs = family.name != "gaussian"
    size, noise_dtype = tuple(shape), dtype if dtype in _TRITON_TYPES else torch.float32
    if len(size) < 2 or not math.prod(size):
        (vector,) = vectors(sample_ids, [Vector(ordinal, math.prod(size))], key, signs, noise_dtype)
        return vector.view(len(sample_ids), *size).to(dtype)
    height, width = size[0], math.prod(size[1:])
    if family.name == "flipout":
        # Each base once, or one base for each sample, whichever are fewer.
        base_ids, shared = sample_ids % family.count, len(sample_ids) > family.count
        distinct = torch.arange(family.count, device=sample_ids.device) if shared else base_ids
        bases = flipout_bases(distinct, ordinal, height, width, key, noise_dtype)[..., :width]
        r, s = (
            signs_of(packed_signs(sample_ids, ordinal, length, key, purpose), length, noise_dtype)
            for length, purpose in ((height, OUTPUT_SIGNS), (width, INPUT_SIGNS))
        )
        out = (bases[base_ids] if shared else bases) * r[:, :, None] * s[:, None, :]
    elif family.name == "lowrank":
        left, right, scale = lowrank_factors(
            sample_ids, family.count, ordinal, height, width, key, torch.float32, family.count
        )
        product = left[..., :height].mT.double() @ right[..., :width].double()
        out = product.mul_(scale[:, None, None])
    else:
        out = torch.empty(len(sample_ids), height, width, dtype=noise_dtype, device=sample_ids.device)
        write_matrix(out, sample_ids, ordinal, width, key, signs, DISPLACEMENT)
    return out.reshape(len(sample_ids), *size).to(dtype)


def squared_norms(
    parameters: list[Tensor], ordinals: list[int], sample_ids: Tensor, seed_low: int, seed_high: int, directions: str
) -> Tensor:
    """Sum the squares of normals, or count the signs: the op ``nntk::squared_norms`` for CUDA tensors."""
    if parse(directions).has_fixed_norm:
        norm = float(sum(parameter.numel() for parameter in parameters))
        return torch.full((len(sample_ids),), norm, dtype=torch.float64, device=sample_ids.device)
    wanted = [
        _Squares.of(ordinal, tuple(parameter.shape))
        for parameter, ordinal in zip(parameters, ordinals, strict=True)
        if parameter.numel()
    ]
    # Partial sums of all parameters in one tensor, so that one operation adds them.
    programs = [one.splits for one in wanted]
    partial = torch.empty(len(sample_ids), sum(programs), dtype=torch.float32, device=sample_ids.device)
    sample_ids, is_ptx, key = sample_ids.contiguous(), target_of(sample_ids.device).ptx, (seed_low, seed_high)
    for batch in slices(len(wanted), VECTORS):
        group, first, own = wanted[batch], sum(programs[: batch.start]), sum(programs[batch])
        padded_kinds = {one.height > 0 for one in group if one.is_padded}
        columns = zip(*((one.ordinal, one.height, one.width, one.splits) for one in group), strict=True)
        numbers = [unspecialised(column) for column in columns]
        for rows in slices(len(sample_ids), max(1, _LARGEST_GRID // own)):
            launch(
                kernel.sum_squares, (rows.stop - rows.start) * own, partial[rows, first:], partial.stride(0),
                sample_ids[rows], *keys(key), *numbers, False in padded_kinds,
                True in padded_kinds, is_ptx, max(one.blocks for one in group) >= _WIDE_BLOCKS, len(group),
                SQUARES_BLOCK, **OPTIONS,
            )  # fmt: skip
    return partial.sum(1, dtype=torch.float64)


@dataclass(frozen=True)
class _Squares:
    """A parameter whose normals are squared.

    Attributes:
        ordinal: Its position in registration order.
        height: Rows of a matrix, 0 for a vector.
        width: Columns of a matrix, or length of a vector.
    """

    ordinal: int
    height: int
    width: int

    @classmethod
    def of(cls, ordinal: int, shape: tuple[int, ...]) -> "_Squares":
        """Return a parameter of some shape."""
        return cls(ordinal, *((0, math.prod(shape)) if len(shape) < 2 else (shape[0], math.prod(shape[1:]))))

    @property
    def blocks(self) -> int:
        """Number of its blocks."""
        return self.height * padded(self.width) // 4 if self.height else count(self.width, 4)

    @property
    def is_padded(self) -> bool:
        """True if blocks hold normals of padding."""
        return bool(self.width % (16 if self.height else 4))

    @property
    def splits(self) -> int:
        """Programs that share it for a sample."""
        # Four tiles of blocks a program amortise its start; more would leave processors idle if there are few samples.
        return count(self.blocks, 4 * SQUARES_BLOCK)
