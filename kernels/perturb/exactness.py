r"""Which layers compute displaced pre-activations exactly, and which may leave them a rounding error beside a jump.

Difference propagation divides by a power of two, so sums of numbers with few binary digits are exact: a pre-activation
of signs of weights and units that is exactly zero comes out as zero. Other sums are rounded. A rounding error matters
only where the exact sum can lie on a jump of the activation. This file finds these layers from the weights and the
kinds of the layers alone; ties.py evaluates them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nntk.kernels.activations import Activation, Quantise, Sawtooth, Sign, Step
from nntk.kernels.mlp import Layer

_OPERAND_BITS = {"fp32": 24, "tf32": 11, "bf16": 8}
"""Binary digits of an operand of a product, by precision; those of float64 are the digits of a sum."""

_NEVER_ZERO = ("sign", "sigmoid", "softplus")
"""Activations that are zero nowhere."""

_ZERO_ON_INTERVALS = ("relu", "step", "quantise", "sawtooth")
"""Activations that may be exactly zero for many displacements; the others are zero only where z is."""


_FEW_DIGITS = 8
"""Binary digits of units whose sums with float32 weights are exact in float64."""

_MANY_LEVELS = 4096
"""Levels of a quantiser beyond which its values are taken to have any digits."""


@dataclass(frozen=True)
class BinaryGrid:
    """Multiples of :math:`2^{low}` whose magnitude is at most :math:`2^{high}`."""

    low: int
    high: int

    @classmethod
    def of(cls, numbers: Tensor) -> "BinaryGrid":
        """Return the smallest grid that has all of the numbers."""
        mantissa, exponent = torch.frexp(numbers.detach().double())
        digits = (mantissa * 2.0**53).long()
        lowest_digit = torch.frexp((digits & -digits).double()).exponent - 1
        used = digits != 0
        if not bool(used.any()):
            return cls(0, 0)
        return cls(int((exponent - 53 + lowest_digit)[used].min()), int(exponent[used].max()))

    @property
    def bits(self) -> int:
        """Binary digits that a number of the grid may have."""
        return self.high - self.low

    def times(self, other: "BinaryGrid") -> "BinaryGrid":
        """Return the grid of products."""
        return BinaryGrid(self.low + other.low, self.high + other.high)

    def sums(self, terms: int) -> "BinaryGrid":
        """Return the grid of sums of so many numbers."""
        return BinaryGrid(self.low, self.high + math.ceil(math.log2(terms)))

    def joined(self, other: "BinaryGrid") -> "BinaryGrid":
        """Return the grid of sums of one number of each grid."""
        return BinaryGrid(min(self.low, other.low), max(self.high, other.high) + 1)


def layers_with_ties(layers: Sequence[Layer], precision: str, directions: str) -> list[bool]:
    """Find the layers whose displaced pre-activations may lie on a jump, but are rounded off it.

    The layer must jump and follow another one: layer 0 has no differences to sum. Noise of a bias keeps pre-activations
    off the jumps. So does noise of a weight, unless all inputs of the layer are zero or random signs cancel. A layer
    that is not displaced may have ties, and is exact if weights and inputs have few digits.

    Args:
        layers: The MLP.
        precision: ``"fp32"``, ``"tf32"`` or ``"bf16"``, to which operands of products are rounded.
        directions: Name of the family of displacements.

    Returns:
        True or False for each layer.
    """
    found: list[bool] = []
    grid: BinaryGrid | None = None
    may_vanish = False
    for number, layer in enumerate(layers):
        has_bias_noise = layer.bias is not None and layer.bias_ordinal is not None
        sums = None
        if layer.activation.jumps or grid is not None:
            sums = _exact_sums(layer, grid, precision)
        if number == 0 or not layer.activation.jumps or has_bias_noise:
            found.append(False)
        elif layer.weight_ordinal is None:
            found.append(sums is None or not _jumps_are_exact(layer.activation, sums))
        else:
            found.append(may_vanish or signs_may_cancel(layer, directions))
        grid = _grid_of_outputs(layer.activation, sums)
        may_vanish = _may_vanish(layer.activation, may_vanish and not has_bias_noise)
    return found


def with_integer_rows(layers: Sequence[Layer]) -> list[Layer]:
    """Replace weights by their signs where that changes no output and makes sums exact.

    In the rows of binary and ternary weights all numbers that are not zero have one magnitude. Behind them, sign and
    step see only the sign of a sum, which does not depend on the magnitude. The weights must be float32 and not
    displaced, without a bias, behind units of few digits: the sums of the model are then exact in float64.

    Args:
        layers: The MLP.

    Returns:
        Layers with the same outputs and differences.
    """
    replaced: list[Layer] = []
    grid: BinaryGrid | None = None
    for layer in layers:
        sees_signs = isinstance(layer.activation, (Sign, Step)) and layer.bias is None and layer.weight_ordinal is None
        weight = layer.weight
        if sees_signs and grid is not None and grid.bits <= _FEW_DIGITS and weight.dtype == torch.float32:
            magnitudes = weight.abs()
            if bool(((magnitudes == magnitudes.amax(1, keepdim=True)) | (weight == 0)).all()):
                layer = replace(layer, weight=weight.sign())
        replaced.append(layer)
        grid = _grid_of_outputs(layer.activation, None)
    return replaced


def signs_may_cancel(layer: Layer, directions: str) -> bool:
    """Return True if a displaced pre-activation may be zero because weights and their noise both have few values."""
    if layer.weight_ordinal is None or directions not in ("rademacher", "flipout"):
        return False
    row = layer.weight.detach()[0].abs()
    return len(torch.unique(row)) <= len(row) / 2


def _exact_sums(layer: Layer, inputs: BinaryGrid | None, precision: str) -> BinaryGrid | None:
    """Return the grid of a layer's pre-activations and their differences; None where sums are rounded or displaced."""
    is_displaced = layer.weight_ordinal is not None or (layer.bias is not None and layer.bias_ordinal is not None)
    if inputs is None or is_displaced:
        return None
    total = 53 if layer.weight.dtype == torch.float64 else 24
    operand = total if layer.weight.dtype == torch.float64 else _OPERAND_BITS[precision]
    weights = BinaryGrid.of(layer.weight)
    sums = weights.times(inputs).sums(layer.weight.shape[1])
    if layer.bias is not None:
        sums = sums.joined(BinaryGrid.of(layer.bias))
    # A difference of two numbers of a grid may be twice as large as they are.
    fits = max(weights.bits, inputs.bits + 1) <= operand and sums.bits + 1 <= total
    return sums if fits else None


def _jumps_are_exact(activation: Activation, sums: BinaryGrid) -> bool:
    """Return True if the position of exact pre-activations between jumps is exact too."""
    if isinstance(activation, (Sign, Step)):
        return True
    spacing = activation.period if isinstance(activation, Sawtooth) else 1.0
    offset = 0.0
    if isinstance(activation, Quantise):
        spacing, offset = 2 * activation.clamp / (activation.levels - 1), activation.clamp
    position = sums.joined(BinaryGrid.of(torch.tensor([spacing, offset], dtype=torch.float64)))
    return math.frexp(spacing)[0] == 0.5 and position.bits + 1 <= 24


def _grid_of_outputs(activation: Activation, sums: BinaryGrid | None) -> BinaryGrid | None:
    """Return the grid of an activation's values; None where they may have any digits."""
    if isinstance(activation, (Sign, Step)):
        return BinaryGrid(0, 1)
    if isinstance(activation, Quantise):
        spacing = 2 * activation.clamp / (activation.levels - 1)
        cells = torch.arange(activation.levels, dtype=torch.float64)
        return BinaryGrid.of(cells * spacing - activation.clamp) if activation.levels <= _MANY_LEVELS else None
    return sums if activation.name in ("identity", "relu") else None


def _may_vanish(activation: Activation, pre_activations_may_vanish: bool) -> bool:
    """Return True if all outputs of a layer may be exactly zero at a displacement."""
    if isinstance(activation, Quantise):
        return activation.levels % 2 == 1
    if activation.name in _ZERO_ON_INTERVALS:
        return True
    return activation.name not in _NEVER_ZERO and pre_activations_may_vanish
