"""Rank-M update on the device: K = sum over t of A[t, i] B[t, j], tile by tile; one triangle if A is B.

The operands are differences, which are multiplied by their weights as they are loaded: no weighted copy is ever stored.
The first functions are shared by all kernels that fill a kernel matrix: the tile of a program, the address of an entry
in each mode of output, and the store that mirrors one triangle onto the other. In mode ``full`` a row of the matrix is
an input and an output, and so is a column; in the other modes both are inputs.
"""

import triton
import triton.language as tl

from nntk.kernels.attention.triton.kernel import exponent
from nntk.kernels.offsets import sized, widened
from nntk.kernels.philox.triton.kernel import computed_once


@triton.jit
def tile_of(program, tiles_j, SYMMETRIC: tl.constexpr):
    """Return the tile (i, j) of a program, counted row by row; only tiles on and below the diagonal if SYMMETRIC."""
    if SYMMETRIC:
        # Row i has i + 1 tiles. The root is exact below 2**50 up to its rounding, which is corrected. Twice the number
        # of tiles exceeds 32 bits.
        i = ((tl.sqrt(8.0 * program.to(tl.float64) + 1.0) - 1.0) * 0.5).to(tl.int64)
        i = tl.where(i * (i + 1) // 2 > program, i - 1, i)
        i = tl.where((i + 1) * (i + 2) // 2 <= program, i + 1, i)
        j = (program - i * (i + 1) // 2).to(tl.int32)
        i = i.to(tl.int32)
    else:
        i, j = program // tiles_j, program % tiles_j
    return i, j


@triton.jit
def row_offset(i, n2, outputs, OUTPUTS: tl.constexpr):
    """Return the element at which row i of the kernel matrix starts."""
    if OUTPUTS == "full":
        offset = (i // outputs * n2 * outputs + i % outputs) * outputs
    elif OUTPUTS == "diagonal":
        offset = i * n2 * outputs
    else:
        offset = i * n2
    return offset


@triton.jit
def column_offset(j, outputs, OUTPUTS: tl.constexpr):
    """Return the offset of column j from the start of its row; in mode ``diagonal`` for output 0."""
    if OUTPUTS == "full":
        offset = j // outputs * outputs * outputs + j % outputs
    elif OUTPUTS == "diagonal":
        offset = j * outputs
    else:
        offset = j
    return offset


@triton.jit
def tile_offsets(i, i0, j, n2, outputs, OUTPUTS: tl.constexpr, WIDE: tl.constexpr):
    """Return the element at which row i0 starts, and the offsets from there of rows i and columns j of its tile.

    The start has 64 bits, and so have the offsets where WIDE; else they have 32, which are enough for existing rows.
    """
    start = row_offset(i0.to(tl.int64), n2, outputs, OUTPUTS)
    rows = sized(row_offset(i.to(tl.int64), n2, outputs, OUTPUTS) - start, WIDE)
    return start, rows, column_offset(sized(j, WIDE), outputs, OUTPUTS)


@triton.jit
def store_tile(
    out, tile, i0, j0, n1, n2, outputs, SYMMETRIC: tl.constexpr, OUTPUTS: tl.constexpr, WIDE: tl.constexpr,
    PARTS: tl.constexpr = 1,
):  # fmt: skip
    """Store a tile; of a symmetric kernel, the entries on and below the diagonal and their mirror images.

    Args:
        out: Kernel matrix, float32, contiguous: [N1, N2]; in mode ``diagonal`` [N1, N2, C] from the output of the tile
            on; in mode ``full`` [N1, N2, C, C].
        tile: Values to store, [BI, BJ].
        i0: First row of the tile.
        j0: First column of the tile.
        n1: Number N1 of inputs of the rows.
        n2: Number N2 of inputs of the columns.
        outputs: Number C of outputs.
        SYMMETRIC: True for a symmetric kernel.
        OUTPUTS: Mode of output, ``trace``, ``mean``, ``diagonal`` or ``full``.
        WIDE: True if offsets within the tile need 64 bits.
        PARTS: Power of two; the columns of the tile are stored in so many parts, one by one.
    """
    BI: tl.constexpr = tile.shape[0]
    BJ: tl.constexpr = tile.shape[1]
    if PARTS > 1:
        first, second = tl.split(tl.permute(tl.reshape(tile, (BI, 2, BJ // 2)), (0, 2, 1)))
        store_tile(out, first, i0, j0, n1, n2, outputs, SYMMETRIC, OUTPUTS, WIDE, PARTS // 2)
        store_tile(out, second, i0, j0 + BJ // 2, n1, n2, outputs, SYMMETRIC, OUTPUTS, WIDE, PARTS // 2)
    else:
        i, j = i0 + tl.arange(0, BI), j0 + tl.arange(0, BJ)
        rows, columns = n1, n2
        if OUTPUTS == "full":
            rows, columns = n1 * outputs, n2 * outputs
        keep = (i < rows)[:, None] & (j < columns)[None, :]
        if SYMMETRIC:
            keep = keep & (i[:, None] >= j[None, :])
        start, row, column = tile_offsets(i, i0, j, n2, outputs, OUTPUTS, WIDE)
        tl.store(out + start + (row[:, None] + column[None, :]), tile, mask=keep)
        if SYMMETRIC:
            # The mirror image.
            start, row, column = tile_offsets(j, j0, i, n2, outputs, OUTPUTS, WIDE)
            tl.store(out + start + (row[None, :] + column[:, None]), tile, mask=keep)


@triton.jit
def _exponent_of(d, values, start, offset, key, prior, factor, keep, WEIGHTING: tl.constexpr):
    """Return exponents of differences d [BK, BI] of one output, or of given scores.

    Args:
        d: Differences, [BK, BI].
        values: Scores, [MEMBERS, M, N], float32, for ``given``; else unused.
        start: Element of ``values`` of the first displacement.
        offset: Offsets of the values from it, [BK, BI].
        key: Outputs f(x), [BI].
        prior: Prior log weights less shifts, [BK, BI].
        factor: Factors of the scores, [BK, 1].
        keep: True where a value exists, [BK, BI].
        WEIGHTING: Kind of weights.
    """
    value = d
    if WEIGHTING == "given":
        value = tl.load(values + start + offset, mask=keep, other=0.0)
    return exponent(value, key[None, :], prior, factor, WEIGHTING)


@triton.jit
def _divide(t, outputs):
    """Divide t by outputs, for t up to one step beyond outputs, by a product: a division takes about 20 instructions.

    With r = 2**56 // outputs + 1 the product t r / 2**56 is too large by at most t / 2**56, which is less than
    1 / outputs up to 2**28 of them; and t r is below 2**63 for steps of up to 64 terms.
    """
    if isinstance(outputs, tl.constexpr):
        quotient = t // outputs
    else:
        reciprocal = (tl.full((), 1, tl.int64) << 56) // outputs + 1
        quotient = ((t.to(tl.uint32).to(tl.int64) * reciprocal) >> 56).to(tl.int32)
    return quotient


@triton.jit
def _operand(
    d, roots, values, keys, priors, factors, shifts, m0, c0, i, output, num_samples, num_inputs, outputs,
    WEIGHTING: tl.constexpr, MEMBERS: tl.constexpr, OUTPUTS: tl.constexpr, WIDE: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Load weighted differences A [BK, BI]: differences times roots and the roots of weights.

    A term of the sum is a displacement, or in mode ``trace`` one output of a displacement. A row i is an input, or in
    mode ``full`` one output of an input.

    Args:
        d: Differences, [MEMBERS, M, N, C], float32, contiguous.
        roots: Roots of d alpha / |E|^2, [M + BK], float32.
        values: Weights [M, N] or scores [MEMBERS, M, N], float32, or None.
        keys: Outputs f(x), [N], float32, or None.
        priors: Prior log weights, [M + BK], float32, or None.
        factors: Factors of the scores, [M + BK], float32, or None.
        shifts: Largest exponents, [N], float32, or None.
        m0: Displacement of the first term.
        c0: Output of the first term in mode ``trace``.
        i: Rows, [BI].
        output: Output of the tile in mode ``diagonal``.
        num_samples: Number M of displacements.
        num_inputs: Number N of inputs.
        outputs: Number C of outputs.
        WEIGHTING: Kind of weights.
        MEMBERS: 2 for antithetic pairs, else 1.
        OUTPUTS: Mode of output.
        WIDE: True if offsets within a step need 64 bits.
        BK: Terms of a step.
    """
    t = c0 + tl.arange(0, BK)
    m, n, c = m0 + t, i, output
    if OUTPUTS == "full":
        n = i // outputs
    elif OUTPUTS == "trace":
        skipped = _divide(t, outputs)
        m, c = m0 + skipped, t - skipped * outputs
    keep = (m < num_samples)[:, None] & (n < num_inputs)[None, :]
    # 64-bit offsets to the first displacement, 32-bit offsets from there.
    start = widened(m0) * num_inputs
    offset = (sized(m - m0, WIDE) * num_inputs)[:, None] + n[None, :]
    element = offset * outputs
    if OUTPUTS == "trace":
        element += c[:, None]
    elif OUTPUTS == "full":
        element += (i % outputs)[None, :]
    else:
        element += c
    root = tl.load(roots + m)[:, None]
    a = tl.load(d + start * outputs + element, mask=keep, other=0.0)
    # Multiply by the roots of the weights.
    if WEIGHTING == "rows":
        a *= root
    elif WEIGHTING == "weights":
        a *= root * tl.sqrt(tl.load(values + start + offset, mask=keep, other=0.0))
    else:
        prior, factor = tl.load(priors + m)[:, None], tl.load(factors + m)[:, None]
        # The shift is the largest exponent, so that exponents are never positive.
        prior = prior - tl.load(shifts + n, mask=n < num_inputs, other=0.0)[None, :]
        key = tl.zeros((i.shape[0],), tl.float32)
        if WEIGHTING == "dot":
            key = tl.load(keys + n, mask=n < num_inputs, other=0.0)
        e = _exponent_of(a, values, start, offset, key, prior, factor, keep, WEIGHTING)
        if MEMBERS == 1:
            a *= root * tl.exp(0.5 * e)
        else:
            count = widened(num_samples) * num_inputs
            mirrored = tl.load(d + (start + count) * outputs + element, mask=keep, other=0.0)
            second = _exponent_of(mirrored, values, start + count, offset, key, prior, factor, keep, WEIGHTING)
            a = (a - mirrored) * (0.5 * root) * tl.sqrt(tl.exp(e) + tl.exp(second))
    return a


# The main loop reads and multiplies as fast without knowing that a number of inputs is a multiple of 16, so that one
# compilation serves all of them. With one output nothing is divided, so that a one is known.
@triton.jit(do_not_specialize=["num_samples", "n1", "n2"])
def rank_update(
    d1, d2, roots, values1, values2, keys1, keys2, priors, factors, shifts1, shifts2, out,
    num_samples, n1, n2, outputs,
    WEIGHTING: tl.constexpr, MEMBERS: tl.constexpr, SYMMETRIC: tl.constexpr, OUTPUTS: tl.constexpr,
    PRECISION: tl.constexpr, WIDE: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """Compute the energy form from differences, one tile [BI, BJ] a program.

    Weights that depend on the input are computed where the operand is loaded: from ``values`` as they are
    (``weights``), or as exp(prior + factor t - shift) with t from the differences of one output themselves (``dot``,
    ``distance``) or from ``values`` (``given``).

    ``roots``, ``priors`` and ``factors`` continue for BK elements after the last displacement with 0, minus infinity
    and 0, so that no term beyond the last has a weight. (With a prior of 0 its weight would be exp(-shift), which may
    be infinite.)

    Args:
        d1: Differences at the inputs of the rows, [MEMBERS, M, N1, C], float32, contiguous.
        d2: Differences at the inputs of the columns, [MEMBERS, M, N2, C], float32, contiguous.
        roots: Roots of d alpha / |E|^2, [M + BK], float32.
        values1: Weights [M, N1] or scores [MEMBERS, M, N1], float32, contiguous, or None.
        values2: The same at the columns.
        keys1: Outputs f(x) at the rows, [N1], float32, for ``dot``, or None.
        keys2: Outputs f(x) at the columns, [N2], float32, for ``dot``, or None.
        priors: Prior log weights, [M + BK], float32, for attention, or None.
        factors: Factors of the scores, [M + BK], float32, for attention, or None.
        shifts1: Largest exponents at the rows, [N1], float32, for attention, or None.
        shifts2: Largest exponents at the columns, [N2], float32, for attention, or None.
        out: Kernel matrix, float32: [N1, N2], in mode ``diagonal`` [N1, N2, C], in mode ``full`` [N1, N2, C, C].
        num_samples: Number M of displacements.
        n1: Number N1 of inputs of the rows.
        n2: Number N2 of inputs of the columns.
        outputs: Number C of outputs.
        WEIGHTING: Kind of weights: ``rows``, ``weights``, ``dot``, ``distance`` or ``given``.
        MEMBERS: 2 for antithetic pairs, else 1.
        SYMMETRIC: True if rows and columns are the same: only tiles on and below the diagonal are computed.
        OUTPUTS: Mode of output, ``trace``, ``diagonal`` or ``full``.
        PRECISION: Precision of the products.
        WIDE: True if offsets within a tile need 64 bits.
        BI: Rows of a tile.
        BJ: Columns of a tile.
        BK: Terms of a step.
        PARTS: Parts in which the tile is stored.
    """
    program, output = tl.program_id(0), 0
    if OUTPUTS == "diagonal":
        program, output = program // outputs, program % outputs
    columns, terms = n2, num_samples
    if OUTPUTS == "full":
        columns = n2 * outputs
    elif OUTPUTS == "trace":
        terms = num_samples * outputs
    i0, j0 = tile_of(program, tl.cdiv(columns, BJ), SYMMETRIC)
    i0, j0 = i0 * BI, j0 * BJ
    i, j = i0 + tl.arange(0, BI), j0 + tl.arange(0, BJ)
    total = tl.zeros((BI, BJ), tl.float32)
    # Sum over terms: m0 and c0 are displacement and output of the first term of a step.
    m0, c0, step_m, step_c = 0, 0, BK, 0
    if OUTPUTS == "trace":
        step_m, step_c = BK // outputs, BK % outputs
    for _ in range(0, terms, BK):
        a = _operand(
            d1, roots, values1, keys1, priors, factors, shifts1, m0, c0, i, output, num_samples, n1, outputs,
            WEIGHTING, MEMBERS, OUTPUTS, WIDE, BK,
        )  # fmt: skip
        b = _operand(
            d2, roots, values2, keys2, priors, factors, shifts2, m0, c0, j, output, num_samples, n2, outputs,
            WEIGHTING, MEMBERS, OUTPUTS, WIDE, BK,
        )  # fmt: skip
        a, b = computed_once(a, PRECISION), computed_once(b, PRECISION)
        total = tl.dot(tl.trans(a), b, total, input_precision=PRECISION)
        m0, c0 = m0 + step_m, c0 + step_c
        if OUTPUTS == "trace":
            carry = c0 >= outputs
            m0, c0 = m0 + carry, tl.where(carry, c0 - outputs, c0)
    store_tile(out + output, total, i0, j0, n1, n2, outputs, SYMMETRIC, OUTPUTS, WIDE, PARTS)
