"""Attention over displacements on the device: one streaming pass for the softmax, and one that writes the weights.

Exponents are ``prior + factor * t`` in float32. They are never stored: every kernel computes them from the value, which
it loads anyway (kernels of other ops inline ``exponent``).
"""

import triton
import triton.language as tl

from nntk.kernels.offsets import sized, widened
from nntk.kernels.philox import integers
from nntk.kernels.philox.triton.kernel import normal_pair, unpack_pairs, unpack_signs, words

DISPLACEMENT: tl.constexpr = tl.constexpr(integers.DISPLACEMENT)
PROJECTION: tl.constexpr = tl.constexpr(integers.PROJECTION)

# One compilation serves all numbers of displacements. Rows of N numbers are read wide where N is a multiple of 16.
_SAMPLES = ["num_samples"]


@triton.jit
def exponent(value, key, prior, factor, SCORE: tl.constexpr):
    """Return exponents of values of one output: ``dot`` multiplies by the key f(x), values of ``given`` are scores."""
    if SCORE == "dot":
        value = value * key
    elif SCORE == "distance":
        value = -0.5 * value * value
    return prior + factor * value


@triton.jit
def _load_exponents(values, key, priors, factors, m, n, num_inputs, stop, SCORE: tl.constexpr):
    """Load exponents of displacements m [BM] and inputs n [BN]; minus infinity from ``stop`` and ``num_inputs`` on.

    Args:
        values: Differences of one output or scores, [M, N], float32, contiguous.
        key: Outputs f(x) of the inputs, [1, BN].
        priors: Prior log weights of the displacements, [M], float32.
        factors: Factors of the scores, [M], float32.
        m: Displacements, [BM].
        n: Inputs, [BN].
        num_inputs: Number N of inputs.
        stop: End of the displacements.
        SCORE: Name of the score.
    """
    mask = m < stop
    keep = mask[:, None] & (n < num_inputs)[None, :]
    prior = tl.load(priors + m, mask=mask, other=0.0)[:, None]
    factor = tl.load(factors + m, mask=mask, other=0.0)[:, None]
    value = tl.load(values + m.to(tl.int64)[:, None] * num_inputs + n[None, :], mask=keep, other=0.0)
    return tl.where(keep, exponent(value, key, prior, factor, SCORE), float("-inf"))


@triton.jit
def _load_key(keys, n, num_inputs, SCORE: tl.constexpr):
    """Load keys of inputs n as a row [1, BN]; zeros if the score uses none.

    Args:
        keys: Outputs f(x), [N], float32, for the score ``dot``; None otherwise.
        n: Inputs, [BN].
        num_inputs: Number N of inputs.
        SCORE: Name of the score.
    """
    key = tl.zeros((n.shape[0],), tl.float32)
    if SCORE == "dot":
        key = tl.load(keys + n, mask=n < num_inputs, other=0.0)
    return key[None, :]


@triton.jit(do_not_specialize=_SAMPLES)
def statistics(
    values, keys, priors, factors, out, num_samples, num_inputs, samples_per_split,
    SCORE: tl.constexpr, MEMBERS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Compute partial statistics of the softmax; a program handles BN inputs and the displacements of one split.

    Args:
        values: Differences of one output or scores, [MEMBERS, M, N], float32, contiguous.
        keys: Outputs f(x), [N], float32, for the score ``dot``; None otherwise.
        priors: Prior log weights of the displacements, [M], float32.
        factors: Factors of the scores, [M], float32.
        out: Partial statistics (largest exponent, sum, sum of squares), [splits, 3, N], float32, contiguous.
        num_samples: Number M of displacements.
        num_inputs: Number N of inputs.
        samples_per_split: Displacements of a split.
        SCORE: Name of the score.
        MEMBERS: 2 for antithetic pairs, else 1.
        BM: Displacements of a tile.
        BN: Inputs of a tile.
    """
    tiles = tl.cdiv(num_inputs, BN)
    split, n = tl.program_id(0) // tiles, tl.program_id(0) % tiles * BN + tl.arange(0, BN)
    # 64 bits to the first displacement of the split, and 32 bits from there.
    first = split.to(tl.int64) * samples_per_split
    count = tl.minimum(num_samples - first, samples_per_split).to(tl.int32)
    values, priors, factors = values + first * num_inputs, priors + first, factors + first
    member_stride = widened(num_samples) * num_inputs
    key = _load_key(keys, n, num_inputs, SCORE)
    largest = tl.full((BN,), float("-inf"), tl.float32)
    total, squares = tl.zeros((BN,), tl.float32), tl.zeros((BN,), tl.float32)
    for m0 in range(0, count, BM):
        m = m0 + tl.arange(0, BM)
        e = _load_exponents(values, key, priors, factors, m, n, num_inputs, count, SCORE)
        top = tl.max(e, 0)
        if MEMBERS == 2:
            mirrored = _load_exponents(values + member_stride, key, priors, factors, m, n, num_inputs, count, SCORE)
            top = tl.maximum(top, tl.max(mirrored, 0))
        updated = tl.maximum(largest, top)
        # Minus infinity minus itself is NaN: until a displacement has a weight, nothing is subtracted.
        shift = tl.where(updated == float("-inf"), 0.0, updated)
        w = tl.exp(e - shift[None, :])
        if MEMBERS == 2:
            w += tl.exp(mirrored - shift[None, :])
        decay = tl.exp(largest - shift)
        total = total * decay + tl.sum(w, 0)
        squares = squares * decay * decay + tl.sum(w * w, 0)
        largest = updated
    row = split.to(tl.int64) * 3
    tl.store(out + row * num_inputs + n, largest, mask=n < num_inputs)
    tl.store(out + (row + 1) * num_inputs + n, total, mask=n < num_inputs)
    tl.store(out + (row + 2) * num_inputs + n, squares, mask=n < num_inputs)


@triton.jit(do_not_specialize=_SAMPLES)
def weights(
    values, keys, priors, factors, shifts, normalisers, out, num_samples, num_inputs,
    SCORE: tl.constexpr, MEMBERS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Write weights: sums over members of exp(e - shift), times the normaliser of the input; one tile a program.

    Args:
        values: Differences of one output or scores, [MEMBERS, M, N], float32, contiguous.
        keys: Outputs f(x), [N], float32, for the score ``dot``; None otherwise.
        priors: Prior log weights of the displacements, [M], float32.
        factors: Factors of the scores, [M], float32.
        shifts: Largest exponents of the inputs, [N], float32.
        normalisers: Reciprocals of the sums of the inputs, [N], float32.
        out: Weights, [M, N], float32, contiguous.
        num_samples: Number M of displacements.
        num_inputs: Number N of inputs.
        SCORE: Name of the score.
        MEMBERS: 2 for antithetic pairs, else 1.
        BM: Displacements of a tile.
        BN: Inputs of a tile.
    """
    tiles = tl.cdiv(num_inputs, BN)
    m = (tl.program_id(0) // tiles).to(tl.int64) * BM + tl.arange(0, BM)
    n = tl.program_id(0) % tiles * BN + tl.arange(0, BN)
    key = _load_key(keys, n, num_inputs, SCORE)
    shift = tl.load(shifts + n, mask=n < num_inputs, other=0.0)[None, :]
    w = tl.exp(_load_exponents(values, key, priors, factors, m, n, num_inputs, num_samples, SCORE) - shift)
    if MEMBERS == 2:
        values += widened(num_samples) * num_inputs
        w += tl.exp(_load_exponents(values, key, priors, factors, m, n, num_inputs, num_samples, SCORE) - shift)
    w *= tl.load(normalisers + n, mask=n < num_inputs, other=0.0)[None, :]
    keep = (m < num_samples)[:, None] & (n < num_inputs)[None, :]
    tl.store(out + m.to(tl.int64)[:, None] * num_inputs + n[None, :], w, mask=keep)


@triton.jit(do_not_specialize=["num_scores", "num_inputs"])
def scores(d, keys, out, num_scores, num_inputs, outputs, SCORE: tl.constexpr, BS: tl.constexpr, BC: tl.constexpr):
    """Compute raw scores, BS of them a program.

    Args:
        d: Differences, [MEMBERS, M, N, C], float32, contiguous.
        keys: Outputs f(x), [N, C], float32, contiguous, for the score ``dot``; None otherwise.
        out: Scores, [MEMBERS, M, N], float32, contiguous.
        num_scores: Number of scores, MEMBERS * M * N.
        num_inputs: Number N of inputs.
        outputs: Number C of outputs.
        SCORE: Name of the score.
        BS: Scores of a program.
        BC: Outputs of a tile.
    """
    index = tl.program_id(0).to(tl.int64) * BS + tl.arange(0, BS)
    total = tl.zeros((BS,), tl.float32)
    for c0 in range(0, outputs, BC):
        c = c0 + tl.arange(0, BC)
        keep = (index < num_scores)[:, None] & (c < outputs)[None, :]
        value = tl.load(d + index[:, None] * outputs + c[None, :], mask=keep, other=0.0)
        factor = -0.5 * value
        if SCORE == "dot":
            factor = tl.load(keys + (index % num_inputs)[:, None] * outputs + c[None, :], mask=keep, other=0.0)
        total += tl.sum(value * factor, 1)
    tl.store(out + index, total, mask=index < num_scores)


@triton.jit
def _signs_of_row(h, k, width, ordinal, sample_id, key0, key1, BK: tl.constexpr, DTYPE: tl.constexpr):
    """Generate signs of row h and columns [k, k + BK) of samples [BM]: [BM, BK].

    Three words of four belong to other rows.
    """
    quads = (width + 31) // 32
    block = h // 4 * quads + k // 32 + tl.arange(0, BK // 32)[None, :]
    w0, w1, w2, w3 = words(block, ordinal, sample_id[:, None], key0, key1, DISPLACEMENT)
    index = h % 4
    word = tl.where(index < 2, tl.where(index == 0, w0, w1), tl.where(index == 2, w2, w3))
    return unpack_signs(word, DTYPE)


@triton.jit
def _normals_of_row(
    h, k, width, ordinal, sample_id, key0, key1, BK: tl.constexpr, PURPOSE: tl.constexpr, DTYPE: tl.constexpr,
    PTX: tl.constexpr,
):  # fmt: skip
    """Generate normals of row h and columns [k, k + BK) of samples [BM]: [BM, BK]; see ``gaussian_tile``."""
    BM: tl.constexpr = sample_id.shape[0]
    block = h * ((width + 15) // 16 * 4) + k // 4 + tl.arange(0, BK // 4)[None, :]
    w0, w1, w2, w3 = words(block, ordinal, sample_id[:, None], key0, key1, PURPOSE)
    pair = tl.join(normal_pair(w0, w1, PTX), normal_pair(w2, w3, PTX))
    pair = tl.permute(tl.reshape(pair, (BM, BK // 16, 4, 2)), (0, 1, 3, 2))
    return unpack_pairs(tl.reshape(pair, (BM, BK // 2)), DTYPE)


@triton.jit(
    do_not_specialize=["key0", "key1", "ordinal", "num_samples", "height", "width", "dim", "splits"],
    do_not_specialize_on_alignment=["sample_ids"],
)
def project(
    sample_ids, key0, key1, ordinal, out, num_samples, height, width, dim, splits,
    SIGNS: tl.constexpr, PRECISION: tl.constexpr, DTYPE: tl.constexpr, PTX: tl.constexpr, WIDE: tl.constexpr,
    BM: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Compute partial products of the displacements of a matrix with the projection.

    Both operands are generated from the stream. A program sums every splits-th segment of BK columns of a row.

    Args:
        sample_ids: Stream numbers m, [M], int64.
        key0: Low 32 bits of the seed.
        key1: High 32 bits of the seed.
        ordinal: Position of the parameter in registration order.
        out: Partial products, [splits, M, dim], float32, contiguous.
        num_samples: Number M of displacements.
        height: Rows H of the matrix.
        width: Columns K of the matrix.
        dim: Number of projections.
        splits: Programs that share a tile of the result.
        SIGNS: True for random signs, False for normals.
        PRECISION: Precision of the products.
        DTYPE: Triton type of the operands.
        PTX: True to use NVIDIA's approximate special functions.
        WIDE: True if block numbers need 64 bits.
        BM: Displacements of a tile.
        BJ: Projections of a tile.
        BK: Columns of a segment.
    """
    tiles_j, tiles_m = tl.cdiv(dim, BJ), tl.cdiv(num_samples, BM)
    program = tl.program_id(0)
    j = program % tiles_j * BJ + tl.arange(0, BJ)
    m = program // tiles_j % tiles_m * BM + tl.arange(0, BM)
    split = program // tiles_j // tiles_m
    sample_id = tl.load(sample_ids + m, mask=m < num_samples, other=0)
    segments_per_row = tl.cdiv(width, BK)
    total = tl.zeros((BM, BJ), tl.float32)
    for segment in range(sized(split, WIDE), sized(widened(height) * segments_per_row, WIDE), splits):
        place = segment
        if WIDE:
            place = widened(segment)
        h, k = place // segments_per_row, place % segments_per_row * BK
        if SIGNS:
            noise = _signs_of_row(h, k, width, ordinal, sample_id, key0, key1, BK, DTYPE)
        else:
            noise = _normals_of_row(h, k, width, ordinal, sample_id, key0, key1, BK, DISPLACEMENT, DTYPE, PTX)
        projection = _normals_of_row(h, k, width, ordinal, j, key0, key1, BK, PROJECTION, DTYPE, PTX)
        # Noise beyond the width must not count; zeros in one operand are enough.
        projection = tl.where((k + tl.arange(0, BK) < width)[None, :], projection, 0.0)
        total = tl.dot(noise, tl.trans(projection), total, input_precision=PRECISION)
    pointers = out + (split.to(tl.int64) * num_samples + m)[:, None] * dim + j[None, :]
    tl.store(pointers, total, mask=(m < num_samples)[:, None] & (j < dim)[None, :])
