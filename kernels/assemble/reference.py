r"""Kernel matrices from differences, in plain torch: the definition, the CPU backend and the tests' oracle.

With unit differences D [M, N, C], weights alpha, squared norms :math:`|E_m|^2` and Gram matrix
:math:`Q_{mm'} = \langle E_m, E_{m'} \rangle` of the unit displacements, and d displaced parameters:

.. math::
    K_\text{energy} &= d \sum_m \frac{\sqrt{\alpha_m(x) \alpha_m(x')}}{|E_m|^2} D_m(x) D_m(x') \\
    K_\text{plugin} &= d^2 \sum_{m, m'} \alpha_m(x) \alpha_{m'}(x') D_m(x) D_{m'}(x')
        \frac{Q_{mm'}}{|E_m|^2 |E_{m'}|^2} \\
    K_\text{unbiased} &= \frac{K_\text{plugin} \text{ without } m = m'}{1 - \sum_m \alpha_m(x) \alpha_m(x')}

The divisor is summed over pairs of different displacements, see :mod:`nntk.kernels.assemble.pairs`.
"""

import torch
from torch import Tensor

from nntk.kernels.assemble.pairs import check_pairs, sum_over_pairs
from nntk.kernels.attention.reference import odd, relative_weights

_BLOCK = 1024
"""Number of inputs of a block of a symmetric product: only blocks on and below the diagonal are multiplied."""

_CONTRACTIONS = {
    "trace": "mic,mjc->ij",
    "mean": "mic,mjc->ij",
    "diagonal": "mic,mjc->ijc",
    "full": "mic,mjk->ijck",
}


def contract(a: Tensor, b: Tensor, outputs: str) -> Tensor:
    """Sum the products of a [M, N1, C] and b [M, N2, C] over displacements, with the axes of ``outputs``."""
    product = torch.einsum(_CONTRACTIONS[outputs], a, b)
    return product / a.shape[2] if outputs == "mean" else product


def mirror(kernel: Tensor) -> Tensor:
    """Make a square kernel exactly symmetric by copying one triangle onto the other.

    A product A A^T is symmetric in exact arithmetic only: its two triangles may be summed in different orders.

    Args:
        kernel: [N, N], [N, N, C] or [N, N, C, C] (symmetric under swapping inputs and outputs together).

    Returns:
        A new tensor of the same shape; the triangle above the diagonal is a copy of the one below.
    """
    if kernel.dim() == 4:
        n, _, c, _ = kernel.shape
        flat = kernel.permute(0, 2, 1, 3).reshape(n * c, n * c)
        return mirror(flat).view(n, c, n, c).permute(0, 2, 1, 3)
    upper = torch.ones(kernel.shape[:2], dtype=torch.bool, device=kernel.device).triu(1)
    upper = upper.view(*upper.shape, *[1] * (kernel.dim() - 2))
    return torch.where(upper, kernel.transpose(0, 1), kernel)


def _columns(weights: Tensor) -> Tensor:
    """Return weights [M] or [M, N] as [M, 1 or N, 1], to multiply differences [M, N, C]."""
    return weights[:, None, None] if weights.dim() == 1 else weights[:, :, None]


def symmetric_contract(a: Tensor, outputs: str) -> Tensor:
    """Compute ``contract(a, a, outputs)`` from the blocks on and below its diagonal; exactly symmetric."""
    n, c = a.shape[1:]
    axes = {"diagonal": (c,), "full": (c, c)}.get(outputs, ())
    kernel = a.new_empty(n, n, *axes)
    for first in range(0, n, _BLOCK):
        stop = min(first + _BLOCK, n)
        kernel[first:stop, :stop] = contract(a[:, first:stop], a[:, :stop], outputs)
    return mirror(kernel)


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
) -> Tensor:
    """Compute the energy form: the op ``nntk::energy`` for every backend.

    Arguments with suffix 1 belong to the inputs of the rows, those with suffix 2 to the inputs of the columns; the
    latter are None for the symmetric kernel of ``d1``.

    Args:
        d1: Differences, [M, N1, C], or plus and minus members of antithetic pairs, [2, M, N1, C].
        d2: Differences, [M, N2, C] or [2, M, N2, C], or None.
        scales: Scales d / |E_m|^2, [M]; times alpha_m if weights do not depend on the input.
        weighting: Further weights: ``"rows"`` none; ``"weights"`` alpha in ``values``; ``"dot"``, ``"distance"`` or
            ``"given"`` softmax attention relative to exp(shift).
        values1: Weights [M, N1] for ``"weights"``, scores [M, N1] or [2, M, N1] for ``"given"``, else None.
        values2: The same at the columns.
        keys1: Outputs f(x), [N1, 1], for ``"dot"``, else None.
        keys2: The same at the columns.
        priors: Prior log weights, [M], for attention, else None.
        factors: Factors of the scores, [M], for attention, else None.
        shifts1: Largest exponents, [N1], for attention, else None.
        shifts2: The same at the columns.
        outputs: ``"trace"``, ``"mean"``, ``"diagonal"`` or ``"full"``.

    Returns:
        [N1, N2] with the axes of the outputs.
    """

    def features(d: Tensor, values: Tensor | None, keys: Tensor | None, shifts: Tensor | None) -> Tensor:
        weights = scales.double()[:, None]
        if weighting == "weights":
            assert values is not None, "the caller gives weights"
            weights = weights * values
        elif weighting != "rows":
            assert priors is not None and factors is not None and shifts is not None, "the caller gives these"
            scores = d if values is None else values.unsqueeze(-1)
            weights = weights * relative_weights(scores, keys, priors, factors, shifts, weighting)
        return odd(d) * weights.sqrt().to(d.dtype)[:, :, None]

    a = features(d1, values1, keys1, shifts1)
    if d2 is None:
        return symmetric_contract(a, outputs).contiguous()
    return contract(a, features(d2, values2, keys2, shifts2), outputs).contiguous()


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
    """Compute the plugin or the unbiased form in float64, since their terms are d / M times larger than their sum."""
    weights2 = weights1 if weights2 is None else weights2
    a = gradient_weights(d1, weights1, squared_norms, num_params)
    b = a if d2 is None else gradient_weights(d2, weights2, squared_norms, num_params)
    q = gram.double()
    if unbiased:
        q = q - torch.diag_embed(q.diagonal())
    kernel = contract(torch.tensordot(q, a, dims=1), b, outputs)
    if unbiased:
        kernel = kernel / unbiased_divisor(weights1, weights2, kernel.dim())
    kernel = kernel.to(d1.dtype)
    return (mirror(kernel) if d2 is None else kernel).contiguous()


def gradient_weights(d: Tensor, weights: Tensor, squared_norms: Tensor, num_params: int) -> Tensor:
    """Compute coefficients a of the nonlocal gradient G = sum_m a_m E_m: d alpha_m D_m / |E_m|^2, float64."""
    return d.double() * _columns(weights.double() * num_params / _broadcast(squared_norms, weights))


def unbiased_divisor(weights1: Tensor, weights2: Tensor, axes: int) -> Tensor:
    """Return the divisor of the unbiased form, 1 - sum_m alpha_m(x) alpha_m(x'), with further axes of size 1.

    Raises:
        ValueError: If one displacement has all the weight within float64.
    """
    first, second = by_input(weights1), by_input(weights2)
    pairs = sum_over_pairs(first, second)
    if first.numel() and second.numel():
        check_pairs(pairs, min(float((w.sum(0).square() / w.square().sum(0)).min()) for w in (first, second)))
    return pairs.view(*pairs.shape, *[1] * (axes - 2))


def by_input(weights: Tensor) -> Tensor:
    """Return weights [M] or [M, N] as [M, 1] or [M, N] in float64."""
    return (weights[:, None] if weights.dim() == 1 else weights).double()


def _broadcast(squared_norms: Tensor, weights: Tensor) -> Tensor:
    return squared_norms if weights.dim() == 1 else squared_norms[:, None]
