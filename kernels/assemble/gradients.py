r"""Nonlocal gradients in plain torch, and the inner-product estimators computed from them.

.. math::
    G(x) = d \sum_m \alpha_m(x) \frac{D_m(x)}{|E_m|^2} E_m, \qquad K_\text{plugin} = \langle G(x), G(x') \rangle

Noise is generated one slab of parameters at a time, for all displacements, and is not kept.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from nntk.kernels.assemble.pairs import concentrated
from nntk.kernels.assemble.reference import by_input, contract, gradient_weights, mirror, unbiased_divisor
from nntk.kernels.philox.reference import generate
from nntk.kernels.philox.slabs import TILE
from nntk.kernels.philox.source import PLAIN, Source


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
    source: Source = PLAIN,
) -> Tensor:
    """Compute the plugin or unbiased form without a Gram matrix, so that M may be large."""
    slabs = _double_slabs(parameters, ordinals, sample_ids, (seed_low, seed_high), directions, source)
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
    """Compute inner products of nonlocal gradients from consecutive slabs of unit displacements, [M, n] each.

    For the unbiased form the pairs of a displacement with itself are subtracted, except for displacements with more
    than half of the weight at some input: their pairs with all others are summed apart, since a subtraction would leave
    nothing but rounding errors.

    Returns:
        [N1, N2] with the axes of the outputs, in the dtype of ``d1``.
    """
    weights2 = weights1 if weights2 is None else weights2
    a = gradient_weights(d1, weights1, squared_norms, num_params)
    b = a if d2 is None else gradient_weights(d2, weights2, squared_norms, num_params)
    kernel = contract(a[:0], b[:0], outputs)
    divisor = unbiased_divisor(weights1, weights2, kernel.dim()) if unbiased else None
    peaks = concentrated(by_input(weights1), by_input(weights2)) if unbiased else _no_displacements(a)
    a_peaks, b_peaks = a[peaks], b[peaks]
    if len(peaks):
        a = a.index_fill(0, peaks, 0.0)
        b = a if d2 is None else b.index_fill(0, peaks, 0.0)
    gram = a.new_zeros(len(peaks), len(peaks))
    for noise in slabs:
        noise = noise.double()
        g1 = torch.tensordot(noise.T, a, dims=1)
        g2 = g1 if d2 is None else torch.tensordot(noise.T, b, dims=1)
        kernel += contract(g1, g2, outputs)
        if len(peaks):
            e = noise[peaks]
            gram += e @ e.T
            kernel += contract(a_peaks, torch.tensordot(e, g2, dims=1), outputs)
            kernel += contract(torch.tensordot(e, g1, dims=1), b_peaks, outputs)
    if divisor is not None:
        kernel -= contract(a * squared_norms.double()[:, None, None], b, outputs)
        kernel += contract(torch.tensordot(gram.fill_diagonal_(0), a_peaks, dims=1), b_peaks, outputs)
        kernel /= divisor
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
    source: Source = PLAIN,
) -> Tensor:
    """Compute nonlocal gradients [N, C, d] in the dtype of ``d``, with parameters in the given order."""
    slabs = _double_slabs(parameters, ordinals, sample_ids, (seed_low, seed_high), directions, source)
    return gradients_of(slabs, d, weights, squared_norms, _count(parameters))


def gradients_of(slabs: Iterable[Tensor], d: Tensor, weights: Tensor, squared_norms: Tensor, num_params: int) -> Tensor:
    """Compute nonlocal gradients [N, C, d] from consecutive slabs of unit displacements, [M, n] each."""
    a = gradient_weights(d, weights, squared_norms, num_params)
    out, start = d.new_empty(*d.shape[1:], num_params), 0
    for noise in slabs:
        out[..., start : start + noise.shape[1]] = torch.tensordot(a, noise.double(), dims=([0], [0]))
        start += noise.shape[1]
    return out


def _no_displacements(a: Tensor) -> Tensor:
    return torch.zeros(0, dtype=torch.int64, device=a.device)


def _double_slabs(
    parameters: list[Tensor],
    ordinals: list[int],
    sample_ids: Tensor,
    key: tuple[int, int],
    directions: str,
    source: Source,
) -> Iterator[Tensor]:
    shapes = {ordinal: tuple(parameter.shape) for ordinal, parameter in zip(ordinals, parameters, strict=True)}
    for _, noise in generate(directions, sample_ids, shapes, key, torch.float64, 4 * TILE, source):
        yield noise.flatten(1)


def _count(parameters: list[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)
