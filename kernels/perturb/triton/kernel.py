"""Triton kernels of perturbation evaluation: dz = d W^T + rho [(h + sigma d) E^T + e], then the activation.

Eighth file to read, after launch.py. The scale is s = rho sigma with a power of two sigma, by which differences d are
divided inside of the kernels: this is exact, and so are sums of signs. A tile is [BH, BN]: BH units and BN columns. A
column is one input at one displacement, for the plus or the minus member of a pair. Noise is the left operand of a
product, generated in registers. The operands q = +-(h + sigma d) and d come from the previous step, in the precision of
the products. Rows of matrices in memory are padded to 16 numbers. README.md draws the data flow; layers.py and fused.py
launch the kernels.
"""

import triton
import triton.language as tl

from nntk.kernels.offsets import sized
from nntk.kernels.perturb.triton.activations import difference, relu
from nntk.kernels.philox.triton.kernel import (
    DISPLACEMENT,
    computed_once,
    gaussian_tile,
    gaussian_vector,
    sign_vector,
    sign_words,
    unpack_signs,
)


@triton.jit
def _generate_noise(
    h0, k, width, ordinal, sample_id, key0, key1, SOURCE: tl.constexpr, DTYPE: tl.constexpr, PTX: tl.constexpr,
    BH: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Generate the unit displacements of units [h0, h0 + BH) and weights [k, k + BK) in registers, [BH, BK]."""
    if SOURCE == "gaussian":
        h = h0 + tl.arange(0, BH)
        return gaussian_tile(h, k, width, ordinal, sample_id, key0, key1, BK, DISPLACEMENT, DTYPE, PTX)
    packed = sign_words(h0, k, width, ordinal, sample_id, key0, key1, BH, BK // 32, DISPLACEMENT)
    return unpack_signs(packed, DTYPE)


@triton.jit
def _split_scale(s):
    """Split a normal number s = rho sigma into the power of two sigma <= s and rho in [1, 2); both are exact."""
    bits = s.to(tl.uint32, bitcast=True)
    sigma = (bits & 0x7F800000).to(tl.float32, bitcast=True)
    rho = ((bits & 0x007FFFFF) | 0x3F800000).to(tl.float32, bitcast=True)
    return sigma, rho


@triton.jit
def round_operand(x, DTYPE: tl.constexpr, PRECISION: tl.constexpr):
    """Round float32 to an operand of a product; for TF32 tensor cores drop the last 13 bits, so round these off."""
    if PRECISION == "tf32":
        bits = x.to(tl.uint32, bitcast=True)
        rounded = ((bits + 0x1000) & 0xFFFFE000).to(tl.float32, bitcast=True)
        # A carry into the exponent is right. A carry of a NaN into the sign is not, so NaN is kept.
        return tl.where(x == x, rounded, x)
    return x.to(DTYPE)


@triton.jit
def _epilogue(
    plus, minus, h, m, n0, layer, MEMBERS: tl.constexpr, FIRST: tl.constexpr, PAIRS: tl.constexpr,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """Add the bias, apply the activation, and store the results of displacement m for inputs from n0 on.

    At layer 0 dz- = -dz+, and ``minus`` is not read. Offsets are 32-bit: a buffer of a chunk has less than 2**31
    numbers.

    Args:
        plus: Products of the plus members, [BH, columns], float32.
        minus: Products of the minus members, like ``plus``; read with two MEMBERS behind layer 0.
        h: Units of the tile, [BH].
        m: Number of the displacement in its chunk.
        n0: First input of the tile.
        layer: Tuple of arguments of ``layer_step``: num_inputs, stride_out_n, bias_noise, state_a, state_b, h_next,
            scales, parameter0, parameter1, d_out, q_out, height, outputs, order, stride_m, stride_pair.
        MEMBERS: Evaluations of a displacement, 1 or 2.
        FIRST: As in ``layer_step``, like the names below.
        PAIRS: See ``layer_step``.
        ACTIVATION: See ``layer_step``.
        PRECISION: See ``layer_step``.
        PTX: See ``layer_step``.
    """
    (num_inputs, stride_out_n, bias_noise, state_a, state_b, h_next, scales, parameter0, parameter1, d_out, q_out,
     height, outputs, order, stride_m, stride_pair) = layer  # fmt: skip
    n = n0 + tl.arange(0, plus.shape[1])
    # The mask ends at the padding of a row, a multiple of 16 units, so that loads and stores stay wide. Padded entries
    # and the undefined results of masked loads are never read.
    is_unit = h < stride_out_n
    mask = is_unit[:, None] & (n < num_inputs)[None, :]
    offsets = n[None, :] * stride_out_n + h[:, None]
    sigma, rho = _split_scale(tl.load(scales + m))
    inverse = 1.0 / sigma
    if bias_noise is not None:
        e = rho * tl.load(bias_noise + m * stride_out_n + h, mask=is_unit)[:, None]
        plus += e
        minus -= e
    a = plus
    b = plus
    if ACTIVATION != "identity":
        a = tl.load(state_a + offsets, mask=mask)
    if ACTIVATION == "quantise":
        b = tl.load(state_b + offsets, mask=mask)
    if q_out is not None:
        if ACTIVATION == "relu":
            h_base = relu(a)
        else:
            h_base = tl.load(h_next + offsets, mask=mask)
    if PAIRS is not None:
        d = difference(a, b, plus, sigma, inverse, parameter0, parameter1, ACTIVATION, PTX)
        row = m
        if order is not None:
            row = tl.load(order + m)
        target = outputs + row.to(tl.int64) * stride_m + (n[None, :] * height + h[:, None])
        is_output = (h < height)[:, None] & (n < num_inputs)[None, :]
        if MEMBERS == 2:
            minus = difference(a, b, -plus if FIRST else minus, sigma, inverse, parameter0, parameter1, ACTIVATION, PTX)
        if PAIRS == "odd":
            d = (d - minus) * 0.5
        tl.store(target, d * (1.0 / rho), mask=is_output)
        if PAIRS == "both":
            tl.store(target + stride_pair, minus * (1.0 / rho), mask=is_output)
    else:
        for member in tl.static_range(MEMBERS):
            if member == 0:
                dz = plus
            elif FIRST:
                dz = -plus
            else:
                dz = minus
            d = difference(a, b, dz, sigma, inverse, parameter0, parameter1, ACTIVATION, PTX)
            out_offsets = (m * MEMBERS + member) * num_inputs * stride_out_n + offsets
            tl.store(d_out + out_offsets, round_operand(d, d_out.dtype.element_ty, PRECISION), mask=mask)
            if q_out is not None:
                q = h_base + sigma * d
                q = round_operand(-q if member else q, q_out.dtype.element_ty, PRECISION)
                tl.store(q_out + out_offsets, q, mask=mask)


@triton.jit
def _split_columns(x):
    """Split a tile into the first and the second half of its columns."""
    BH: tl.constexpr = x.shape[0]
    BN: tl.constexpr = x.shape[1] // 2
    return tl.split(tl.permute(tl.reshape(x, (BH, 2, BN)), (0, 2, 1)))


@triton.jit
def _epilogue_in_parts(
    plus, minus, h, m, n0, layer, MEMBERS: tl.constexpr, FIRST: tl.constexpr, PAIRS: tl.constexpr,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, PTX: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Run the epilogue on PARTS of the columns in turn: all at once it would not fit the registers."""
    if PARTS == 1:
        _epilogue(plus, minus, h, m, n0, layer, MEMBERS, FIRST, PAIRS, ACTIVATION, PRECISION, PTX)
    else:
        BN: tl.constexpr = plus.shape[1] // 2
        plus0, plus1 = _split_columns(plus)
        minus0, minus1 = plus0, plus1
        if MEMBERS == 2 and not FIRST:
            minus0, minus1 = _split_columns(minus)
        _epilogue_in_parts(
            plus0, minus0, h, m, n0, layer, MEMBERS, FIRST, PAIRS, ACTIVATION, PRECISION, PTX, PARTS // 2
        )
        _epilogue_in_parts(
            plus1, minus1, h, m, n0 + BN, layer, MEMBERS, FIRST, PAIRS, ACTIVATION, PRECISION, PTX, PARTS // 2
        )


@triton.jit
def _multiply_signs(e, signs, PTX: tl.constexpr):
    """Multiply E by signs: by a product where one instruction multiplies two bfloat16, else by flipping sign bits."""
    if PTX:
        return e * signs
    elif e.dtype == tl.float32:
        return (e.to(tl.uint32, bitcast=True) ^ (signs.to(tl.uint32, bitcast=True) & 0x80000000)).to(
            tl.float32, bitcast=True
        )
    else:
        return (e.to(tl.uint16, bitcast=True) ^ (signs.to(tl.uint16, bitcast=True) & 0x8000)).to(e.dtype, bitcast=True)


@triton.jit
def _unit_displacement(
    noise, signs, r, matrix, m, h0, k, width, height, ordinal, sample_id, key0, key1, SOURCE: tl.constexpr,
    DTYPE: tl.constexpr, PTX: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Return E of units [h0, h0 + BH) and weights [k, k + BK): generated, read, or r S s^T with a base S read."""
    if SOURCE == "gaussian" or SOURCE == "rademacher":
        e = _generate_noise(h0, k, width, ordinal, sample_id, key0, key1, SOURCE, DTYPE, PTX, BH, BK)
    else:
        e = noise.load([matrix * height + h0, k])
        if SOURCE == "flipout":
            e = _multiply_signs(_multiply_signs(e, r[:, None], PTX), signs.load([m, k]), PTX)
    return e


@triton.jit
def _displaced_weights(w, e, s, DTYPE: tl.constexpr, PRECISION: tl.constexpr):
    """Return W + s E and W - s E as operands, summed in float32: a rounded s would bias all displacements alike."""
    w, se = w.to(tl.float32), s * e.to(tl.float32)
    return round_operand(w + se, DTYPE, PRECISION), round_operand(w - se, DTYPE, PRECISION)


@triton.jit
def _load_columns(operand, m, n0, k):
    """Load the columns of displacement m, all members of inputs from n0 on, from [M, MEMBERS, N, K]: [BN, BK]."""
    tile = operand.load([m, 0, n0, k])
    return tl.reshape(tile, (tile.shape[1] * tile.shape[2], tile.shape[3]))


@triton.jit
def _load_member(operand, m, member, n0, k):
    """Load the columns of one member by a descriptor whose tiles have one member: [BI, BK]."""
    tile = operand.load([m, member, n0, k])
    return tl.reshape(tile, (tile.shape[2], tile.shape[3]))


# A chunk begins anywhere in the tensors of its group. Without specialisation on alignment one compilation serves all.
_GROUP_TENSORS = ["sample_ids", "scales", "slots", "coefficients", "outputs", "order"]
# Rows in memory are padded, so that nothing is gained by knowing that a length is a multiple of 16. Without that, one
# compilation serves all numbers of inputs and displacements that have the same tiles.
_SIZES = ["width", "height", "num_inputs", "num_samples", "noise_row", "stride_m", "stride_pair"]
_STREAM = ["key0", "key1", "ordinal"]


@triton.jit(do_not_specialize=[*_STREAM, *_SIZES], do_not_specialize_on_alignment=_GROUP_TENSORS)
def layer_step(
    q, d, weight, noise, projections, slots, in_signs, out_signs,
    sample_ids, key0, key1, ordinal, width, height, num_inputs,
    bias_noise, state_a, state_b, h_next, scales, parameter0, parameter1, d_out, q_out, stride_out_n,
    outputs, order, stride_m, stride_pair,
    SOURCE: tl.constexpr, FIRST: tl.constexpr, PAIRS: tl.constexpr, Q_PER_SAMPLE: tl.constexpr, MEMBERS: tl.constexpr,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, DTYPE: tl.constexpr, PTX: tl.constexpr, WIDE: tl.constexpr,
    PARTS: tl.constexpr, BH: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    """Evaluate one layer for all displacements of a chunk; README.md has the picture.

    A program has BH units and BN columns of one displacement: the BI inputs of a tile, behind layer 0 for all MEMBERS.
    M is the number of displacements of the chunk and N the number of inputs; offsets in the chunk are 32-bit. An
    argument that the family or the layer does not have is None.

    Args:
        q: Descriptor of the operand that E multiplies, ``DTYPE``. With Q_PER_SAMPLE it is +-(h + sigma d),
            [M, MEMBERS, N, width], in tiles [1, MEMBERS, BI, BK]; else it is h, [N, width], in tiles [BI, BK]. None
            with low rank, and where the weight is not displaced.
        d: Descriptor of the differences of h divided by sigma, [M, MEMBERS, N, width], ``DTYPE``, in tiles [1, MEMBERS,
            BI, BK], or [1, 1, BI, BK] where W + s E is formed; None at layer 0.
        weight: Descriptor of W, [height, width], ``DTYPE``, in tiles [BH, BK]; None at layer 0.
        noise: Descriptor of noise in memory, ``DTYPE``: matrices [M height, width] or bases of flipout
            [slots height, width], in tiles [BH, BK], or left factors of low rank [M RANK, height], in tiles [RANK, BH].
        projections: Descriptor of the columns' products with the right factors of low rank, [M, MEMBERS, N, RANK],
            ``DTYPE``, in tiles [1, MEMBERS, BI, RANK].
        slots: Pointer to the slot of each displacement's base, [M], int32; flipout only.
        in_signs: Descriptor of the signs s_m, [M, width], ``DTYPE``, in tiles [1, BK]; flipout only.
        out_signs: Pointer to the signs r_m, [M, stride_out_n], ``DTYPE``; flipout only.
        sample_ids: Pointer to the stream numbers m, [M], int64.
        key0: Low 32 bits of the seed, as int32.
        key1: High 32 bits of the seed, as int32.
        ordinal: Ordinal of the weight, its bits as int32.
        width: Number of inputs of the layer.
        height: Number of units of the layer.
        num_inputs: Number N of inputs.
        bias_noise: Pointer to the unit displacements e_m of the bias, [M, stride_out_n], float32; None where the bias
            is not displaced.
        state_a: Pointer to the first tensor of the activation's state, [N, stride_out_n], float32.
        state_b: Pointer to the second tensor of the state, [N, stride_out_n], float32; only quantise reads it.
        h_next: Pointer to the unperturbed inputs of the next layer, [N, stride_out_n], float32; None in the last layer.
        scales: Pointer to the scales s_m, [M], float32.
        parameter0: First parameter of the activation.
        parameter1: Second parameter of the activation.
        d_out: Pointer to the differences behind the activation divided by sigma, [M, MEMBERS, N, stride_out_n],
            ``DTYPE``; None in the last layer.
        q_out: Pointer to the next layer's +-(h + sigma d), [M, MEMBERS, N, stride_out_n], ``DTYPE``; None where the
            next layer reads none.
        stride_out_n: Numbers of a row of d_out, q_out, bias_noise, the states, h_next and out_signs: ``height`` padded
            to a multiple of 16.
        outputs: Pointer to the differences of the last layer divided by s, float32, [rows, N, height], or [2, rows, N,
            height] with both members; the numbers of a row lie next to each other. None in other layers.
        order: Pointer to the row of ``outputs`` of each displacement, [M], int64; None where they are in order.
        stride_m: Elements between rows of ``outputs``.
        stride_pair: Elements between the members in ``outputs``.
        SOURCE: Family of the noise; ``"staged"`` for matrices in memory, ``"none"`` where the weight is not displaced.
        FIRST: True for layer 0, which has no differences to multiply.
        PAIRS: Value of ``pairs`` in the last layer, whose results are outputs; None in other layers.
        Q_PER_SAMPLE: True where each displacement has a different q.
        MEMBERS: Evaluations of a displacement, 1 or 2.
        ACTIVATION: Name of the activation.
        PRECISION: Precision of the products, as Triton names it.
        DTYPE: Dtype of the operands of products.
        PTX: True where inline PTX can be used.
        WIDE: True where the numbers of Philox blocks require 64 bits.
        PARTS: Parts of the columns that the epilogue handles in turn.
        BH: Units of a tile.
        BN: Columns of a tile.
        BK: Terms of a step of the sums.
        RANK: Rows of a factor of low rank in memory.
    """
    BI: tl.constexpr = BN if FIRST else BN // MEMBERS
    # Where W + s E is formed, both members of a pair share the product of E with h.
    FORMED: tl.constexpr = SOURCE == "staged" and not FIRST and not Q_PER_SAMPLE
    tiles_h, tiles_n = tl.cdiv(height, BH), tl.cdiv(num_inputs, BI)
    tile_h, tile = tl.program_id(0) % tiles_h, tl.program_id(0) // tiles_h
    m, n0, h0 = tile // tiles_n, tile % tiles_n * BI, tile_h * BH
    h = h0 + tl.arange(0, BH)
    sample_id, matrix, noise_h0, r = tl.load(sample_ids + m), m, h0, h
    if SOURCE == "gaussian" or SOURCE == "rademacher":
        noise_h0 = sized(h0, WIDE)
    if SOURCE == "flipout":
        matrix = tl.load(slots + m)
        r = tl.load(out_signs + m * stride_out_n + h, mask=h < height)
    # Product with the displacement.
    acc = tl.zeros((BH, BI if FORMED else BN), tl.float32)
    if SOURCE == "lowrank":
        left = noise.load([m * RANK, h0]).T
        acc = tl.dot(left, _load_columns(projections, m, n0, 0).T, acc, input_precision=PRECISION)
    elif SOURCE != "none":
        for k in range(0, width, BK):
            e = _unit_displacement(
                noise, in_signs, r, matrix, m, noise_h0, k, width, height, ordinal, sample_id, key0, key1, SOURCE,
                DTYPE, PTX, BH, BK,
            )  # fmt: skip
            e = computed_once(e, PRECISION)
            if Q_PER_SAMPLE:
                operand = _load_columns(q, m, n0, k)
            else:
                operand = q.load([n0, k])
            acc = tl.dot(e, operand.T, acc, input_precision=PRECISION)
    if SOURCE != "none":
        _, rho = _split_scale(tl.load(scales + m))
        acc *= rho
    # Product with the weight, displaced or not.
    plus, minus = acc, -acc
    if FORMED:
        s = tl.load(scales + m)
        for k in range(0, width, BK):
            e = noise.load([matrix * height + h0, k])
            w_plus, w_minus = _displaced_weights(weight.load([h0, k]), e, s, DTYPE, PRECISION)
            plus = tl.dot(w_plus, _load_member(d, m, 0, n0, k).T, plus, input_precision=PRECISION)
            if MEMBERS == 2:
                minus = tl.dot(w_minus, _load_member(d, m, 1, n0, k).T, minus, input_precision=PRECISION)
    elif not FIRST:
        for k in range(0, width, BK):
            acc = tl.dot(weight.load([h0, k]), _load_columns(d, m, n0, k).T, acc, input_precision=PRECISION)
        plus, minus = acc, acc
        if MEMBERS == 2:
            plus, minus = _split_columns(acc)
    layer = (num_inputs, stride_out_n, bias_noise, state_a, state_b, h_next, scales, parameter0, parameter1, d_out,
             q_out, height, outputs, order, stride_m, stride_pair)  # fmt: skip
    _epilogue_in_parts(plus, minus, h, m, n0, layer, MEMBERS, FIRST, PAIRS, ACTIVATION, PRECISION, PTX, PARTS)


@triton.jit
def _load_stacked(columns, operand, m, n0, k):
    """Load the columns of displacement m of one of two stacked operands, [2, M, MEMBERS, N, K]: [BN, BK]."""
    tile = columns.load([operand, m, 0, n0, k])
    return tl.reshape(tile, (tile.shape[2] * tile.shape[3], tile.shape[4]))


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_GROUP_TENSORS)
def stacked_step(
    columns, matrices, noise_row, width, height, num_inputs,
    bias_noise, state_a, state_b, h_next, scales, parameter0, parameter1, d_out, q_out, stride_out_n,
    outputs, order, stride_m, stride_pair,
    PAIRS: tl.constexpr, MEMBERS: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, PTX: tl.constexpr,
    PARTS: tl.constexpr, BH: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Evaluate one layer behind the first, with its noise in memory, in one loop over the terms of both products.

    A program is that of ``layer_step``, whose two loops each fill and drain the pipeline of loads and products. Here
    both products read the same two operands, at other places, so that the pipeline runs through.

    Args:
        columns: Descriptor of +-(h + sigma d) and of the differences d divided by sigma, [2, M, MEMBERS, N, width], in
            the dtype of the operands of products, in tiles [1, 1, MEMBERS, BI, BK].
        matrices: Descriptor of W and, from row ``noise_row`` on, of the noise, [noise_row + M height, width], in the
            dtype of ``columns``, in tiles [BH, BK]. W is in the first rows.
        noise_row: First row of the noise in ``matrices``, at least ``height``.
        width: Number of inputs of the layer.
        height: Number of units of the layer.
        num_inputs: Number N of inputs.
        bias_noise: Pointer to the unit displacements e_m of the bias, [M, stride_out_n], float32; None where the bias
            is not displaced.
        state_a: Pointer to the first tensor of the activation's state, [N, stride_out_n], float32.
        state_b: Pointer to the second tensor of the state, [N, stride_out_n], float32; only quantise reads it.
        h_next: Pointer to the unperturbed inputs of the next layer, [N, stride_out_n], float32; None in the last layer.
        scales: Pointer to the scales s_m, [M], float32.
        parameter0: First parameter of the activation.
        parameter1: Second parameter of the activation.
        d_out: Pointer to the differences behind the activation divided by sigma, [M, MEMBERS, N, stride_out_n], in
            the dtype of ``columns``; None in the last layer.
        q_out: Pointer to the next layer's +-(h + sigma d), [M, MEMBERS, N, stride_out_n], in the dtype of
            ``columns``; None where the next layer reads none.
        stride_out_n: Numbers of a row of d_out, q_out, bias_noise, the states and h_next: ``height`` padded to a
            multiple of 16.
        outputs: Pointer to the differences of the last layer divided by s, float32, [rows, N, height], or [2, rows, N,
            height] with both members; the numbers of a row lie next to each other. None in other layers.
        order: Pointer to the row of ``outputs`` of each displacement, [M], int64; None where they are in order.
        stride_m: Elements between rows of ``outputs``.
        stride_pair: Elements between the members in ``outputs``.
        PAIRS: Value of ``pairs`` in the last layer, whose results are outputs; None in other layers.
        MEMBERS: Evaluations of a displacement, 1 or 2.
        ACTIVATION: Name of the activation.
        PRECISION: Precision of the products, as Triton names it.
        PTX: True where inline PTX can be used.
        PARTS: Parts of the columns that the epilogue handles in turn.
        BH: Units of a tile.
        BN: Columns of a tile.
        BK: Terms of a step of the sums.
    """
    BI: tl.constexpr = BN // MEMBERS
    tiles_h, tiles_n = tl.cdiv(height, BH), tl.cdiv(num_inputs, BI)
    tile_h, tile = tl.program_id(0) % tiles_h, tl.program_id(0) // tiles_h
    m, n0, h0 = tile // tiles_n, tile % tiles_n * BI, tile_h * BH
    h = h0 + tl.arange(0, BH)
    _, rho = _split_scale(tl.load(scales + m))
    noise_h0, steps = noise_row + m * height + h0, tl.cdiv(width, BK)
    acc = tl.zeros((BH, BN), tl.float32)
    for step in range(0, 2 * steps):
        operand = tl.where(step < steps, 0, 1)
        k = (step - operand * steps) * BK
        matrix = matrices.load([tl.where(step < steps, noise_h0, h0), k])
        acc = tl.dot(matrix, _load_stacked(columns, operand, m, n0, k).T, acc, input_precision=PRECISION)
        # Under a condition and behind the product: so the compiler waits for products here alone, not at every step.
        if step == steps - 1:
            acc *= rho
    plus, minus = acc, acc
    if MEMBERS == 2:
        plus, minus = _split_columns(acc)
    layer = (num_inputs, stride_out_n, bias_noise, state_a, state_b, h_next, scales, parameter0, parameter1, d_out,
             q_out, height, outputs, order, stride_m, stride_pair)  # fmt: skip
    _epilogue_in_parts(plus, minus, h, m, n0, layer, MEMBERS, False, PAIRS, ACTIVATION, PRECISION, PTX, PARTS)


@triton.jit(do_not_specialize=[*_STREAM, *_SIZES], do_not_specialize_on_alignment=_GROUP_TENSORS)
def stationary_step(
    q, d, weight,
    sample_ids, key0, key1, ordinal, width, height, num_inputs,
    bias_noise, state_a, state_b, h_next, scales, parameter0, parameter1, d_out, q_out, stride_out_n,
    outputs, order, stride_m, stride_pair,
    SOURCE: tl.constexpr, FIRST: tl.constexpr, PAIRS: tl.constexpr, MEMBERS: tl.constexpr, ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr, DTYPE: tl.constexpr, PTX: tl.constexpr, WIDE: tl.constexpr, PARTS: tl.constexpr,
    BH: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Evaluate one layer of ``width`` <= BK; noise is generated once and held over all columns of a displacement.

    A program has BH units of one displacement and goes over all inputs, BI of them at a time.

    Args:
        q: Descriptor of the operand that E multiplies, ``DTYPE``: at layer 0 h, [N, width], in tiles [BI, BK]; behind
            it +-(h + sigma d), [M, MEMBERS, N, width], in tiles [1, MEMBERS, BI, BK].
        d: Descriptor of the differences of h divided by sigma, [M, MEMBERS, N, width], ``DTYPE``, in tiles [1, MEMBERS,
            BI, BK]; None at layer 0.
        weight: Descriptor of W, [height, width], ``DTYPE``, in tiles [BH, BK]; None at layer 0.
        sample_ids: Pointer to the stream numbers m, [M], int64.
        key0: Low 32 bits of the seed, as int32.
        key1: High 32 bits of the seed, as int32.
        ordinal: Ordinal of the weight, its bits as int32.
        width: Number of inputs of the layer.
        height: Number of units of the layer.
        num_inputs: Number N of inputs.
        bias_noise: Pointer to the unit displacements e_m of the bias, [M, stride_out_n], float32; None where the bias
            is not displaced.
        state_a: Pointer to the first tensor of the activation's state, [N, stride_out_n], float32.
        state_b: Pointer to the second tensor of the state, [N, stride_out_n], float32; only quantise reads it.
        h_next: Pointer to the unperturbed inputs of the next layer, [N, stride_out_n], float32; None in the last layer.
        scales: Pointer to the scales s_m, [M], float32.
        parameter0: First parameter of the activation.
        parameter1: Second parameter of the activation.
        d_out: Pointer to the differences behind the activation divided by sigma, [M, MEMBERS, N, stride_out_n],
            ``DTYPE``; None in the last layer.
        q_out: Pointer to the next layer's +-(h + sigma d), [M, MEMBERS, N, stride_out_n], ``DTYPE``; None where the
            next layer reads none.
        stride_out_n: Numbers of a row of d_out, q_out, bias_noise, the states and h_next: ``height`` padded to a
            multiple of 16.
        outputs: Pointer to the differences of the last layer divided by s, float32, [rows, N, height], or [2, rows, N,
            height] with both members; the numbers of a row lie next to each other. None in other layers.
        order: Pointer to the row of ``outputs`` of each displacement, [M], int64; None where they are in order.
        stride_m: Elements between rows of ``outputs``.
        stride_pair: Elements between the members in ``outputs``.
        SOURCE: Family of the noise, ``"gaussian"``.
        FIRST: True for layer 0, which has no differences to multiply.
        PAIRS: Value of ``pairs`` in the last layer, whose results are outputs; None in other layers.
        MEMBERS: Evaluations of a displacement, 1 or 2.
        ACTIVATION: Name of the activation.
        PRECISION: Precision of the products, as Triton names it.
        DTYPE: Dtype of the operands of products.
        PTX: True where inline PTX can be used.
        WIDE: True where the numbers of Philox blocks require 64 bits.
        PARTS: Parts of the columns that the epilogue handles in turn.
        BH: Units of a tile.
        BN: Columns of a tile.
        BK: Terms of the sums, at least ``width``.
    """
    BI: tl.constexpr = BN if FIRST else BN // MEMBERS
    tiles_h = tl.cdiv(height, BH)
    tile_h, m = tl.program_id(0) % tiles_h, tl.program_id(0) // tiles_h
    h0 = tile_h * BH
    h = h0 + tl.arange(0, BH)
    sample_id = tl.load(sample_ids + m)
    e = _generate_noise(sized(h0, WIDE), 0, width, ordinal, sample_id, key0, key1, SOURCE, DTYPE, PTX, BH, BK)
    e = computed_once(e, PRECISION)
    _, rho = _split_scale(tl.load(scales + m))
    if not FIRST:
        w = weight.load([h0, 0])
    layer = (num_inputs, stride_out_n, bias_noise, state_a, state_b, h_next, scales, parameter0, parameter1, d_out,
             q_out, height, outputs, order, stride_m, stride_pair)  # fmt: skip
    for n0 in range(0, num_inputs, BI):
        acc = tl.zeros((BH, BN), tl.float32)
        if FIRST:
            acc = rho * tl.dot(e, q.load([n0, 0]).T, acc, input_precision=PRECISION)
        else:
            acc = rho * tl.dot(e, _load_columns(q, m, n0, 0).T, acc, input_precision=PRECISION)
            acc = tl.dot(w, _load_columns(d, m, n0, 0).T, acc, input_precision=PRECISION)
        plus, minus = acc, acc
        if MEMBERS == 2 and not FIRST:
            plus, minus = _split_columns(acc)
        _epilogue_in_parts(plus, minus, h, m, n0, layer, MEMBERS, FIRST, PAIRS, ACTIVATION, PRECISION, PTX, PARTS)


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_GROUP_TENSORS)
def form(
    left_factors, right_factors, stride, coefficients, out, columns, height, rank,
    PRECISION: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Multiply the factors of low rank, E = c A^T B, for a layer of few units: all units and BK columns a program.

    Args:
        left_factors: Pointer to the factors A_m, in rows of ``stride``, bfloat16 or float32.
        right_factors: Pointer to the factors B_m, likewise.
        stride: Elements between rows of a factor; the rows of all displacements are consecutive.
        coefficients: Pointer to the scales c_m, [M], float64.
        out: Pointer to E as operands, [M, height, columns], contiguous, bfloat16 or float32 as the precision says.
        columns: Columns of E in memory; those beyond its width are never read.
        height: Number of units.
        rank: Rows of a factor.
        PRECISION: Precision of the products, as Triton names it.
        BH: Least power of two that is at least the number of units.
        BK: Columns of a tile.
    """
    tiles = tl.cdiv(columns, BK)
    m, k = tl.program_id(0) // tiles, tl.program_id(0) % tiles * BK + tl.arange(0, BK)
    h, row = tl.arange(0, BH), m.to(tl.int64) * rank * stride
    acc = tl.zeros((BH, BK), tl.float32)
    for _ in range(0, rank):
        left = tl.load(left_factors + row + h, mask=h < height, other=0.0).to(tl.float32)
        right = tl.load(right_factors + row + k, mask=k < columns, other=0.0).to(tl.float32)
        acc += left[:, None] * right[None, :]
        row += stride
    acc *= tl.load(coefficients + m).to(tl.float32)
    pointers = out + (m.to(tl.int64) * height + h)[:, None] * columns + k[None, :]
    is_inside = (h < height)[:, None] & (k < columns)[None, :]
    tl.store(pointers, round_operand(acc, out.dtype.element_ty, PRECISION), mask=is_inside)


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_GROUP_TENSORS)
def project(
    h, d, right_factors, coefficients, scales, out, width, num_inputs,
    MEMBERS: tl.constexpr, PRECISION: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    """Multiply q = +-(h + sigma d) by the right factors of low rank, c q B^T; h and d are multiplied apart.

    Args:
        h: Descriptor of the unperturbed inputs of the layer, [N, width], in the dtype of ``out``, in tiles [BN, BK];
            None for zero.
        d: Descriptor of their differences divided by sigma, [M MEMBERS N, width], in the dtype of ``out``, in tiles
            [BN, BK]; None for zero, as at layer 0.
        right_factors: Descriptor of the factors B_m, [M RANK, width], in the dtype of ``out``, in tiles [RANK, BK].
        coefficients: Pointer to the scales c_m of the products of factors, [M], float64.
        scales: Pointer to the scales s_m, [M], float32.
        out: Pointer to the products, [M, MEMBERS, N, RANK], contiguous, bfloat16 or float32 as the precision says.
        width: Number of inputs of the layer.
        num_inputs: Number N of inputs.
        MEMBERS: Evaluations of a displacement; the second has the minus sign.
        PRECISION: Precision of the products, as Triton names it.
        BN: Columns of a tile.
        BK: Terms of a step of the sums.
        RANK: Rows of a factor in memory.
    """
    tiles = tl.cdiv(num_inputs, BN)
    evaluation, n0 = tl.program_id(0) // tiles, tl.program_id(0) % tiles * BN
    m = evaluation // MEMBERS
    acc = tl.zeros((BN, RANK), tl.float32)
    if d is not None:
        for k in range(0, width, BK):
            right = right_factors.load([m * RANK, k])
            acc = tl.dot(d.load([evaluation * num_inputs + n0, k]), right.T, acc, input_precision=PRECISION)
        sigma, _ = _split_scale(tl.load(scales + m))
        acc *= sigma
    if h is not None:
        for k in range(0, width, BK):
            right = right_factors.load([m * RANK, k])
            acc = tl.dot(h.load([n0, k]), right.T, acc, input_precision=PRECISION)
    acc *= (1.0 - 2.0 * (evaluation % MEMBERS)) * tl.load(coefficients + m).to(tl.float32)
    n = n0 + tl.arange(0, BN)
    offsets = (evaluation * num_inputs + n).to(tl.int64)[:, None] * RANK + tl.arange(0, RANK)[None, :]
    tl.store(out + offsets, round_operand(acc, out.dtype.element_ty, PRECISION), mask=(n < num_inputs)[:, None])


@triton.jit
def _small_epilogue(
    dz, c0, n0, sigma, network, LAYER: tl.constexpr, WIDTH: tl.constexpr, ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr, DTYPE: tl.constexpr, PTX: tl.constexpr, PAD: tl.constexpr, BI: tl.constexpr,
    BP: tl.constexpr,
):  # fmt: skip
    """Return d and q behind the activation as operands, with d zero where padded, for BP columns of a member at a time.

    Args:
        dz: Differences of z divided by sigma, [PAD, columns], float32.
        c0: First column of ``dz`` in the tile.
        n0: First input of the tile.
        sigma: Power of two of the displacement's scale.
        network: Tuple of arguments of ``small_mlp``, whose states, hidden and parameters are read.
        LAYER: Number of the layer.
        WIDTH: Number of units of the layer.
        ACTIVATION: Name of the activation.
        PRECISION: As in ``small_mlp``, like the names below.
        DTYPE: See ``small_mlp``.
        PTX: See ``small_mlp``.
        PAD: See ``small_mlp``.
        BI: Inputs of a tile.
        BP: See ``small_mlp``.
    """
    if dz.shape[1] > BP:
        BN: tl.constexpr = dz.shape[1] // 2
        left, right = tl.split(tl.permute(tl.reshape(dz, (PAD, 2, BN)), (0, 2, 1)))
        d0, q0 = _small_epilogue(
            left, c0, n0, sigma, network, LAYER, WIDTH, ACTIVATION, PRECISION, DTYPE, PTX, PAD, BI, BP
        )
        d1, q1 = _small_epilogue(
            right, c0 + BN, n0, sigma, network, LAYER, WIDTH, ACTIVATION, PRECISION, DTYPE, PTX, PAD, BI, BP
        )
        d = tl.reshape(tl.permute(tl.join(d0, d1), (0, 2, 1)), (PAD, 2 * BN))
        q = tl.reshape(tl.permute(tl.join(q0, q1), (0, 2, 1)), (PAD, 2 * BN))
    else:
        _, _, states_a, states_b, hidden, parameters, _, _, _ = network
        n = n0 + c0 % BI
        a = dz
        b = dz
        if ACTIVATION != "identity":
            a = states_a.load([LAYER * PAD, n])
        if ACTIVATION == "quantise":
            b = states_b.load([LAYER * PAD, n])
        p0, p1 = parameters[2 * LAYER], parameters[2 * LAYER + 1]
        exact_d = difference(a, b, dz, sigma, 1.0 / sigma, p0, p1, ACTIVATION, PTX)
        exact_d = tl.where((tl.arange(0, PAD) < WIDTH)[:, None], exact_d, 0.0)
        q = hidden.load([LAYER * PAD, n]) + sigma * exact_d
        q = round_operand(q if c0 < BI else -q, DTYPE, PRECISION)
        d = round_operand(exact_d, DTYPE, PRECISION)
    return d, q


@triton.jit
def _small_products(
    q, d, sign, rho, sample_id, network, LAYER: tl.constexpr, SOURCE: tl.constexpr, WIDTH: tl.constexpr,
    WEIGHT: tl.constexpr, BIAS: tl.constexpr, LAST: tl.constexpr, PRECISION: tl.constexpr, DTYPE: tl.constexpr,
    PTX: tl.constexpr, PAD: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """Return dz = rho (E q + e) + W d of one layer; ordinals WEIGHT and BIAS of undisplaced tensors are -1."""
    weights, last_weight, _, _, _, _, key0, key1, sample_id_pointer = network
    unit = tl.arange(0, BH)
    dz = tl.zeros((BH, q.shape[1]), tl.float32)
    if WEIGHT >= 0:
        ordinal = tl.full((), WEIGHT, tl.int64)
        # This is a zero that the compiler does not know. The first rounds of Philox are equal in layers of one shape;
        # if the compiler kept their results for all layers, registers would spill.
        h0 = (tl.load(sample_id_pointer, volatile=True) - sample_id).to(tl.int32)
        e = _generate_noise(h0, 0, WIDTH, ordinal, sample_id, key0, key1, SOURCE, DTYPE, PTX, BH, q.shape[0])
        dz = rho * tl.dot(computed_once(e, PRECISION), q, dz, input_precision=PRECISION)
    if LAYER > 0:
        w = last_weight.load([0, 0]) if LAST else weights.load([LAYER * PAD, 0])
        dz = tl.dot(w, d, dz, input_precision=PRECISION)
    if BIAS >= 0:
        ordinal = tl.full((), BIAS, tl.int64)
        if SOURCE == "gaussian":
            dz += (rho * sign) * gaussian_vector(unit, ordinal, sample_id, key0, key1, PTX)[:, None]
        else:
            dz += (rho * sign) * sign_vector(unit, ordinal, sample_id, key0, key1, DISPLACEMENT)[:, None]
    return dz


@triton.jit(do_not_specialize=[*_STREAM, *_SIZES], do_not_specialize_on_alignment=_GROUP_TENSORS)
def small_mlp(
    inputs, weights, last_weight, states_a, states_b, hidden, sample_ids, scales, parameters, key0, key1, num_inputs,
    num_samples, out,
    SOURCE: tl.constexpr, WIDTHS: tl.constexpr, ORDINALS: tl.constexpr, ACTIVATIONS: tl.constexpr, PAIRS: tl.constexpr,
    PRECISION: tl.constexpr, DTYPE: tl.constexpr, PTX: tl.constexpr, BK: tl.constexpr, PAD: tl.constexpr,
    BC: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Evaluate a whole MLP of widths up to 128 at one displacement, for BN columns; differences stay on the chip.

    A program has BI inputs of one displacement; the members of a pair are the two halves of its columns. There is no
    activation behind the last layer. L is the number of layers; P is the number of inputs, padded to 16.

    Args:
        inputs: Pointer to the transposed inputs of the network, [K, N], contiguous, float32.
        weights: Descriptor of the weights, [L PAD, PAD], ``DTYPE``, in tiles [PAD, PAD], zero where padded; the blocks
            of layer 0 and of the last layer are not read.
        last_weight: Descriptor of the last layer's weight, [BC, PAD], ``DTYPE``, in tiles [BC, PAD], zero where padded.
        states_a: Descriptor of the first tensors of the activations' states, [(L - 1) PAD, N] with rows of P numbers,
            float32, in tiles [PAD, BP].
        states_b: Descriptor of the second tensors of the states, like ``states_a``; only quantise reads it.
        hidden: Descriptor of the unperturbed hidden activations, like ``states_a``.
        sample_ids: Pointer to the stream numbers m, [M], int64.
        scales: Pointer to the scales s_m, [M], float32.
        parameters: Tuple of the activations' parameters, two a layer.
        key0: Low 32 bits of the seed, as int32.
        key1: High 32 bits of the seed, as int32.
        num_inputs: Number N of inputs.
        num_samples: Number M of displacements.
        out: Pointer to the unit differences, [M, N, C], or [2, M, N, C] for PAIRS = ``"both"``, contiguous, float32.
        SOURCE: Family of the noise, ``"gaussian"`` or ``"rademacher"``.
        WIDTHS: Widths of the network, inputs and outputs included.
        ORDINALS: Ordinals of each layer's weight and bias, two a layer; -1 for a tensor that is not displaced.
        ACTIVATIONS: Names of the activations of all layers but the last.
        PAIRS: Value of ``pairs``: ``"none"``, ``"odd"`` or ``"both"``.
        PRECISION: Precision of the products, as Triton names it.
        DTYPE: Dtype of the operands of products.
        PTX: True where inline PTX can be used.
        BK: Padded number of inputs of the network.
        PAD: Padded number of hidden units.
        BC: Padded number of outputs.
        BN: Columns of a tile.
        BP: Columns of a part of the epilogue.
    """
    LAYERS: tl.constexpr = len(WIDTHS) - 1
    BI: tl.constexpr = BN if PAIRS == "none" else BN // 2
    tiles = tl.cdiv(num_inputs, BI)
    m, n0 = tl.program_id(0) // tiles, tl.program_id(0) % tiles * BI
    column, k, unit = tl.arange(0, BN), tl.arange(0, BK), tl.arange(0, BC)
    n, sign = n0 + column % BI, (1 - 2 * (column // BI)).to(tl.float32)[None, :]
    sample_id = tl.load(sample_ids + m)
    sigma, rho = _split_scale(tl.load(scales + m))
    mask = (k < WIDTHS[0])[:, None] & (n < num_inputs)[None, :]
    q = sign * tl.load(inputs + k[:, None] * num_inputs + n[None, :], mask=mask, other=0.0)
    q = round_operand(q, DTYPE, PRECISION)
    d = q
    network = (weights, last_weight, states_a, states_b, hidden, parameters, key0, key1, sample_ids + m)
    # Hidden layers.
    for layer in tl.static_range(LAYERS - 1):
        dz = _small_products(
            q, d, sign, rho, sample_id, network, layer, SOURCE, WIDTHS[layer], ORDINALS[2 * layer],
            ORDINALS[2 * layer + 1], False, PRECISION, DTYPE, PTX, PAD, PAD,
        )  # fmt: skip
        # Triton 3.6 passes a string of a tuple on as Python's, which no jitted function accepts: hence constexpr.
        d, q = _small_epilogue(
            dz, 0, n0, sigma, network, layer, WIDTHS[layer + 1], tl.constexpr(ACTIVATIONS[layer]), PRECISION, DTYPE,
            PTX, PAD, BI, BP,
        )  # fmt: skip
        d, q = computed_once(d, PRECISION), computed_once(q, PRECISION)
    # Last layer, and the stores.
    out_d = _small_products(
        q, d, sign, rho, sample_id, network, LAYERS - 1, SOURCE, WIDTHS[LAYERS - 1], ORDINALS[2 * LAYERS - 2],
        ORDINALS[2 * LAYERS - 1], True, PRECISION, DTYPE, PTX, PAD, BC,
    )  # fmt: skip
    out_d *= 1.0 / rho
    if PAIRS == "odd":
        out_d = tl.sum(tl.reshape(out_d * (0.5 * sign), (BC, 2, BI)), axis=1)
        n = n0 + tl.arange(0, BI)
        out_row = m.to(tl.int64) * num_inputs + n
    else:
        out_row = (m + column // BI * num_samples).to(tl.int64) * num_inputs + n
    mask = (unit < WIDTHS[LAYERS])[:, None] & (n < num_inputs)[None, :]
    tl.store(out + out_row[None, :] * WIDTHS[LAYERS] + unit[:, None], out_d, mask=mask)
