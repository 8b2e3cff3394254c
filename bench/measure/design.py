"""Targets of the design on any card: each is scaled by what the card's measured roofs allow, relative to an H200's.

The design states its targets for an H200: so many evaluations for the time of a forward pass. How far a card can come
depends on its roofs. A card whose memory is slow beside its products, such as an H100, loses more to the values between
layers; one whose float32 is fast beside its tensor cores, such as a consumer card, gains less over float32. A target
asks of every card for the same share of its own bound:

    target on the card = target of the design x bound by the card's roofs / bound by the H200's roofs

A bound is the least time of the baseline over the least time of the work. A least time is that of the products or of
the bytes, whichever is longer, layer by layer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nntk.bench.measure.roofline import Roof


@dataclass(frozen=True)
class Rates:
    """Rates of a card: operations a second of dense products by precision, and bytes a second of a copy."""

    bf16: float
    tf32: float
    fp32: float
    copy: float


H200 = Rates(bf16=790e12, tf32=395e12, fp32=67e12, copy=4.3e12)
"""Rates that the design's targets were stated for: products in bf16 and copies as measured by others, float32 by the
data sheet, TF32 half of bf16."""

Bound = Callable[[Rates], float]
"""Function that returns the least time of a baseline over the least time of the work, from the rates of a card."""


def rates_of(roofs: Sequence[Roof]) -> Rates | None:
    """Return the rates that were measured on a card; None for a CPU, which has no TF32 and is no card to judge."""
    measured = {roof.name: roof.per_second for roof in roofs}
    names = ("bf16", "tf32", "fp32", "copy")
    return Rates(**{name: measured[name] for name in names}) if set(names) <= set(measured) else None


def scaled(target: float, bound: Bound, rates: Rates | None) -> float:
    """Return the target on a card.

    Args:
        target: Target of the design, for an H200.
        bound: Bound of the workload.
        rates: Measured rates of the card; None leaves the target as it is.

    Returns:
        The target, a ratio of times like that of the design.

    Example:
        >>> slow_memory = Rates(bf16=790e12, tf32=395e12, fp32=67e12, copy=2.0e12)
        >>> of_forwards = evaluations_of_forwards("rademacher", (784, 1024, 1024, 10), 1024)
        >>> round(scaled(0.6, of_forwards, H200), 2), scaled(0.6, of_forwards, slow_memory) < 0.6
        (0.6, True)
    """
    return target if rates is None else target * (bound(rates) / bound(H200))


def evaluations_of_forwards(directions: str, widths: Sequence[int], inputs: int) -> Bound:
    """Return the bound of antithetic evaluations in bf16 against as many plain forwards in bf16."""
    return lambda rates: _forward(widths, inputs) / rates.bf16 / _evaluation(directions, widths, inputs, rates)


def evaluations_of_float32(directions: str, widths: Sequence[int], inputs: int) -> Bound:
    """Return the bound of antithetic evaluations in bf16 against plain forwards in float32 without tensor cores."""
    return lambda rates: _forward(widths, inputs) / rates.fp32 / _evaluation(directions, widths, inputs, rates)


def kernel_of_contraction(
    directions: str, widths: Sequence[int], inputs: int, samples: int, precision: str = "fp32"
) -> Bound:
    """Return the bound of a nonlocal kernel against the contraction of Jacobians in ``fp32`` or ``tf32``."""

    def bound(rates: Rates) -> float:
        contraction = inputs**2 * _forward(widths, 1) / 2 / float(getattr(rates, precision))
        nonlocal_kernel = samples * _evaluation(directions, widths, inputs, rates)
        return contraction / (nonlocal_kernel + _sum(samples, inputs, rates))

    return bound


def sum_of_product(samples: int, inputs: int) -> Bound:
    """Return the bound of the energy form, a triangle in three products of TF32, against one product in float32."""
    return lambda rates: 2.0 * samples * inputs**2 / rates.fp32 / _sum(samples, inputs, rates)


def _sum(samples: int, inputs: int, rates: Rates) -> float:
    """Return the least seconds of the energy form of one output."""
    return 3.0 * samples * inputs**2 / rates.tf32


def _forward(widths: Sequence[int], inputs: int) -> float:
    """Return the operations of two forward passes of the inputs, as many as an antithetic pair has evaluations."""
    return 2.0 * 2 * inputs * sum(width * height for width, height in zip(widths, widths[1:], strict=False))


def _evaluation(directions: str, widths: Sequence[int], inputs: int, rates: Rates) -> float:
    """Return the least seconds of one antithetic pair in bf16, layer by layer, noise excluded."""
    lowrank = directions.startswith("lowrank")
    layers = list(zip(widths, widths[1:], strict=False))
    total = 0.0
    for number, (width, height) in enumerate(layers):
        is_first, is_last = number == 0, number + 1 == len(layers)
        # In layer 0 both members of the pair have the same inputs, and the weight is not multiplied.
        columns = inputs * (1 if is_first else 2)
        displaced = columns * (width + height if lowrank else width * height)
        products = 2.0 * (displaced + (0 if is_first else columns * width * height))
        # Between layers there is d, and except for low rank q, in bf16; outputs are float32, padded to 16.
        matrices = 1 if lowrank else 2
        read = 0 if is_first else 2 * matrices * columns * width
        written = 2 * inputs * (4 * -(-height // 16) * 16 if is_last else 2 * matrices * height)
        total += max(products / rates.bf16, (read + written) / rates.copy)
    return total
