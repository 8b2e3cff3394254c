"""Products with the Gram matrix of unit displacements, and with its diagonal blocks for groups."""

from collections.abc import Mapping

import torch
from torch import Tensor

from nntk.kernels.assemble import displacement_gram, nonlocal_gradients
from nntk.kernels.attention import multiply_displacements
from nntk.kernels.philox import unit_displacements


def gram_products(
    coefficients: Tensor,
    sample_ids: Tensor,
    size: int,
    parameters: Mapping[int, Tensor],
    seed: int,
    directions: str,
    budget: int,
    squared_norms: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Products :math:`\sum_{m'} Q_{mm'} a_{m'}` with :math:`Q_{mm'} = \langle E_m, E_{m'} \rangle`.

    There are two ways. By the Gram matrix they take M^2 (d / 2 + N C) multiply-adds, with float32 products at half
    price. By the gradients :math:`\sum_m a_m E_m`, one parameter tensor after another, they take M d (3 N C + 200),
    where each random number is generated three times and costs as much as a hundred multiply-adds. The cheaper way is
    taken: the matrix is formed only where M is at most 6 N C + 400.

    Args:
        coefficients: Coefficients a, [M, N, C], float64.
        sample_ids: Numbers m of the displacements, [M], int64.
        size: Displacements of a group.
        parameters: Displaced parameters by their number in the stream; their shapes are read, not their values.
        seed: Seed of the stream, in [0, 2**64).
        directions: Family of the displacements.
        budget: Bytes for gradients, which are formed for a block of inputs at a time.
        squared_norms: Squared norms of the unit displacements, [M], float64, to leave out the terms m' = m; None to
            keep them.

    Returns:
        Sums over all displacements, and sums over the group that m belongs to, both [M, N, C], float64.

    Example:
        >>> sample_ids, ones = torch.arange(4), torch.ones(4, 1, 1, dtype=torch.float64)
        >>> with_all, with_group = gram_products(ones, sample_ids, 1, {0: torch.zeros(3, 4)}, 1, "rademacher", 2**20)
        >>> with_group.flatten()
        tensor([12., 12., 12., 12.], dtype=torch.float64)
    """
    (count, inputs, c), d = coefficients.shape, sum(parameter.numel() for parameter in parameters.values())
    if count * (d / 2 + inputs * c) <= (3 * inputs * c + 200) * d:
        gram = displacement_gram(parameters, sample_ids, seed, directions)
        return _by_matrix(coefficients, size, gram if squared_norms is None else gram.fill_diagonal_(0))
    peaks = coefficients.new_zeros(0, dtype=torch.int64) if squared_norms is None else _peaks(coefficients)
    others = coefficients.index_fill(0, peaks, 0.0) if len(peaks) else coefficients
    sums = torch.zeros_like(coefficients), torch.zeros_like(coefficients)
    for index, parameter in parameters.items():
        # Two gradients of a block of inputs are held.
        block_size = max(1, budget // (16 * c * max(1, parameter.numel())))
        for start in range(0, inputs, block_size):
            block = slice(start, start + block_size)
            products = _by_gradients(others[:, block], sample_ids, size, {index: parameter}, seed, directions)
            for total, part in zip(sums, products, strict=True):
                total[:, block] += part
        if len(peaks):
            _add_peaks(sums, coefficients, peaks, sample_ids, size, {index: parameter}, seed, directions)
    if squared_norms is not None:
        for total in sums:
            total -= others * squared_norms[:, None, None]
    return sums


def _peaks(coefficients: Tensor) -> Tensor:
    """Return the positions of displacements whose coefficients at some input are larger than those of all others.

    Their terms are summed apart: a difference of sums with and without them would leave nothing but rounding errors.
    """
    sizes = coefficients.abs().amax(2)
    return (sizes > sizes.sum(0) / 2).any(1).nonzero().flatten()


def _add_peaks(
    sums: tuple[Tensor, Tensor],
    coefficients: Tensor,
    peaks: Tensor,
    sample_ids: Tensor,
    size: int,
    tensor: dict[int, Tensor],
    seed: int,
    directions: str,
) -> None:
    """Add the terms of some displacements m', other than m' = m, for one parameter tensor."""
    ((index, parameter),) = tensor.items()
    units = unit_displacements(sample_ids[peaks], index, parameter.shape, seed, directions, torch.float64)
    gram = multiply_displacements(tensor, sample_ids, seed, units.flatten(1), directions)
    positions = torch.arange(len(sample_ids), device=sample_ids.device)[:, None]
    gram = gram.masked_fill(positions == peaks, 0.0)
    with_all, with_group = sums
    with_all += torch.tensordot(gram, coefficients[peaks], dims=1)
    gram = gram.masked_fill(positions // size != peaks // size, 0.0)
    with_group += torch.tensordot(gram, coefficients[peaks], dims=1)


def _by_matrix(coefficients: Tensor, size: int, gram: Tensor) -> tuple[Tensor, Tensor]:
    blocks = [gram[first : first + size, first : first + size] for first in range(0, len(gram), size)]
    pairs = zip(blocks, coefficients.split(size), strict=True)
    with_group = torch.cat([torch.tensordot(block, group, dims=1) for block, group in pairs])
    return torch.tensordot(gram, coefficients, dims=1), with_group


def _by_gradients(
    coefficients: Tensor, sample_ids: Tensor, size: int, tensor: dict[int, Tensor], seed: int, directions: str
) -> tuple[Tensor, Tensor]:
    """Return the part of one parameter tensor; the gradients of groups add up to that of all displacements."""
    length = sum(parameter.numel() for parameter in tensor.values())
    total, with_group = coefficients.new_zeros(*coefficients.shape[1:], length), []

    def multiply(gradients: Tensor, ids: Tensor) -> Tensor:
        products = multiply_displacements(tensor, ids, seed, gradients.flatten(0, 1), directions)
        return products.view(len(ids), *coefficients.shape[1:])

    for group, ids in zip(coefficients.split(size), sample_ids.split(size), strict=True):
        ones = group.new_ones(len(ids))
        gradients = nonlocal_gradients(group, ones / length, ones, tensor, ids, seed, directions)
        with_group.append(multiply(gradients, ids))
        total += gradients
    return multiply(total, sample_ids), torch.cat(with_group)
