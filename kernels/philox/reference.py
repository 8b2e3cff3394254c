"""The random stream in torch integer arithmetic: Philox-4x32-10, its counters, and the mapping to unit displacements.

This file is the definition of the stream; README.md beside it draws the layout. Everything is a function of
(seed, row, tensor, index) alone, so any part of a displacement can be made anywhere, in any order.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

STREAM_VERSION = 1
"""Changes whenever the same seed would give other displacements; stored in every result."""

DISPLACEMENT = 0
"""Purpose of the words that displace parameters. Other purposes of the same seed are independent of it."""

DIRECTIONS = ("gaussian", "rademacher")
"""Families of unit displacements."""

TILE = 1 << 19
"""Numbers made at once: their integer words and the numbers themselves then stay in a core's caches."""

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox(counter: Words, key: tuple[int, int]) -> Words:
    """Philox-4x32-10 (Salmon et al., SC 2011) of broadcastable counters.

    Args:
        counter: Four int64 tensors with values in [0, 2**32), of shapes that broadcast.
        key: Low and high 32 bits of the seed.

    Returns:
        Four int64 tensors of words in [0, 2**32), each of the broadcast shape or one that broadcasts to it.

    Example:
        >>> zero = torch.zeros((), dtype=torch.int64)
        >>> [f"{int(word):08x}" for word in philox((zero, zero, zero, zero), (0, 0))]
        ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for number in range(10):
        # A 64-bit product may wrap to a negative number: its bits are right, and the mask takes the high half back.
        # The low halves keep garbage above bit 31 until the next XOR is masked, which saves two masks a round.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        if number < 3:
            c0, c2 = ((p1 >> 32) ^ c1 ^ k0) & _MASK, ((p0 >> 32) ^ c3 ^ k1) & _MASK
        else:
            # By now c0 and c2 have the broadcast shape and are ours: in place, for a third of the memory traffic.
            torch.bitwise_right_shift(p1, 32, out=c0).bitwise_xor_(c1).bitwise_xor_(k0).bitwise_and_(_MASK)
            torch.bitwise_right_shift(p0, 32, out=c2).bitwise_xor_(c3).bitwise_xor_(k1).bitwise_and_(_MASK)
        c1, c3 = p1, p0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1 & _MASK, c2, c3 & _MASK


def stream_words(
    rows: Tensor, blocks: Tensor, ordinal: int, key: tuple[int, int], purpose: int = DISPLACEMENT
) -> Words:
    """The four words of each (row, block) of one parameter tensor.

    Args:
        rows: Row numbers m, [M], int64 in [0, 2**32).
        blocks: Block numbers, [B], int64 in [0, 2**48).
        ordinal: Position of the parameter in registration order.
        key: Low and high 32 bits of the seed.
        purpose: What the words are for, in [0, 256).

    Returns:
        Four int64 tensors, [M, B].
    """
    high = (STREAM_VERSION << 24) | (purpose << 16)
    counter = (blocks & _MASK, torch.full_like(blocks[:1], ordinal), rows[:, None], high | (blocks >> 32))
    shape = (len(rows), len(blocks))
    w0, w1, w2, w3 = philox(counter, key)
    return w0.expand(shape), w1.expand(shape), w2.expand(shape), w3.expand(shape)


def box_muller(word: Tensor, angle: Tensor) -> Tensor:
    r"""Two unit normals from two words: :math:`\sqrt{-2 \ln u}\,(\cos t, \sin t)`.

    With :math:`u = 2^{-32} w + 2^{-33}` and :math:`t = 2\pi 2^{-32} w'`, every step rounded to float32.

    Args:
        word: Word of the radius, int64.
        angle: Word of the angle, int64, of the same shape.

    Returns:
        The cosine and the sine branch along a new last axis of size 2, float32.
    """
    # Rounding takes u to 1 at most, where the logarithm is exactly zero: the radius is never imaginary.
    radius = word.to(torch.float32).mul_(2.0**-32).add_(2.0**-33).log_().mul_(-2.0).sqrt_()
    t = angle.to(torch.float32).mul_(2.0 * math.pi * 2.0**-32)
    return torch.stack((t.cos().mul_(radius), t.sin_().mul_(radius)), dim=-1)


def normals(
    rows: Tensor, ordinal: int, shape: tuple[int, ...], key: tuple[int, int], start: int, stop: int, dtype: torch.dtype
) -> Tensor:
    """Unit gaussian displacement of the slices ``[start, stop)`` of one parameter; see :func:`unit_slab`."""
    if len(shape) < 2:
        blocks = torch.arange(start // 4, -(-stop // 4), device=rows.device)
        words = stream_words(rows, blocks, ordinal, key)
        pairs = torch.stack((box_muller(*words[:2]), box_muller(*words[2:])), dim=-2)
        return pairs.flatten(1)[:, : stop - start].to(torch.bfloat16).to(dtype)
    width = math.prod(shape[1:])
    groups = -(-width // 16)
    blocks = torch.arange(start * groups * 4, stop * groups * 4, device=rows.device)
    words = stream_words(rows, blocks, ordinal, key)
    # A block's words (0, 1) give columns 2q, 2q + 1 of its group of 16, and (2, 3) columns 2q + 8, 2q + 9.
    halves = [box_muller(*pair).to(torch.bfloat16).view(-1, 8) for pair in (words[:2], words[2:])]
    padded = torch.stack(halves, dim=1).view(len(rows), stop - start, groups * 16)
    return padded[..., :width].to(dtype).reshape(len(rows), stop - start, *shape[1:])


def packed_signs(
    rows: Tensor, ordinal: int, shape: tuple[int, ...], key: tuple[int, int], start: int, stop: int
) -> Tensor:
    """Random signs, 32 to a word: bit k mod 32 of word k // 32 is set where column k is -1.

    Args:
        rows: Row numbers m, [M], int64.
        ordinal: Position of the parameter in registration order.
        shape: Shape of the parameter; viewed as [shape[0], rest], or flat where it has one axis.
        key: Low and high 32 bits of the seed.
        start: First slice along the leading axis; a multiple of :func:`alignment`.
        stop: One past the last slice.

    Returns:
        int32 words: [M, stop - start, ceil(rest / 32)], or [M, ceil((stop - start) / 32)] for a vector. Bits past the
        end of a row are random and belong to nobody.
    """
    if len(shape) < 2:
        blocks = torch.arange(start // 128, -(-stop // 128), device=rows.device)
        words = torch.stack(stream_words(rows, blocks, ordinal, key), dim=-1).flatten(1)
        return words[:, : -(-(stop - start) // 32)].to(torch.int32)
    columns = -(-math.prod(shape[1:]) // 32)
    blocks = torch.arange(start // 4 * columns, -(-stop // 4) * columns, device=rows.device)
    quad = stream_words(rows, blocks, ordinal, key)
    quads = torch.stack([word.view(len(rows), -1, columns) for word in quad], dim=2)
    return quads.view(len(rows), -1, columns)[:, : stop - start].to(torch.int32)


def signs(
    rows: Tensor, ordinal: int, shape: tuple[int, ...], key: tuple[int, int], start: int, stop: int, dtype: torch.dtype
) -> Tensor:
    """Random signs of the slices ``[start, stop)`` of one parameter; see :func:`unit_slab`."""
    packed = packed_signs(rows, ordinal, shape, key, start, stop)
    bits = torch.arange(8, device=rows.device)
    values = 1 - 2 * ((torch.arange(256, device=rows.device)[:, None] >> bits) & 1)
    octets = packed.contiguous().view(torch.uint8).int()
    unpacked = torch.nn.functional.embedding(octets, values.to(dtype)).flatten(-2)
    if len(shape) < 2:
        return unpacked[:, : stop - start]
    return unpacked[..., : math.prod(shape[1:])].reshape(len(rows), stop - start, *shape[1:])


def alignment(shape: tuple[int, ...]) -> int:
    """Slices along the leading axis that one block of words may span: slabs start at its multiples."""
    return 4 if len(shape) > 1 else 128


def unit_slab(
    directions: str,
    rows: Tensor,
    ordinal: int,
    shape: tuple[int, ...],
    key: tuple[int, int],
    start: int,
    stop: int,
    dtype: torch.dtype,
) -> Tensor:
    """Unit displacements of the slices ``[start, stop)`` along the leading axis of one parameter.

    Args:
        directions: ``"gaussian"`` (rounded to bfloat16 by definition) or ``"rademacher"``.
        rows: Row numbers m, [M], int64.
        ordinal: Position of the parameter in registration order.
        shape: Shape of the whole parameter.
        key: Low and high 32 bits of the seed.
        start: First slice; a multiple of :func:`alignment`.
        stop: One past the last slice.
        dtype: Floating dtype of the result; holds the values exactly.

    Returns:
        [M, stop - start, *shape[1:]].
    """
    make = normals if directions == "gaussian" else signs
    return make(rows, ordinal, shape, key, start, stop, dtype)


def slabs(shape: tuple[int, ...], numbers_per_slab: int) -> Iterator[tuple[int, int]]:
    """Cut the leading axis into aligned slabs of at most ``numbers_per_slab`` numbers (or one block's span)."""
    length = shape[0] if shape else 1
    align = alignment(shape)
    step = max(align, numbers_per_slab // max(1, math.prod(shape[1:])) // align * align)
    for start in range(0, length, step):
        yield start, min(start + step, length)


def unit_displacements(
    rows: Tensor,
    ordinal: int,
    shape: list[int],
    seed_low: int,
    seed_high: int,
    directions: str,
    dtype: torch.dtype,
) -> Tensor:
    """Unit displacements of one whole parameter, made tile by tile; the op's reference."""
    key = (seed_low, seed_high)
    size = tuple(shape) or (1,)
    out = torch.empty(len(rows), *size, dtype=dtype, device=rows.device)
    if not out.numel():
        return out.reshape(len(rows), *shape)
    rows_at_once = max(1, TILE // max(1, math.prod(size)))
    for first in range(0, len(rows), rows_at_once):
        chunk = slice(first, first + rows_at_once)
        for start, stop in slabs(size, TILE):
            out[chunk, start:stop] = unit_slab(directions, rows[chunk], ordinal, size, key, start, stop, dtype)
    return out.reshape(len(rows), *shape)
