"""Symmetric rank-M update on the device: K = sum over t of A[t, i] B[t, j], tile by tile, one triangle if A is B.

The operands are differences, which get their weights as they are loaded: no weighted copy is ever stored. The first
functions are what every kernel that fills a kernel matrix shares: which tile a program has, where an entry
lies in each of the modes of output, and the store that mirrors one triangle onto the other.
"""

import triton
import triton.language as tl

from nntk.kernels.attention.triton.kernel import exponent


@triton.jit
def tile_of(program, tiles_j, SYMMETRIC: tl.constexpr):
    """The tile (i, j) of a program: of all, row by row, or of those on and below the diagonal."""
    if SYMMETRIC:
        # Row i has i + 1 tiles. The root is exact below 2**50, but for its own rounding, which is set right.
        i = ((tl.sqrt(8.0 * program.to(tl.float64) + 1.0) - 1.0) * 0.5).to(tl.int32)
        i = tl.where(i * (i + 1) // 2 > program, i - 1, i)
        i = tl.where((i + 1) * (i + 2) // 2 <= program, i + 1, i)
        j = program - i * (i + 1) // 2
    else:
        i, j = program // tiles_j, program % tiles_j
    return i, j


@triton.jit
def line_offset(i, n2, outputs, OUTPUTS: tl.constexpr):
    """Where line i of the kernel starts, in numbers; in mode ``full`` a line is an input and an output."""
    if OUTPUTS == "full":
        at = (i // outputs * n2 * outputs + i % outputs) * outputs
    elif OUTPUTS == "diagonal":
        at = i * n2 * outputs
    else:
        at = i * n2
    return at


@triton.jit
def entry_offset(j, outputs, OUTPUTS: tl.constexpr):
    """Where entry j of a line lies behind its start; in mode ``diagonal`` for output 0."""
    if OUTPUTS == "full":
        at = j // outputs * outputs * outputs + j % outputs
    elif OUTPUTS == "diagonal":
        at = j * outputs
    else:
        at = j
    return at


@triton.jit
def _offset_from(i, i0, n2, outputs, OUTPUTS: tl.constexpr):
    """How far behind line i0 the lines i of its tile start: 32 bits are enough for those that exist."""
    return (line_offset(i.to(tl.int64), n2, outputs, OUTPUTS) - line_offset(i0.to(tl.int64), n2, outputs, OUTPUTS)).to(
        tl.int32
    )


@triton.jit
def store_tile(
    out, tile, i0, j0, n1, n2, outputs, SYMMETRIC: tl.constexpr, OUTPUTS: tl.constexpr, PARTS: tl.constexpr = 1
):  # fmt: skip
    """Store a tile at lines from i0 and entries from j0; of a symmetric kernel what is not above the diagonal, twice.

    ``out`` is the kernel [N1, N2], or in mode ``diagonal`` that of one output, or in mode ``full`` [N1, N2, C, C]. The
    tile's own offsets are 32-bit, behind a 64-bit start: half the registers. PARTS of it are stored one by one.
    """
    BI: tl.constexpr = tile.shape[0]
    BJ: tl.constexpr = tile.shape[1]
    if PARTS > 1:
        first, second = tl.split(tl.permute(tl.reshape(tile, (BI, 2, BJ // 2)), (0, 2, 1)))
        store_tile(out, first, i0, j0, n1, n2, outputs, SYMMETRIC, OUTPUTS, PARTS // 2)
        store_tile(out, second, i0, j0 + BJ // 2, n1, n2, outputs, SYMMETRIC, OUTPUTS, PARTS // 2)
    else:
        i, j = i0 + tl.arange(0, BI), j0 + tl.arange(0, BJ)
        lines, entries = n1, n2
        if OUTPUTS == "full":
            lines, entries = n1 * outputs, n2 * outputs
        keep = (i < lines)[:, None] & (j < entries)[None, :]
        if SYMMETRIC:
            keep = keep & (i[:, None] >= j[None, :])
        start = out + line_offset(i0.to(tl.int64), n2, outputs, OUTPUTS)
        line = _offset_from(i, i0, n2, outputs, OUTPUTS)
        tl.store(start + (line[:, None] + entry_offset(j, outputs, OUTPUTS)[None, :]), tile, mask=keep)
        if SYMMETRIC:
            start = out + line_offset(j0.to(tl.int64), n2, outputs, OUTPUTS)
            line = _offset_from(j, j0, n2, outputs, OUTPUTS)
            tl.store(start + (line[None, :] + entry_offset(i, outputs, OUTPUTS)[:, None]), tile, mask=keep)


@triton.jit
def _exponent_of(d, values, start, place, key, prior, factor, keep, WEIGHTING: tl.constexpr):
    """Exponents of differences d [BK, BI] of one output, or of the scores that stand for them."""
    value = d
    if WEIGHTING == "given":
        value = tl.load(values + start + place, mask=keep, other=0.0)
    return exponent(value, key[None, :], prior, factor, WEIGHTING)


@triton.jit
def _over(t, outputs):
    """Divide t by outputs, for t up to these and a step more, by a product: a division takes some twenty instructions.

    With r = 2**56 // outputs + 1 the product t r / 2**56 is too large by at most t / 2**56, which is less than
    1 / outputs up to 2**28 of them; and t r is below 2**63 for steps of up to 64 terms.
    """
    if isinstance(outputs, tl.constexpr):
        over = t // outputs
    else:
        reciprocal = (tl.full((), 1, tl.int64) << 56) // outputs + 1
        over = ((t.to(tl.uint32).to(tl.int64) * reciprocal) >> 56).to(tl.int32)
    return over


@triton.jit
def _operand(
    d, roots, values, keys, priors, factors, shifts, m0, c0, i, output, num_rows, num_inputs, outputs,
    WEIGHTING: tl.constexpr, HALVES: tl.constexpr, OUTPUTS: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Weighted differences A [BK, BI] of lines i, at terms from output c0 of displacement m0: D by roots and weights.

    A term is a displacement, or in mode ``trace`` one of a displacement's outputs; a line is an input, or in mode
    ``full`` one of an input's outputs.
    """
    t = c0 + tl.arange(0, BK)
    m, n, c = m0 + t, i, output
    if OUTPUTS == "full":
        n = i // outputs
    elif OUTPUTS == "trace":
        behind = _over(t, outputs)
        m, c = m0 + behind, t - behind * outputs
    keep = (m < num_rows)[:, None] & (n < num_inputs)[None, :]
    # 64 bits to the first displacement, 32 from there on.
    start = (tl.zeros((), tl.int64) + m0) * num_inputs
    place = ((m - m0) * num_inputs)[:, None] + n[None, :]
    at = place * outputs
    if OUTPUTS == "trace":
        at += c[:, None]
    elif OUTPUTS == "full":
        at += (i % outputs)[None, :]
    else:
        at += c
    root = tl.load(roots + m)[:, None]
    a = tl.load(d + start * outputs + at, mask=keep, other=0.0)
    if WEIGHTING == "rows":
        a *= root
    elif WEIGHTING == "weights":
        a *= root * tl.sqrt(tl.load(values + start + place, mask=keep, other=0.0))
    else:
        prior, factor = tl.load(priors + m)[:, None], tl.load(factors + m)[:, None]
        # The shift is the largest exponent: what is taken to the power is never positive.
        prior = prior - tl.load(shifts + n, mask=n < num_inputs, other=0.0)[None, :]
        key = tl.zeros((i.shape[0],), tl.float32)
        if WEIGHTING == "dot":
            key = tl.load(keys + n, mask=n < num_inputs, other=0.0)
        e = _exponent_of(a, values, start, place, key, prior, factor, keep, WEIGHTING)
        if HALVES == 1:
            a *= root * tl.exp(0.5 * e)
        else:
            # Of one row, num_rows is a plain 1: the zero makes it a number of 64 bits.
            count = (tl.zeros((), tl.int64) + num_rows) * num_inputs
            mirrored = tl.load(d + (start + count) * outputs + at, mask=keep, other=0.0)
            second = _exponent_of(mirrored, values, start + count, place, key, prior, factor, keep, WEIGHTING)
            a = (a - mirrored) * (0.5 * root) * tl.sqrt(tl.exp(e) + tl.exp(second))
    return a


@triton.jit
def rank_update(
    d1, d2, roots, values1, values2, keys1, keys2, priors, factors, shifts1, shifts2, out,
    num_rows, n1, n2, outputs,
    WEIGHTING: tl.constexpr, HALVES: tl.constexpr, SYMMETRIC: tl.constexpr, OUTPUTS: tl.constexpr,
    PRECISION: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The energy form from differences [HALVES, M, N, C], float32, a tile [BI, BJ] a program.

    ``roots`` [M] are the roots of d alpha / |E|^2; weights that depend on the input are made where the operand is
    loaded: from ``values`` [M, N] as they are (``weights``), or as exp(prior + factor t - shift) with t from the
    differences of one output themselves (``dot``, ``distance``) or ``values`` [HALVES, M, N] (``given``).

    ``roots``, ``priors`` and ``factors`` go on for BK numbers behind the last row, of 0, minus infinity and 0: no term
    beyond the last has a weight. (Of a prior of 0 it would be exp(-shift), which may be infinite.)
    """
    program, output = tl.program_id(0), 0
    if OUTPUTS == "diagonal":
        program, output = program // outputs, program % outputs
    lines2, terms = n2, num_rows
    if OUTPUTS == "full":
        lines2 = n2 * outputs
    elif OUTPUTS == "trace":
        terms = num_rows * outputs
    i0, j0 = tile_of(program, tl.cdiv(lines2, BJ), SYMMETRIC)
    i0, j0 = i0 * BI, j0 * BJ
    i, j = i0 + tl.arange(0, BI), j0 + tl.arange(0, BJ)
    total = tl.zeros((BI, BJ), tl.float32)
    # The displacement and the output of the first term of a turn.
    m0, c0, a_turn, rest = 0, 0, BK, 0
    if OUTPUTS == "trace":
        a_turn, rest = BK // outputs, BK % outputs
    for _ in range(0, terms, BK):
        a = _operand(
            d1, roots, values1, keys1, priors, factors, shifts1, m0, c0, i, output, num_rows, n1, outputs,
            WEIGHTING, HALVES, OUTPUTS, BK,
        )  # fmt: skip
        b = _operand(
            d2, roots, values2, keys2, priors, factors, shifts2, m0, c0, j, output, num_rows, n2, outputs,
            WEIGHTING, HALVES, OUTPUTS, BK,
        )  # fmt: skip
        total = tl.dot(tl.trans(a), b, total, input_precision=PRECISION)
        m0, c0 = m0 + a_turn, c0 + rest
        if OUTPUTS == "trace":
            beyond = c0 >= outputs
            m0, c0 = m0 + beyond, tl.where(beyond, c0 - outputs, c0)
    store_tile(out + output, total, i0, j0, n1, n2, outputs, SYMMETRIC, OUTPUTS, PARTS)
