"""How an evaluation is cut into pieces, and which form it takes: pure functions of shapes and numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from nntk.kernels.mlp import Layer
from nntk.kernels.philox.reference import TILE

PROPAGATION = ("difference", "direct", "auto")
PAIRS = ("none", "odd", "both")
DEFAULT_BYTES = 128 * 2**20

_UNSATURATED = ("identity", "relu", "leaky_relu")

CACHE = 1 << 18
"""Numbers of one temporary of the inner loop: a megabyte in float32, a core's second-level cache."""


@dataclass(frozen=True)
class Plan:
    """Sizes of the pieces of one evaluation; README.md draws the loops."""

    group_inputs: int
    """Inputs whose unperturbed pass is held, and for which noise is made once."""
    group_rows: int
    """Displacements whose noise is made together."""
    tile_inputs: int
    """Inputs evaluated together."""
    tile_rows: int
    """Displacements evaluated together."""
    slab_numbers: int
    """Numbers of noise made together, over all rows of a group."""
    keep_noise: bool
    """Whether a group's noise is held while its tiles are evaluated; else it is used for all inputs at once."""


def plan(
    num_inputs: int, num_rows: int, widths: Sequence[int], num_params: int, halves: int, itemsize: int, max_bytes: int
) -> Plan:
    """Cut [num_rows, num_inputs] evaluations so that temporaries fit ``max_bytes`` and the inner loop fits the caches.

    Making noise wants ``TILE`` numbers at a time (fewer leave cores idle), the activations want ``CACHE`` numbers (more
    leave the cache): where a displacement is small enough to be held, a group of them is made first and then used tile
    by tile. A larger one is made slab by slab, and each slab used for a whole group of inputs at once.

    Args:
        num_inputs: Number N of inputs.
        num_rows: Number M of displacements.
        widths: Widths of the network, inputs and outputs included.
        num_params: Number of parameters.
        halves: Evaluations of a displacement: 2 for an antithetic pair.
        itemsize: Bytes of a number.
        max_bytes: Budget of temporary memory.

    Returns:
        The plan. Its sizes are at least one, even where that exceeds the budget.
    """
    quarter = max_bytes // 4
    # Noise in the making: integer words and the numbers themselves take about 48 bytes a number.
    slab = max(1, min(TILE, quarter // 48))
    # Noise that is kept.
    keep = num_params * itemsize <= min(4 * TILE * itemsize, quarter)
    # The unperturbed pass: up to four numbers a unit, two of them in float64.
    group_inputs = _within(num_inputs, quarter // (24 * sum(widths)))
    # The evaluation: at most eight arrays of the widest layer at once.
    numbers = quarter // (8 * itemsize)
    column = halves * max(widths)
    if keep:
        group_rows = _within(num_rows, slab // num_params)
        tile_inputs = _within(group_inputs, max(128, min(CACHE, numbers) // column))
        tile_rows = _within(group_rows, min(CACHE, numbers) // (column * tile_inputs))
    else:
        group_inputs = _within(group_inputs, numbers // column)
        group_rows = tile_rows = 1
        tile_inputs = group_inputs
    return Plan(group_inputs, group_rows, tile_inputs, tile_rows, slab, keep)


def _within(length: int, most: int) -> int:
    return max(1, min(length, most))


def predicted_direct_error(layers: Sequence[Layer], scale: float) -> float:
    r"""Relative error of D when f(theta + delta) and f(theta) are evaluated and subtracted.

    A layer's pre-activations have root mean square at most :math:`|[W\,b]|_F \sqrt{|h|^2 + 1} / \sqrt{H}`, their
    differences at least :math:`s \sqrt{|h|^2 + 1}`: the subtraction magnifies the rounding by the ratio. Where a
    function jumps, a difference is all or nothing, and a fraction of them errs: the error is the square root of that.
    Both need every weight to move, an output that does not saturate, and no sawtooth, whose teeth may be finer than
    the rounding; else there is no bound.

    Args:
        layers: The MLP.
        scale: Smallest standard deviation s of a displacement, per coordinate.

    Returns:
        The error relative to the root mean square of D.
    """
    unbounded = any(layer.weight_ordinal is None or layer.activation.name == "sawtooth" for layer in layers)
    if unbounded or layers[-1].activation.name not in _UNSATURATED:
        return math.inf
    eps = torch.finfo(layers[0].weight.dtype).eps / 2
    error = eps
    for layer in layers:
        tensors = [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
        norm = math.hypot(*(float(torch.linalg.vector_norm(tensor)) for tensor in tensors))
        error = max(error, eps * norm / math.sqrt(layer.weight.shape[0]) / scale)
    return math.sqrt(error) if any(layer.activation.jumps for layer in layers) else error


def choose_propagation(layers: Sequence[Layer], scale: float, samples: int, device: torch.device) -> str:
    """Direct evaluation costs one product a layer instead of two: take it where its error cannot matter.

    That is where the predicted error is below a tenth of the smallest relative Monte-Carlo error that a kernel of M
    displacements and C outputs can have, sqrt(2 / (M C)), on devices without tensor cores. Elsewhere the differences
    are propagated. The choice depends on the model and the settings alone, never on the inputs.

    Args:
        layers: The MLP.
        scale: Smallest standard deviation s of a displacement, per coordinate.
        samples: Number M of displacements of the whole kernel.
        device: Where it is evaluated.

    Returns:
        ``"direct"`` or ``"difference"``.
    """
    if device.type != "cpu":
        return "difference"
    smallest = math.sqrt(2 / (samples * layers[-1].weight.shape[0]))
    return "direct" if predicted_direct_error(layers, scale) < 0.1 * smallest else "difference"
