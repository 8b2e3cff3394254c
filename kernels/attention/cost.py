"""Minimum work of attention over displacements; see nntk.kernels.cost."""

import math

from torch import Tensor

from nntk.kernels.cost import Cost, read
from nntk.kernels.philox.cost import factors, noise


def attention_scores(d: Tensor, keys: Tensor | None, score: str) -> Cost:
    """Count a multiply-add for each difference where scores are products with the outputs."""
    return Cost(2.0 * d.numel() if score == "dot" else 0.0, read(d, keys))


def attention_statistics(values: Tensor, keys: Tensor | None, priors: Tensor, factors: Tensor, score: str) -> Cost:
    """Count the bytes read and the products of dot scores; exponentials do not count."""
    products = 2.0 * values.numel() if score == "dot" else 0.0
    return Cost(products, read(values, keys, priors, factors))


def attention_weights(
    values: Tensor, keys: Tensor | None, priors: Tensor, factors: Tensor, statistics: Tensor, score: str
) -> Cost:
    """Count the same as the statistics, and the statistics themselves."""
    return attention_statistics(values, keys, priors, factors, score) + Cost(bytes=read(statistics))


def project_displacements(
    parameters: list[Tensor], ordinals: list[int], sample_ids: Tensor, low: int, high: int, directions: str, dim: int
) -> Cost:
    """Count displacements and projections from the stream, and their products."""
    count = sum(parameter.numel() for parameter in parameters)
    coefficients = noise(parameters, len(sample_ids), directions) + Cost(normals=dim * count)
    return coefficients + _products(parameters, len(sample_ids), directions, dim) + Cost(bytes=read(sample_ids))


def multiply_displacements(
    parameters: list[Tensor],
    ordinals: list[int],
    sample_ids: Tensor,
    low: int,
    high: int,
    directions: str,
    matrix: Tensor,
) -> Cost:
    """Count displacements from the stream, and their products with a matrix."""
    coefficients = noise(parameters, len(sample_ids), directions)
    return (
        coefficients
        + _products(parameters, len(sample_ids), directions, len(matrix))
        + Cost(bytes=read(sample_ids, matrix))
    )


def _products(parameters: list[Tensor], num_samples: int, directions: str, dim: int) -> Cost:
    count = sum(parameter.numel() for parameter in parameters)
    formed = 0.0
    if directions.startswith("lowrank"):
        rank = int(directions[8:-1])
        formed = sum(2.0 * num_samples * rank * math.prod(p.shape) for p in parameters if p.dim() > 1)
    return Cost(2.0 * num_samples * dim * count + formed + factors(parameters, num_samples, directions))
