"""Block sizes of the reference, and the choice of propagation and precision: pure functions of shapes and numbers.

The functions measure nothing, and of a device they read only what it is (its architecture and its whole memory, never
the memory that is free). So the same problem is evaluated in the same way in every process.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from nntk.kernels import checks
from nntk.kernels.mlp import Layer
from nntk.kernels.philox.directions import Directions, parse
from nntk.kernels.philox.slabs import TILE
from nntk.kernels.target import memory_of, serves

PROPAGATION = ("difference", "direct", "auto")
PRECISIONS = ("auto", "fp32", "tf32", "bf16")
PAIRS = ("none", "odd", "both")
DEFAULT_BYTES = 128 * 2**20
_LEAST_GPU_BYTES, _GPU_SHARE = 256 * 2**20, 40

_ROUNDOFF = {"bf16": 2.0**-8, "tf32": 2.0**-11}
"""Unit roundoffs of the precisions in which tensor cores are fast, the fastest first."""

_UNSATURATED = ("identity", "relu", "leaky_relu")
"""Activations at the output for which the error of direct evaluation has a bound."""

CACHE = 1 << 18
"""Largest number of entries of one temporary of the inner loop: 1 MiB in float32, a core's second-level cache."""


@dataclass(frozen=True)
class ReferencePlan:
    """Block sizes of one evaluation by the reference; README.md draws the loops."""

    block_inputs: int
    """Inputs of a block: their unperturbed pass is held, and noise is generated once for all of them."""
    group_samples: int
    """Displacements of a group: their noise is generated together."""
    tile_inputs: int
    """Inputs evaluated together."""
    tile_samples: int
    """Displacements evaluated together."""
    slab_numbers: int
    """Random numbers generated together, over all displacements of a group."""
    keep_noise: bool
    """True where noise as large as the parameters is held while the tiles of a group are evaluated. Otherwise it is
    generated slab by slab, and each slab is used for all inputs of the block at once."""


def count_noise_numbers(directions: Directions, widths: Sequence[int]) -> tuple[int, int]:
    """Count the random numbers of a displacement.

    Args:
        directions: Family of the displacements.
        widths: Widths of the network, inputs and outputs included.

    Returns:
        Numbers that each displacement has for itself, and numbers that it shares with those of the same flipout base.
    """
    shapes = list(zip(widths[:-1], widths[1:], strict=True))
    num_params = sum((k + 1) * h for k, h in shapes)
    if directions.name == "flipout":
        return sum(k + 2 * h for k, h in shapes), num_params
    if directions.name == "lowrank":
        return sum(directions.count * (k + h) + h for k, h in shapes), 0
    return num_params, 0


def plan_reference(
    num_inputs: int,
    num_samples: int,
    widths: Sequence[int],
    directions: Directions,
    members: int,
    itemsize: int,
    max_bytes: int,
    fits_caches: bool = True,
) -> ReferencePlan:
    """Choose block sizes such that temporaries fit ``max_bytes`` and, on a CPU, the inner loop fits the caches.

    On a CPU, generating noise is efficient with ``TILE`` numbers at a time, since fewer leave cores idle, and
    activations with ``CACHE`` numbers, since more leave the cache. On a GPU small operations take as long as their
    launches, so the budget alone limits what is done together. Where a displacement is small enough to be held, a group
    of displacements is generated first and then used tile by tile. A larger displacement is generated slab by slab, and
    each slab is used for a whole block of inputs at once; the base of flipout is used for a group of displacements too.
    Factors of low rank are always held.

    Args:
        num_inputs: Number N of inputs.
        num_samples: Number M of displacements.
        widths: Widths of the network, inputs and outputs included.
        directions: Family of the displacements.
        members: Evaluations of a displacement: 2 for an antithetic pair, else 1.
        itemsize: Bytes of a number.
        max_bytes: Budget of temporary memory.
        fits_caches: True on a CPU, where what is done together should also stay in the caches; False on a GPU.

    Returns:
        The plan. Its sizes are at least one, even where that exceeds the budget.
    """
    quarter = max_bytes // 4
    # No size exceeds the number of bytes of the budget.
    most_generated, most_evaluated = (TILE, CACHE) if fits_caches else (max_bytes, max_bytes)
    # Noise under generation: integer words and the numbers themselves take about 48 bytes a number.
    slab = max(1, min(most_generated, quarter // 48))
    # Noise that is kept.
    per_sample, shared = count_noise_numbers(directions, widths)
    largest_kept = min(4 * most_generated, quarter // itemsize)
    keep = per_sample + shared <= largest_kept or directions.name == "lowrank"
    # The unperturbed pass: up to four numbers a unit, two of them in float64.
    block_inputs = _clamp(num_inputs, quarter // (24 * sum(widths)))
    # The evaluation: at most eight arrays of the widest layer at once.
    numbers = quarter // (8 * itemsize)
    column = members * max(widths)
    if keep:
        group_samples = _clamp(num_samples, min(slab, largest_kept - shared) // per_sample)
        tile_inputs = _clamp(block_inputs, max(128, min(most_evaluated, numbers) // column))
        tile_samples = _clamp(group_samples, min(most_evaluated, numbers) // (column * tile_inputs))
    else:
        block_inputs = _clamp(block_inputs, numbers // column)
        tile_inputs = block_inputs
        group_samples = tile_samples = _clamp(num_samples, min(slab // per_sample, numbers // (column * tile_inputs)))
    return ReferencePlan(block_inputs, group_samples, tile_inputs, tile_samples, slab, keep)


def _clamp(length: int, limit: int) -> int:
    return max(1, min(length, limit))


def predicted_direct_error(layers: Sequence[Layer], scale: float) -> float:
    r"""Predict the relative error of D when f(theta + delta) and f(theta) are evaluated and subtracted.

    The pre-activations of a layer have root mean square at most :math:`|[W\,b]|_F \sqrt{|h|^2 + 1} / \sqrt{H}`. Their
    differences have at least :math:`s \sqrt{|h|^2 + 1}`. The subtraction magnifies the rounding error by the ratio.
    Where an activation jumps, a difference is either right or entirely wrong, and a fraction of them is wrong: the
    relative error is then the square root of that ratio times the roundoff. Both bounds require that every weight is
    displaced, that the output does not saturate, and that there is no sawtooth, whose teeth may be finer than the
    rounding. Otherwise there is no bound.

    Args:
        layers: The MLP.
        scale: Smallest standard deviation s of a displacement, per coordinate.

    Returns:
        The error relative to the root mean square of D; infinity without a bound.
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


def choose_propagation(
    layers: Sequence[Layer], scale: float, samples: int, device: torch.device, directions: str
) -> str:
    """Choose direct evaluation, with one product a layer instead of two, where its error is negligible.

    The error is negligible where its prediction is below a tenth of sqrt(2 / (M C)), the smallest relative Monte-Carlo
    error that a kernel of M displacements and C outputs can have. Direct evaluation is chosen on a CPU only, and only
    for gaussian and rademacher displacements: for the others it saves no product. Elsewhere the differences are
    propagated. The choice depends on the model and the settings alone, never on the inputs.

    Args:
        layers: The MLP.
        scale: Smallest standard deviation s of a displacement, per coordinate.
        samples: Number M of displacements of the whole kernel.
        device: Device of the evaluation.
        directions: Family of the displacements.

    Returns:
        ``"direct"`` or ``"difference"``.
    """
    if device.type != "cpu" or parse(directions).count:
        return "difference"
    smallest_error = math.sqrt(2 / (samples * layers[-1].weight.shape[0]))
    return "direct" if predicted_direct_error(layers, scale) < 0.1 * smallest_error else "difference"


def default_bytes(device: torch.device) -> int:
    """Return the default budget: 128 MiB on a CPU, a fortieth of a GPU's memory, and there at least 256 MiB.

    On a GPU a larger budget means fewer chunks. Each chunk takes the host a fixed time, however many displacements it
    has. HISTORY.md has the times by budget. The budget depends on the card alone: not on the number of displacements or
    parameters, nor on the memory that is free.
    """
    if device.type == "cpu":
        return DEFAULT_BYTES
    return gpu_bytes(memory_of(device))


def gpu_bytes(memory: int) -> int:
    """Return the default budget of a GPU with so many bytes of memory."""
    return max(_LEAST_GPU_BYTES, memory // _GPU_SHARE)


def predicted_rounding_error(layers: Sequence[Layer], samples: int, precision: str) -> float:
    r"""Predict the error of the kernel from rounded operands, relative to its smallest possible Monte-Carlo error.

    With the unit roundoff u, the relative error of the kernel of L layers is :math:`\tfrac{u}{2} \sqrt{L / A}`. Here
    the errors of :math:`A = \min(C, K/4)` outputs average out, and K is the number of inputs of the narrowest layer.
    Where J activations jump, a rounding decides whether a unit flips, for a fraction u of the units that flip. The
    error is then :math:`(J + 1) \sqrt u` of the Monte-Carlo error itself, and falls with it. README.md beside this file
    has the measurements. Both rules assume that the roundings of different numbers are independent. The teeth of a
    sawtooth are too fine for either rule.

    Args:
        layers: The MLP.
        samples: Number M of displacements of the whole kernel.
        precision: ``"bf16"`` or ``"tf32"``.

    Returns:
        The error in units of :math:`\sqrt{2 / (M C)}`; infinity for a sawtooth.
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
    """Choose the cheapest precision whose predicted error of the kernel is below a tenth of the Monte-Carlo error.

    Args:
        layers: The MLP.
        samples: Number M of displacements of the whole kernel.
        dtype: Dtype of the parameters; float64 is never rounded.
        device: Device of the evaluation. Devices without Triton kernels, such as a CPU, gain nothing by rounding, so
            for them the choice is ``"fp32"``.

    Returns:
        ``"fp32"`` (operands are not rounded), ``"tf32"`` or ``"bf16"``.
    """
    if not serves(device) or dtype != torch.float32:
        return "fp32"
    return next((name for name in _ROUNDOFF if predicted_rounding_error(layers, samples, name) < 0.1), "fp32")


def check_precision(precision: str, propagation: str, dtype: torch.dtype) -> str:
    """Return ``precision`` if it is one of ``PRECISIONS`` and is possible with the propagation and the dtype.

    Raises:
        ValueError: If it is not.
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
    layers: Sequence[Layer],
    scale: float,
    samples: int,
    device: torch.device,
    propagation: str,
    precision: str,
    directions: str,
) -> tuple[str, str]:
    """Replace ``"auto"`` by the chosen propagation and the chosen precision of the operands.

    Args:
        layers: The MLP.
        scale: Smallest standard deviation s of a displacement, per coordinate; read only for ``propagation="auto"``.
        samples: Number M of displacements of the whole kernel.
        device: Device of the evaluation.
        propagation: One of ``PROPAGATION``.
        precision: One of ``PRECISIONS``.
        directions: Family of the displacements.

    Returns:
        ``"difference"`` or ``"direct"``, and ``"fp32"``, ``"tf32"`` or ``"bf16"``.
    """
    if propagation == "auto":
        is_rounded = precision in _ROUNDOFF
        propagation = "difference"
        if not is_rounded:
            propagation = choose_propagation(layers, scale, samples, device, directions)
    if precision == "auto":
        dtype = layers[0].weight.dtype
        precision = "fp32" if propagation == "direct" else choose_precision(layers, samples, dtype, device)
    return propagation, precision
