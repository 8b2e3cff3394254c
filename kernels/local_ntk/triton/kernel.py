"""Structured NTK on the device: a tile of the term of one layer, (W <h, h'> + b) <B, B'>, added to earlier layers.

A tile is [BI, BJ]: rows and columns of the kernel matrix. A row is an input, or in mode ``full`` an input and an
output, and so is a column. README.md draws it; launch.py has the loop over layers.
"""

import triton
import triton.language as tl

from nntk.kernels.assemble.triton.kernel import store_tile, tile_of, tile_offsets
from nntk.kernels.offsets import widened


@triton.jit
def _products(matrix1, matrix2, i, j, width, PRECISION: tl.constexpr, BK: tl.constexpr):
    """Compute inner products [BI, BJ] of rows i of one matrix with rows j of another.

    Args:
        matrix1: First matrix, [rows, width], float32, contiguous.
        matrix2: Second matrix, [rows, width], float32, contiguous.
        i: Rows of the first matrix, [BI].
        j: Rows of the second matrix, [BJ].
        width: Length of the rows, a multiple of BK.
        PRECISION: Precision of the products.
        BK: Terms of a step.
    """
    k = tl.arange(0, BK)
    left = matrix1 + i.to(tl.int64)[:, None] * width + k[None, :]
    right = matrix2 + j.to(tl.int64)[None, :] * width + k[:, None]
    acc = tl.zeros((i.shape[0], j.shape[0]), tl.float32)
    for _ in range(0, width, BK):
        acc = tl.dot(tl.load(left), tl.load(right), acc, input_precision=PRECISION)
        left += BK
        right += BK
    return acc


@triton.jit
def _finish(
    term, gram, out, i0, j0, n1, n2, outputs, BIAS: tl.constexpr, ADD: tl.constexpr, LAST: tl.constexpr,
    SYMMETRIC: tl.constexpr, OUTPUTS: tl.constexpr, WIDE: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Multiply by the products of the inputs, add earlier layers and store: PART columns at a time, to fit registers.

    Args:
        term: Products of the derivatives, [BI, BJ]; already multiplied by those of the inputs if ``gram`` is None.
        gram: Products of the inputs of the layer, [N1, N2], float32, contiguous, or None.
        out: Kernel matrix, float32, contiguous: [N1, N2]; in mode ``diagonal`` [N1, N2, C] from the output of the tile
            on; in mode ``full`` [N1, N2, C, C].
        i0: First row of the tile.
        j0: First column of the tile.
        n1: Number N1 of inputs of the rows.
        n2: Number N2 of inputs of the columns.
        outputs: Number C of outputs.
        BIAS: True if the bias is a parameter beside the weight.
        ADD: True if earlier layers were stored.
        LAST: True for the last layer.
        SYMMETRIC: True for a symmetric kernel.
        OUTPUTS: Mode of output.
        WIDE: True if offsets within the tile need 64 bits.
        PART: Columns handled together.
    """
    BI: tl.constexpr = term.shape[0]
    BJ: tl.constexpr = term.shape[1]
    if BJ > PART:
        left, right = tl.split(tl.permute(tl.reshape(term, (BI, 2, BJ // 2)), (0, 2, 1)))
        _finish(left, gram, out, i0, j0, n1, n2, outputs, BIAS, ADD, LAST, SYMMETRIC, OUTPUTS, WIDE, PART)
        _finish(right, gram, out, i0, j0 + BJ // 2, n1, n2, outputs, BIAS, ADD, LAST, SYMMETRIC, OUTPUTS, WIDE, PART)
    else:
        i, j = i0 + tl.arange(0, BI), j0 + tl.arange(0, BJ)
        rows, columns, n, m = n1, n2, i, j
        if OUTPUTS == "full":
            rows, columns, n, m = n1 * outputs, n2 * outputs, i // outputs, j // outputs
        keep = (i < rows)[:, None] & (j < columns)[None, :]
        if SYMMETRIC:
            # Entries above the diagonal are written by the last layer only, as mirror images.
            keep = keep & (i[:, None] >= j[None, :])
        if gram is not None:
            n0 = i0 // outputs if OUTPUTS == "full" else i0
            start, row, column = tile_offsets(n, n0, m, n2, outputs, tl.constexpr("trace"), WIDE)
            inputs = tl.load(gram + start + (row[:, None] + column[None, :]), mask=keep, other=0.0)
            term *= inputs + 1.0 if BIAS else inputs
        if ADD:
            start, row, column = tile_offsets(i, i0, j, n2, outputs, OUTPUTS, WIDE)
            term += tl.load(out + start + (row[:, None] + column[None, :]), mask=keep, other=0.0)
        if OUTPUTS == "mean" and LAST:
            term /= outputs
        store_tile(out, term, i0, j0, n1, n2, outputs, SYMMETRIC and LAST, OUTPUTS, WIDE)


# Matrices are padded to whole steps: their lengths are multiples of 16, and the numbers of inputs need not be.
@triton.jit(do_not_specialize=["n1", "n2"])
def layer_pair(
    h1, h2, gram, b1, b2, out, k, width, n1, n2, outputs,
    BIAS: tl.constexpr, ADD: tl.constexpr, LAST: tl.constexpr, SYMMETRIC: tl.constexpr, OUTPUTS: tl.constexpr,
    PRECISION: tl.constexpr, WIDE: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr,
    PART: tl.constexpr,
):  # fmt: skip
    """Compute the term of one layer and store it to ``out``, or add it where ADD; all tensors are float32, contiguous.

    Args:
        h1: Inputs of the layer at the rows, [N1, k], or None: then their products are in ``gram``, or count as one (a
            bias alone), or are not used (where only the products of ``b1`` and ``b2`` are required).
        h2: Inputs of the layer at the columns, [N2, k], or None.
        gram: Products of the inputs of the layer, [N1, N2], or None.
        b1: Derivatives at the rows, [N1, width] with all outputs side by side, in mode ``diagonal`` [C N1, width], in
            mode ``full`` [N1 C, width].
        b2: Derivatives at the columns, in the same layout.
        out: Kernel matrix, [N1, N2], in mode ``diagonal`` [N1, N2, C], in mode ``full`` [N1, N2, C, C].
        k: Length and stride of rows of h, a multiple of BK, padded by zeros.
        width: Length and stride of rows of b, a multiple of BK, padded by zeros.
        n1: Number N1 of inputs of the rows.
        n2: Number N2 of inputs of the columns.
        outputs: Number C of outputs.
        BIAS: True if the bias is a parameter beside the weight whose inputs are ``h1`` or in ``gram``.
        ADD: True if earlier layers were stored.
        LAST: True for the last layer, which mirrors one triangle and takes the mean.
        SYMMETRIC: True if rows and columns are the same: only tiles on and below the diagonal are computed.
        OUTPUTS: Mode of output, ``trace``, ``mean``, ``diagonal`` or ``full``.
        PRECISION: Precision of the products.
        WIDE: True if offsets within a tile need 64 bits.
        BI: Rows of a tile, and size of the squares that a triangle is counted in.
        BJ: Columns of a tile, a divisor of BI.
        BK: Terms of a step of the products.
        PART: Columns that the epilogue handles together.
    """
    program, rows, columns, output = tl.program_id(0), n1, n2, 0
    if OUTPUTS == "full":
        rows, columns = n1 * outputs, n2 * outputs
    elif OUTPUTS == "diagonal":
        # Outputs are neighbours in memory: their tiles follow each other while the cache lines are in the second level.
        program, output = program // outputs, program % outputs
    tile_i, tile_j = tile_of(program // (BI // BJ), tl.cdiv(columns, BI), SYMMETRIC)
    i0, j0 = tile_i * BI, tile_j * BI + program % (BI // BJ) * BJ
    # Rows and columns beyond the last read the last one, which needs no mask. They are not stored.
    row, column = tl.minimum(i0 + tl.arange(0, BI), rows - 1), tl.minimum(j0 + tl.arange(0, BJ), columns - 1)
    if h1 is not None:
        inputs = _products(h1, h2, row, column, k, PRECISION, BK)
    first = widened(output)
    term = _products(b1, b2, first * n1 + row, first * n2 + column, width, PRECISION, BK)
    if h1 is not None:
        term *= inputs + 1.0 if BIAS else inputs
    _finish(term, gram, out + output, i0, j0, n1, n2, outputs, BIAS, ADD, LAST, SYMMETRIC, OUTPUTS, WIDE, PART)
