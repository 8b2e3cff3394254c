"""Structured NTK on the device: a tile of one layer's term, (W <h, h'> + b) <B, B'>, added to what is there.

A tile is [BI, BJ]: lines of the kernel against entries of a line, a line being an input, or in mode ``full`` an input
and an output. README.md draws it; launch.py has the loop over layers.
"""

import triton
import triton.language as tl

from nntk.kernels.assemble.triton.kernel import entry_offset, line_offset, store_tile, tile_of


@triton.jit
def _products(rows1, rows2, i, j, width, PRECISION: tl.constexpr, BK: tl.constexpr):
    """Inner products of rows i [BI] with rows j [BJ]; they are as long as their stride, a multiple of BK."""
    k = tl.arange(0, BK)
    left = rows1 + i.to(tl.int64)[:, None] * width + k[None, :]
    right = rows2 + j.to(tl.int64)[None, :] * width + k[:, None]
    acc = tl.zeros((i.shape[0], j.shape[0]), tl.float32)
    for _ in range(0, width, BK):
        acc = tl.dot(tl.load(left), tl.load(right), acc, input_precision=PRECISION)
        left += BK
        right += BK
    return acc


@triton.jit
def _finish(
    term, gram, out, i0, j0, n1, n2, outputs, BIAS: tl.constexpr, ADD: tl.constexpr, LAST: tl.constexpr,
    SYMMETRIC: tl.constexpr, OUTPUTS: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Multiply by the given products, add what is there, store: PART columns at a time, to fit the registers."""
    BI: tl.constexpr = term.shape[0]
    BJ: tl.constexpr = term.shape[1]
    if BJ > PART:
        left, right = tl.split(tl.permute(tl.reshape(term, (BI, 2, BJ // 2)), (0, 2, 1)))
        _finish(left, gram, out, i0, j0, n1, n2, outputs, BIAS, ADD, LAST, SYMMETRIC, OUTPUTS, PART)
        _finish(right, gram, out, i0, j0 + BJ // 2, n1, n2, outputs, BIAS, ADD, LAST, SYMMETRIC, OUTPUTS, PART)
    else:
        i, j = i0 + tl.arange(0, BI), j0 + tl.arange(0, BJ)
        lines, entries, n, m = n1, n2, i, j
        if OUTPUTS == "full":
            lines, entries, n, m = n1 * outputs, n2 * outputs, i // outputs, j // outputs
        keep = (i < lines)[:, None] & (j < entries)[None, :]
        if SYMMETRIC:
            # What is above the diagonal is mirrored at the end, and nowhere written before.
            keep = keep & (i[:, None] >= j[None, :])
        if gram is not None:
            n0 = (i0 // outputs if OUTPUTS == "full" else i0).to(tl.int64)
            at = ((n - n0.to(tl.int32)) * n2)[:, None] + m[None, :]
            inputs = tl.load(gram + n0 * n2 + at, mask=keep, other=0.0)
            term *= inputs + 1.0 if BIAS else inputs
        if ADD:
            # A tile's own offsets are 32-bit, behind a 64-bit start: half the registers.
            start = line_offset(i0.to(tl.int64), n2, outputs, OUTPUTS)
            line = (line_offset(i.to(tl.int64), n2, outputs, OUTPUTS) - start).to(tl.int32)
            entry = entry_offset(j, outputs, OUTPUTS)
            term += tl.load(out + start + (line[:, None] + entry[None, :]), mask=keep, other=0.0)
        if OUTPUTS == "mean" and LAST:
            term /= outputs
        store_tile(out, term, i0, j0, n1, n2, outputs, SYMMETRIC and LAST, OUTPUTS)


@triton.jit
def layer_pair(
    h1, h2, gram, b1, b2, out, k, width, n1, n2, outputs,
    BIAS: tl.constexpr, ADD: tl.constexpr, LAST: tl.constexpr, SYMMETRIC: tl.constexpr, OUTPUTS: tl.constexpr,
    PRECISION: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """One layer's term of the kernel, stored to ``out`` or, where ADD, added to it; all numbers are float32.

    Args:
        h1: The layer's inputs at the rows' inputs, [N1, k], or None: their products are then in ``gram``, or count as
            one (a bias alone) or not at all (where the products of ``b1`` and ``b2`` are all that is asked).
        h2: The same at the columns' inputs, [N2, k].
        gram: Products of the layer's inputs, [N1, N2], or None.
        b1: Derivatives, [N1, width] with all outputs in a row, ``diagonal`` [C N1, width], ``full`` [N1 C, width].
        b2: The same at the columns' inputs.
        out: The kernel, [N1, N2], [N1, N2, C] or [N1, N2, C, C].
        k: Length and stride of rows of h, a multiple of BK: padded by zeros, as those of b.
        width: Length and stride of rows of b.
        n1: N1.
        n2: N2.
        outputs: C.
        BIAS: Whether the bias moves too, beside the weight whose inputs are ``h1`` or in ``gram``.
        ADD: Whether a layer was there before.
        LAST: Whether this is the last layer, at which one triangle is mirrored and the mean taken.
        SYMMETRIC: Whether rows and columns are the same: only tiles on and below the diagonal are made.
        OUTPUTS: ``trace``, ``mean``, ``diagonal`` or ``full``.
        PRECISION: Of the products.
        BI: Lines of a tile, and of the squares that one triangle is counted in.
        BJ: Entries of a tile, a divisor of BI.
        BK: Step of the products' sums.
        PART: Entries that the epilogue takes at once.
    """
    program, lines, entries, output = tl.program_id(0), n1, n2, 0
    if OUTPUTS == "full":
        lines, entries = n1 * outputs, n2 * outputs
    elif OUTPUTS == "diagonal":
        # Outputs are neighbours in memory: their tiles follow each other, while the second-level cache has the lines.
        program, output = program // outputs, program % outputs
    tile_i, tile_j = tile_of(program // (BI // BJ), tl.cdiv(entries, BI), SYMMETRIC)
    i0, j0 = tile_i * BI, tile_j * BI + program % (BI // BJ) * BJ
    # Lines beyond the last read the last instead of a mask, and are not stored.
    row, column = tl.minimum(i0 + tl.arange(0, BI), lines - 1), tl.minimum(j0 + tl.arange(0, BJ), entries - 1)
    if h1 is not None:
        inputs = _products(h1, h2, row, column, k, PRECISION, BK)
    term = _products(b1, b2, output * n1 + row, output * n2 + column, width, PRECISION, BK)
    if h1 is not None:
        term *= inputs + 1.0 if BIAS else inputs
    _finish(term, gram, out + output, i0, j0, n1, n2, outputs, BIAS, ADD, LAST, SYMMETRIC, OUTPUTS, PART)
