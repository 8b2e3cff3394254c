"""Least work of attention over displacements; see nntk.kernels.cost."""

import math

from torch import Tensor

from nntk.kernels.cost import Cost, read
from nntk.kernels.philox.cost import factors, noise


def attention_scores(d: Tensor, keys: Tensor | None, score: str) -> Cost:
    """A multiply-add for each difference where scores are products with the outputs."""
    return Cost(2.0 * d.numel() if score == "dot" else 0.0, read(d, keys))


def attention_statistics(
    values: Tensor, keys: Tensor | None, priors: Tensor, factors: Tensor, score: str
) -> Cost:  # fmt: skip
    """What is read; exponentials do not count."""
    products = 2.0 * values.numel() if score == "dot" else 0.0
    return Cost(products, read(values, keys, priors, factors))


def attention_weights(
    values: Tensor, keys: Tensor | None, priors: Tensor, factors: Tensor, statistics: Tensor, score: str
) -> Cost:
    """What is read."""
    return attention_statistics(values, keys, priors, factors, score) + Cost(bytes=read(statistics))


def project_displacements(
    parameters: list[Tensor], ordinals: list[int], rows: Tensor, low: int, high: int, directions: str, dim: int
) -> Cost:
    """Displacements and projections from the stream, and their products."""
    count = sum(parameter.numel() for parameter in parameters)
    made = noise(parameters, len(rows), directions) + Cost(normals=dim * count)
    return made + _products(parameters, len(rows), directions, dim) + Cost(bytes=read(rows))


def multiply_displacements(
    parameters: list[Tensor], ordinals: list[int], rows: Tensor, low: int, high: int, directions: str, matrix: Tensor
) -> Cost:
    """Displacements from the stream, and their products with a matrix."""
    made = noise(parameters, len(rows), directions)
    return made + _products(parameters, len(rows), directions, len(matrix)) + Cost(bytes=read(rows, matrix))


def _products(parameters: list[Tensor], num_rows: int, directions: str, dim: int) -> Cost:
    count = sum(parameter.numel() for parameter in parameters)
    whole = 0.0
    if directions.startswith("lowrank"):
        rank = int(directions[8:-1])
        whole = sum(2.0 * num_rows * rank * math.prod(p.shape) for p in parameters if p.dim() > 1)
    return Cost(2.0 * num_rows * dim * count + whole + factors(parameters, num_rows, directions))
