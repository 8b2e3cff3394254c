"""The layer step on the device, fused: dz = d W^T + (h + s d) E^T + e, then the activation's difference.

A tile is [BH, BN]: BH units against BN columns, a column being one input at one displacement, or at its mirror image.
Noise is the left operand, made in registers; q = +-(h + s d) and d come from the previous step in the precision of the
products. README.md draws the data flow; layers.py and fused.py launch these kernels.
"""

import triton
import triton.language as tl

from nntk.kernels.perturb.differences import difference, relu
from nntk.kernels.philox.kernel import (
    DISPLACEMENT,
    gaussian_tile,
    gaussian_vector,
    sign_vector,
    sign_words,
    unpack_signs,
)


@triton.jit
def _noise_tile(
    h0, k, width, ordinal, row, key0, key1, SOURCE: tl.constexpr, DTYPE: tl.constexpr, PTX: tl.constexpr,
    BH: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Unit displacements of units [h0, h0 + BH) and weights [k, k + BK), made where they are used."""
    if SOURCE == "gaussian":
        h = h0 + tl.arange(0, BH)
        return gaussian_tile(h, k, width, ordinal, row, key0, key1, BK, DISPLACEMENT, DTYPE, PTX)
    packed = sign_words(h0, k, width, ordinal, row, key0, key1, BH, BK // 32, DISPLACEMENT)
    return unpack_signs(packed, DTYPE)


@triton.jit
def _operand(x, DTYPE: tl.constexpr, PRECISION: tl.constexpr):
    """Float32 as an operand of a product. Tensor cores drop the last 13 bits for TF32: they are rounded off before."""
    if PRECISION == "tf32":
        bits = x.to(tl.uint32, bitcast=True)
        rounded = ((bits + 0x1000) & 0xFFFFE000).to(tl.float32, bitcast=True)
        # The carry may run into the exponent, which is right, or from a NaN into the sign, which is not.
        return tl.where(x == x, rounded, x)
    return x.to(DTYPE)


@triton.jit
def _packed_signs(words, row, words_a_row, i, mask):
    """+1 or -1 at entries ``i`` of packed sign vectors [rows, words_a_row]."""
    word = tl.load(words + row * words_a_row + i // 32, mask=mask, other=0).to(tl.uint32, bitcast=True)
    return (((word >> (i % 32).to(tl.uint32)) << 31) | 0x3F800000).to(tl.float32, bitcast=True)


@triton.jit
def _finish(
    dz, h, row, c0, layer, HALVES: tl.constexpr, MIRROR: tl.constexpr, LAST: tl.constexpr, ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """Bias, activation and stores of columns from c0 on of the displacement at ``row``.

    Where ``MIRROR``, columns are inputs, and both halves of an antithetic pair are made of one: at layer 0, dz- = -dz+.
    Else the halves are columns of their own, [half, input]. Offsets are 32-bit: a chunk has less than 2**31 numbers.
    """
    (num_inputs, num_columns, stride, bias_noise, state_a, state_b, h_next, scales, parameter0, parameter1, signs,
     signs_a_row, d_out, q_out) = layer  # fmt: skip
    column = c0 + tl.arange(0, dz.shape[1])
    # Rows are padded to 16 units, so that masks keep loads and stores wide; nobody reads what padding gets, nor what
    # a masked load leaves undefined.
    inside = h < stride
    keep = inside[:, None] & (column < num_columns)[None, :]
    n = column
    sign = 1.0
    if HALVES == 2 and not MIRROR:
        second = column >= num_inputs
        n = tl.where(second, column - num_inputs, column)
        sign = tl.where(second, -1.0, 1.0)[None, :]
    s = tl.load(scales + row)
    inverse = 1.0 / s
    at = n[None, :] * stride + h[:, None]
    if bias_noise is not None:
        dz += sign * tl.load(bias_noise + row * stride + h, mask=inside)[:, None]
    a = dz
    b = dz
    if ACTIVATION != "identity":
        a = tl.load(state_a + at, mask=keep)
    if ACTIVATION == "quantise":
        b = tl.load(state_b + at, mask=keep)
    to = column[None, :] * stride + h[:, None]
    first = row * HALVES * num_inputs * stride
    if q_out is not None:
        if ACTIVATION == "relu":
            moved = relu(a)
        else:
            moved = tl.load(h_next + at, mask=keep)
        if signs is not None:
            sign *= _packed_signs(signs, row, signs_a_row, h, inside)[:, None]
    for mirrored in tl.static_range(2 if MIRROR and HALVES == 2 else 1):
        d = difference(a, b, -dz if mirrored else dz, s, inverse, parameter0, parameter1, ACTIVATION, PTX)
        if LAST:
            tl.store(d_out + first + to, d.to(d_out.dtype.element_ty), mask=keep)
        else:
            tl.store(d_out + first + to, _operand(d, d_out.dtype.element_ty, PRECISION), mask=keep)
        if q_out is not None:
            q = (-sign if mirrored else sign) * (moved + s * d)
            tl.store(q_out + first + to, _operand(q, q_out.dtype.element_ty, PRECISION), mask=keep)
        first += num_inputs * stride


@triton.jit
def _finish_in_parts(
    acc, h, row, c0, layer, HALVES: tl.constexpr, MIRROR: tl.constexpr, LAST: tl.constexpr, ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr, PTX: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The epilogue of a tile cut into PARTS: all of it beside a whole accumulator would not fit the registers."""
    if PARTS == 1:
        _finish(acc, h, row, c0, layer, HALVES, MIRROR, LAST, ACTIVATION, PRECISION, PTX)
    else:
        BH: tl.constexpr = acc.shape[0]
        BN: tl.constexpr = acc.shape[1] // 2
        first, second = tl.split(tl.permute(tl.reshape(acc, (BH, 2, BN)), (0, 2, 1)))
        _finish_in_parts(first, h, row, c0, layer, HALVES, MIRROR, LAST, ACTIVATION, PRECISION, PTX, PARTS // 2)
        _finish_in_parts(second, h, row, c0 + BN, layer, HALVES, MIRROR, LAST, ACTIVATION, PRECISION, PTX, PARTS // 2)


@triton.jit(do_not_specialize=["key0", "key1", "ordinal"])
def layer_step(
    q, d, weight, noise, factors,
    rows, key0, key1, ordinal, width, height, num_inputs, num_columns,
    slots, out_signs, out_signs_a_row,
    bias_noise, state_a, state_b, h_next, scales, parameter0, parameter1, next_signs, next_signs_a_row,
    d_out, q_out, stride,
    SOURCE: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr, HALVES: tl.constexpr, ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr, DTYPE: tl.constexpr, PTX: tl.constexpr, WIDE: tl.constexpr, PARTS: tl.constexpr,
    BH: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    """One layer for all displacements of a chunk; README.md has the picture.

    A program is BH units and BN columns; offsets in a chunk of M displacements, of N inputs and ``HALVES`` halves each,
    are 32-bit. What a family or a layer does not have is None.

    Args:
        q: Descriptor of the columns +-(h + s d), [M HALVES N, width], in tiles [BN, BK]; at layer 0 of h, [N, width],
            with flipout under every row's signs, [M N, width]; None of low rank, and where the weight stays.
        d: Descriptor of the columns' differences, as q; None at layer 0, and where W is multiplied elsewhere.
        weight: Descriptor of W, [height, width], in tiles [BH, BK]; None without d.
        noise: Descriptor of slabs or of flipout's bases, [groups height, width], or of low rank's left factors,
            [M RANK, height].
        factors: Descriptor of the columns' products with low rank's right factors, [M HALVES N, RANK].
        rows: Row numbers, [M], int64.
        key0: Low half of the seed, its bits as int32.
        key1: High half.
        ordinal: Of the weight, its bits as int32.
        width: Inputs of the layer.
        height: Units of it.
        num_inputs: N.
        num_columns: Columns of a displacement: N at layer 0, HALVES N behind it.
        slots: With flipout where each displacement's base stands, [M], int32.
        out_signs: Flipout's packed signs r_m, [M, out_signs_a_row], int32.
        out_signs_a_row: Words of a row of them.
        bias_noise: e_m, [M, stride], float32; None where the bias stays.
        state_a: What the activation keeps of z, [N, stride], float32.
        state_b: Its second part; quantise's alone.
        h_next: Inputs of the next layer, [N, stride], float32.
        scales: s_m, [M], float32.
        parameter0: The activation's own.
        parameter1: Its second.
        next_signs: Flipout's packed signs s_m of the next layer, [M, next_signs_a_row], int32.
        next_signs_a_row: Words of a row of them.
        d_out: Differences behind the activation, [M, HALVES, N, stride], ``DTYPE``; float32 in the last layer.
        q_out: The next layer's q, like d_out; None where it takes none.
        stride: ``height`` padded to 16.
        SOURCE: Family of the noise; ``"staged"`` where it was written before, ``"none"`` where the weight stays.
        FIRST: Whether this is layer 0.
        LAST: Whether no product takes what this gives.
        HALVES: Evaluations of a displacement, 1 or 2.
        ACTIVATION: Its name.
        PRECISION: What Triton calls the precision of a product.
        DTYPE: Of the products' operands, made here or read.
        PTX: Whether inline PTX runs.
        WIDE: Whether numbers of Philox blocks need 64 bits.
        PARTS: Pieces of the columns that the epilogue takes one after another.
        BH: Units of a tile.
        BN: Columns of a tile.
        BK: Terms of a step.
        RANK: Rows of a factor of low rank in memory.
    """
    tiles_h, tiles_a_row = tl.cdiv(height, BH), tl.cdiv(num_columns, BN)
    tile_h, tile = tl.program_id(0) % tiles_h, tl.program_id(0) // tiles_h
    group, c = tile // tiles_a_row, tile % tiles_a_row * BN
    h0, c0 = tile_h * BH, group * num_columns + c
    h = h0 + tl.arange(0, BH)
    # At layer 0 all displacements see the same inputs.
    q0 = c if FIRST and SOURCE != "flipout" else c0
    acc = tl.zeros((BH, BN), tl.float32)
    if SOURCE == "gaussian" or SOURCE == "rademacher":
        row = tl.load(rows + group)
        hw = h0
        if WIDE:
            hw = h0.to(tl.int64)
        for k in range(0, width, BK):
            e = _noise_tile(hw, k, width, ordinal, row, key0, key1, SOURCE, DTYPE, PTX, BH, BK)
            acc = tl.dot(e, q.load([q0, k]).T, acc, input_precision=PRECISION)
    elif SOURCE == "lowrank":
        # noise: left factors [M RANK, height]; factors: the columns' products with the right ones, [columns, RANK].
        left = noise.load([group * RANK, h0])
        acc = tl.dot(left.T, factors.load([c0, 0]).T, acc, input_precision=PRECISION)
    elif SOURCE != "none":
        slab = tl.load(slots + group) if SOURCE == "flipout" else group
        for k in range(0, width, BK):
            e = noise.load([slab * height + h0, k])
            acc = tl.dot(e, q.load([q0, k]).T, acc, input_precision=PRECISION)
    if SOURCE == "flipout":
        acc *= _packed_signs(out_signs, group, out_signs_a_row, h, h < height)[:, None]
    if d is not None:
        for k in range(0, width, BK):
            acc = tl.dot(weight.load([h0, k]), d.load([c0, k]).T, acc, input_precision=PRECISION)
    layer = (num_inputs, num_columns, stride, bias_noise, state_a, state_b, h_next, scales, parameter0, parameter1,
             next_signs, next_signs_a_row, d_out, q_out)  # fmt: skip
    _finish_in_parts(acc, h, group, c, layer, HALVES, FIRST, LAST, ACTIVATION, PRECISION, PTX, PARTS)


@triton.jit(do_not_specialize=["key0", "key1", "ordinal"])
def stationary_step(
    q, d, weight,
    rows, key0, key1, ordinal, width, height, num_inputs, num_columns,
    bias_noise, state_a, state_b, h_next, scales, parameter0, parameter1,
    d_out, q_out, stride,
    SOURCE: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr, HALVES: tl.constexpr, ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr, DTYPE: tl.constexpr, PTX: tl.constexpr, PARTS: tl.constexpr, BH: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The layer step for width <= BK: noise is made once and held over all columns of a displacement."""
    tiles_h = tl.cdiv(height, BH)
    tile_h, group = tl.program_id(0) % tiles_h, tl.program_id(0) // tiles_h
    h0 = tile_h * BH
    h = h0 + tl.arange(0, BH)
    e = _noise_tile(h0, 0, width, ordinal, tl.load(rows + group), key0, key1, SOURCE, DTYPE, PTX, BH, BK)
    if d is not None:
        w = weight.load([h0, 0])
    layer = (num_inputs, num_columns, stride, bias_noise, state_a, state_b, h_next, scales, parameter0, parameter1,
             None, 0, d_out, q_out)  # fmt: skip
    for c in range(0, num_columns, BN):
        c0 = group * num_columns + c
        acc = tl.zeros((BH, BN), tl.float32)
        if FIRST:
            acc = tl.dot(e, q.load([c, 0]).T, acc, input_precision=PRECISION)
        else:
            acc = tl.dot(e, q.load([c0, 0]).T, acc, input_precision=PRECISION)
            if d is not None:
                acc = tl.dot(w, d.load([c0, 0]).T, acc, input_precision=PRECISION)
        _finish_in_parts(acc, h, group, c, layer, HALVES, FIRST, LAST, ACTIVATION, PRECISION, PTX, PARTS)


@triton.jit
def project(
    h, d, factors, coefficients, scales, out, width, num_inputs,
    HALVES: tl.constexpr, PRECISION: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    """Products of q = +-(h + s d) with the right factors of low rank, c q B^T: of h and d apart, so that q is nowhere.

    Args:
        h: Descriptor of the unperturbed inputs of the layer, [N, width], in tiles [BN, BK]; None for zero.
        d: Descriptor of their differences, [M HALVES N, width]; None for zero, as at layer 0.
        factors: Descriptor of the right factors, [M RANK, width], in tiles [RANK, BK].
        coefficients: c_m, [M], float32.
        scales: s_m, [M], float32.
        out: [M HALVES N, RANK].
        width: Inputs of the layer.
        num_inputs: N.
        HALVES: Evaluations of a displacement; the second has the minus.
        PRECISION: What Triton calls the precision of a product.
        BN: Columns of a tile.
        BK: Terms of a step.
        RANK: Rows of a factor in memory.
    """
    tiles = tl.cdiv(num_inputs, BN)
    block, n0 = tl.program_id(0) // tiles, tl.program_id(0) % tiles * BN
    row = block // HALVES
    acc = tl.zeros((BN, RANK), tl.float32)
    if d is not None:
        for k in range(0, width, BK):
            right = factors.load([row * RANK, k])
            acc = tl.dot(d.load([block * num_inputs + n0, k]), right.T, acc, input_precision=PRECISION)
        acc *= tl.load(scales + row)
    if h is not None:
        for k in range(0, width, BK):
            right = factors.load([row * RANK, k])
            acc = tl.dot(h.load([n0, k]), right.T, acc, input_precision=PRECISION)
    acc *= (1.0 - 2.0 * (block % HALVES)) * tl.load(coefficients + row)
    n = n0 + tl.arange(0, BN)
    to = (block * num_inputs + n).to(tl.int64)[:, None] * RANK + tl.arange(0, RANK)[None, :]
    tl.store(out + to, _operand(acc, out.dtype.element_ty, PRECISION), mask=(n < num_inputs)[:, None])


@triton.jit
def _small_finish(
    dz, c0, n0, s, network, LAYER: tl.constexpr, WIDTH: tl.constexpr, ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr, DTYPE: tl.constexpr, PTX: tl.constexpr, PAD: tl.constexpr, BI: tl.constexpr,
    BP: tl.constexpr,
):  # fmt: skip
    """Differences behind the activation, zero where padded, and moved activations, BP columns of one half at a time."""
    if dz.shape[1] > BP:
        BN: tl.constexpr = dz.shape[1] // 2
        left, right = tl.split(tl.permute(tl.reshape(dz, (PAD, 2, BN)), (0, 2, 1)))
        d0, q0 = _small_finish(left, c0, n0, s, network, LAYER, WIDTH, ACTIVATION, PRECISION, DTYPE, PTX, PAD, BI, BP)
        d1, q1 = _small_finish(
            right, c0 + BN, n0, s, network, LAYER, WIDTH, ACTIVATION, PRECISION, DTYPE, PTX, PAD, BI, BP
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
        moved = difference(a, b, dz, s, 1.0 / s, parameters[2 * LAYER], parameters[2 * LAYER + 1], ACTIVATION, PTX)
        moved = tl.where((tl.arange(0, PAD) < WIDTH)[:, None], moved, 0.0)
        q = hidden.load([LAYER * PAD, n]) + s * moved
        q = _operand(q if c0 < BI else -q, DTYPE, PRECISION)
        d = _operand(moved, DTYPE, PRECISION)
    return d, q


@triton.jit
def _small_products(
    q, d, sign, row, network, LAYER: tl.constexpr, SOURCE: tl.constexpr, WIDTH: tl.constexpr, WEIGHT: tl.constexpr,
    BIAS: tl.constexpr, LAST: tl.constexpr, PRECISION: tl.constexpr, DTYPE: tl.constexpr, PTX: tl.constexpr,
    PAD: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """Dz = E q + W d + e of one layer; ordinals WEIGHT and BIAS are -1 where these stay."""
    weights, last_weight, _, _, _, _, key0, key1, my_row = network
    unit = tl.arange(0, BH)
    dz = tl.zeros((BH, q.shape[1]), tl.float32)
    if WEIGHT >= 0:
        ordinal = tl.full((), WEIGHT, tl.int64)
        # A zero that the compiler does not know: Philox's first rounds are the same in layers of one shape, and kept
        # for all of them they would spill.
        h0 = (tl.load(my_row, volatile=True) - row).to(tl.int32)
        e = _noise_tile(h0, 0, WIDTH, ordinal, row, key0, key1, SOURCE, DTYPE, PTX, BH, q.shape[0])
        dz = tl.dot(e, q, dz, input_precision=PRECISION)
    if LAYER > 0:
        w = last_weight.load([0, 0]) if LAST else weights.load([LAYER * PAD, 0])
        dz = tl.dot(w, d, dz, input_precision=PRECISION)
    if BIAS >= 0:
        ordinal = tl.full((), BIAS, tl.int64)
        if SOURCE == "gaussian":
            dz += sign * gaussian_vector(unit, ordinal, row, key0, key1, PTX)[:, None]
        else:
            dz += sign * sign_vector(unit, ordinal, row, key0, key1, DISPLACEMENT)[:, None]
    return dz


@triton.jit(do_not_specialize=["key0", "key1"])
def small_mlp(
    inputs, weights, last_weight, states_a, states_b, hidden, rows, scales, parameters, key0, key1, num_inputs,
    num_rows, out,
    SOURCE: tl.constexpr, WIDTHS: tl.constexpr, ORDINALS: tl.constexpr, ACTIVATIONS: tl.constexpr, PAIRS: tl.constexpr,
    PRECISION: tl.constexpr, DTYPE: tl.constexpr, PTX: tl.constexpr, BK: tl.constexpr, PAD: tl.constexpr,
    BC: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """A whole MLP of widths up to 128 at one displacement, for BN columns: nothing leaves the chip between layers.

    Tiles are BK inputs, PAD hidden units, BC outputs; there is no activation behind the last layer. States and hidden
    activations are [layer, PAD, inputs], the weights [layer, PAD, PAD], zero where padded. The halves of a pair are the
    halves of the columns. ``parameters`` are the activations' own, two a layer.
    """
    LAYERS: tl.constexpr = len(WIDTHS) - 1
    BI: tl.constexpr = BN if PAIRS == "none" else BN // 2
    tiles = tl.cdiv(num_inputs, BI)
    m, n0 = tl.program_id(0) // tiles, tl.program_id(0) % tiles * BI
    column, k, unit = tl.arange(0, BN), tl.arange(0, BK), tl.arange(0, BC)
    n, sign = n0 + column % BI, (1 - 2 * (column // BI)).to(tl.float32)[None, :]
    row, s = tl.load(rows + m), tl.load(scales + m)
    keep = (k < WIDTHS[0])[:, None] & (n < num_inputs)[None, :]
    q = sign * tl.load(inputs + k[:, None] * num_inputs + n[None, :], mask=keep, other=0.0)
    q = _operand(q, DTYPE, PRECISION)
    d = q
    network = (weights, last_weight, states_a, states_b, hidden, parameters, key0, key1, rows + m)
    for layer in tl.static_range(LAYERS - 1):
        dz = _small_products(
            q, d, sign, row, network, layer, SOURCE, WIDTHS[layer], ORDINALS[2 * layer], ORDINALS[2 * layer + 1],
            False, PRECISION, DTYPE, PTX, PAD, PAD,
        )  # fmt: skip
        # tl.constexpr: Triton 3.6 hands a tuple's string on as Python's own, which no jitted function takes.
        d, q = _small_finish(
            dz, 0, n0, s, network, layer, WIDTHS[layer + 1], tl.constexpr(ACTIVATIONS[layer]), PRECISION, DTYPE, PTX,
            PAD, BI, BP,
        )  # fmt: skip
    out_d = _small_products(
        q, d, sign, row, network, LAYERS - 1, SOURCE, WIDTHS[LAYERS - 1], ORDINALS[2 * LAYERS - 2],
        ORDINALS[2 * LAYERS - 1], True, PRECISION, DTYPE, PTX, PAD, BC,
    )  # fmt: skip
    if PAIRS == "odd":
        out_d = tl.sum(tl.reshape(out_d * (0.5 * sign), (BC, 2, BI)), axis=1)
        n = n0 + tl.arange(0, BI)
        line = m.to(tl.int64) * num_inputs + n
    else:
        line = (m + column // BI * num_rows).to(tl.int64) * num_inputs + n
    keep = (unit < WIDTHS[LAYERS])[:, None] & (n < num_inputs)[None, :]
    tl.store(out + line[None, :] * WIDTHS[LAYERS] + unit[:, None], out_d, mask=keep)
