"""Triton kernels around the layer steps: the unperturbed pass, and the order of flipout's displacements.

Last file to read, after kernel.py, which has the layer steps.
"""

import triton
import triton.language as tl

from nntk.kernels.perturb.triton.kernel import round_operand


@triton.jit
def _store_operands(operand, places, mask, values, PRECISION: tl.constexpr):
    """Write values as operands of a product."""
    values = round_operand(values.to(tl.float32), operand.dtype.element_ty, PRECISION)
    tl.store(operand + places, values, mask=mask)


@triton.jit
def _sums(
    x, stride_x, weight, stride_h, stride_k, x_operand, weight_operand, n, h, first_n, first_h, num_inputs, width,
    height, PRECISION: tl.constexpr, BN: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Return the sums over k of x[n, k] weight[h, k], [BN, BH], in float64, and write the operands that are wanted."""
    acc = tl.zeros((BN, BH), tl.float64)
    rows, units = x + n.to(tl.int64) * stride_x, weight + h.to(tl.int64) * stride_h
    is_input, is_unit, stride = n < num_inputs, h < height, (width + 15) // 16 * 16
    # One number at a time where there is no product of float64.
    step: tl.constexpr = BK if DOT else 1
    for k0 in range(0, stride, step):
        k = k0 + tl.arange(0, step)
        is_inside, is_place = k < width, k < stride
        left = tl.load(rows[:, None] + k[None, :], mask=is_input[:, None] & is_inside[None, :], other=0.0)
        columns = (k.to(tl.int64) * stride_k)[:, None]
        right = tl.load(units[None, :] + columns, mask=is_unit[None, :] & is_inside[:, None], other=0.0)
        if x_operand is not None:
            if first_h == 0:
                places = (n.to(tl.int64) * stride)[:, None] + k[None, :]
                _store_operands(x_operand, places, is_input[:, None] & is_place[None, :], left, PRECISION)
        if weight_operand is not None:
            if first_n == 0:
                places = (h.to(tl.int64) * stride)[None, :] + k[:, None]
                _store_operands(weight_operand, places, is_unit[None, :] & is_place[:, None], right, PRECISION)
        if DOT:
            acc = tl.dot(left.to(tl.float64), right.to(tl.float64), acc, out_dtype=tl.float64)
        else:
            acc += left.to(tl.float64) * right.to(tl.float64)
    return acc


@triton.jit(
    do_not_specialize=["stride_x", "stride_h", "stride_b", "num_inputs", "width", "height", "stride"],
    do_not_specialize_on_alignment=["x", "weight", "bias"],
)
def unperturbed_layer(
    x, stride_x, weight, stride_h, stride_k, bias, stride_b, x_operand, weight_operand, state, hidden, operand, value,
    num_inputs, width, height, stride, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, DOT: tl.constexpr,
    BN: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Compute a layer in float64, z = W x + b and phi(z), and round both: BN inputs and BH units a program.

    A pre-activation that underflows becomes the smallest normal number of its sign, so that it stays on its side of a
    jump. Rows of all results but ``value`` are padded by zeros. What is read is also written as operands of products,
    once: weights by the programs of the first inputs, inputs by those of the first units.

    Args:
        x: Inputs, [N, K], float32 or float64; the numbers of a row lie next to each other.
        stride_x: Elements between rows of ``x``.
        weight: Weights, [H, K].
        stride_h: Elements between rows of ``weight``.
        stride_k: Elements between columns of ``weight``.
        bias: Biases, [H]; None without.
        stride_b: Elements between biases.
        x_operand: Result, ``x`` as an operand of a product, [N, padded K]; None where it is not needed.
        weight_operand: Result, ``weight`` likewise, [H, padded K]; None where it is not needed.
        state: Result, z rounded, [N, stride], float32; None where it is not needed.
        hidden: Result, phi(z) rounded, [N, stride], float32; None where it is not needed.
        operand: Result, ``hidden`` as an operand of a product, [N, stride]; None where it is not needed.
        value: Result, phi(z), [N, H], float64; None where it is not needed.
        num_inputs: Number N of inputs.
        width: Width K.
        height: Number H of units.
        stride: Numbers of a row of ``state``, ``hidden`` and ``operand``.
        ACTIVATION: Name of the activation phi, one of ``unperturbed.VALUES``.
        PRECISION: Precision of the products of operands, as Triton names it.
        DOT: True to multiply by ``tl.dot``; no version of Triton does so in float64 for every card.
        BN: Inputs of a tile.
        BH: Units of a tile.
        BK: Terms of a sum that are loaded together.
    """
    tiles = tl.cdiv(stride, BH)
    first_n, first_h = tl.program_id(0) // tiles * BN, tl.program_id(0) % tiles * BH
    n, h = first_n + tl.arange(0, BN), first_h + tl.arange(0, BH)
    z = _sums(
        x, stride_x, weight, stride_h, stride_k, x_operand, weight_operand, n, h, first_n, first_h, num_inputs, width,
        height, PRECISION, BN, BH, BK, DOT,
    )  # fmt: skip
    if bias is not None:
        z += tl.load(bias + h.to(tl.int64) * stride_b, mask=h < height, other=0.0).to(tl.float64)[None, :]
    row, is_row = n.to(tl.int64)[:, None], (n < num_inputs)[:, None]
    place, is_place, is_unit = row * stride + h[None, :], is_row & (h < stride)[None, :], (h < height)[None, :]
    if state is not None:
        tiny = tl.where(z < 0, -1.1754943508222875e-38, 1.1754943508222875e-38)
        # Half of the smallest positive float32 and all below it round to zero.
        is_lost = (z != 0) & (tl.abs(z) <= 7.006492321624085e-46)
        tl.store(state + place, tl.where(is_lost, tiny, z).to(tl.float32), mask=is_place)
    out = z
    if ACTIVATION == "relu":
        out = tl.where(z < 0, 0.0, z)
    elif ACTIVATION == "sign":
        out = tl.where(z < 0, -1.0, 1.0)
    elif ACTIVATION == "step":
        out = tl.where(z < 0, 0.0, 1.0)
    out = tl.where(is_unit, out, 0.0)
    rounded = out.to(tl.float32)
    if hidden is not None:
        tl.store(hidden + place, rounded, mask=is_place)
    if operand is not None:
        tl.store(operand + place, round_operand(rounded, operand.dtype.element_ty, PRECISION), mask=is_place)
    if value is not None:
        tl.store(value + row * height + h[None, :], out.to(tl.float64), mask=is_row & is_unit)


@triton.jit(
    do_not_specialize=["samples", "count"],
    do_not_specialize_on_alignment=["sample_ids", "scales", "order", "sorted_ids", "sorted_scales"],
)
def sort_by_base(
    sample_ids, scales, order, sorted_ids, sorted_scales, samples, count, BLOCK: tl.constexpr, STEP: tl.constexpr
):  # fmt: skip
    """Sort displacements of flipout by base, those of a base in their order: BLOCK displacements a program.

    The place of a displacement is the number of those that come before it. Each program looks at all of them, so that
    this is for few displacements only.

    Args:
        sample_ids: Stream numbers m, [M], int64; m belongs to base m mod ``count``.
        scales: Scales s_m, [M], float32.
        order: Result, the numbers of the displacements in order, [M], int64.
        sorted_ids: Result, ``sample_ids`` in this order.
        sorted_scales: Result, ``scales`` in this order.
        samples: Number M of displacements.
        count: Number of bases.
        BLOCK: Displacements of a program.
        STEP: Displacements that it compares them with at once.
    """
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_inside = i < samples
    sample_id = tl.load(sample_ids + i, mask=is_inside, other=0)
    # Stream numbers have 32 bits, of which the remainder costs a fraction of that of 64.
    bases = count.to(tl.uint32)
    base = (sample_id.to(tl.uint32) % bases).to(tl.int32)
    place = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, samples, STEP):
        j = start + tl.arange(0, STEP)
        other = tl.load(sample_ids + j, mask=j < samples, other=0).to(tl.uint32)
        other = (other % bases).to(tl.int32)
        # A base is at most 2^30, and so those behind the last come behind all.
        other = tl.where(j < samples, other, 2147483647)[None, :]
        is_before = (other < base[:, None]) | ((other == base[:, None]) & (j[None, :] < i[:, None]))
        place += tl.sum(is_before.to(tl.int32), 1)
    tl.store(order + place, i.to(tl.int64), mask=is_inside)
    tl.store(sorted_ids + place, sample_id, mask=is_inside)
    tl.store(sorted_scales + place, tl.load(scales + i, mask=is_inside), mask=is_inside)


@triton.jit
def _first_of_base(sample_ids, begin, end, base, count, steps):
    """Return the first place in [begin, end) whose base is at least ``base``: displacements are sorted by base."""
    low, high = begin, end
    for _ in range(0, steps):
        middle = (low + high) // 2
        is_open = low < high
        is_less = tl.load(sample_ids + middle, mask=is_open, other=0) % count < base
        low, high = tl.where(is_open & is_less, middle + 1, low), tl.where(is_open & ~is_less, middle, high)
    return low


@triton.jit(
    do_not_specialize=["samples", "count", "chunk_samples", "slot_count", "steps"],
    do_not_specialize_on_alignment=["sample_ids", "slots", "base_ids"],
)
def assign_bases(
    sample_ids, slots, base_ids, samples, count, chunk_samples, slot_count, steps, BLOCK: tl.constexpr
):  # fmt: skip
    """Give each base of flipout in a chunk a slot: BLOCK displacements, or BLOCK slots, a program.

    Where a chunk has room for all bases, a base has the slot of its number. Else it has that of the place of its first
    displacement in the chunk.

    Args:
        sample_ids: Stream numbers m, [M], int64, sorted by base; m belongs to base m mod ``count``.
        slots: Result, the slot of the base of each displacement, [M], int32.
        base_ids: Result, the base in each slot, [chunks, slots], int64; -1 where a slot is empty.
        samples: Number M of displacements.
        count: Number of bases.
        chunk_samples: Displacements of a chunk; the last may have fewer.
        slot_count: Slots of a chunk, the smaller of both.
        steps: Steps of a search in a chunk, at least log2 of its displacements and one more.
        BLOCK: Numbers of a program.
    """
    for_slots = tl.program_id(0) - tl.cdiv(samples, BLOCK)
    has_all = count <= chunk_samples
    if for_slots < 0:
        m = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        base = tl.load(sample_ids + m, mask=m < samples, other=0) % count
        begin = m // chunk_samples * chunk_samples
        end = tl.minimum(begin + chunk_samples, samples)
        slot = base.to(tl.int32)
        if not has_all:
            slot = _first_of_base(sample_ids, begin, end, base, count, steps) - begin
        tl.store(slots + m, slot, mask=m < samples)
    else:
        i = for_slots * BLOCK + tl.arange(0, BLOCK)
        chunk, slot = i // slot_count, i % slot_count
        begin = chunk * chunk_samples
        end = tl.minimum(begin + chunk_samples, samples)
        is_slot = begin < samples
        base = slot.to(tl.int64)
        if not has_all:
            base = tl.load(sample_ids + begin + slot, mask=begin + slot < end, other=-1) % count
        place = _first_of_base(sample_ids, begin, end, base, count, steps)
        found = tl.load(sample_ids + place, mask=place < end, other=0) % count == base
        is_used = found & (place < end) & (has_all | (place == begin + slot))
        tl.store(base_ids + i, tl.where(is_used, base, -1), mask=is_slot)
