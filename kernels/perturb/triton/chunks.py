"""Division of an evaluation on a GPU into input blocks, groups and chunks: pure functions of shapes and of the budget.

Second file to read, after config.py. An input block is held with its unperturbed pass. For each block, displacements
are taken in groups: the noise vectors of a group are held at once, or a copy of its outputs where one launch has all
layers. A group is taken in chunks: the displacements of a chunk go through the layers together. The budget does not
count the outputs, nor a few numbers for each displacement: its stream number, its scale, and its position in the order
of flipout's bases.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from nntk.kernels.perturb.noise import FORMED_UNITS
from nntk.kernels.perturb.triton import config
from nntk.kernels.philox.directions import Directions
from nntk.kernels.philox.triton import launch as philox

_LARGEST_BUFFER = 2**30
"""Most numbers of one buffer of a chunk; the kernels use 32-bit offsets in it."""

TEMPORARY_DIVISOR = 16
"""Divisor of the budget that gives the bytes reserved for temporaries: the float64 pass, and noise before it is rounded
to an operand."""

MIN_RANK = 16
"""Fewest rows of a factor of low rank in memory, the shortest sum of a product."""


@dataclass(frozen=True)
class ChunkPlan:
    """Sizes of input blocks, chunks and groups of one evaluation, and the memory of its buffers."""

    block_inputs: int
    """Inputs of a block, whose unperturbed pass is held."""
    chunk_samples: int
    """Displacements of a chunk."""
    group_samples: int
    """Displacements of a group, a multiple of those of a chunk."""
    buffer_bytes: int
    """Bytes of all buffers together."""


@dataclass(frozen=True)
class _Footprint:
    """Bytes that an evaluation holds, by what they are held for."""

    state: int
    """Bytes held for each input of a block by the unperturbed pass."""
    evaluation: int
    """Bytes between two layers for each input at each displacement of a chunk."""
    output: int
    """Bytes of a copy of the outputs for each input at each displacement of a group."""
    staged: int
    """Bytes of one layer's noise in memory for each displacement of a chunk."""
    vectors: int
    """Bytes of biases, factors and signs for each displacement of a group."""
    base: int = 0
    """Bytes of each base of flipout at the largest layer."""


def padded_rank(rank: int) -> int:
    """Return the number of rows of a factor in memory."""
    return config.power_of_two(rank, MIN_RANK, 64)


def plan_chunks(
    widths: Sequence[int],
    num_inputs: int,
    num_samples: int,
    members: int,
    itemsize: int,
    max_bytes: int,
    directions: Directions,
    fused: bool = False,
    staged_bytes: int = 0,
    stacked_bytes: int = 0,
) -> ChunkPlan:
    """Choose sizes for the differences of an MLP such that all buffers, with the weight operands, fit the budget.

    Args:
        widths: Widths of the network, inputs and outputs included.
        num_inputs: Number N of inputs.
        num_samples: Number M of displacements.
        members: Evaluations of a displacement: 2 for an antithetic pair, else 1.
        itemsize: Bytes of a number of an operand.
        max_bytes: Budget of temporary memory. The plan has at least one input and one displacement in any case.
        directions: Family of the displacements.
        fused: True where one launch evaluates all layers, so that only outputs leave the chip.
        staged_bytes: Bytes of one displacement of the largest weight whose noise is written to memory.
        stacked_bytes: Bytes of the copies of weights in front of the noise.

    Returns:
        The plan. Its bytes grow with M only until chunks and groups are full. They grow with the number of parameters
        only where noise and weight operands are in memory.
    """
    padded_widths = [philox.padded(width) for width in widths]
    shapes = list(zip(padded_widths[:-1], padded_widths[1:], strict=True))
    # Both parts of z and h in float32, and h as operand; the fused path also stacks them, which takes the same again.
    state = sum(padded_widths) * (12 + itemsize) * (2 if fused else 1)
    budget, widest = _buffer_budget(max_bytes), members * max(padded_widths)
    if fused:
        output = 4 * members * padded_widths[-1]
        return _divide(_Footprint(state, 0, output, 0, 0), num_inputs, num_samples, budget, 0, widest)
    # Layers alternate between two buffers of d and, except for low rank, two of q.
    operands = 1 if directions.name == "lowrank" else 2
    between_layers = operands * sum(max(padded_widths[first:-1:2], default=0) for first in (1, 2))
    projections = padded_rank(directions.count) if directions.name == "lowrank" else 0
    widest = max(widest, members * projections)  # Offsets in the projections are bounded like those in d.
    matrices = [matrix_bytes(height, width, itemsize) for width, height in zip(widths[:-1], widths[1:], strict=True)]
    footprint = _Footprint(
        state,
        members * itemsize * (between_layers + projections),
        0,
        staged_bytes,
        _vector_bytes(shapes, directions, itemsize),
        max(matrices) if directions.name == "flipout" else 0,
    )
    weight_operands = itemsize * sum(width * height for width, height in shapes[1:])
    budget = max(budget // 2, budget - weight_operands - stacked_bytes)
    return _divide(footprint, num_inputs, num_samples, budget, directions.count, widest)


def plan_products(
    width: int, height: int, num_inputs: int, num_samples: int, itemsize: int, max_bytes: int, directions: Directions
) -> ChunkPlan:
    """Choose sizes for products of operands [M, N, K] with displacements of one matrix [H, K].

    Args:
        width: Inputs K of the matrix.
        height: Outputs H of the matrix.
        num_inputs: Number N of operands of a displacement.
        num_samples: Number M of displacements.
        itemsize: Bytes of a number.
        max_bytes: Budget of temporary memory.
        directions: Family of the displacements.

    Returns:
        The plan, in which a group is one chunk.
    """
    padded_width, padded_height = philox.padded(width), philox.padded(height)
    base = matrix_bytes(height, width, itemsize) if directions.name == "flipout" else 0
    projections = padded_rank(directions.count) if directions.name == "lowrank" else 0
    # The operand is held twice: gathered, and padded.
    evaluation = itemsize * (2 * padded_width + projections)
    vectors = _vector_bytes([(padded_width, padded_height)], directions, itemsize)
    budget, widest = _buffer_budget(max_bytes), max(padded_width, padded_height, projections)
    footprint = _Footprint(1, evaluation, 0, 0, vectors, base)
    return _divide(footprint, num_inputs, num_samples, budget, directions.count, widest)


def has_short_offsets(widths: Sequence[int], members: int) -> bool:
    """Return True if offsets of 32 bits are enough for one input at one displacement, so that a chunk has room."""
    return members * philox.padded(max(widths)) <= _LARGEST_BUFFER


def matrix_bytes(height: int, width: int, itemsize: int) -> int:
    """Return the bytes in memory of one displacement of a matrix, or of one base."""
    return itemsize * height * philox.padded(width)


def noise_rows(shapes: Sequence[tuple[int, ...]]) -> list[int]:
    """Return where the noise begins for each weight [H, K] that a loop reads as one matrix with it.

    The weights are in memory one in front of the other, and behind the first of them is the noise, for one layer after
    another. Rows have the padded length of the layer, so that a weight and the noise must be whole rows apart.

    Args:
        shapes: Shapes (H, K) of the weights; (0, 0) for layers that do not stack them.

    Returns:
        Rows from the first row of each weight to the first row of the noise; 0 for (0, 0).

    Example:
        >>> noise_rows([(0, 0), (2, 32), (3, 48)])
        [0, 2, 5]
    """
    rows, numbers = [], 0
    for height, width in shapes:
        length = max(1, philox.padded(width))
        rows.append(-(-numbers // length) + height if height else 0)
        numbers = max(numbers, rows[-1] * length)
    return rows


def largest_staged_bytes(max_bytes: int) -> int:
    """Return the most bytes that one displacement of a matrix may have to be written to memory."""
    return max_bytes // 4


def _buffer_budget(max_bytes: int) -> int:
    """Return the bytes of the budget that buffers may have; the rest is reserved for temporaries."""
    return max_bytes - max_bytes // TEMPORARY_DIVISOR


def _vector_bytes(shapes: Sequence[tuple[int, int]], directions: Directions, itemsize: int) -> int:
    """Return the bytes of biases, factors and signs of a displacement, for layers of the padded shapes (K, H)."""
    bias = 4 * sum(height for _, height in shapes)
    if directions.name == "flipout":
        return bias + itemsize * sum(map(sum, shapes))
    if directions.name == "lowrank":
        rank = padded_rank(directions.count)
        formed = sum(width * height for width, height in shapes if height <= FORMED_UNITS)
        return bias + itemsize * (formed + rank * sum(sum(shape) for shape in shapes if shape[1] > FORMED_UNITS))
    return bias


def _divide(
    footprint: _Footprint, num_inputs: int, num_samples: int, budget: int, bases: int, widest: int
) -> ChunkPlan:
    """Choose as many inputs as a quarter of the budget holds, then displacements; 1/8 of the rest is for groups."""
    most_columns = _LARGEST_BUFFER // widest
    per_sample = footprint.staged + footprint.vectors
    per_column = max(1, footprint.evaluation + footprint.output)  # One layer has nothing between layers.
    inputs = min(budget // 4 // footprint.state, (budget * 3 // 4 - per_sample - footprint.base) // per_column,
                 most_columns)  # fmt: skip
    inputs = max(1, min(num_inputs, inputs))
    rest = budget - inputs * footprint.state
    sample_bytes = inputs * per_column + per_sample
    samples = (rest * 7 // 8 - bases * footprint.base) // sample_bytes
    if footprint.base and samples < bases:  # Each of so few displacements may have a different base.
        samples = rest * 7 // 8 // (sample_bytes + footprint.base)
    samples = max(1, min(num_samples, samples, most_columns // inputs))
    chunk_bytes = samples * (inputs * footprint.evaluation + footprint.staged) + min(bases, samples) * footprint.base
    in_group = inputs * footprint.output + footprint.vectors
    chunks = max(1, min(-(-num_samples // samples), (rest - chunk_bytes) // (samples * in_group)))
    buffer_bytes = inputs * footprint.state + chunk_bytes + chunks * samples * in_group
    return ChunkPlan(inputs, samples, chunks * samples, buffer_bytes)
