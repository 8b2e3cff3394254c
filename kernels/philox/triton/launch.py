"""The random stream on a GPU: shapes to grids. Operands of the kernels of other ops are made here too."""

import math
from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from nntk.kernels.philox import reference
from nntk.kernels.philox.directions import parse
from nntk.kernels.philox.reference import (
    BASE,
    DISPLACEMENT,
    INPUT_SIGNS,
    LEFT,
    OUTPUT_SIGNS,
    RIGHT,
    lowrank_scale,
)  # fmt: skip
from nntk.kernels.philox.triton import kernel
from nntk.kernels.target import target_of

Key = tuple[int, int]

_TRITON_TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
_LARGEST_GRID = 2**31 - 1

NORMALS_TILE = (64, 64)
"""Rows and columns of normals that one program of four warps writes: eight blocks of words a thread."""
SIGNS_TILE = (64, 128)
"""Of signs: a block of words for every other thread; with one for each, stores of float32 spill."""
_SLAB_BYTES = 64 * 2**20
"""Noise of all rows that ``generate`` holds at once; four lines of each weight at least."""
_WIDE_BLOCKS = 2**30
"""Blocks that a loop in 32 bits counts without running over, its last step included."""
VECTOR_BLOCK = 256
WORDS_BLOCK = 128
SQUARES_BLOCK = 1024


def triton_type(dtype: torch.dtype) -> tl.dtype:
    """Triton's name for a dtype of noise."""
    return _TRITON_TYPES[dtype]


def signed(word: int) -> int:
    """A 32-bit word as the int32 that kernels take."""
    return word - 2**32 if word >= 2**31 else word


def keys(key: Key) -> tuple[int, int]:
    """Both words of the seed as int32."""
    return signed(key[0]), signed(key[1])


def padded(length: int) -> int:
    """Length of a row in memory: whole 32-byte pieces of 16-bit numbers, as descriptors and wide stores want."""
    return -(-length // 16) * 16


def is_wide(height: int, width: int) -> bool:
    """Whether block numbers of a matrix exceed int32."""
    return height * padded(width) // 4 >= 2**31


def write_matrix(
    out: Tensor, rows: Tensor, ordinal: int, width: int, key: Key, signs: bool, purpose: int, start: int = 0
) -> None:
    """Noise of a matrix of ``width``, from its line ``start`` (a multiple of 4) on, into ``out`` [M, height, columns].

    Columns beyond the width get noise that is nobody's.
    """
    block_h, block_k = SIGNS_TILE if signs else NORMALS_TILE
    height, columns = out.shape[1:]
    tiles = triton.cdiv(height, block_h) * triton.cdiv(columns, block_k)
    for some, part in zip(*_pieces(rows, out, tiles), strict=True):
        kernel.write_noise[(len(some) * tiles,)](
            part, part.stride(0), part.stride(1), columns, some, *keys(key), signed(ordinal), start, height, width,
            signs, purpose, triton_type(out.dtype), target_of(out.device).ptx, is_wide(start + height, width),
            block_h, block_k,
        )  # fmt: skip


def write_vector(out: Tensor, rows: Tensor, ordinal: int, length: int, key: Key, signs: bool) -> None:
    """Noise of a vector at every row, into ``out`` [M, >= length]."""
    tiles = triton.cdiv(length, VECTOR_BLOCK)
    for some, part in zip(*_pieces(rows, out, tiles), strict=True):
        kernel.write_vector[(len(some) * tiles,)](
            part, part.stride(0), some, *keys(key), signed(ordinal), length, signs, DISPLACEMENT,
            target_of(out.device).ptx, VECTOR_BLOCK,
        )  # fmt: skip


def packed_signs(rows: Tensor, ordinal: int, length: int, key: Key, purpose: int) -> Tensor:
    """Packed signs of a vector at every row: [M, words], int32, 32 signs to a word, four words to a block."""
    blocks = triton.cdiv(length, 128)
    out = torch.empty(len(rows), 4 * blocks, dtype=torch.int32, device=rows.device)
    tiles = triton.cdiv(blocks, WORDS_BLOCK)
    for some, part in zip(*_pieces(rows, out, tiles), strict=True):
        kernel.write_words[(len(some) * tiles,)](part, some, *keys(key), signed(ordinal), blocks, purpose, WORDS_BLOCK)
    return out


def _pieces(rows: Tensor, out: Tensor, tiles: int) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Rows and their results in pieces that a grid can hold; none where there is nothing to do."""
    at_once, rows = max(1, _LARGEST_GRID // max(1, tiles)), rows.contiguous()
    if not len(rows) or not tiles:
        return (), ()
    return rows.split(at_once), out.split(at_once)


def signs_of(packed: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """Packed signs [M, words] as numbers [M, length]."""
    bits = packed[:, :, None] >> torch.arange(32, device=packed.device, dtype=torch.int32)
    return (1 - 2 * (bits & 1)).flatten(1)[:, :length].to(dtype)


def flipout_bases(numbers: Tensor, ordinal: int, height: int, width: int, key: Key, dtype: torch.dtype) -> Tensor:
    """Bases of flipout by number, [bases, height, padded(width)]: -1 leaves a place empty, padding is nobody's."""
    out = torch.empty(len(numbers), height, padded(width), dtype=dtype, device=numbers.device)
    write_matrix(out, numbers, ordinal, width, key, True, BASE)
    return out


def lowrank_factors(
    rows: Tensor,
    rank: int,
    ordinal: int,
    height: int,
    width: int,
    key: Key,
    dtype: torch.dtype,
    rows_a_factor: int,
    slab_bytes: int = _SLAB_BYTES,
) -> tuple[Tensor, Tensor, Tensor]:
    """The factors of low rank as operands: zero beyond their rank, and rows padded.

    The scales' sums are in float64, of copies of so many rows at a time that they take ``slab_bytes``.

    Returns:
        Left factors [M, rows_a_factor, padded(height)], right ones [M, rows_a_factor, padded(width)], and the scales
        [M], float64.
    """
    made = []
    for length, purpose in ((height, LEFT), (width, RIGHT)):
        factor = torch.zeros(len(rows), rows_a_factor, padded(length), dtype=dtype, device=rows.device)
        write_matrix(factor[:, :rank], rows, ordinal, length, key, False, purpose)
        made.append(factor)
    left, right = made
    at_once = max(1, slab_bytes // (8 * rank * (height + width)))
    pieces = zip(left.split(at_once), right.split(at_once), strict=True)
    scales = [lowrank_scale(a[:, :rank, :height].double(), b[:, :rank, :width].double()) for a, b in pieces]
    return left, right, torch.cat(scales)


def generate(
    directions: str, rows: Tensor, parameters: Sequence[Tensor], ordinals: Sequence[int], key: Key
) -> Iterator[tuple[int, Tensor]]:
    """Unit displacements of several parameters in float32, slab by slab; see ``reference.generate``.

    Yields:
        The ordinal and the slab, [M, slices, width] or [M, length], of each in order.
    """
    family, shapes = parse(directions), {o: tuple(p.shape) for o, p in zip(ordinals, parameters, strict=True)}
    if family.name not in ("gaussian", "rademacher"):
        yield from reference.generate(directions, rows, shapes, key, torch.float32, 4 * reference.TILE)
        return
    signs, numbers = family.name == "rademacher", _SLAB_BYTES // 4 // max(1, len(rows))
    for ordinal, shape in shapes.items():
        if len(shape) < 2:
            noise = torch.empty(len(rows), math.prod(shape), device=rows.device)
            write_vector(noise, rows, ordinal, math.prod(shape), key, signs)
            yield ordinal, noise
            continue
        width = math.prod(shape[1:])
        for slab in reference.slabs_of(ordinal, shape, numbers):
            noise = torch.empty(len(rows), slab.stop - slab.start, width, device=rows.device)
            write_matrix(noise, rows, ordinal, width, key, signs, DISPLACEMENT, slab.start)
            yield ordinal, noise


def unit_displacements(
    rows: Tensor,
    ordinal: int,
    shape: list[int],
    seed_low: int,
    seed_high: int,
    directions: str,
    dtype: torch.dtype,
) -> Tensor:
    """The op ``nntk::unit_displacements`` for CUDA tensors."""
    family, key = parse(directions), (seed_low, seed_high)
    signs = family.name != "gaussian"
    size, made_as = tuple(shape), dtype if dtype in _TRITON_TYPES else torch.float32
    if len(size) < 2 or not math.prod(size):
        vector = torch.empty(len(rows), math.prod(size), dtype=made_as, device=rows.device)
        write_vector(vector, rows, ordinal, math.prod(size), key, signs)
        return vector.view(len(rows), *size).to(dtype)
    height, width = size[0], math.prod(size[1:])
    if family.name == "flipout":
        # Each base once, or for each row its own, whichever are fewer.
        base, shared = rows % family.count, len(rows) > family.count
        numbers = torch.arange(family.count, device=rows.device) if shared else base
        made = flipout_bases(numbers, ordinal, height, width, key, made_as)[..., :width]
        r, s = (
            signs_of(packed_signs(rows, ordinal, length, key, purpose), length, made_as)
            for length, purpose in ((height, OUTPUT_SIGNS), (width, INPUT_SIGNS))
        )
        out = (made[base] if shared else made) * r[:, :, None] * s[:, None, :]
    elif family.name == "lowrank":
        left, right, scale = lowrank_factors(
            rows, family.count, ordinal, height, width, key, torch.float32, family.count
        )
        product = left[..., :height].mT.double() @ right[..., :width].double()
        out = product.mul_(scale[:, None, None])
    else:
        out = torch.empty(len(rows), height, width, dtype=made_as, device=rows.device)
        write_matrix(out, rows, ordinal, width, key, signs, DISPLACEMENT)
    return out.reshape(len(rows), *size).to(dtype)


def squared_norms(
    parameters: list[Tensor], ordinals: list[int], rows: Tensor, seed_low: int, seed_high: int, directions: str
) -> Tensor:
    """The op ``nntk::squared_norms`` for CUDA tensors: the number of signs, or the squares of the normals, summed."""
    total = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    if parse(directions).has_fixed_norm:
        return total + sum(parameter.numel() for parameter in parameters)
    for parameter, ordinal in zip(parameters, ordinals, strict=True):
        if parameter.numel() and len(rows):
            total += _sum_squares(rows, ordinal, tuple(parameter.shape), (seed_low, seed_high))
    return total


def _sum_squares(rows: Tensor, ordinal: int, shape: tuple[int, ...], key: Key) -> Tensor:
    if vector := len(shape) < 2:
        blocks_a_row, width = 1, math.prod(shape)
        blocks = triton.cdiv(width, 4)
    else:
        width = math.prod(shape[1:])
        blocks_a_row = padded(width) // 4
        blocks = shape[0] * blocks_a_row
    # Four tiles of blocks a program amortise its start; more would leave processors idle at few rows.
    splits = triton.cdiv(blocks, 4 * SQUARES_BLOCK)
    out = torch.empty(len(rows), splits, dtype=torch.float32, device=rows.device)
    for some, part in zip(*_pieces(rows, out, splits), strict=True):
        kernel.sum_squares[(len(some) * splits,)](
            part, some, *keys(key), signed(ordinal), blocks, blocks_a_row, width, splits, vector,
            bool(width % (4 if vector else 16)), target_of(rows.device).ptx, blocks > _WIDE_BLOCKS, SQUARES_BLOCK,
        )  # fmt: skip
    return out.double().sum(1)
