"""Weights of displacements from their lengths, in float64: one pass for the statistics of the softmax, one for weights.

Log weights are never stored: both passes compute them from the lengths, eight bytes each. There are no atomics, so the
result always has the same bits. The distributions are those of distributions.py.
"""

import sys

import triton
import triton.language as tl

from nntk.kernels.fixed_weights import distributions

EDGE: tl.constexpr = tl.constexpr(2 * distributions.EDGE)
_INF: tl.constexpr = tl.constexpr(float("inf"))
# Largest log weight of an empty set while sums accumulate: unlike minus infinity, it may be subtracted.
_LOWEST: tl.constexpr = tl.constexpr(-sys.float_info.max)


@triton.jit
def profile(t, DISTRIBUTION: tl.constexpr):
    """Return the profile of a distribution at t = (r / scale)^2; infinite where its density is zero, NaN where t is."""
    if DISTRIBUTION == "gaussian":
        value = t
    elif DISTRIBUTION == "exponential":
        value = tl.sqrt(t)
    elif DISTRIBUTION == "cauchy":
        # log(1 + t): the rounding error of 1 + t is corrected to first order.
        shifted = 1.0 + t
        value = tl.log(shifted) + (t - (shifted - 1.0)) / shifted
    elif DISTRIBUTION == "ball":
        value = tl.where(t > 1.0 + EDGE, _INF, t * 0.0)
    else:
        value = tl.where(t < 1.0 - EDGE, _INF, tl.log(t))
    return value


@triton.jit
def log_weight(
    squared_length, inverse, steepness, proposal_inverse, proposal_steepness,
    DISTRIBUTION: tl.constexpr, PROPOSAL: tl.constexpr,
):  # fmt: skip
    """Return the log density minus that of the proposal; minus infinity where the density is zero.

    The inverses are 1 / scale^2 of both distributions.
    """
    target = -steepness * profile(squared_length * inverse, DISTRIBUTION)
    proposal = -proposal_steepness * profile(squared_length * proposal_inverse, PROPOSAL)
    return target - tl.where(target == -_INF, 0.0, proposal)


@triton.jit
def merge(top, total, squares):
    """Merge the statistics of many sets into those of their union; the sums of an empty set are zero."""
    highest = tl.max(top, 0)
    factor = tl.exp(top - highest)
    return highest, tl.sum(total * factor, 0), tl.sum(squares * factor * factor, 0)


# Logarithms in float64 take longer than loads, which need not be wide: one compilation serves all counts.
@triton.jit(do_not_specialize=["count"])
def reduce_weights(
    partials, squared_lengths, count, inverse: tl.float64, steepness: tl.float64, proposal_inverse: tl.float64,
    proposal_steepness: tl.float64, DISTRIBUTION: tl.constexpr, PROPOSAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute partial statistics of the softmax; a program handles every programs-th BLOCK of lengths.

    A thread keeps the largest log weight so far and sums relative to it. One exponential for each length, of the
    distance between the two, rescales either the sums or the new term.

    Args:
        partials: Partial statistics (largest log weight, sum, sum of squares), [3, programs], float64, contiguous.
        squared_lengths: Squared lengths of the displacements, [M], float64.
        count: Number M of displacements.
        inverse: 1 / scale^2 of the distribution.
        steepness: Factor of its profile.
        proposal_inverse: 1 / scale^2 of the proposal.
        proposal_steepness: Factor of the profile of the proposal.
        DISTRIBUTION: Name of the distribution.
        PROPOSAL: Name of the distribution of the proposal.
        BLOCK: Displacements handled together.
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    top = tl.full((BLOCK,), _LOWEST, tl.float64)
    total, squares = tl.zeros((BLOCK,), tl.float64), tl.zeros((BLOCK,), tl.float64)
    for first in range(program.to(tl.int64) * BLOCK, count, programs.to(tl.int64) * BLOCK):
        i = first + tl.arange(0, BLOCK)
        length = tl.load(squared_lengths + i, mask=i < count, other=1.0)
        new = log_weight(length, inverse, steepness, proposal_inverse, proposal_steepness, DISTRIBUTION, PROPOSAL)
        new = tl.where(i < count, new, -_INF)
        weighted = new != -_INF
        gap = tl.where(weighted, new - top, 0.0)
        shrunk = tl.exp(-tl.abs(gap))
        added = tl.where(weighted, shrunk, 0.0)
        higher = gap > 0.0
        total = tl.where(higher, total * shrunk + 1.0, total + added)
        squares = tl.where(higher, squares * shrunk * shrunk + 1.0, squares + added * added)
        top = tl.where(higher, new, top)
    top, total, squares = merge(top, total, squares)
    tl.store(partials + program, top)
    tl.store(partials + programs + program, total)
    tl.store(partials + 2 * programs + program, squares)


@triton.jit(do_not_specialize=["count"])
def write_weights(
    weights, statistics, partials, squared_lengths, count, inverse: tl.float64, steepness: tl.float64,
    proposal_inverse: tl.float64, proposal_steepness: tl.float64, DISTRIBUTION: tl.constexpr, PROPOSAL: tl.constexpr,
    PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write weights and their statistics, in as many programs as computed the partial statistics.

    Args:
        weights: Weights, [M], float64.
        statistics: Statistics of the softmax, [3], float64; written by program 0.
        partials: Partial statistics, [3, programs], float64, contiguous.
        squared_lengths: Squared lengths of the displacements, [M], float64.
        count: Number M of displacements.
        inverse: 1 / scale^2 of the distribution.
        steepness: Factor of its profile.
        proposal_inverse: 1 / scale^2 of the proposal.
        proposal_steepness: Factor of the profile of the proposal.
        DISTRIBUTION: Name of the distribution.
        PROPOSAL: Name of the distribution of the proposal.
        PARTS: Power of two that is at least the number of programs.
        BLOCK: Displacements handled together.
    """
    # Merge the partial statistics.
    program, programs = tl.program_id(0), tl.num_programs(0)
    part = tl.arange(0, PARTS)
    mask = part < programs
    top, total, squares = merge(
        tl.load(partials + part, mask=mask, other=_LOWEST),
        tl.load(partials + programs + part, mask=mask, other=0.0),
        tl.load(partials + 2 * programs + part, mask=mask, other=0.0),
    )
    if program == 0:
        tl.store(statistics, tl.where(total == 0.0, -_INF, top))
        tl.store(statistics + 1, total)
        tl.store(statistics + 2, squares)
    # Write the weights.
    share = 1.0 / tl.where(total == 0.0, 1.0, total)
    for first in range(program.to(tl.int64) * BLOCK, count, programs.to(tl.int64) * BLOCK):
        i = first + tl.arange(0, BLOCK)
        length = tl.load(squared_lengths + i, mask=i < count, other=1.0)
        log = log_weight(length, inverse, steepness, proposal_inverse, proposal_steepness, DISTRIBUTION, PROPOSAL)
        weight = tl.exp(tl.where(i < count, log - top, 0.0)) * share
        tl.store(weights + i, weight, mask=i < count)
