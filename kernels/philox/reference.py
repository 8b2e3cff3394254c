"""The random stream in torch integer arithmetic: Philox-4x32-10, its counters, and the mapping to unit displacements.

This file is the definition of the stream; README.md beside it draws the layout. Everything is a function of
(seed, row, tensor, index) alone, so any part of a displacement can be made anywhere, in any order.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

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
            # By now c0 and c2 have the broadcast shape and are ours: in place, which spares the caches.
            torch.bitwise_right_shift(p1, 32, out=c0).bitwise_xor_(c1).bitwise_xor_(k0).bitwise_and_(_MASK)
            torch.bitwise_right_shift(p0, 32, out=c2).bitwise_xor_(c3).bitwise_xor_(k1).bitwise_and_(_MASK)
        c1, c3 = p1, p0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1 & _MASK, c2, c3 & _MASK


def stream_words(
    rows: Tensor, blocks: Tensor, ordinals: Tensor, key: tuple[int, int], purpose: int = DISPLACEMENT
) -> Words:
    """The four words of each (row, block).

    Args:
        rows: Row numbers m, [M], int64 in [0, 2**32).
        blocks: Block numbers, [B], int64 in [0, 2**48).
        ordinals: Position of the blocks' parameters in registration order, [B] or [1], int64.
        key: Low and high 32 bits of the seed.
        purpose: What the words are for, in [0, 256).

    Returns:
        Four int64 tensors, [M, B].
    """
    high = (STREAM_VERSION << 24) | (purpose << 16)
    shape = (len(rows), len(blocks))
    w0, w1, w2, w3 = philox((blocks & _MASK, ordinals, rows[:, None], high | (blocks >> 32)), key)
    return w0.expand(shape), w1.expand(shape), w2.expand(shape), w3.expand(shape)


@dataclass(frozen=True)
class Slab:
    """Slices [start, stop) along the leading axis of one parameter; start is a multiple of ``alignment(shape)``."""

    ordinal: int
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def width(self) -> int:
        """Numbers in a slice."""
        return math.prod(self.shape[1:])

    @property
    def size(self) -> int:
        """Numbers in the slab."""
        return (self.stop - self.start) * self.width


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


def _normals(words: Words) -> tuple[Tensor, ...]:
    """The pairs of words (0, 1) and (2, 3) as two normals each, [M, B, 2], bfloat16."""
    return box_muller(*words[:2]).to(torch.bfloat16), box_muller(*words[2:]).to(torch.bfloat16)


def _arrange_normals(pairs: Sequence[Tensor], slab: Slab) -> Tensor:
    rows, length = len(pairs[0]), slab.stop - slab.start
    if len(slab.shape) < 2:
        return torch.stack(tuple(pairs), dim=2).flatten(1)[:, :length]
    # A block's words (0, 1) give columns 2q, 2q + 1 of its group of 16, and (2, 3) columns 2q + 8, 2q + 9.
    groups = torch.stack([pair.reshape(rows, -1, 8) for pair in pairs], dim=2)
    return groups.view(rows, length, -1)[..., : slab.width].reshape(rows, length, *slab.shape[1:])


def _packed(words: Words) -> tuple[Tensor, ...]:
    """The four words of signs, [M, B], int32."""
    return tuple(word.to(torch.int32) for word in words)


def arrange_packed_signs(words: Sequence[Tensor], slab: Slab) -> Tensor:
    """Random signs, 32 to a word: bit k mod 32 of word k // 32 is set where column k is -1.

    Args:
        words: The four words of the slab's blocks, [M, B], int32.
        slab: What they are the signs of.

    Returns:
        int32 words: [M, stop - start, ceil(width / 32)], or [M, ceil((stop - start) / 32)] for a vector. Bits past the
        end of a row are random and belong to nobody.
    """
    rows, length = len(words[0]), slab.stop - slab.start
    if len(slab.shape) < 2:
        return torch.stack(tuple(words), dim=-1).flatten(1)[:, : -(-length // 32)]
    columns = -(-slab.width // 32)
    quads = torch.stack([word.reshape(rows, -1, columns) for word in words], dim=2)
    return quads.view(rows, -1, columns)[:, :length]


def _arrange_signs(words: Sequence[Tensor], slab: Slab) -> Tensor:
    octets = arrange_packed_signs(words, slab).contiguous().view(torch.uint8).int()
    bits = torch.arange(8, device=octets.device)
    values = 1 - 2 * ((torch.arange(256, device=octets.device)[:, None] >> bits) & 1)
    made = torch.nn.functional.embedding(octets, values.float()).flatten(-2)
    length = slab.stop - slab.start
    if len(slab.shape) < 2:
        return made[:, :length]
    return made[..., : slab.width].reshape(len(made), length, *slab.shape[1:])


def alignment(shape: tuple[int, ...]) -> int:
    """Slices along the leading axis that one block of words may span: slabs start at its multiples."""
    return 4 if len(shape) > 1 else 128


def _block_range(directions: str, slab: Slab) -> tuple[int, int]:
    """The blocks of a slab, by the layout of README.md: so many blocks for so many slices."""
    if directions == "gaussian":
        blocks, slices = (-(-slab.width // 16) * 4, 1) if len(slab.shape) > 1 else (1, 4)
    else:
        blocks, slices = (-(-slab.width // 32), 4) if len(slab.shape) > 1 else (1, 128)
    return slab.start // slices * blocks, -(-slab.stop // slices) * blocks


def unit_slabs(
    directions: str, rows: Tensor, slabs: Sequence[Slab], key: tuple[int, int], dtype: torch.dtype
) -> list[Tensor]:
    """Unit displacements of some slabs, made in one go.

    Args:
        directions: ``"gaussian"`` (rounded to bfloat16 by definition) or ``"rademacher"``.
        rows: Row numbers m, [M], int64.
        slabs: What to make.
        key: Low and high 32 bits of the seed.
        dtype: Floating dtype of the result; holds the values exactly.

    Returns:
        For each slab [M, stop - start, *shape[1:]].
    """
    convert, arrange = (_normals, _arrange_normals) if directions == "gaussian" else (_packed, _arrange_signs)
    ranges = [_block_range(directions, slab) for slab in slabs]
    counts = [stop - start for start, stop in ranges]
    blocks = torch.cat([torch.arange(start, stop, device=rows.device) for start, stop in ranges])
    ordinals = torch.cat(
        [torch.full((count,), slab.ordinal, device=rows.device) for count, slab in zip(counts, slabs, strict=True)]
    )
    numbers = [torch.split(part, counts, dim=1) for part in convert(stream_words(rows, blocks, ordinals, key))]
    return [arrange(parts, slab).to(dtype) for *parts, slab in zip(*numbers, slabs, strict=True)]


def slabs_of(ordinal: int, shape: tuple[int, ...], numbers: int) -> Iterator[Slab]:
    """Cut a parameter along its leading axis into slabs of at most ``numbers`` numbers, or one block's span."""
    shape = shape or (1,)
    if not math.prod(shape):
        return
    align = alignment(shape)
    step = max(align, numbers // math.prod(shape[1:]) // align * align)
    for start in range(0, shape[0], step):
        yield Slab(ordinal, shape, start, min(start + step, shape[0]))


def _batches(shapes: Mapping[int, tuple[int, ...]], numbers: int) -> Iterator[list[Slab]]:
    """Slabs of all parameters in order, gathered up to ``numbers`` numbers: small tensors share a batch."""
    batch: list[Slab] = []
    size = 0
    for ordinal, shape in shapes.items():
        for slab in slabs_of(ordinal, shape, numbers):
            if batch and size + slab.size > numbers:
                yield batch
                batch, size = [], 0
            batch.append(slab)
            size += slab.size
    if batch:
        yield batch


def generate(
    directions: str,
    rows: Tensor,
    shapes: Mapping[int, tuple[int, ...]],
    key: tuple[int, int],
    dtype: torch.dtype,
    numbers: int = TILE,
) -> Iterator[tuple[int, Tensor]]:
    """Unit displacements of several parameters, slab by slab; small ones are made together.

    Args:
        directions: ``"gaussian"`` or ``"rademacher"``.
        rows: Row numbers m, [M], int64.
        shapes: Shapes of the parameters by ordinal.
        key: Low and high 32 bits of the seed.
        dtype: Floating dtype of the result.
        numbers: Numbers to make at once, about, over all rows.

    Yields:
        The ordinal and the slab, [M, slices, *shape[1:]], of each in order.
    """
    for batch in _batches(shapes, max(1, numbers // max(1, len(rows)))):
        for slab, made in zip(batch, unit_slabs(directions, rows, batch, key, dtype), strict=True):
            yield slab.ordinal, made


def displacements(
    directions: str,
    rows: Tensor,
    shapes: Mapping[int, tuple[int, ...]],
    key: tuple[int, int],
    dtype: torch.dtype,
    numbers: int = TILE,
) -> dict[int, Tensor]:
    """Whole unit displacements of several parameters, [M, *shape] by ordinal; see :func:`generate`."""
    parts: dict[int, list[Tensor]] = {ordinal: [] for ordinal in shapes}
    for ordinal, made in generate(directions, rows, shapes, key, dtype, numbers):
        parts[ordinal].append(made)
    return {
        ordinal: (made[0] if len(made) == 1 else torch.cat(made, dim=1)).reshape(len(rows), *shapes[ordinal])
        if made
        else torch.empty(len(rows), *shapes[ordinal], dtype=dtype, device=rows.device)
        for ordinal, made in parts.items()
    }


def unit_displacements(
    rows: Tensor,
    ordinal: int,
    shape: list[int],
    seed_low: int,
    seed_high: int,
    directions: str,
    dtype: torch.dtype,
) -> Tensor:
    """The op ``nntk::unit_displacements`` for every backend: one whole parameter."""
    size = tuple(shape)
    out = torch.empty(len(rows), *size, dtype=dtype, device=rows.device)
    rows_at_once = max(1, TILE // max(1, math.prod(size)))
    for first in range(0, len(rows), rows_at_once):
        chunk = slice(first, first + rows_at_once)
        out[chunk] = displacements(directions, rows[chunk], {ordinal: size}, (seed_low, seed_high), dtype)[ordinal]
    return out
