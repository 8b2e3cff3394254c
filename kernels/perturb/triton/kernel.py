"""The layer step on the device, fused: dz = d W^T + (h + s d) E^T + e, then the activation's difference.

A tile is [BH, BN]: BH units against BN columns, a column being one input at one displacement, or at its mirror image.
Noise is the left operand, made in registers; q = +-(h + s d) and d come from the previous step in the precision of the
products. README.md draws the data flow; layers.py and fused.py launch these kernels.
"""

import triton
import triton.language as tl

from nntk.kernels.perturb.triton.activations import difference, relu
from nntk.kernels.philox.triton.kernel import (
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
def _finish(
    plus, minus, h, row, n0, layer, HALVES: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """Bias, activation and stores of inputs from n0 on, at the displacement ``row`` and, with HALVES, its mirror image.

    At layer 0 dz- = -dz+, and ``minus`` is not looked at. Offsets are 32-bit: a chunk has less than 2**31 numbers.
    """
    (num_inputs, stride, bias_noise, state_a, state_b, h_next, scales, parameter0, parameter1, d_out,
     q_out) = layer  # fmt: skip
    n = n0 + tl.arange(0, plus.shape[1])
    # Rows are padded to 16 units, so that masks keep loads and stores wide; nobody reads what padding gets, nor what
    # a masked load leaves undefined.
    inside = h < stride
    keep = inside[:, None] & (n < num_inputs)[None, :]
    at = n[None, :] * stride + h[:, None]
    s = tl.load(scales + row)
    inverse = 1.0 / s
    if bias_noise is not None:
        e = tl.load(bias_noise + row * stride + h, mask=inside)[:, None]
        plus += e
        minus -= e
    a = plus
    b = plus
    if ACTIVATION != "identity":
        a = tl.load(state_a + at, mask=keep)
    if ACTIVATION == "quantise":
        b = tl.load(state_b + at, mask=keep)
    if q_out is not None:
        if ACTIVATION == "relu":
            moved = relu(a)
        else:
            moved = tl.load(h_next + at, mask=keep)
    for half in tl.static_range(HALVES):
        if half == 0:
            dz = plus
        elif FIRST:
            dz = -plus
        else:
            dz = minus
        d = difference(a, b, dz, s, inverse, parameter0, parameter1, ACTIVATION, PTX)
        to = (row * HALVES + half) * num_inputs * stride + at
        if LAST:
            tl.store(d_out + to, d.to(d_out.dtype.element_ty), mask=keep)
        else:
            tl.store(d_out + to, _operand(d, d_out.dtype.element_ty, PRECISION), mask=keep)
        if q_out is not None:
            q = moved + s * d
            tl.store(q_out + to, _operand(-q if half else q, q_out.dtype.element_ty, PRECISION), mask=keep)


@triton.jit
def _halves(x):
    """The first and the second half of the columns."""
    BH: tl.constexpr = x.shape[0]
    BN: tl.constexpr = x.shape[1] // 2
    return tl.split(tl.permute(tl.reshape(x, (BH, 2, BN)), (0, 2, 1)))


@triton.jit
def _finish_in_parts(
    plus, minus, h, row, n0, layer, HALVES: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, PTX: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The epilogue of a tile cut into PARTS: all of it beside a whole accumulator would not fit the registers."""
    if PARTS == 1:
        _finish(plus, minus, h, row, n0, layer, HALVES, FIRST, LAST, ACTIVATION, PRECISION, PTX)
    else:
        BN: tl.constexpr = plus.shape[1] // 2
        plus0, plus1 = _halves(plus)
        minus0, minus1 = plus0, plus1
        if HALVES == 2 and not FIRST:
            minus0, minus1 = _halves(minus)
        _finish_in_parts(plus0, minus0, h, row, n0, layer, HALVES, FIRST, LAST, ACTIVATION, PRECISION, PTX, PARTS // 2)
        _finish_in_parts(
            plus1, minus1, h, row, n0 + BN, layer, HALVES, FIRST, LAST, ACTIVATION, PRECISION, PTX, PARTS // 2
        )


@triton.jit
def _negated(e, signs, PTX: tl.constexpr):
    """E times signs: a product where the machine multiplies two bfloat16 at once, else their sign bits."""
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
    noise, signs, r, slab, group, h0, k, width, height, ordinal, row, key0, key1, SOURCE: tl.constexpr,
    DTYPE: tl.constexpr, PTX: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """E of units [h0, h0 + BH) and weights [k, k + BK): made here, read, or with flipout a base S read: r S s^T."""
    if SOURCE == "gaussian" or SOURCE == "rademacher":
        e = _noise_tile(h0, k, width, ordinal, row, key0, key1, SOURCE, DTYPE, PTX, BH, BK)
    else:
        e = noise.load([slab * height + h0, k])
        if SOURCE == "flipout":
            e = _negated(_negated(e, r[:, None], PTX), signs.load([group, k]), PTX)
    return e


@triton.jit
def _moved_weights(w, e, s, DTYPE: tl.constexpr, PRECISION: tl.constexpr):
    """W + s E and W - s E as operands: of a rounded s, all displacements of a scale would err alike."""
    w, se = w.to(tl.float32), s * e.to(tl.float32)
    return _operand(w + se, DTYPE, PRECISION), _operand(w - se, DTYPE, PRECISION)


@triton.jit
def _columns(operand, group, n0, k):
    """Columns of a displacement, both halves of inputs from n0 on, of a descriptor [M, HALVES, N, K]: [BN, BK]."""
    tile = operand.load([group, 0, n0, k])
    return tl.reshape(tile, (tile.shape[1] * tile.shape[2], tile.shape[3]))


@triton.jit
def _half(operand, group, half, n0, k):
    """Columns of one half, by a descriptor whose tiles have one: [BI, BK]."""
    tile = operand.load([group, half, n0, k])
    return tl.reshape(tile, (tile.shape[2], tile.shape[3]))


# What a chunk has of its group begins anywhere: one compilation serves all chunks.
_OF_A_GROUP = ["rows", "scales", "slots", "coefficients"]


@triton.jit(do_not_specialize=["key0", "key1", "ordinal"], do_not_specialize_on_alignment=_OF_A_GROUP)
def layer_step(
    x, d, weight, noise, factors, slots, in_signs, out_signs,
    rows, key0, key1, ordinal, width, height, num_inputs,
    bias_noise, state_a, state_b, h_next, scales, parameter0, parameter1, d_out, q_out, stride,
    SOURCE: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr, OWN: tl.constexpr, HALVES: tl.constexpr,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, DTYPE: tl.constexpr, PTX: tl.constexpr, WIDE: tl.constexpr,
    PARTS: tl.constexpr, BH: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    """One layer for all displacements of a chunk; README.md has the picture.

    A program is BH units and BN columns of one displacement: inputs, behind layer 0 at both of its HALVES. Offsets in a
    chunk of M displacements of N inputs are 32-bit. What a family or a layer does not have is None.

    Args:
        x: Descriptor of what E multiplies, BI inputs a program: the inputs h, [N, width], in tiles [BI, BK], or where
            they are each displacement's OWN, +-(h + s d), [M, HALVES, N, width], in tiles [1, HALVES, BI, BK]; None of
            low rank, and where the weight stays.
        d: Descriptor of the differences of h, [M, HALVES, N, width], in tiles [1, HALVES, BI, BK], of one half where E
            multiplies inputs that both share; None at layer 0.
        weight: Descriptor of W, [height, width], in tiles [BH, BK]; None without d.
        noise: Descriptor of slabs or of flipout's bases, [groups height, width], or of low rank's left factors,
            [M RANK, height].
        factors: Descriptor of the columns' products with low rank's right factors, [M, HALVES, N, RANK], in tiles
            [1, HALVES, BI, RANK].
        slots: With flipout where each displacement's base stands, [M], int32.
        in_signs: With flipout the descriptor of s_m, [M, width], in tiles [1, BK].
        out_signs: With flipout r_m, [M, stride], ``DTYPE``.
        rows: Row numbers, [M], int64.
        key0: Low half of the seed, its bits as int32.
        key1: High half.
        ordinal: Of the weight, its bits as int32.
        width: Inputs of the layer.
        height: Units of it.
        num_inputs: N.
        bias_noise: e_m, [M, stride], float32; None where the bias stays.
        state_a: What the activation keeps of z, [N, stride], float32.
        state_b: Its second part; quantise's alone.
        h_next: Inputs of the next layer, [N, stride], float32.
        scales: s_m, [M], float32.
        parameter0: The activation's own.
        parameter1: Its second.
        d_out: Differences behind the activation, [M, HALVES, N, stride], ``DTYPE``; float32 in the last layer.
        q_out: The next layer's +-(h + s d), like d_out; None where it takes none.
        stride: ``height`` padded to 16.
        SOURCE: Family of the noise; ``"staged"`` where it was written before, ``"none"`` where the weight stays.
        FIRST: Whether there are no differences yet, as at layer 0.
        LAST: Whether no product takes what this gives.
        OWN: Whether x is each displacement's own.
        HALVES: Evaluations of a displacement, 1 or 2.
        ACTIVATION: Its name.
        PRECISION: What Triton calls the precision of a product.
        DTYPE: Of the products' operands, made here or read.
        PTX: Whether inline PTX runs.
        WIDE: Whether numbers of Philox blocks need 64 bits.
        PARTS: Pieces of the inputs that the epilogue takes one after another.
        BH: Units of a tile.
        BN: Columns of a tile.
        BK: Terms of a step.
        RANK: Rows of a factor of low rank in memory.
    """
    BI: tl.constexpr = BN if FIRST else BN // HALVES
    # Whether both halves of a pair share the product of the displacement with the inputs.
    SHARED: tl.constexpr = SOURCE == "staged" and not FIRST and not OWN
    tiles_h, tiles_n = tl.cdiv(height, BH), tl.cdiv(num_inputs, BI)
    tile_h, tile = tl.program_id(0) % tiles_h, tl.program_id(0) // tiles_h
    group, n0, h0 = tile // tiles_n, tile % tiles_n * BI, tile_h * BH
    h = h0 + tl.arange(0, BH)
    row, slab, hw, r = tl.load(rows + group), group, h0, h
    if WIDE and (SOURCE == "gaussian" or SOURCE == "rademacher"):
        hw = h0.to(tl.int64)
    if SOURCE == "flipout":
        slab = tl.load(slots + group)
        r = tl.load(out_signs + group * stride + h, mask=h < height)
    acc = tl.zeros((BH, BI if SHARED else BN), tl.float32)
    if SOURCE == "lowrank":
        # noise: left factors [M RANK, height]; factors: the columns' products with the right ones.
        left = noise.load([group * RANK, h0]).T
        acc = tl.dot(left, _columns(factors, group, n0, 0).T, acc, input_precision=PRECISION)
    elif SOURCE != "none":
        for k in range(0, width, BK):
            e = _unit_displacement(
                noise, in_signs, r, slab, group, hw, k, width, height, ordinal, row, key0, key1, SOURCE, DTYPE, PTX,
                BH, BK,
            )  # fmt: skip
            if OWN:
                operand = _columns(x, group, n0, k)
            else:
                operand = x.load([n0, k])
            acc = tl.dot(e, operand.T, acc, input_precision=PRECISION)
    plus, minus = acc, -acc
    if SHARED:
        s = tl.load(scales + group)
        for k in range(0, width, BK):
            e = noise.load([slab * height + h0, k])
            up, down = _moved_weights(weight.load([h0, k]), e, s, DTYPE, PRECISION)
            plus = tl.dot(up, _half(d, group, 0, n0, k).T, plus, input_precision=PRECISION)
            if HALVES == 2:
                minus = tl.dot(down, _half(d, group, 1, n0, k).T, minus, input_precision=PRECISION)
    elif not FIRST:
        for k in range(0, width, BK):
            acc = tl.dot(weight.load([h0, k]), _columns(d, group, n0, k).T, acc, input_precision=PRECISION)
        plus, minus = acc, acc
        if HALVES == 2:
            plus, minus = _halves(acc)
    layer = (num_inputs, stride, bias_noise, state_a, state_b, h_next, scales, parameter0, parameter1, d_out,
             q_out)  # fmt: skip
    _finish_in_parts(plus, minus, h, group, n0, layer, HALVES, FIRST, LAST, ACTIVATION, PRECISION, PTX, PARTS)


@triton.jit(do_not_specialize=["key0", "key1", "ordinal"], do_not_specialize_on_alignment=_OF_A_GROUP)
def stationary_step(
    q, d, weight,
    rows, key0, key1, ordinal, width, height, num_inputs,
    bias_noise, state_a, state_b, h_next, scales, parameter0, parameter1, d_out, q_out, stride,
    SOURCE: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr, HALVES: tl.constexpr, ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr, DTYPE: tl.constexpr, PTX: tl.constexpr, PARTS: tl.constexpr, BH: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The layer step for width <= BK: noise is made once and held over all columns of a displacement."""
    BI: tl.constexpr = BN if FIRST else BN // HALVES
    tiles_h = tl.cdiv(height, BH)
    tile_h, group = tl.program_id(0) % tiles_h, tl.program_id(0) // tiles_h
    h0 = tile_h * BH
    h = h0 + tl.arange(0, BH)
    e = _noise_tile(h0, 0, width, ordinal, tl.load(rows + group), key0, key1, SOURCE, DTYPE, PTX, BH, BK)
    if not FIRST:
        w = weight.load([h0, 0])
    layer = (num_inputs, stride, bias_noise, state_a, state_b, h_next, scales, parameter0, parameter1, d_out,
             q_out)  # fmt: skip
    for n0 in range(0, num_inputs, BI):
        acc = tl.zeros((BH, BN), tl.float32)
        if FIRST:
            acc = tl.dot(e, q.load([n0, 0]).T, acc, input_precision=PRECISION)
        else:
            acc = tl.dot(e, _columns(q, group, n0, 0).T, acc, input_precision=PRECISION)
            acc = tl.dot(w, _columns(d, group, n0, 0).T, acc, input_precision=PRECISION)
        plus, minus = acc, acc
        if HALVES == 2 and not FIRST:
            plus, minus = _halves(acc)
        _finish_in_parts(plus, minus, h, group, n0, layer, HALVES, FIRST, LAST, ACTIVATION, PRECISION, PTX, PARTS)


@triton.jit(do_not_specialize_on_alignment=_OF_A_GROUP)
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


@triton.jit(do_not_specialize=["key0", "key1"], do_not_specialize_on_alignment=_OF_A_GROUP)
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
