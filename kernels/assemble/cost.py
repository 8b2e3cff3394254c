"""Minimum work of assembly; see nntk.kernels.cost."""

import math

from torch import Tensor

from nntk.kernels.cost import Cost, read
from nntk.kernels.philox.cost import factors, noise
from nntk.kernels.philox.directions import parse


def pairs(n1: int, n2: int | None, outputs: int, mode: str) -> float:
    """Return the number of sums of a kernel, before any trace: for a symmetric one, half of them and the diagonal.

    Args:
        n1: Number of inputs of the rows.
        n2: Number of inputs of the columns, None for a symmetric kernel.
        outputs: Number C of outputs.
        mode: ``"trace"``, ``"mean"``, ``"diagonal"`` or ``"full"``.

    Returns:
        Number of sums.
    """
    input_pairs = n1 * (n1 + 1) / 2 if n2 is None else float(n1 * n2)
    return input_pairs * outputs * (outputs if mode == "full" else 1)


def energy(
    d1: Tensor,
    d2: Tensor | None,
    scales: Tensor,
    weighting: str,
    values1: Tensor | None,
    values2: Tensor | None,
    keys1: Tensor | None,
    keys2: Tensor | None,
    priors: Tensor | None,
    factors: Tensor | None,
    shifts1: Tensor | None,
    shifts2: Tensor | None,
    outputs: str,
) -> Cost:
    """Count the rank update and, for ``dot`` weights, the products of the scores."""
    num_samples, n1, c = d1.shape[-3:]
    flops = 2.0 * num_samples * pairs(n1, None if d2 is None else d2.shape[-2], c, outputs)
    if weighting == "dot":
        flops += 2.0 * sum(d.numel() for d in (d1, d2) if d is not None)
    softmax = [] if weighting in ("rows", "weights") else [keys1, keys2, priors, factors, shifts1, shifts2]
    return Cost(flops, read(d1, d2, scales, values1, values2, softmax))


def inner_product(
    d1: Tensor,
    d2: Tensor | None,
    weights1: Tensor,
    weights2: Tensor | None,
    squared_norms: Tensor,
    gram: Tensor,
    num_params: int,
    unbiased: bool,
    outputs: str,
) -> Cost:
    """Count products with the Gram matrix, then of all inputs; neither makes use of symmetry."""
    (num_samples, n1, c), n2 = d1.shape, (d1 if d2 is None else d2).shape[1]
    flops = 2.0 * num_samples**2 * n1 * c + 2.0 * num_samples * pairs(n1, n2, c, outputs)
    flops += _divisor(num_samples, weights1, weights2) if unbiased else 0.0
    return Cost(flops, read(d1, d2, weights1, weights2, squared_norms, gram))


def _divisor(num_samples: int, weights1: Tensor, weights2: Tensor | None) -> float:
    """Count the products of weights in the divisor of the unbiased form."""
    rows, columns = (w.shape[1] if w.dim() == 2 else 1 for w in (weights1, weights1 if weights2 is None else weights2))
    return 2.0 * num_samples * rows * columns


def displacement_gram(
    parameters: list[Tensor], ordinals: list[int], sample_ids: Tensor, low: int, high: int, directions: str
) -> Cost:
    """Count inner products of all pairs of samples, of whole displacements or of factors where these are cheaper."""
    family, flops = parse(directions), 0.0
    for p in parameters:
        count = float(p.numel())
        if family.name == "lowrank" and p.dim() > 1 and p.numel():
            height_and_width = p.shape[0] + math.prod(p.shape[1:])
            factored = family.count**2 * height_and_width < count
            flops += factors([p], len(sample_ids), directions)
            flops += 0.0 if factored else 2.0 * len(sample_ids) * family.count * count
            count = family.count**2 * height_and_width if factored else count
        flops += 2.0 * len(sample_ids) ** 2 * count
    return noise(parameters, len(sample_ids), directions) + Cost(flops, read(sample_ids))


def nonlocal_gradients(
    d: Tensor,
    weights: Tensor,
    squared_norms: Tensor,
    parameters: list[Tensor],
    ordinals: list[int],
    sample_ids: Tensor,
    low: int,
    high: int,
    directions: str,
) -> Cost:
    """Count the product of all displacements with the weighted differences."""
    displacements = _displacements(parameters, len(sample_ids), directions)
    flops = 2.0 * d.numel() * sum(p.numel() for p in parameters)
    return displacements + Cost(flops, read(d, weights, squared_norms, sample_ids))


def inner_product_of_gradients(
    d1: Tensor,
    d2: Tensor | None,
    weights1: Tensor,
    weights2: Tensor | None,
    squared_norms: Tensor,
    parameters: list[Tensor],
    ordinals: list[int],
    sample_ids: Tensor,
    low: int,
    high: int,
    directions: str,
    unbiased: bool,
    outputs: str,
) -> Cost:
    """Count gradients at all inputs, their products and, for the unbiased form, the terms that are subtracted."""
    (num_samples, n1, c), n2 = d1.shape, (d1 if d2 is None else d2).shape[1]
    num_params = sum(p.numel() for p in parameters)
    flops = 2.0 * num_params * (d1.numel() + (0 if d2 is None else d2.numel()) + pairs(n1, n2, c, outputs))
    if unbiased:
        flops += 2.0 * num_samples * pairs(n1, n2, c, outputs) + _divisor(num_samples, weights1, weights2)
    displacements = _displacements(parameters, num_samples, directions)
    return displacements + Cost(flops, read(d1, d2, weights1, weights2, squared_norms, sample_ids))


def _displacements(parameters: list[Tensor], num_samples: int, directions: str) -> Cost:
    """Count random coefficients and, for low rank, the products of the factors."""
    family, coefficients = parse(directions), noise(parameters, num_samples, directions)
    if family.name != "lowrank":
        return coefficients
    products = sum(2.0 * num_samples * family.count * p.numel() for p in parameters if p.dim() > 1)
    return coefficients + Cost(products + factors(parameters, num_samples, directions))
