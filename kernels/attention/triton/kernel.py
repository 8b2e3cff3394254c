"""Attention over displacements on the device: one streaming pass for the softmax, one that writes weights.

Exponents are ``prior + factor * t`` in float32. They are never stored: whoever needs them makes them from the value,
which it loads anyway (kernels of other ops inline ``exponent``).
"""

import triton
import triton.language as tl

from nntk.kernels.philox import reference
from nntk.kernels.philox.triton.kernel import normal_pair, unpack_pairs, unpack_signs, words

DISPLACEMENT: tl.constexpr = tl.constexpr(reference.DISPLACEMENT)
PROJECTION: tl.constexpr = tl.constexpr(reference.PROJECTION)


@triton.jit
def exponent(value, key, prior, factor, SCORE: tl.constexpr):
    """The exponent of values of one output; ``dot`` multiplies by the key f(x), ``given`` values are scores."""
    if SCORE == "dot":
        value = value * key
    elif SCORE == "distance":
        value = -0.5 * value * value
    return prior + factor * value


@triton.jit
def _load_exponents(values, key, priors, factors, m, n, num_inputs, rows, SCORE: tl.constexpr):
    """Exponents of rows m [BM] and inputs n [BN]; minus infinity beyond ``rows`` and ``num_inputs``."""
    there = m < rows
    keep = there[:, None] & (n < num_inputs)[None, :]
    prior = tl.load(priors + m, mask=there, other=0.0)[:, None]
    factor = tl.load(factors + m, mask=there, other=0.0)[:, None]
    value = tl.load(values + m.to(tl.int64)[:, None] * num_inputs + n[None, :], mask=keep, other=0.0)
    return tl.where(keep, exponent(value, key, prior, factor, SCORE), float("-inf"))


@triton.jit
def _load_key(keys, n, num_inputs, SCORE: tl.constexpr):
    """Keys of inputs n as a line; 0 where the score takes none."""
    key = tl.zeros((n.shape[0],), tl.float32)
    if SCORE == "dot":
        key = tl.load(keys + n, mask=n < num_inputs, other=0.0)
    return key[None, :]


@triton.jit
def statistics(
    values, keys, priors, factors, out, num_rows, num_inputs, rows_a_split, half,
    SCORE: tl.constexpr, HALVES: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Partial statistics of ``values`` [HALVES, M, N]: ``out`` [splits, 3, N]; ``half`` numbers lie between halves."""
    tiles = tl.cdiv(num_inputs, BN)
    split, n = tl.program_id(0) // tiles, tl.program_id(0) % tiles * BN + tl.arange(0, BN)
    first = split * rows_a_split
    stop = tl.minimum(first + rows_a_split, num_rows)
    key = _load_key(keys, n, num_inputs, SCORE)
    largest = tl.full((BN,), float("-inf"), tl.float32)
    total, squares = tl.zeros((BN,), tl.float32), tl.zeros((BN,), tl.float32)
    for m0 in range(first, stop, BM):
        m = m0 + tl.arange(0, BM)
        e = _load_exponents(values, key, priors, factors, m, n, num_inputs, stop, SCORE)
        top = tl.max(e, 0)
        if HALVES == 2:
            mirrored = _load_exponents(values + half, key, priors, factors, m, n, num_inputs, stop, SCORE)
            top = tl.maximum(top, tl.max(mirrored, 0))
        now = tl.maximum(largest, top)
        # Minus infinity minus itself is NaN: until something counts, nothing is subtracted.
        shift = tl.where(now == float("-inf"), 0.0, now)
        w = tl.exp(e - shift[None, :])
        if HALVES == 2:
            w += tl.exp(mirrored - shift[None, :])
        before = tl.exp(largest - shift)
        total = total * before + tl.sum(w, 0)
        squares = squares * before * before + tl.sum(w * w, 0)
        largest = now
    at = out + split.to(tl.int64) * 3 * num_inputs + n
    tl.store(at, largest, mask=n < num_inputs)
    tl.store(at + num_inputs, total, mask=n < num_inputs)
    tl.store(at + 2 * num_inputs, squares, mask=n < num_inputs)


@triton.jit
def weights(
    values, keys, priors, factors, shifts, normalisers, out, num_rows, num_inputs, half,
    SCORE: tl.constexpr, HALVES: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The weights ``out`` [M, N]: sums over halves of exp(e - shift) times the input's normaliser."""
    tiles = tl.cdiv(num_inputs, BN)
    m = tl.program_id(0) // tiles * BM + tl.arange(0, BM)
    n = tl.program_id(0) % tiles * BN + tl.arange(0, BN)
    key = _load_key(keys, n, num_inputs, SCORE)
    shift = tl.load(shifts + n, mask=n < num_inputs, other=0.0)[None, :]
    w = tl.exp(_load_exponents(values, key, priors, factors, m, n, num_inputs, num_rows, SCORE) - shift)
    if HALVES == 2:
        w += tl.exp(_load_exponents(values + half, key, priors, factors, m, n, num_inputs, num_rows, SCORE) - shift)
    w *= tl.load(normalisers + n, mask=n < num_inputs, other=0.0)[None, :]
    keep = (m < num_rows)[:, None] & (n < num_inputs)[None, :]
    tl.store(out + m.to(tl.int64)[:, None] * num_inputs + n[None, :], w, mask=keep)


@triton.jit
def scores(d, keys, out, lines, num_inputs, outputs, SCORE: tl.constexpr, BL: tl.constexpr, BC: tl.constexpr):
    """Raw scores of ``lines`` lines of C differences, an input each in turn: ``out`` [lines]."""
    line = tl.program_id(0).to(tl.int64) * BL + tl.arange(0, BL)
    total = tl.zeros((BL,), tl.float32)
    for c0 in range(0, outputs, BC):
        c = c0 + tl.arange(0, BC)
        keep = (line < lines)[:, None] & (c < outputs)[None, :]
        value = tl.load(d + line[:, None] * outputs + c[None, :], mask=keep, other=0.0)
        other = -0.5 * value
        if SCORE == "dot":
            other = tl.load(keys + (line % num_inputs)[:, None] * outputs + c[None, :], mask=keep, other=0.0)
        total += tl.sum(value * other, 1)
    tl.store(out + line, total, mask=line < lines)


@triton.jit
def _line_of_signs(h, k, width, ordinal, row, key0, key1, BK: tl.constexpr, DTYPE: tl.constexpr):
    """Signs of line h and columns [k, k + BK) of many rows [BM]: [BM, BK]. Three words of four belong to others."""
    quads = (width + 31) // 32
    block = h // 4 * quads + k // 32 + tl.arange(0, BK // 32)[None, :]
    w0, w1, w2, w3 = words(block, ordinal, row[:, None], key0, key1, DISPLACEMENT)
    place = h % 4
    word = tl.where(place < 2, tl.where(place == 0, w0, w1), tl.where(place == 2, w2, w3))
    return unpack_signs(word, DTYPE)


@triton.jit
def _line_of_normals(
    h, k, width, ordinal, row, key0, key1, BK: tl.constexpr, PURPOSE: tl.constexpr, DTYPE: tl.constexpr,
    PTX: tl.constexpr,
):  # fmt: skip
    """Normals of line h and columns [k, k + BK) of many rows [BM]: [BM, BK], as ``gaussian_tile`` has them of one."""
    BM: tl.constexpr = row.shape[0]
    block = h * ((width + 15) // 16 * 4) + k // 4 + tl.arange(0, BK // 4)[None, :]
    w0, w1, w2, w3 = words(block, ordinal, row[:, None], key0, key1, PURPOSE)
    pair = tl.join(normal_pair(w0, w1, PTX), normal_pair(w2, w3, PTX))
    pair = tl.permute(tl.reshape(pair, (BM, BK // 16, 4, 2)), (0, 1, 3, 2))
    return unpack_pairs(tl.reshape(pair, (BM, BK // 2)), DTYPE)


@triton.jit(do_not_specialize=["key0", "key1", "ordinal"])
def project(
    rows, key0, key1, ordinal, out, num_rows, height, width, dim, splits,
    SIGNS: tl.constexpr, PRECISION: tl.constexpr, DTYPE: tl.constexpr, PTX: tl.constexpr, WIDE: tl.constexpr,
    BM: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Partial products of a matrix's displacements with the projection's: ``out`` [splits, M, dim], float32.

    Both operands are made from the stream; a program takes every splits-th piece of BK columns of a line.
    """
    tiles_j, tiles_m = tl.cdiv(dim, BJ), tl.cdiv(num_rows, BM)
    program = tl.program_id(0)
    j = program % tiles_j * BJ + tl.arange(0, BJ)
    m = program // tiles_j % tiles_m * BM + tl.arange(0, BM)
    split = program // tiles_j // tiles_m
    row = tl.load(rows + m, mask=m < num_rows, other=0)
    pieces_a_line = tl.cdiv(width, BK)
    total = tl.zeros((BM, BJ), tl.float32)
    for piece in range(split, height * pieces_a_line, splits):
        h, k = piece // pieces_a_line, piece % pieces_a_line * BK
        if WIDE:
            h = h.to(tl.int64)
        if SIGNS:
            noise = _line_of_signs(h, k, width, ordinal, row, key0, key1, BK, DTYPE)
        else:
            noise = _line_of_normals(h, k, width, ordinal, row, key0, key1, BK, DISPLACEMENT, DTYPE, PTX)
        lines = _line_of_normals(h, k, width, ordinal, j, key0, key1, BK, PROJECTION, DTYPE, PTX)
        # What stands beyond the width is nobody's; once is enough.
        lines = tl.where((k + tl.arange(0, BK) < width)[None, :], lines, 0.0)
        total = tl.dot(noise, tl.trans(lines), total, input_precision=PRECISION)
    at = out + (split.to(tl.int64) * num_rows + m)[:, None] * dim + j[None, :]
    tl.store(at, total, mask=(m < num_rows)[:, None] & (j < dim)[None, :])
