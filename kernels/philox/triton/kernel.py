"""Random stream on the device: Philox, noise in the register order of a tensor core's operand, kernels that write it.

The integers are those of integers.py, bit for bit. Kernels of other ops inline the jitted functions that have no
launcher. ``PTX`` chooses NVIDIA's approximate special functions; without it the same mapping runs on any device.
In all functions, ``ordinal`` is the position of the parameter in registration order, ``sample_id`` the stream number m,
``key0`` and ``key1`` the low and high 32 bits of the seed as int32, and ``PURPOSE`` the purpose of the words.
"""

import triton
import triton.language as tl

from nntk.kernels.offsets import sized
from nntk.kernels.philox import integers

VERSION: tl.constexpr = tl.constexpr(integers.STREAM_VERSION)
DISPLACEMENT: tl.constexpr = tl.constexpr(integers.DISPLACEMENT)
LEFT: tl.constexpr = tl.constexpr(integers.LEFT)
RIGHT: tl.constexpr = tl.constexpr(integers.RIGHT)

# One compilation serves all of these numbers: strides and columns of rows alone say how wide a store may be.
_NUMBERS = ["key0", "key1", "ordinal", "start", "height", "width", "blocks"]

# One Box-Muller pair: two words become two bfloat16 in one register, the cosine in the low half. u rounds to 1 at most,
# where lg2.approx may err to either side of zero. Its magnitude costs nothing and keeps the radius from being NaN.
_PAIR_PTX: tl.constexpr = tl.constexpr("""{
    .reg .f32 u, t, r, c, s;
    cvt.rn.f32.u32 u, $1;
    cvt.rn.f32.u32 t, $2;
    fma.rn.f32 u, u, 0f2F800000, 0f2F000000;
    mul.f32 t, t, 0f30C90FDB;
    lg2.approx.ftz.f32 r, u;
    abs.f32 r, r;
    mul.f32 r, r, 0f3FB17218;
    sqrt.approx.ftz.f32 r, r;
    cos.approx.ftz.f32 c, t;
    sin.approx.ftz.f32 s, t;
    mul.f32 c, c, r;
    mul.f32 s, s, r;
    cvt.rn.bf16x2.f32 $0, s, c;
}""")


@triton.jit
def computed_once(x, PRECISION: tl.constexpr):
    """Return x, an operand of a product; where that is split into three, each warp may not compute x for itself.

    Several warps multiply the same numbers of an operand. The compiler would exchange among threads what the operand is
    computed from, so that all of these warps compute it. HISTORY.md of assembly and of perturbation have the figures.
    """
    if PRECISION == "tf32x3":
        x = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=False, pack=1)
    return x


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """Apply Philox-4x32-10 to uint32 counters and key: two wide multiplications and two three-way XORs a round."""
    for i in tl.static_range(10):
        p0 = c0.to(tl.uint64) * 0xD2511F53
        p1 = c2.to(tl.uint64) * 0xCD9E8D57
        # The key schedule in 64 bits: sums never overflow, and the constants fold.
        r0 = (k0.to(tl.uint64) + (i * 0x9E3779B9) % 4294967296).to(tl.uint32)
        r1 = (k1.to(tl.uint64) + (i * 0xBB67AE85) % 4294967296).to(tl.uint32)
        c0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ r0
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ r1
        c1 = p1.to(tl.uint32)
        c3 = p0.to(tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def words(block, ordinal, sample_id, key0, key1, PURPOSE: tl.constexpr):
    """Return the four uint32 words of blocks; ``block`` is int32 where the tensor has fewer than 2**32, else int64."""
    c3 = tl.full((), (VERSION << 24) | (PURPOSE << 16), tl.uint32)
    if block.dtype.primitive_bitwidth == 64:
        c3 = c3 | (block >> 32).to(tl.uint32)
    return philox(block.to(tl.uint32), ordinal.to(tl.uint32), sample_id.to(tl.uint32), c3, key0, key1)


@triton.jit
def sine_cosine(turns):
    """Return sine and cosine of 2 pi ``turns`` to 1e-7, without the slow path of the library.

    Near zero the relative error of the sine is 1e-7 too.
    """
    quarter = tl.floor(turns * 4.0 + 0.5)
    x = turns - quarter * 0.25
    y = x * x
    near = x * (6.283185307 + y * (-41.34170224 + y * (81.60524928 + y * (-76.70585975 + y * 42.05869394))))
    far = 1.0 + y * (-19.73920880 + y * (64.93939402 + y * (-85.45681720 + y * (60.24464137 - y * 26.42625678))))
    q = quarter.to(tl.int32)
    sine, cosine = tl.where(q & 1 == 1, far, near), tl.where(q & 1 == 1, near, far)
    return tl.where(q & 2 == 2, -sine, sine), tl.where((q + 1) & 2 == 2, -cosine, cosine)


@triton.jit
def _bfloat16_bits(x):
    """Round to the nearest bfloat16, ties to even, in the high half; in integers, since not every backend converts."""
    bits = x.to(tl.uint32, bitcast=True)
    return (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000


@triton.jit
def normal_pair(word, angle, PTX: tl.constexpr):
    """Return two unit normals from the words of radius and angle: packed bfloat16 in uint32, the cosine low."""
    if PTX:
        return tl.inline_asm_elementwise(_PAIR_PTX, "=r,r,r", [word, angle], dtype=tl.uint32, is_pure=True, pack=1)
    u = word.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10
    radius = tl.sqrt(tl.maximum(tl.log2(u) * -1.3862943611198906, 0.0))
    sine, cosine = sine_cosine(angle.to(tl.float32) * 2.3283064365386963e-10)
    return (_bfloat16_bits(cosine * radius) >> 16) | _bfloat16_bits(sine * radius)


@triton.jit
def unpack_pairs(pair, DTYPE: tl.constexpr):
    """Unpack pairs of bfloat16 [BH, BK / 2] to [BH, BK]; for a 16-bit operand the registers stay as they are."""
    if DTYPE == tl.bfloat16:
        low = (pair & 0xFFFF).to(tl.int16).to(tl.bfloat16, bitcast=True)
        high = (pair >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        low = (pair << 16).to(tl.float32, bitcast=True).to(DTYPE)
        high = (pair & 0xFFFF0000).to(tl.float32, bitcast=True).to(DTYPE)
    return tl.reshape(tl.join(low, high), (pair.shape[0], 2 * pair.shape[1]))


@triton.jit
def gaussian_tile(
    h, k, width, ordinal, sample_id, key0, key1, BK: tl.constexpr, PURPOSE: tl.constexpr, DTYPE: tl.constexpr,
    PTX: tl.constexpr,
):  # fmt: skip
    """Generate normals of rows ``h`` [BH], int32 or int64, and columns [k, k + BK), k a multiple of 16: [BH, BK].

    The four normals of a block are columns 2 b + {0, 1, 8, 9} of a group of 16, which is what one thread holds of a
    16-bit operand. So join, permute and reshape only rename registers.
    """
    BH: tl.constexpr = h.shape[0]
    blocks_per_row = (width + 15) // 16 * 4
    block = h[:, None] * blocks_per_row + (k // 4 + tl.arange(0, BK // 4))[None, :]
    w0, w1, w2, w3 = words(block, ordinal, sample_id, key0, key1, PURPOSE)
    pair = tl.join(normal_pair(w0, w1, PTX), normal_pair(w2, w3, PTX))
    pair = tl.permute(tl.reshape(pair, (BH, BK // 16, 4, 2)), (0, 1, 3, 2))
    return unpack_pairs(tl.reshape(pair, (BH, BK // 2)), DTYPE)


@triton.jit
def sign_words(h, k, width, ordinal, sample_id, key0, key1, BH: tl.constexpr, BW: tl.constexpr, PURPOSE: tl.constexpr):
    """Generate packed signs of rows [h, h + BH) and columns [k, k + 32 BW): [BH, BW], uint32.

    ``h`` is a multiple of 4 and ``k`` a multiple of 32.
    """
    quads = h // 4 + tl.arange(0, BH // 4)
    block = quads[:, None] * ((width + 31) // 32) + (k // 32 + tl.arange(0, BW))[None, :]
    w0, w1, w2, w3 = words(block, ordinal, sample_id, key0, key1, PURPOSE)
    packed = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    return tl.reshape(tl.permute(packed, (0, 2, 3, 1)), (BH, BW))


@triton.jit
def unpack_signs(packed, DTYPE: tl.constexpr):
    """Unpack signs [BH, BW], uint32, to values [BH, 32 BW]; a set bit is -1.

    One multiplication sends two adjacent bits to the sign bits of two packed bfloat16 ones; under the masks below its
    partial products never meet there. A thread shifts by its 2 b once, then by constants: 1.5 instructions a sign.
    """
    BH: tl.constexpr = packed.shape[0]
    BW: tl.constexpr = packed.shape[1]
    shifted = packed[:, :, None] >> (2 * tl.arange(0, 4)).to(tl.uint32)[None, None, :]
    low, high = shifted & 0x0303, (shifted >> 16) & 0x0303
    first = tl.join((low * 0x40008000) & 0x80008000, (high * 0x40008000) & 0x80008000)
    second = tl.join((low * 0x00400080) & 0x80008000, (high * 0x00400080) & 0x80008000)
    # Axes: row, word, b, group of 16, column + {0, 8}.
    pair = tl.permute(tl.join(first, second) | 0x3F803F80, (0, 1, 3, 4, 2))
    return unpack_pairs(tl.reshape(pair, (BH, BW * 16)), DTYPE)


@triton.jit
def gaussian_vector(i, ordinal, sample_id, key0, key1, PTX: tl.constexpr):
    """Generate normals at positions ``i`` of a flat tensor, float32.

    Every position generates its whole block, so this is for short vectors only.
    """
    w0, w1, w2, w3 = words(i // 4, ordinal, sample_id, key0, key1, DISPLACEMENT)
    first = i % 4 < 2
    pair = normal_pair(tl.where(first, w0, w2), tl.where(first, w1, w3), PTX)
    return tl.where(i % 2 == 0, pair << 16, pair & 0xFFFF0000).to(tl.float32, bitcast=True)


@triton.jit
def sign_vector(i, ordinal, sample_id, key0, key1, PURPOSE: tl.constexpr):
    """Generate signs at positions ``i`` of a flat tensor, float32.

    Every position generates its whole block, so this is for short vectors only.
    """
    w0, w1, w2, w3 = words(i // 128, ordinal, sample_id, key0, key1, PURPOSE)
    index = i // 32 % 4
    word = tl.where(index < 2, tl.where(index == 0, w0, w1), tl.where(index == 2, w2, w3))
    bit = (word >> (i % 32).to(tl.uint32)) << 31
    return (bit | 0x3F800000).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=_NUMBERS, do_not_specialize_on_alignment=["sample_ids"])
def write_noise(
    out, stride_out_m, stride_out_h, columns, sample_ids, key0, key1, ordinal, start, height, width,
    SIGNS: tl.constexpr, PURPOSE: tl.constexpr, DTYPE: tl.constexpr, PTX: tl.constexpr, WIDE: tl.constexpr,
    BH: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Write unit displacements of rows [start, start + height) of a matrix, one tile [BH, BK] a program.

    Columns beyond the width receive noise that is never read, so that stores to padded rows stay wide.

    Args:
        out: Noise, [M, height, columns], of type DTYPE; columns lie next to each other.
        stride_out_m: Elements between samples of ``out``.
        stride_out_h: Elements between rows of ``out``.
        columns: Columns to write, at least ``width``.
        sample_ids: Stream numbers m, [M], int64; nothing is written for a sample of -1.
        key0: Low 32 bits of the seed.
        key1: High 32 bits of the seed.
        ordinal: Position of the parameter in registration order.
        start: First row of the matrix to write, a multiple of 4.
        height: Rows to write.
        width: Columns K of the matrix.
        SIGNS: True for random signs, False for normals.
        PURPOSE: Purpose of the words in the stream.
        DTYPE: Triton type of the noise.
        PTX: True to use NVIDIA's approximate special functions.
        WIDE: True if block numbers need 64 bits.
        BH: Rows of a tile.
        BK: Columns of a tile.
    """
    tiles_h, tiles_k = tl.cdiv(height, BH), tl.cdiv(columns, BK)
    tile, m = tl.program_id(0) % (tiles_h * tiles_k), tl.program_id(0) // (tiles_h * tiles_k)
    h0, k0 = tile // tiles_k * BH, tile % tiles_k * BK
    sample_id = tl.load(sample_ids + m)
    if sample_id >= 0:
        h = h0 + tl.arange(0, BH)
        first = sized(h0, WIDE) + start
        k = k0 + tl.arange(0, BK)
        if SIGNS:
            packed = sign_words(first, k0, width, ordinal, sample_id, key0, key1, BH, BK // 32, PURPOSE)
            noise = unpack_signs(packed, DTYPE)
        else:
            rows = first + tl.arange(0, BH)
            noise = gaussian_tile(rows, k0, width, ordinal, sample_id, key0, key1, BK, PURPOSE, DTYPE, PTX)
        pointers = out + m.to(tl.int64) * stride_out_m + h.to(tl.int64)[:, None] * stride_out_h + k[None, :]
        tl.store(pointers, noise, mask=(h < height)[:, None] & (k < columns)[None, :])


@triton.jit
def _number(odd):
    """Return n for 2 n + 3: see ``launch.unspecialised``."""
    return (odd - 3) >> 1


@triton.jit
def _write_vector(
    out, i, length, ordinal, sample_id, key0, key1, SIGNS: tl.constexpr, PURPOSE: tl.constexpr, PTX: tl.constexpr
):  # fmt: skip
    """Write unit displacements at positions ``i`` of a vector."""
    if SIGNS:
        noise = sign_vector(i, ordinal, sample_id, key0, key1, PURPOSE)
    else:
        noise = gaussian_vector(i, ordinal, sample_id, key0, key1, PTX)
    tl.store(out + i, noise.to(out.dtype.element_ty), mask=i < length)


@triton.jit(do_not_specialize=[*_NUMBERS, "samples"], do_not_specialize_on_alignment=["sample_ids"])
def write_vectors(
    out, samples, start, sample_ids, key0, key1, ordinals, lengths,
    SIGNS: tl.constexpr, PURPOSES: tl.constexpr, PTX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write unit displacements of several vectors, BLOCK positions of one of them a program.

    Args:
        out: Noise, for each vector [samples, length], one behind the other; a floating type.
        samples: Samples of a vector in ``out``.
        start: First sample to write.
        sample_ids: Stream numbers m from there on, int64.
        key0: Low 32 bits of the seed.
        key1: High 32 bits of the seed.
        ordinals: Positions of the parameters in registration order, as ``launch.unspecialised`` gives numbers.
        lengths: Lengths of the vectors, likewise.
        SIGNS: True for random signs, False for normals.
        PURPOSES: Purposes of the words of signs.
        PTX: True to use NVIDIA's approximate special functions.
        BLOCK: Positions of a program.
    """
    tiles = 0
    for v in tl.static_range(len(PURPOSES)):
        tiles += tl.cdiv(_number(lengths[v]), BLOCK)
    m, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    sample_id, row = tl.load(sample_ids + m), m.to(tl.int64) + start
    for v in tl.static_range(len(PURPOSES)):
        length = _number(lengths[v])
        own = tl.cdiv(length, BLOCK)
        if (tile >= 0) & (tile < own):
            _write_vector(
                out + row * length, tile * BLOCK + tl.arange(0, BLOCK), length, _number(ordinals[v]), sample_id, key0,
                key1, SIGNS, PURPOSES[v], PTX,
            )  # fmt: skip
        tile -= own
        out += samples.to(tl.int64) * length


@triton.jit
def _write_factor(
    out, stride, columns, length, ordinal, sample_id, key0, key1,
    PURPOSE: tl.constexpr, ROWS: tl.constexpr, PTX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write a factor [1, columns] with rows of zeros behind it, and return the sum of its squares, float64."""
    row, rows = tl.arange(0, 1), tl.arange(0, ROWS)
    squares = tl.zeros((1, BLOCK), tl.float64)
    for k0 in range(0, columns, BLOCK):
        k = k0 + tl.arange(0, BLOCK)
        noise = gaussian_tile(row, k0, length, ordinal, sample_id, key0, key1, BLOCK, PURPOSE, tl.float32, PTX)
        squares += tl.where((k < length)[None, :], noise * noise, 0.0).to(tl.float64)
        values = tl.where((rows == 0)[:, None], noise, 0.0).to(out.dtype.element_ty)
        tl.store(out + rows[:, None] * stride + k[None, :], values, mask=(k < columns)[None, :])
    return tl.sum(squares)


@triton.jit
def _padded(length):
    """Return the length of a row in memory."""
    return (length + 15) // 16 * 16


@triton.jit
def _write_rank_one(
    out, scales, height, width, ordinal, sample_id, key0, key1, ROWS: tl.constexpr, PTX: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Write both factors of one matrix for one sample, and their scale."""
    left, right = _padded(height), _padded(width)
    stride = left + right
    squares = _write_factor(out, stride, left, height, ordinal, sample_id, key0, key1, LEFT, ROWS, PTX, BLOCK)
    squares *= _write_factor(
        out + left, stride, right, width, ordinal, sample_id, key0, key1, RIGHT, ROWS, PTX, BLOCK
    )  # fmt: skip
    scale = tl.sqrt(height.to(tl.float64) * width.to(tl.float64) / squares)
    tl.store(scales, tl.where(squares > 0, scale, 0.0))


@triton.jit(do_not_specialize=[*_NUMBERS, "samples"], do_not_specialize_on_alignment=["sample_ids"])
def write_rank_one(
    out, scales, samples, start, sample_ids, key0, key1, ordinals, heights, widths,
    ROWS: tl.constexpr, PTX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write both factors of rank one of several matrices, with rows of zeros behind them, and their scales.

    A program writes the factors of one matrix for one sample. Columns beyond the length of a factor receive noise that
    is never read, so that stores to padded rows stay wide.

    Args:
        out: For each matrix, one behind the other, the left factor a and the right factor b in one row, [samples, rows,
            padded height + padded width].
        scales: Scales sqrt(height width) / (|a| |b|), [matrices, samples], float64; zero where a factor is zero.
        samples: Samples of a matrix in ``out``.
        start: First sample to write.
        sample_ids: Stream numbers m from there on, int64.
        key0: Low 32 bits of the seed.
        key1: High 32 bits of the seed.
        ordinals: Positions of the parameters in registration order, as ``launch.unspecialised`` gives numbers.
        heights: Lengths of the left factors, likewise.
        widths: Lengths of the right factors, likewise.
        ROWS: Rows of the factors of each matrix in memory.
        PTX: True to use NVIDIA's approximate special functions.
        BLOCK: Columns of a tile.
    """
    matrix, m = tl.program_id(0) % len(ROWS), tl.program_id(0) // len(ROWS)
    sample_id, row = tl.load(sample_ids + m), m.to(tl.int64) + start
    for i in tl.static_range(len(ROWS)):
        height, width = _number(heights[i]), _number(widths[i])
        size = (_padded(height) + _padded(width)).to(tl.int64) * ROWS[i]
        if matrix == i:
            _write_rank_one(
                out + row * size, scales + row, height, width, _number(ordinals[i]), sample_id, key0, key1, ROWS[i],
                PTX, BLOCK,
            )  # fmt: skip
        out += samples.to(tl.int64) * size
        scales += samples.to(tl.int64)


@triton.jit(do_not_specialize=_NUMBERS, do_not_specialize_on_alignment=["sample_ids"])
def write_words(out, sample_ids, key0, key1, ordinal, blocks, PURPOSE: tl.constexpr, BLOCK: tl.constexpr):
    """Write the words of the stream themselves, BLOCK blocks a program.

    Args:
        out: Words, [M, blocks, 4], int32, contiguous.
        sample_ids: Stream numbers m, [M], int64.
        key0: Low 32 bits of the seed.
        key1: High 32 bits of the seed.
        ordinal: Position of the parameter in registration order.
        blocks: Number of blocks.
        PURPOSE: Purpose of the words.
        BLOCK: Blocks of a program.
    """
    tiles = tl.cdiv(blocks, BLOCK)
    m, b = tl.program_id(0) // tiles, tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    w0, w1, w2, w3 = words(b, ordinal, tl.load(sample_ids + m), key0, key1, PURPOSE)
    packed = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (BLOCK, 4)).to(tl.int32, bitcast=True)
    pointers = out + (m.to(tl.int64) * blocks + b)[:, None] * 4 + tl.arange(0, 4)[None, :]
    tl.store(pointers, packed, mask=(b < blocks)[:, None])


@triton.jit
def _squares(pair, column, width, valid, PADDED: tl.constexpr):
    """Return the sum of the squares of a packed pair at columns ``column`` and the next, without those of padding."""
    even, odd = (pair << 16).to(tl.float32, bitcast=True), (pair & 0xFFFF0000).to(tl.float32, bitcast=True)
    if PADDED:
        even, odd = tl.where(column < width, even, 0.0), tl.where(column + 1 < width, odd, 0.0)
    return tl.where(valid, even * even + odd * odd, 0.0)


@triton.jit
def _sum_squares(
    split, splits, ordinal, blocks, blocks_per_row, width, sample_id, key0, key1,
    VECTOR: tl.constexpr, PADDED: tl.constexpr, PTX: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return the sum of the squares of normals in every splits-th tile of BLOCK blocks of a parameter."""
    total = tl.zeros((BLOCK,), tl.float32)
    start, stride = split * BLOCK, splits * BLOCK
    if WIDE:
        start, stride = split.to(tl.int64) * BLOCK, splits.to(tl.int64) * BLOCK
    for first in range(start, blocks, stride):
        block = sized(first + tl.arange(0, BLOCK), WIDE)
        w0, w1, w2, w3 = words(block, ordinal, sample_id, key0, key1, DISPLACEMENT)
        column, step = block * 4, 2
        if PADDED and not VECTOR:
            column, step = block % blocks_per_row // 4 * 16 + block % 4 * 2, 8
        total += _squares(normal_pair(w0, w1, PTX), column, width, block < blocks, PADDED)
        total += _squares(normal_pair(w2, w3, PTX), column + step, width, block < blocks, PADDED)
    return tl.sum(total)


@triton.jit(do_not_specialize=[*_NUMBERS, "stride_out_m"], do_not_specialize_on_alignment=["sample_ids", "out"])
def sum_squares(
    out, stride_out_m, sample_ids, key0, key1, ordinals, heights, widths, shares,
    HAS_VECTORS: tl.constexpr, HAS_MATRICES: tl.constexpr, PTX: tl.constexpr, WIDE: tl.constexpr, COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum the squares of normals of several parameters; a program shares one of them for one sample with others.

    Args:
        out: Partial squared norms, [M, programs of a sample], float32.
        stride_out_m: Elements between samples of ``out``.
        sample_ids: Stream numbers m, [M], int64.
        key0: Low 32 bits of the seed.
        key1: High 32 bits of the seed.
        ordinals: Positions of the parameters in registration order, as ``launch.unspecialised`` gives numbers.
        heights: Rows of the matrices, likewise; 0 for a vector.
        widths: Columns K of the matrices, or lengths of the vectors, likewise.
        shares: Programs that share a parameter for one sample, likewise.
        HAS_VECTORS: True if blocks of vectors hold normals of padding, which are not counted.
        HAS_MATRICES: True if blocks of matrices do.
        PTX: True to use NVIDIA's approximate special functions.
        WIDE: True if the loop needs 64-bit numbers of blocks or normals.
        COUNT: Number of parameters.
        BLOCK: Blocks of a tile.
    """
    programs = 0
    for p in tl.static_range(COUNT):
        programs += _number(shares[p]).to(tl.int32)
    place, m = tl.program_id(0) % programs, tl.program_id(0) // programs
    ordinal, height, width = tl.zeros((), tl.int32), sized(m * 0, WIDE), sized(m * 0, WIDE)
    own, first, before = programs, 0, 0
    for p in tl.static_range(COUNT):
        if place >= before:
            ordinal = _number(ordinals[p]).to(tl.int32)
            height, width = _number(heights[p]).to(height.dtype), _number(widths[p]).to(width.dtype)
            own, first = _number(shares[p]).to(tl.int32), before
        before += _number(shares[p]).to(tl.int32)
    blocks_per_row = _padded(width) // 4
    blocks = tl.where(height == 0, (width + 3) // 4, height * blocks_per_row)
    is_padded = width % tl.where(height == 0, 4, 16) != 0
    sample_id, split = tl.load(sample_ids + m), place - first
    total = tl.full((), 0.0, tl.float32)
    if not is_padded:
        total = _sum_squares(
            split, own, ordinal, blocks, blocks_per_row, width, sample_id, key0, key1, False, False, PTX, WIDE, BLOCK
        )  # fmt: skip
    if HAS_VECTORS:
        if is_padded & (height == 0):
            total = _sum_squares(
                split, own, ordinal, blocks, blocks_per_row, width, sample_id, key0, key1, True, True, PTX, WIDE, BLOCK
            )  # fmt: skip
    if HAS_MATRICES:
        if is_padded & (height > 0):
            total = _sum_squares(
                split, own, ordinal, blocks, blocks_per_row, width, sample_id, key0, key1, False, True, PTX, WIDE, BLOCK
            )  # fmt: skip
    tl.store(out + m.to(tl.int64) * stride_out_m + place, total)
