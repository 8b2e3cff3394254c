"""Weights of displacements by their lengths, in float64: one pass for the softmax's statistics, one for the weights.

Log weights are never stored: both passes make them from the lengths, eight bytes each. No atomics, so the same bits
every time. The laws are those of laws.py.
"""

import sys

import triton
import triton.language as tl

from nntk.kernels.fixed_weights import laws

EDGE: tl.constexpr = tl.constexpr(2 * laws.EDGE)
_INF: tl.constexpr = tl.constexpr(float("inf"))
# The largest log weight of an empty set, as long as sums are made: unlike minus infinity, it may be subtracted.
_LOWEST: tl.constexpr = tl.constexpr(-sys.float_info.max)


@triton.jit
def profile(t, LAW: tl.constexpr):
    """The profile of a law at t = (r / scale)^2; infinite where its density is zero, NaN where t is."""
    if LAW == "gaussian":
        value = t
    elif LAW == "exponential":
        value = tl.sqrt(t)
    elif LAW == "cauchy":
        # log(1 + t): what rounding took off 1 + t is put back, to first order.
        one_more = 1.0 + t
        value = tl.log(one_more) + (t - (one_more - 1.0)) / one_more
    elif LAW == "ball":
        value = tl.where(t > 1.0 + EDGE, _INF, t * 0.0)
    else:
        value = tl.where(t < 1.0 - EDGE, _INF, tl.log(t))
    return value


@triton.jit
def log_weight(
    squared_length, inverse, steepness, proposal_inverse, proposal_steepness,
    LAW: tl.constexpr, PROPOSAL: tl.constexpr,
):  # fmt: skip
    """Log density over that of the proposal; where the law's is zero, minus infinity. Inverses are 1 / scale^2."""
    target = -steepness * profile(squared_length * inverse, LAW)
    proposal = -proposal_steepness * profile(squared_length * proposal_inverse, PROPOSAL)
    return target - tl.where(target == -_INF, 0.0, proposal)


@triton.jit
def merge(top, total, squares):
    """The statistics of many sets as those of one; the sums of an empty one are zero."""
    highest = tl.max(top, 0)
    factor = tl.exp(top - highest)
    return highest, tl.sum(total * factor, 0), tl.sum(squares * factor * factor, 0)


@triton.jit
def reduce_weights(
    partials, squared_lengths, count, inverse: tl.float64, steepness: tl.float64, proposal_inverse: tl.float64,
    proposal_steepness: tl.float64, LAW: tl.constexpr, PROPOSAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Partial statistics: ``partials`` [3, programs], float64; a program takes every programs-th BLOCK of lengths [M].

    A thread keeps the largest log weight that it met, and sums relative to it: one exponential a length, of the
    distance between the two, rescales either the sums or the newcomer.
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    top = tl.full((BLOCK,), _LOWEST, tl.float64)
    total, squares = tl.zeros((BLOCK,), tl.float64), tl.zeros((BLOCK,), tl.float64)
    for first in range(program.to(tl.int64) * BLOCK, count, programs.to(tl.int64) * BLOCK):
        i = first + tl.arange(0, BLOCK)
        length = tl.load(squared_lengths + i, mask=i < count, other=1.0)
        new = log_weight(length, inverse, steepness, proposal_inverse, proposal_steepness, LAW, PROPOSAL)
        new = tl.where(i < count, new, -_INF)
        some = new != -_INF
        gap = tl.where(some, new - top, 0.0)
        shrunk = tl.exp(-tl.abs(gap))
        added = tl.where(some, shrunk, 0.0)
        higher = gap > 0.0
        total = tl.where(higher, total * shrunk + 1.0, total + added)
        squares = tl.where(higher, squares * shrunk * shrunk + 1.0, squares + added * added)
        top = tl.where(higher, new, top)
    top, total, squares = merge(top, total, squares)
    tl.store(partials + program, top)
    tl.store(partials + programs + program, total)
    tl.store(partials + 2 * programs + program, squares)


@triton.jit
def write_weights(
    weights, statistics, partials, squared_lengths, count, inverse: tl.float64, steepness: tl.float64,
    proposal_inverse: tl.float64, proposal_steepness: tl.float64, LAW: tl.constexpr, PROPOSAL: tl.constexpr,
    PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Weights [M] and their statistics [3] from the partial statistics [3, programs], in as many programs."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    part = tl.arange(0, PARTS)
    there = part < programs
    top, total, squares = merge(
        tl.load(partials + part, mask=there, other=_LOWEST),
        tl.load(partials + programs + part, mask=there, other=0.0),
        tl.load(partials + 2 * programs + part, mask=there, other=0.0),
    )
    if program == 0:
        tl.store(statistics, tl.where(total == 0.0, -_INF, top))
        tl.store(statistics + 1, total)
        tl.store(statistics + 2, squares)
    share = 1.0 / tl.where(total == 0.0, 1.0, total)
    for first in range(program.to(tl.int64) * BLOCK, count, programs.to(tl.int64) * BLOCK):
        i = first + tl.arange(0, BLOCK)
        length = tl.load(squared_lengths + i, mask=i < count, other=1.0)
        log = log_weight(length, inverse, steepness, proposal_inverse, proposal_steepness, LAW, PROPOSAL)
        weight = tl.exp(tl.where(i < count, log - top, 0.0)) * share
        tl.store(weights + i, weight, mask=i < count)
