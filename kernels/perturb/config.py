"""How an evaluation is cut into pieces, and which form it takes: pure functions of shapes and numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from nntk.kernels import checks
from nntk.kernels.mlp import Layer
from nntk.kernels.philox.directions import Directions
from nntk.kernels.philox.slabs import TILE
from nntk.kernels.target import serves

PROPAGATION = ("difference", "direct", "auto")
PRECISIONS = ("auto", "fp32", "tf32", "bf16")
PAIRS = ("none", "odd", "both")
DEFAULT_BYTES = 128 * 2**20
_GPU_BYTES = 256 * 2**20

_ROUNDOFF = {"bf16": 2.0**-8, "tf32": 2.0**-11}
"""Unit roundoffs of the precisions that tensor cores are fast in, the fastest first."""

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
    """Whether what is as large as the parameters is held while a group's tiles are evaluated; else it is made slab by
    slab, and used for all inputs at once."""


def noise_numbers(directions: Directions, widths: Sequence[int]) -> tuple[int, int]:
    """Numbers of noise that a displacement has to itself, and that it shares with those of the same flipout base."""
    layers = list(zip(widths[:-1], widths[1:], strict=True))
    whole = sum((k + 1) * h for k, h in layers)
    if directions.name == "flipout":
        return sum(k + 2 * h for k, h in layers), whole
    if directions.name == "lowrank":
        return sum(directions.count * (k + h) + h for k, h in layers), 0
    return whole, 0


def plan(
    num_inputs: int,
    num_rows: int,
    widths: Sequence[int],
    directions: Directions,
    halves: int,
    itemsize: int,
    max_bytes: int,
) -> Plan:
    """Cut [num_rows, num_inputs] evaluations so that temporaries fit ``max_bytes`` and the inner loop fits the caches.

    Making noise wants ``TILE`` numbers at a time (fewer leave cores idle), the activations want ``CACHE`` numbers (more
    leave the cache): where a displacement is small enough to be held, a group of them is made first and then used tile
    by tile. A larger one is made slab by slab, and each slab used for a whole group of inputs at once, that of a
    flipout base for a group of rows too. Factors of low rank are always held.

    Args:
        num_inputs: Number N of inputs.
        num_rows: Number M of displacements.
        widths: Widths of the network, inputs and outputs included.
        directions: Family of the displacements.
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
    own, shared = noise_numbers(directions, widths)
    most = min(4 * TILE, quarter // itemsize)
    keep = own + shared <= most or directions.name == "lowrank"
    # The unperturbed pass: up to four numbers a unit, two of them in float64.
    group_inputs = _within(num_inputs, quarter // (24 * sum(widths)))
    # The evaluation: at most eight arrays of the widest layer at once.
    numbers = quarter // (8 * itemsize)
    column = halves * max(widths)
    if keep:
        group_rows = _within(num_rows, min(slab, most - shared) // own)
        tile_inputs = _within(group_inputs, max(128, min(CACHE, numbers) // column))
        tile_rows = _within(group_rows, min(CACHE, numbers) // (column * tile_inputs))
    else:
        group_inputs = _within(group_inputs, numbers // column)
        tile_inputs = group_inputs
        group_rows = tile_rows = _within(num_rows, min(slab // own, numbers // (column * tile_inputs)))
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


def default_bytes(device: torch.device) -> int:
    """Budget where none is given: twice as much on a GPU, whose launches want as many displacements as can be had."""
    return DEFAULT_BYTES if device.type == "cpu" else _GPU_BYTES


def predicted_rounding_error(layers: Sequence[Layer], samples: int, precision: str) -> float:
    r"""Error of the kernel when the operands of its products are rounded, relative to its least Monte-Carlo error.

    With the unit roundoff u, a kernel of L layers is off by :math:`\tfrac{u}{2} \sqrt{L / A}`, where the errors of
    :math:`A = \min(C, K/4)` outputs average out, K being the narrowest layer's inputs. Where J activations jump, a
    rounding decides whether a unit flips, for a fraction u of those that do: the error is :math:`(J + 1) \sqrt u` of
    the Monte-Carlo error itself, and falls with it. README.md beside this file has the measurements. Both take the
    roundings of different numbers to be independent; the teeth of a sawtooth are too fine for any such rule.

    Args:
        layers: The MLP.
        samples: Number M of displacements of the whole kernel.
        precision: ``"bf16"`` or ``"tf32"``.

    Returns:
        The error in units of :math:`\sqrt{2 / (M C)}`.
    """
    if any(layer.activation.name == "sawtooth" for layer in layers):
        return math.inf
    u, outputs = _ROUNDOFF[precision], layers[-1].weight.shape[0]
    narrowest = min(layer.weight.shape[1] for layer in layers)
    averaged = max(1, min(outputs, narrowest / 4))
    jumps = sum(layer.activation.jumps for layer in layers)
    smooth = 0.5 * u * math.sqrt(len(layers) / averaged) / math.sqrt(2 / (samples * outputs))
    return max(smooth, (jumps + 1) * math.sqrt(u)) if jumps else smooth


def choose_precision(layers: Sequence[Layer], samples: int, dtype: torch.dtype, device: torch.device) -> str:
    """The cheapest precision whose predicted error of the kernel is below a tenth of the Monte-Carlo error.

    Args:
        layers: The MLP.
        samples: Number M of displacements of the whole kernel.
        dtype: Dtype of the parameters; float64 is never rounded.
        device: Where it is evaluated; what the kernels do not serve, a CPU above all, has no tensor cores that would
            gain by it, and rounds only when asked.

    Returns:
        ``"fp32"`` (operands as they are), ``"tf32"`` or ``"bf16"``.
    """
    if not serves(device) or dtype != torch.float32:
        return "fp32"
    return next((name for name in _ROUNDOFF if predicted_rounding_error(layers, samples, name) < 0.1), "fp32")


def check_precision(precision: str, propagation: str, dtype: torch.dtype) -> str:
    """Return ``precision`` if it is one of ``PRECISIONS`` and goes with the form and the dtype of the evaluation.

    Raises:
        ValueError: If it does not.
    """
    checks.choice("precision", precision, PRECISIONS)
    if dtype == torch.float64 and precision != "auto":
        raise ValueError(
            f"precision must be 'auto' for float64 parameters, whose products are float64; got {precision!r}."
        )
    if propagation == "direct" and precision in _ROUNDOFF:
        raise ValueError(
            f"precision must be 'auto' or 'fp32' with propagation='direct', got {precision!r}: subtraction would leave "
            "little but rounding. Use propagation='difference'."
        )
    return precision


def resolve(
    layers: Sequence[Layer], scale: float, samples: int, device: torch.device, propagation: str, precision: str
) -> tuple[str, str]:
    """What ``"auto"`` stands for: the form of the evaluation, and the precision of its operands.

    Args:
        layers: The MLP.
        scale: Smallest standard deviation s of a displacement, per coordinate; read where ``propagation`` is auto.
        samples: Number M of displacements of the whole kernel.
        device: Where it is evaluated.
        propagation: One of ``PROPAGATION``.
        precision: One of ``PRECISIONS``.

    Returns:
        ``"difference"`` or ``"direct"``, and ``"fp32"``, ``"tf32"`` or ``"bf16"``.
    """
    if propagation == "auto":
        rounds = precision in _ROUNDOFF
        propagation = "difference" if rounds else choose_propagation(layers, scale, samples, device)
    if precision == "auto":
        dtype = layers[0].weight.dtype
        precision = "fp32" if propagation == "direct" else choose_precision(layers, samples, dtype, device)
    return propagation, precision
