r"""Kernel matrices from differences, in plain torch: the definition, the CPU backend and the tests' oracle.

With unit differences D [M, N, C], weights alpha, squared norms :math:`|E_m|^2` and Gram matrix
:math:`Q_{mm'} = \langle E_m, E_{m'} \rangle` of the unit displacements, and d displaced parameters:

.. math::
    K_\text{energy} &= d \sum_m \frac{\sqrt{\alpha_m(x) \alpha_m(x')}}{|E_m|^2} D_m(x) D_m(x') \\
    K_\text{plugin} &= d^2 \sum_{m, m'} \alpha_m(x) \alpha_{m'}(x') D_m(x) D_{m'}(x')
        \frac{Q_{mm'}}{|E_m|^2 |E_{m'}|^2} \\
    K_\text{unbiased} &= \frac{K_\text{plugin} \text{ without } m = m'}{1 - \sum_m \alpha_m(x) \alpha_m(x')}
"""

import math

import torch
from torch import Tensor

from nntk.kernels.philox.directions import parse
from nntk.kernels.philox.reference import TILE, flipout_signs, generate, lowrank_factors

_LONGEST_PRODUCT = 1024
"""Terms of a product of displacements added in their own dtype before float64 takes over: 3e-7 in float32."""

_CONTRACTIONS = {
    "trace": "mic,mjc->ij",
    "mean": "mic,mjc->ij",
    "diagonal": "mic,mjc->ijc",
    "full": "mic,mjk->ijck",
}


def contract(a: Tensor, b: Tensor, outputs: str) -> Tensor:
    """Sum over displacements of the products of a [M, N1, C] and b [M, N2, C], with the outputs axes as asked."""
    product = torch.einsum(_CONTRACTIONS[outputs], a, b)
    return product / a.shape[2] if outputs == "mean" else product


def mirror(kernel: Tensor) -> Tensor:
    """Make a square kernel exactly symmetric by copying one triangle onto the other.

    A product A A^T is symmetric in exact arithmetic only: its two triangles may be summed in different orders.

    Args:
        kernel: [N, N], [N, N, C] or [N, N, C, C] (symmetric under swapping inputs and outputs together).

    Returns:
        A new tensor of the same shape; the triangle above the diagonal is that below.
    """
    if kernel.dim() == 4:
        n, _, c, _ = kernel.shape
        flat = kernel.permute(0, 2, 1, 3).reshape(n * c, n * c)
        return mirror(flat).view(n, c, n, c).permute(0, 2, 1, 3)
    upper = torch.ones(kernel.shape[:2], dtype=torch.bool, device=kernel.device).triu(1)
    upper = upper.view(*upper.shape, *[1] * (kernel.dim() - 2))
    return torch.where(upper, kernel.transpose(0, 1), kernel)


def _columns(weights: Tensor) -> Tensor:
    """Weights [M] or [M, N] as [M, 1 or N, 1], to multiply differences [M, N, C]."""
    return weights[:, None, None] if weights.dim() == 1 else weights[:, :, None]


def energy(
    d1: Tensor,
    d2: Tensor | None,
    weights1: Tensor,
    weights2: Tensor | None,
    squared_norms: Tensor,
    num_params: int,
    outputs: str,
) -> Tensor:
    """The energy form; see the head of this file. ``d2=None`` means the symmetric kernel of ``d1``."""

    def features(d: Tensor, weights: Tensor) -> Tensor:
        return d * _columns(weights.double() * num_params / _as_rows(squared_norms, weights)).sqrt().to(d.dtype)

    a = features(d1, weights1)
    if d2 is None:
        return mirror(contract(a, a, outputs)).contiguous()
    return contract(a, features(d2, weights1 if weights2 is None else weights2), outputs).contiguous()


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
) -> Tensor:
    """The plugin form, or the unbiased one; in float64, since their terms are d/M times larger than their sum."""
    symmetric = d2 is None
    weights2 = weights1 if weights2 is None else weights2

    def features(d: Tensor, weights: Tensor) -> Tensor:
        return d.double() * _columns(weights.double() * num_params / _as_rows(squared_norms, weights))

    a, b = features(d1, weights1), features(d1 if d2 is None else d2, weights2)
    q = gram.double()
    if unbiased:
        q = q - torch.diag_embed(q.diagonal())
    kernel = contract(torch.tensordot(q, a, dims=1), b, outputs)
    if unbiased:
        repeated = _columns(weights1.double()), _columns(weights2.double())
        rest = 1 - torch.einsum("mic,mjc->ij", *repeated)
        kernel = kernel / rest.view(*rest.shape, *[1] * (kernel.dim() - 2))
    kernel = kernel.to(d1.dtype)
    return (mirror(kernel) if symmetric else kernel).contiguous()


def _as_rows(squared_norms: Tensor, weights: Tensor) -> Tensor:
    return squared_norms if weights.dim() == 1 else squared_norms[:, None]


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
