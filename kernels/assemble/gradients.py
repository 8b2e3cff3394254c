r"""Nonlocal gradients in plain torch, and the inner-product estimators computed from them.

.. math::
    G(x) = d \sum_m \alpha_m(x) \frac{D_m(x)}{|E_m|^2} E_m, \qquad K_\text{plugin} = \langle G(x), G(x') \rangle

Noise is generated one slab of parameters at a time, for all displacements, and is not kept.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from nntk.kernels.assemble.reference import contract, gradient_weights, mirror, unbiased_divisor
from nntk.kernels.philox.reference import generate
from nntk.kernels.philox.slabs import TILE


def inner_product_of_gradients(
    d1: Tensor,
    d2: Tensor | None,
    weights1: Tensor,
    weights2: Tensor | None,
    squared_norms: Tensor,
    parameters: list[Tensor],
    ordinals: list[int],
    sample_ids: Tensor,
    seed_low: int,
    seed_high: int,
    directions: str,
    unbiased: bool,
    outputs: str,
) -> Tensor:
    """Compute the plugin or unbiased form without a Gram matrix, so that M may be large."""
    slabs = _double_slabs(parameters, ordinals, sample_ids, (seed_low, seed_high), directions)
    return contract_gradients(slabs, d1, d2, weights1, weights2, squared_norms, _count(parameters), unbiased, outputs)


def contract_gradients(
    slabs: Iterable[Tensor],
    d1: Tensor,
    d2: Tensor | None,
    weights1: Tensor,
    weights2: Tensor | None,
    squared_norms: Tensor,
    num_params: int,
    unbiased: bool,
    outputs: str,
) -> Tensor:
    """Compute inner products of nonlocal gradients from consecutive slabs of unit displacements, [M, n] each."""
    weights2 = weights1 if weights2 is None else weights2
    a = gradient_weights(d1, weights1, squared_norms, num_params)
    b = a if d2 is None else gradient_weights(d2, weights2, squared_norms, num_params)
    kernel = contract(a[:0], b[:0], outputs)
    for noise in slabs:
        g1 = torch.tensordot(noise.double().T, a, dims=1)
        kernel += contract(g1, g1 if d2 is None else torch.tensordot(noise.double().T, b, dims=1), outputs)
    if unbiased:
        norms = squared_norms.double()[:, None, None]
        kernel = (kernel - contract(a * norms, b, outputs)) / unbiased_divisor(weights1, weights2, kernel.dim())
    kernel = kernel.to(d1.dtype)
    return (mirror(kernel) if d2 is None else kernel).contiguous()


def nonlocal_gradients(
    d: Tensor,
    weights: Tensor,
    squared_norms: Tensor,
    parameters: list[Tensor],
    ordinals: list[int],
    sample_ids: Tensor,
    seed_low: int,
    seed_high: int,
    directions: str,
) -> Tensor:
    """Compute nonlocal gradients [N, C, d] in the dtype of ``d``, with parameters in the given order."""
    slabs = _double_slabs(parameters, ordinals, sample_ids, (seed_low, seed_high), directions)
    return gradients_of(slabs, d, weights, squared_norms, _count(parameters))


def gradients_of(slabs: Iterable[Tensor], d: Tensor, weights: Tensor, squared_norms: Tensor, num_params: int) -> Tensor:
    """Compute nonlocal gradients [N, C, d] from consecutive slabs of unit displacements, [M, n] each."""
    a = gradient_weights(d, weights, squared_norms, num_params)
    out, start = d.new_empty(*d.shape[1:], num_params), 0
    for noise in slabs:
        out[..., start : start + noise.shape[1]] = torch.tensordot(a, noise.double(), dims=([0], [0]))
        start += noise.shape[1]
    return out


def _double_slabs(
    parameters: list[Tensor], ordinals: list[int], sample_ids: Tensor, key: tuple[int, int], directions: str
) -> Iterator[Tensor]:
    shapes = {ordinal: tuple(parameter.shape) for ordinal, parameter in zip(ordinals, parameters, strict=True)}
    for _, noise in generate(directions, sample_ids, shapes, key, torch.float64, 4 * TILE):
        yield noise.flatten(1)


def _count(parameters: list[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)
