"""Least work of assembly; see nntk.kernels.cost."""

import math

from torch import Tensor

from nntk.kernels.cost import Cost, read
from nntk.kernels.philox.cost import factors, noise
from nntk.kernels.philox.directions import parse


def pairs(n1: int, n2: int | None, outputs: int, mode: str) -> float:
    """Entries of a kernel that take a sum each, before any is traced: of a symmetric one half, and the diagonal.

    Args:
        n1: Inputs of the lines.
        n2: Inputs of the entries, None for a symmetric kernel.
        outputs: Number C of outputs.
        mode: ``"trace"``, ``"mean"``, ``"diagonal"`` or ``"full"``.

    Returns:
        Their number.
    """
    of_inputs = n1 * (n1 + 1) / 2 if n2 is None else float(n1 * n2)
    return of_inputs * outputs * (outputs if mode == "full" else 1)


def energy(
    d1: Tensor, d2: Tensor | None, scales: Tensor, weighting: str, values1: Tensor | None, values2: Tensor | None,
    keys1: Tensor | None, keys2: Tensor | None, priors: Tensor | None, factors: Tensor | None, shifts1: Tensor | None,
    shifts2: Tensor | None, outputs: str,
) -> Cost:  # fmt: skip
    """The rank update. Of ``dot`` weights the scores' products too."""
    num_rows, n1, c = d1.shape[-3:]
    flops = 2.0 * num_rows * pairs(n1, None if d2 is None else d2.shape[-2], c, outputs)
    if weighting == "dot":
        flops += 2.0 * sum(d.numel() for d in (d1, d2) if d is not None)
    softmax = [] if weighting in ("rows", "weights") else [keys1, keys2, priors, factors, shifts1, shifts2]
    return Cost(flops, read(d1, d2, scales, values1, values2, softmax))


def inner_product(
    d1: Tensor, d2: Tensor | None, weights1: Tensor, weights2: Tensor | None, squared_norms: Tensor, gram: Tensor,
    num_params: int, unbiased: bool, outputs: str,
) -> Cost:  # fmt: skip
    """Products with the Gram matrix, then of all inputs: both whole, since neither knows that it is symmetric."""
    (num_rows, n1, c), n2 = d1.shape, (d1 if d2 is None else d2).shape[1]
    flops = 2.0 * num_rows**2 * n1 * c + 2.0 * num_rows * pairs(n1, n2, c, outputs)
    flops += _rest(num_rows, weights1, weights2) if unbiased else 0.0
    return Cost(flops, read(d1, d2, weights1, weights2, squared_norms, gram))


def _rest(num_rows: int, weights1: Tensor, weights2: Tensor | None) -> float:
    """The products of weights in the unbiased form's denominator."""
    lines, entries = (w.shape[1] if w.dim() == 2 else 1 for w in (weights1, weights1 if weights2 is None else weights2))
    return 2.0 * num_rows * lines * entries


def displacement_gram(
    parameters: list[Tensor], ordinals: list[int], rows: Tensor, low: int, high: int, directions: str
) -> Cost:  # fmt: skip
    """Inner products of all pairs of rows: of whole displacements, or of factors where these are the shorter way."""
    family, flops = parse(directions), 0.0
    for p in parameters:
        count = float(p.numel())
        if family.name == "lowrank" and p.dim() > 1 and p.numel():
            ends = p.shape[0] + math.prod(p.shape[1:])
            short = family.count**2 * ends < count
            flops += factors([p], len(rows), directions)
            flops += 0.0 if short else 2.0 * len(rows) * family.count * count
            count = family.count**2 * ends if short else count
        flops += 2.0 * len(rows) ** 2 * count
    return noise(parameters, len(rows), directions) + Cost(flops, read(rows))


def nonlocal_gradients(
    d: Tensor, weights: Tensor, squared_norms: Tensor, parameters: list[Tensor], ordinals: list[int], rows: Tensor,
    low: int, high: int, directions: str,
) -> Cost:  # fmt: skip
    """A product of all displacements with the weighted differences."""
    made = _displacements(parameters, len(rows), directions)
    flops = 2.0 * d.numel() * sum(p.numel() for p in parameters)
    return made + Cost(flops, read(d, weights, squared_norms, rows))


def inner_product_of_gradients(
    d1: Tensor, d2: Tensor | None, weights1: Tensor, weights2: Tensor | None, squared_norms: Tensor,
    parameters: list[Tensor], ordinals: list[int], rows: Tensor, low: int, high: int, directions: str, unbiased: bool,
    outputs: str,
) -> Cost:  # fmt: skip
    """Gradients at all inputs, their products, and in the unbiased form the terms that are taken off."""
    (num_rows, n1, c), n2 = d1.shape, (d1 if d2 is None else d2).shape[1]
    num_params = sum(p.numel() for p in parameters)
    flops = 2.0 * num_params * (d1.numel() + (0 if d2 is None else d2.numel()) + pairs(n1, n2, c, outputs))
    if unbiased:
        flops += 2.0 * num_rows * pairs(n1, n2, c, outputs) + _rest(num_rows, weights1, weights2)
    made = _displacements(parameters, num_rows, directions)
    return made + Cost(flops, read(d1, d2, weights1, weights2, squared_norms, rows))


def _displacements(parameters: list[Tensor], num_rows: int, directions: str) -> Cost:
    """Random numbers, and of low rank the products that make displacements of factors."""
    family, made = parse(directions), noise(parameters, num_rows, directions)
    if family.name != "lowrank":
        return made
    whole = sum(2.0 * num_rows * family.count * p.numel() for p in parameters if p.dim() > 1)
    return made + Cost(whole + factors(parameters, num_rows, directions))


def energy_product(
    d1: Tensor, d2: Tensor | None, weights1: Tensor, weights2: Tensor | None, scales: Tensor, vectors: Tensor
) -> Cost:  # fmt: skip
    """Two products with the differences for each vector."""
    numbers = d1.numel() + (d1 if d2 is None else d2).numel()
    return Cost(
        2.0 * numbers * vectors.shape[1], read(d1, d2, weights1, None if d2 is None else weights2, scales, vectors)
    )
