r"""Kernel matrices from differences, in plain torch: the definition, the CPU backend and the tests' oracle.

With unit differences D [M, N, C], weights alpha, squared norms :math:`|E_m|^2` and Gram matrix
:math:`Q_{mm'} = \langle E_m, E_{m'} \rangle` of the unit displacements, and d displaced parameters:

.. math::
    K_\text{energy} &= d \sum_m \frac{\sqrt{\alpha_m(x) \alpha_m(x')}}{|E_m|^2} D_m(x) D_m(x') \\
    K_\text{plugin} &= d^2 \sum_{m, m'} \alpha_m(x) \alpha_{m'}(x') D_m(x) D_{m'}(x')
        \frac{Q_{mm'}}{|E_m|^2 |E_{m'}|^2} \\
    K_\text{unbiased} &= \frac{K_\text{plugin} \text{ without } m = m'}{1 - \sum_m \alpha_m(x) \alpha_m(x')}
"""

import torch
from torch import Tensor

from nntk.kernels.philox.reference import TILE, generate

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
    """Gram matrix of the unit displacements: products of generated slabs, accumulated in float64."""
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    shapes = {ordinal: tuple(parameter.shape) for ordinal, parameter in zip(ordinals, parameters, strict=True)}
    dtype = parameters[0].dtype
    # All rows are needed at once: the slabs narrow as they grow in number.
    for _, noise in generate(directions, rows, shapes, (seed_low, seed_high), dtype, 4 * TILE):
        for part in torch.split(noise.flatten(1), _LONGEST_PRODUCT, dim=1):
            gram += part @ part.T
    return mirror(gram)
