"""Gram matrix of unit displacements in plain torch: the definition, the CPU backend and the tests' oracle."""

import math

import torch
from torch import Tensor

from nntk.kernels.assemble.reference import mirror
from nntk.kernels.philox.directions import parse
from nntk.kernels.philox.reference import TILE, flipout_signs, generate, lowrank_factors

_LONGEST_PRODUCT = 1024
"""Terms of a product of displacements added in their own dtype before float64 takes over: 3e-7 in float32."""


def displacement_gram(
    parameters: list[Tensor], ordinals: list[int], rows: Tensor, seed_low: int, seed_high: int, directions: str
) -> Tensor:
    """Gram matrix of the unit displacements, accumulated in float64: from factors where they are the shorter way."""
    key, family = (seed_low, seed_high), parse(directions)
    shapes = {ordinal: tuple(parameter.shape) for ordinal, parameter in zip(ordinals, parameters, strict=True)}
    matrices = {ordinal: shape for ordinal, shape in shapes.items() if len(shape) > 1 and 0 not in shape}
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    if not len(rows):
        return gram
    factored: dict[int, tuple[int, ...]] = {}
    if family.name == "flipout" and bool((rows % family.count == rows[0] % family.count).all()):
        factored = matrices
        _add_flipout(gram, rows, factored, key)
    if family.name == "lowrank":
        factored = {ordinal: shape for ordinal, shape in matrices.items() if _factors_are_shorter(shape, family.count)}
        _add_lowrank(gram, rows, factored, family.count, key)
    others = {ordinal: shape for ordinal, shape in shapes.items() if ordinal not in factored}
    _add_generated(gram, rows, others, directions, key, parameters[0].dtype)
    if family.has_fixed_norm:
        gram.fill_diagonal_(sum(parameter.numel() for parameter in parameters))
    return mirror(gram)


def _add_generated(
    gram: Tensor,
    rows: Tensor,
    shapes: dict[int, tuple[int, ...]],
    directions: str,
    key: tuple[int, int],
    dtype: torch.dtype,
) -> None:
    # All rows are needed at once: the slabs narrow as they grow in number.
    for _, noise in generate(directions, rows, shapes, key, dtype, 4 * TILE):
        add_products(gram, noise.flatten(1))


def add_products(gram: Tensor, noise: Tensor) -> None:
    """Add the inner products of the rows of ``noise`` [M, n] to a float64 Gram matrix, a few terms at a time."""
    for part in torch.split(noise, _LONGEST_PRODUCT, dim=1):
        gram += part @ part.T


def _add_flipout(gram: Tensor, rows: Tensor, shapes: dict[int, tuple[int, ...]], key: tuple[int, int]) -> None:
    """Rows of one base, whose squares are one: the inner product is (r . r') (s . s'), a product of integers."""
    for r, s in flipout_signs(rows, shapes, key, torch.float64).values():
        gram.addcmul_(r @ r.T, s @ s.T)


def _factors_are_shorter(shape: tuple[int, ...], rank: int) -> bool:
    """Whether R^2 (H + K) multiply-adds a pair of rows are fewer than H K."""
    return rank**2 * (shape[0] + math.prod(shape[1:])) < math.prod(shape)


def _add_lowrank(
    gram: Tensor, rows: Tensor, shapes: dict[int, tuple[int, ...]], rank: int, key: tuple[int, int]
) -> None:
    r"""Displacements :math:`c A^T B`: the inner product is c c' times the sum over :math:`A A'^T \circ B B'^T`."""
    for left, right, scale in lowrank_factors(rows, shapes, rank, key, torch.float64).values():
        a, b = left.flatten(0, 1), right.flatten(0, 1)
        # R x R products of every pair of rows: some rows at a time.
        for some in torch.split(torch.arange(len(rows), device=rows.device), max(1, TILE // (rank * len(a)))):
            products = (left[some].flatten(0, 1) @ a.T).mul_(right[some].flatten(0, 1) @ b.T)
            sums = products.view(len(some), rank, len(rows), rank).sum((1, 3))
            gram[some] += sums * scale[some, None] * scale
