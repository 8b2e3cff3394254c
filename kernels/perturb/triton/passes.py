"""Triton kernels around the layers: passes over numbers that are in memory. They compute no product and no noise.

Read after launch.py, with kernel.py, which has the kernels of the layers.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["height", "stride", "size"])
def finish_layer(
    z, state, hidden, value, height, stride, size, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Round float64 pre-activations, apply an activation, and round its values; rows of results are padded by zeros.

    A number that underflows becomes the smallest normal number of its sign, so that it stays on its side of a jump.

    Args:
        z: Pre-activations, [N, height], float64.
        state: Result, z rounded, [N, stride], float32.
        hidden: Result, the activation of z rounded, [N, stride], float32; None where it is not needed.
        value: Result, the activation of z, [N, height], float64; None with ``hidden``.
        height: Number of units.
        stride: Numbers of a row of ``state`` and ``hidden``.
        size: Numbers of ``state``.
        ACTIVATION: Name of the activation, one of ``unperturbed.VALUES``.
        BLOCK: Numbers of a program.
    """
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row, unit = i // stride, i % stride
    is_unit = (i < size) & (unit < height)
    source = row * height + unit
    numbers = tl.load(z + source, mask=is_unit, other=0.0)
    tiny = tl.where(numbers < 0, -1.1754943508222875e-38, 1.1754943508222875e-38)
    # Half of the smallest positive float32 and all below it round to zero.
    is_lost = (numbers != 0) & (tl.abs(numbers) <= 7.006492321624085e-46)
    tl.store(state + i, tl.where(is_lost, tiny, numbers).to(tl.float32), mask=i < size)
    if hidden is not None:
        out = numbers
        if ACTIVATION == "relu":
            out = tl.where(numbers < 0, 0.0, numbers)
        elif ACTIVATION == "sign":
            out = tl.where(numbers < 0, -1.0, 1.0)
        elif ACTIVATION == "step":
            out = tl.where(numbers < 0, 0.0, 1.0)
        out = tl.where(is_unit, out, 0.0)
        tl.store(hidden + i, out.to(tl.float32), mask=i < size)
        tl.store(value + source, out.to(tl.float64), mask=is_unit)


@triton.jit(
    do_not_specialize=["num_inputs", "outputs", "stride_m", "stride_pair"],
    do_not_specialize_on_alignment=["order", "out"],
)
def combine_members(
    differences, order, out, num_inputs, outputs, padded_outputs, stride_m, stride_pair,
    PAIRS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the differences of a group where they belong: BLOCK numbers of one displacement a program.

    Args:
        differences: Differences of a group, [M, members, N, padded outputs], float32, contiguous.
        order: Row of ``out`` of each displacement, [M], int64; None where they are in order.
        out: Result, [rows, N, C], or [2, rows, N, C] with both members; the numbers of a row lie next to each other.
        num_inputs: Number N of inputs.
        outputs: Number C of outputs.
        padded_outputs: Numbers of a row of ``differences``.
        stride_m: Elements between rows of ``out``.
        stride_pair: Elements between the members in ``out``.
        PAIRS: ``"odd"`` for half of the difference of both members, ``"both"`` for both, ``"none"`` for the only one.
        BLOCK: Numbers of a program.
    """
    size = num_inputs * outputs
    tiles = tl.cdiv(size, BLOCK)
    m = (tl.program_id(0) // tiles).to(tl.int64)
    i = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    member = num_inputs.to(tl.int64) * padded_outputs
    first = differences + m * (1 if PAIRS == "none" else 2) * member + i // outputs * padded_outputs + i % outputs
    row = m
    if order is not None:
        row = tl.load(order + m)
    target, is_inside = out + row * stride_m + i, i < size
    plus = tl.load(first, mask=is_inside)
    if PAIRS == "odd":
        plus = (plus - tl.load(first + member, mask=is_inside)) * 0.5
    tl.store(target, plus, mask=is_inside)
    if PAIRS == "both":
        tl.store(target + stride_pair, tl.load(first + member, mask=is_inside), mask=is_inside)
