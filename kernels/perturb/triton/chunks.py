"""How an evaluation on a GPU is cut: pure functions of shapes and of the budget.

Some inputs are held with their unperturbed pass. For them displacements are taken in groups, whose own noise is made
and whose outputs are held at once, and a group in chunks, which go through the layers together. Beside the budget are
the outputs, and a few numbers for each displacement: which they are, how long, and of flipout their order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nntk.kernels.perturb.noise import FORMED_UNITS
from nntk.kernels.perturb.triton import config as tiles
from nntk.kernels.philox.directions import Directions
from nntk.kernels.philox.triton import launch as philox

_LARGEST_BUFFER = 2**30
"""Numbers of one buffer of a chunk: kernels count them in 32 bits."""

IN_THE_MAKING = 16
"""That part of the budget is for what is made piece by piece: the float64 pass, and noise before it is an operand."""

LEAST_RANK = 16
"""Low rank is padded to what a product sums over at least."""


@dataclass(frozen=True)
class Plan:
    """Sizes of the pieces of one evaluation, and what its buffers take."""

    inputs: int
    """Inputs whose unperturbed pass is held."""
    rows: int
    """Displacements of a chunk."""
    group: int
    """Displacements of a group: whole chunks."""
    buffer_bytes: int


@dataclass(frozen=True)
class _Bytes:
    """What an evaluation holds."""

    state: int
    """Of an input: the unperturbed pass."""
    evaluation: int
    """Of an input at a displacement of a chunk: what is between two layers."""
    output: int
    """Of an input at a displacement of a group."""
    slab: int
    """Of a displacement of a chunk: the noise of a layer."""
    own: int
    """Of a displacement of a group: biases, factors, signs."""
    base: int = 0
    """Of a base of flipout, at the largest layer."""


def padded_rank(rank: int) -> int:
    """Rows of a factor in memory."""
    return tiles.power_of_two(rank, LEAST_RANK, 64)


def pieces(length: int, size: int) -> Iterator[slice]:
    """Slices of ``size`` that make up ``length``; the last may be shorter."""
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def plan(
    widths: Sequence[int],
    num_inputs: int,
    num_rows: int,
    halves: int,
    itemsize: int,
    max_bytes: int,
    directions: Directions,
    fused: bool = False,
    slab: int = 0,
) -> Plan:
    """Size the pieces of an MLP's differences so that all buffers, the weights as operands too, fit the budget.

    Args:
        widths: Widths of the network, inputs and outputs included.
        num_inputs: Number N of inputs.
        num_rows: Number M of displacements.
        halves: Evaluations of a displacement.
        itemsize: Bytes of an operand of the products.
        max_bytes: The budget; a piece has one input and one displacement at least.
        directions: Family of the displacements.
        fused: Whether nothing but the outputs leaves the chip.
        slab: Bytes of one displacement of the largest weight whose displacements are written to memory.

    Returns:
        The plan. Its bytes grow with M only until chunks and groups are full, and with the number of parameters only
        where noise and the weights as operands are in memory.
    """
    lines = [philox.padded(width) for width in widths]
    pairs = list(zip(lines[:-1], lines[1:], strict=True))
    # Both parts of z and h in float32, h as operand; fused, which stacks them, twice.
    state = sum(lines) * (12 + itemsize) * (2 if fused else 1)
    output, budget = 4 * halves * lines[-1], _held(max_bytes)
    if fused:
        return _cut(_Bytes(state, 0, output, 0, 0), num_inputs, num_rows, budget, 0, halves * max(lines))
    # Layers take turns with two buffers of d and, but for low rank, of q.
    operands = 1 if directions.name == "lowrank" else 2
    between = operands * sum(max(lines[first:-1:2], default=0) for first in (1, 2))
    projected = padded_rank(directions.count) if directions.name == "lowrank" else 0
    bases = [slab_bytes(height, width, itemsize) for width, height in zip(widths[:-1], widths[1:], strict=True)]
    base = max(bases) if directions.name == "flipout" else 0
    needs = _Bytes(
        state, halves * itemsize * (between + projected), output, slab, _own_bytes(pairs, directions, itemsize), base
    )
    weights = itemsize * sum(width * height for width, height in pairs[1:])
    budget = max(budget // 2, budget - weights)
    return _cut(needs, num_inputs, num_rows, budget, directions.count, halves * max(lines))


def plan_products(
    width: int, height: int, num_inputs: int, num_rows: int, itemsize: int, max_bytes: int, directions: Directions
) -> Plan:
    """The same for products of operands [M, N, K] with displacements of one matrix [H, K]; a group is a chunk."""
    line, columns = philox.padded(width), philox.padded(height)
    base = slab_bytes(height, width, itemsize) if directions.name == "flipout" else 0
    projected = padded_rank(directions.count) if directions.name == "lowrank" else 0
    # The operand, gathered and padded.
    evaluation = itemsize * (2 * line + projected) + 4 * columns
    needs = _Bytes(1, evaluation, 0, 0, _own_bytes([(line, columns)], directions, itemsize), base)
    return _cut(needs, num_inputs, num_rows, _held(max_bytes), directions.count, max(line, columns))


def slab_bytes(height: int, width: int, itemsize: int) -> int:
    """Bytes of one displacement of a matrix, or of a base, in memory."""
    return itemsize * height * philox.padded(width)


def largest_slab(max_bytes: int) -> int:
    """Bytes of one displacement of a matrix beyond which it is not written to memory."""
    return max_bytes // 4


def _held(max_bytes: int) -> int:
    """Of the budget what buffers may take."""
    return max_bytes - max_bytes // IN_THE_MAKING


def _own_bytes(pairs: Sequence[tuple[int, int]], directions: Directions, itemsize: int) -> int:
    """Bytes that a displacement has to itself, but for its matrices."""
    bias = 4 * sum(height for _, height in pairs)
    if directions.name == "flipout":
        return bias + itemsize * sum(map(sum, pairs))
    if directions.name == "lowrank":
        rank = padded_rank(directions.count)
        formed = sum(width * height for width, height in pairs if height <= FORMED_UNITS)
        return bias + itemsize * (formed + rank * sum(sum(pair) for pair in pairs if pair[1] > FORMED_UNITS))
    return bias


def _cut(needs: _Bytes, num_inputs: int, num_rows: int, budget: int, bases: int, line: int) -> Plan:
    """Take as many inputs as a quarter holds, then displacements; an eighth of what is left is for groups."""
    most = _LARGEST_BUFFER // line
    lone = needs.slab + needs.own
    column = needs.evaluation + needs.output
    inputs = min(budget // 4 // needs.state, (budget * 3 // 4 - lone - needs.base) // column, most)
    inputs = max(1, min(num_inputs, inputs))
    left = budget - inputs * needs.state
    row = inputs * column + lone
    rows = (left * 7 // 8 - bases * needs.base) // row
    if needs.base and rows < bases:  # So few that each may have a base of its own.
        rows = left * 7 // 8 // (row + needs.base)
    rows = max(1, min(num_rows, rows, most // inputs))
    chunk = rows * (inputs * needs.evaluation + needs.slab) + min(bases, rows) * needs.base
    member = inputs * needs.output + needs.own
    chunks = max(1, min(-(-num_rows // rows), (left - chunk) // (rows * member)))
    return Plan(inputs, rows, chunks * rows, inputs * needs.state + chunk + chunks * rows * member)
