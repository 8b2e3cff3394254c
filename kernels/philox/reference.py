"""The random stream in torch integer arithmetic: Philox-4x32-10, its counters, and the mapping to unit displacements.

This file is the definition of the stream; README.md beside it draws the layout. Everything is a function of
(seed, row, tensor, index) alone, so any part of a displacement can be made anywhere, in any order.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from nntk.kernels.philox.directions import parse

STREAM_VERSION = 1
"""Changes whenever the same seed would give other displacements; stored in every result."""

DISPLACEMENT, BASE, INPUT_SIGNS, OUTPUT_SIGNS, LEFT, RIGHT, RADIUS, PROJECTION = range(8)
"""Purposes of words: the displacement itself; flipout's bases and its signs; lowrank's two factors; the radii of fixed
kernels; projections for attention. Streams of the same seed and of different purposes are independent."""

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
    rows: Tensor, blocks: Tensor, ordinals: Tensor, key: tuple[int, int], purposes: Tensor | int = DISPLACEMENT
) -> Words:
    """The four words of each (row, block).

    Args:
        rows: Row numbers m, [M], int64 in [0, 2**32).
        blocks: Block numbers, [B], int64 in [0, 2**48).
        ordinals: Position of the blocks' parameters in registration order, [B] or [1], int64.
        key: Low and high 32 bits of the seed.
        purposes: What the words are for, [B] or one number, in [0, 256).

    Returns:
        Four int64 tensors, [M, B].
    """
    high = (STREAM_VERSION << 24) | (purposes << 16) | (blocks >> 32)
    shape = (len(rows), len(blocks))
    w0, w1, w2, w3 = philox((blocks & _MASK, ordinals, rows[:, None], high), key)
    return w0.expand(shape), w1.expand(shape), w2.expand(shape), w3.expand(shape)


@dataclass(frozen=True)
class Slab:
    """Slices [start, stop) along the leading axis of one tensor; start is a multiple of ``alignment(shape)``."""

    ordinal: int
    shape: tuple[int, ...]
    start: int
    stop: int
    purpose: int = DISPLACEMENT

    @classmethod
    def whole(cls, ordinal: int, shape: tuple[int, ...], purpose: int = DISPLACEMENT) -> "Slab":
        """All of a tensor; a scalar is a vector of one."""
        shape = shape or (1,)
        return cls(ordinal, shape, 0, shape[0], purpose)

    @property
    def width(self) -> int:
        """Numbers in a slice."""
        return math.prod(self.shape[1:])

    @property
    def size(self) -> int:
        """Numbers in the slab."""
        return (self.stop - self.start) * self.width

    @property
    def is_matrix(self) -> bool:
        """Whether the tensor has more than one axis, and is seen as [H, K] = [shape[0], rest]."""
        return len(self.shape) > 1


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
    if not slab.is_matrix:
        return torch.stack(tuple(pairs), dim=2).flatten(1)[:, :length]
    # A block's words (0, 1) give columns 2q, 2q + 1 of its group of 16, and (2, 3) columns 2q + 8, 2q + 9.
    groups = torch.stack([pair.reshape(rows, -1, 8) for pair in pairs], dim=2)
    return groups.view(rows, length, -1)[..., : slab.width].reshape(rows, length, *slab.shape[1:])


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
    if not slab.is_matrix:
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
    if not slab.is_matrix:
        return made[:, :length]
    return made[..., : slab.width].reshape(len(made), length, *slab.shape[1:])


def alignment(shape: tuple[int, ...]) -> int:
    """Slices along the leading axis that one block of words may span: slabs start at its multiples."""
    return 4 if len(shape) > 1 else 128


def _normal_blocks(slab: Slab) -> tuple[int, int]:
    """So many blocks for so many slices, by the layout of README.md."""
    return (-(-slab.width // 16) * 4, 1) if slab.is_matrix else (1, 4)


def _sign_blocks(slab: Slab) -> tuple[int, int]:
    return (-(-slab.width // 32), 4) if slab.is_matrix else (1, 128)


def _words(
    span: Callable[[Slab], tuple[int, int]], rows: Tensor, slabs: Sequence[Slab], key: tuple[int, int]
) -> tuple[Words, list[int]]:
    """The words of several slabs in one go, [M, blocks of all], and the number of blocks of each."""
    ranges = [
        (slab.start // slices * blocks, -(-slab.stop // slices) * blocks)
        for slab, (blocks, slices) in ((slab, span(slab)) for slab in slabs)
    ]
    counts = [stop - start for start, stop in ranges]
    blocks = torch.cat([rows[:0], *(torch.arange(start, stop, device=rows.device) for start, stop in ranges)])
    which = torch.tensor([(slab.ordinal, slab.purpose) for slab in slabs], dtype=torch.int64, device=rows.device)
    ordinals, purposes = which.view(-1, 2).repeat_interleave(rows.new_tensor(counts), dim=0).unbind(1)
    return stream_words(rows, blocks, ordinals, key, purposes), counts


def normals(rows: Tensor, slabs: Sequence[Slab], key: tuple[int, int], dtype: torch.dtype) -> list[Tensor]:
    """Unit normals rounded to bfloat16, by the layout of the gaussian family, for the purpose of each slab.

    Args:
        rows: Row numbers m, [M], int64.
        slabs: What to make, in one go.
        key: Low and high 32 bits of the seed.
        dtype: Floating dtype of the result; holds the values exactly.

    Returns:
        For each slab [M, stop - start, *shape[1:]].
    """
    words, counts = _words(_normal_blocks, rows, slabs, key)
    pairs = [torch.split(pair, counts, dim=1) for pair in _normals(words)]
    return [_arrange_normals(parts, slab).to(dtype) for *parts, slab in zip(*pairs, slabs, strict=True)]


def signs(rows: Tensor, slabs: Sequence[Slab], key: tuple[int, int], dtype: torch.dtype) -> list[Tensor]:
    """Random signs by the layout of the rademacher family; see :func:`normals`."""
    words, counts = _words(_sign_blocks, rows, slabs, key)
    packed = [torch.split(word.to(torch.int32), counts, dim=1) for word in words]
    return [_arrange_signs(parts, slab).to(dtype) for *parts, slab in zip(*packed, slabs, strict=True)]


def flipout_signs(
    rows: Tensor, shapes: Mapping[int, tuple[int, ...]], key: tuple[int, int], dtype: torch.dtype, numbers: int = TILE
) -> dict[int, tuple[Tensor, Tensor]]:
    r"""The signs that flipout's displacements have to themselves, :math:`E_m = S_b \circ r_m s_m^T` with b = m mod B.

    Args:
        rows: Row numbers m, [M], int64.
        shapes: Shapes of some matrices by ordinal.
        key: Low and high 32 bits of the seed.
        dtype: Floating dtype of the result.
        numbers: Numbers to make at once, about, over all rows.

    Returns:
        For each matrix r [M, H] and s [M, K].
    """
    vectors = [
        Slab.whole(ordinal, (length,), purpose)
        for ordinal, shape in shapes.items()
        for length, purpose in ((shape[0], OUTPUT_SIGNS), (math.prod(shape[1:]), INPUT_SIGNS))
    ]
    made = _whole(partial(signs, key=key, dtype=dtype), rows, vectors, numbers)
    return dict(zip(shapes, zip(made[::2], made[1::2], strict=True), strict=True))


def flipout_bases(
    bases: Tensor, shapes: Mapping[int, tuple[int, ...]], key: tuple[int, int], dtype: torch.dtype, numbers: int = TILE
) -> dict[int, Tensor]:
    """The signs :math:`S_b` that flipout's displacements share, [B, *shape] for each matrix; see :func:`flipout_signs`.

    Args:
        bases: Base numbers b, [B], int64.
        shapes: Shapes of some matrices by ordinal.
        key: Low and high 32 bits of the seed.
        dtype: Floating dtype of the result.
        numbers: Numbers to make at once, about, over all bases.

    Returns:
        The bases; a slab of one is ``signs(bases, [Slab(ordinal, shape, start, stop, BASE)], key, dtype)``.
    """
    matrices = [Slab.whole(ordinal, shape, BASE) for ordinal, shape in shapes.items()]
    return dict(zip(shapes, _whole(partial(signs, key=key, dtype=dtype), bases, matrices, numbers), strict=True))


def lowrank_factors(
    rows: Tensor,
    shapes: Mapping[int, tuple[int, ...]],
    rank: int,
    key: tuple[int, int],
    dtype: torch.dtype,
    numbers: int = TILE,
) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
    r"""The factors of displacements of low rank, :math:`E_m = c_m A_m^T B_m` with :math:`|E_m|^2 = H K`.

    Args:
        rows: Row numbers m, [M], int64.
        shapes: Shapes of some matrices by ordinal.
        rank: Rank R.
        key: Low and high 32 bits of the seed.
        dtype: Floating dtype of the factors; holds their values exactly.
        numbers: Numbers to make at once, about, over all rows.

    Returns:
        For each matrix A [M, R, H], B [M, R, K] and c [M], float64; c is zero where :math:`A_m^T B_m` is.
    """
    wanted = [
        Slab.whole(ordinal, (rank, length), purpose)
        for ordinal, shape in shapes.items()
        for length, purpose in ((shape[0], LEFT), (math.prod(shape[1:]), RIGHT))
    ]
    made = _whole(partial(normals, key=key, dtype=dtype), rows, wanted, numbers)
    return {
        ordinal: (left, right, lowrank_scale(left.double(), right.double()))
        for ordinal, left, right in zip(shapes, made[::2], made[1::2], strict=True)
    }


def lowrank_scale(left: Tensor, right: Tensor) -> Tensor:
    r"""The scales :math:`c_m = \sqrt{H K} / |A_m^T B_m|` of displacements of low rank.

    Args:
        left: A, [M, R, H], float64.
        right: B, [M, R, K], float64.

    Returns:
        [M], zero where the product is; its squared norm is :math:`\sum_{jk} (A A^T)_{jk} (B B^T)_{jk}`.
    """
    squared = ((left @ left.mT) * (right @ right.mT)).sum((1, 2))
    entries = left.shape[2] * right.shape[2]
    return torch.where(squared > 0, entries / squared, 0).sqrt()


def _flipout_slabs(
    bases: int, rows: Tensor, slabs: Sequence[Slab], key: tuple[int, int], dtype: torch.dtype
) -> Iterator[Tensor]:
    distinct, which = torch.unique(rows % bases, return_inverse=True)
    own = flipout_signs(rows, {slab.ordinal: slab.shape for slab in slabs}, key, dtype)
    shared = signs(distinct, [replace(slab, purpose=BASE) for slab in slabs], key, dtype)
    for slab, base in zip(slabs, shared, strict=True):
        r, s = own[slab.ordinal]
        made = base.flatten(2)[which].mul_(r[:, slab.start : slab.stop, None]).mul_(s[:, None])
        yield made.view(len(rows), -1, *slab.shape[1:])


def _lowrank_slabs(
    rank: int, rows: Tensor, slabs: Sequence[Slab], key: tuple[int, int], dtype: torch.dtype
) -> Iterator[Tensor]:
    factors = lowrank_factors(rows, {slab.ordinal: slab.shape for slab in slabs}, rank, key, torch.float64)
    for slab in slabs:
        left, right, scale = factors[slab.ordinal]
        made = torch.matmul(left[:, :, slab.start : slab.stop].mT, right).mul_(scale[:, None, None])
        yield made.to(dtype).view(len(rows), -1, *slab.shape[1:])


def unit_slabs(
    directions: str, rows: Tensor, slabs: Sequence[Slab], key: tuple[int, int], dtype: torch.dtype
) -> list[Tensor]:
    """Unit displacements of some slabs, made in one go.

    Args:
        directions: ``"gaussian"``, ``"rademacher"``, ``"flipout(B)"`` or ``"lowrank(R)"``.
        rows: Row numbers m, [M], int64.
        slabs: What to make.
        key: Low and high 32 bits of the seed.
        dtype: Floating dtype of the result; holds the values exactly, but for lowrank, which is rounded to it.

    Returns:
        For each slab [M, stop - start, *shape[1:]].
    """
    family = parse(directions)
    if family.name == "gaussian":
        return normals(rows, slabs, key, dtype)
    if family.name == "rademacher":
        return signs(rows, slabs, key, dtype)
    # A vector has neither rows nor columns to share: its displacement is that of rademacher.
    vectors, matrices = ([slab for slab in slabs if slab.is_matrix == kind] for kind in (False, True))
    make = _flipout_slabs if family.name == "flipout" else _lowrank_slabs
    made = dict(zip(matrices, make(family.count, rows, matrices, key, dtype), strict=True))
    made.update(zip(vectors, signs(rows, vectors, key, dtype), strict=True))
    return [made[slab] for slab in slabs]


def slabs_of(ordinal: int, shape: tuple[int, ...], numbers: int, purpose: int = DISPLACEMENT) -> Iterator[Slab]:
    """Cut a tensor along its leading axis into slabs of at most ``numbers`` numbers, or one block's span."""
    whole = Slab.whole(ordinal, shape, purpose)
    if not whole.size:
        return
    align = alignment(whole.shape)
    step = max(align, numbers // whole.width // align * align)
    for start in range(0, whole.stop, step):
        yield replace(whole, start=start, stop=min(start + step, whole.stop))


def _batches(tensors: Sequence[Slab], numbers: int) -> Iterator[list[Slab]]:
    """Slabs of all tensors in order, gathered up to ``numbers`` numbers: small tensors share a batch."""
    batch: list[Slab] = []
    size = 0
    for tensor in tensors:
        for slab in slabs_of(tensor.ordinal, tensor.shape, numbers, tensor.purpose):
            if batch and size + slab.size > numbers:
                yield batch
                batch, size = [], 0
            batch.append(slab)
            size += slab.size
    if batch:
        yield batch


Make = Callable[[Tensor, list[Slab]], list[Tensor]]


def _slab_by_slab(make: Make, rows: Tensor, tensors: Sequence[Slab], numbers: int) -> Iterator[tuple[Slab, Tensor]]:
    for batch in _batches(tensors, max(1, numbers // max(1, len(rows)))):
        yield from zip(batch, make(rows, batch), strict=True)


def _whole(make: Make, rows: Tensor, tensors: Sequence[Slab], numbers: int) -> list[Tensor]:
    """Whole tensors from their slabs, [M, *shape] each."""
    parts: dict[tuple[int, int], list[Tensor]] = {(tensor.ordinal, tensor.purpose): [] for tensor in tensors}
    for slab, made in _slab_by_slab(make, rows, tensors, numbers):
        parts[slab.ordinal, slab.purpose].append(made)
    return [made[0] if len(made) == 1 else torch.cat(made, dim=1) for made in parts.values()]


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
        directions: Name of the family, as for :func:`unit_slabs`.
        rows: Row numbers m, [M], int64.
        shapes: Shapes of the parameters by ordinal.
        key: Low and high 32 bits of the seed.
        dtype: Floating dtype of the result.
        numbers: Numbers to make at once, about, over all rows.

    Yields:
        The ordinal and the slab, [M, slices, *shape[1:]], of each in order.
    """
    tensors = [Slab.whole(ordinal, shape) for ordinal, shape in shapes.items()]
    for slab, made in _slab_by_slab(partial(unit_slabs, directions, key=key, dtype=dtype), rows, tensors, numbers):
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
    filled = {ordinal: shape for ordinal, shape in shapes.items() if math.prod(shape)}
    tensors = [Slab.whole(ordinal, shape) for ordinal, shape in filled.items()]
    made = _whole(partial(unit_slabs, directions, key=key, dtype=dtype), rows, tensors, numbers)
    found = dict(zip(filled, made, strict=True))
    return {
        ordinal: found[ordinal].reshape(len(rows), *shape)
        if ordinal in found
        else torch.empty(len(rows), *shape, dtype=dtype, device=rows.device)
        for ordinal, shape in shapes.items()
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
