"""Gram matrix of unit displacements in plain torch: the definition, the CPU backend and the tests' oracle."""

import math

import torch
from torch import Tensor

from nntk.kernels.assemble.reference import mirror
from nntk.kernels.philox.directions import parse
from nntk.kernels.philox.reference import flipout_signs, generate, lowrank_factors
from nntk.kernels.philox.slabs import TILE, tile_of
from nntk.kernels.philox.source import PLAIN, Source

_LONGEST_PRODUCT = 1024
"""Number of terms of a product that are added in the dtype of the noise before float64: an error of 3e-7 in float32."""


def displacement_gram(
    parameters: list[Tensor],
    ordinals: list[int],
    sample_ids: Tensor,
    seed_low: int,
    seed_high: int,
    directions: str,
    source: Source = PLAIN,
) -> Tensor:
    """Compute the Gram matrix of unit displacements in float64, from factors where these need fewer operations."""
    key, family = (seed_low, seed_high), parse(directions)
    shapes = {ordinal: tuple(parameter.shape) for ordinal, parameter in zip(ordinals, parameters, strict=True)}
    matrices = {ordinal: shape for ordinal, shape in shapes.items() if len(shape) > 1 and 0 not in shape}
    gram = torch.zeros(len(sample_ids), len(sample_ids), dtype=torch.float64, device=sample_ids.device)
    if not len(sample_ids):
        return gram
    factored: dict[int, tuple[int, ...]] = {}
    if family.name == "flipout" and bool((sample_ids % family.count == sample_ids[0] % family.count).all()):
        factored = matrices
        _add_flipout(gram, sample_ids, factored, key, source)
    if family.name == "lowrank":
        factored = {ordinal: shape for ordinal, shape in matrices.items() if _factors_are_shorter(shape, family.count)}
        _add_lowrank(gram, sample_ids, factored, family.count, key, source)
    others = {ordinal: shape for ordinal, shape in shapes.items() if ordinal not in factored}
    _add_generated(gram, sample_ids, others, directions, key, parameters[0].dtype, source)
    if family.has_fixed_norm:
        gram.fill_diagonal_(sum(parameter.numel() for parameter in parameters))
    return mirror(gram)


def _add_generated(
    gram: Tensor,
    sample_ids: Tensor,
    shapes: dict[int, tuple[int, ...]],
    directions: str,
    key: tuple[int, int],
    dtype: torch.dtype,
    source: Source,
) -> None:
    # All samples are needed together: slabs become narrower as the number of samples grows.
    for _, noise in generate(directions, sample_ids, shapes, key, dtype, 4 * TILE, source):
        add_products(gram, noise.flatten(1))


def add_products(gram: Tensor, noise: Tensor) -> None:
    """Add the inner products of the samples of ``noise`` [M, n] to a float64 Gram matrix, a few terms at a time."""
    for part in torch.split(noise, _LONGEST_PRODUCT, dim=1):
        gram += part @ part.T


def _add_flipout(
    gram: Tensor, sample_ids: Tensor, shapes: dict[int, tuple[int, ...]], key: tuple[int, int], source: Source
) -> None:
    """Add inner products (r . r') (s . s') of samples of one base, whose squares are one; these are integers."""
    for r, s in flipout_signs(sample_ids, shapes, key, torch.float64, source=source).values():
        gram.addcmul_(r @ r.T, s @ s.T)


def _factors_are_shorter(shape: tuple[int, ...], rank: int) -> bool:
    """Return True if R^2 (H + K) multiply-adds for a pair of samples are fewer than H K."""
    return rank**2 * (shape[0] + math.prod(shape[1:])) < math.prod(shape)


def _add_lowrank(
    gram: Tensor,
    sample_ids: Tensor,
    shapes: dict[int, tuple[int, ...]],
    rank: int,
    key: tuple[int, int],
    source: Source,
) -> None:
    r"""Add inner products of displacements :math:`c A^T B`: c c' times the sum over :math:`A A'^T \circ B B'^T`."""
    factors = lowrank_factors(sample_ids, shapes, rank, key, torch.float64, source=source)
    for left, right, scale in factors.values():
        a, b = left.flatten(0, 1), right.flatten(0, 1)
        # R x R products of every pair of samples: a chunk of samples at a time.
        for chunk in torch.split(
            torch.arange(len(sample_ids), device=sample_ids.device), max(1, tile_of(a.device) // (rank * len(a)))
        ):
            products = (left[chunk].flatten(0, 1) @ a.T).mul_(right[chunk].flatten(0, 1) @ b.T)
            sums = products.view(len(chunk), rank, len(sample_ids), rank).sum((1, 3))
            gram[chunk] += sums * scale[chunk, None] * scale
