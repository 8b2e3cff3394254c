"""Products with the Gram matrix of unit displacements: with all of it, and with the blocks of groups in it."""

from collections.abc import Mapping

import torch
from torch import Tensor

from nntk.kernels.assemble import displacement_gram, nonlocal_gradients
from nntk.kernels.attention import multiply_displacements


def gram_products(
    numbers: Tensor,
    rows: Tensor,
    size: int,
    parameters: Mapping[int, Tensor],
    seed: int,
    directions: str,
    budget: int,
) -> tuple[Tensor, Tensor]:
    r"""Products :math:`\sum_{m'} Q_{mm'} a_{m'}` with :math:`Q_{mm'} = \langle E_m, E_{m'} \rangle`.

    Multiply-adds, those of float32 products at half price: M^2 (d / 2 + N C) by the matrix, M d (3 N C + 200) by the
    gradients :math:`\sum_m a_m E_m` of a tensor after the other, which takes all random numbers, each worth a hundred,
    three times. The matrix is made where it is cheaper: M is at most 6 N C + 400 then.

    Args:
        numbers: a, [M, N, C], float64.
        rows: Numbers m of the displacements, [M], int64.
        size: Displacements of a group.
        parameters: The displaced parameters by ordinal; their shapes are read, not their values.
        seed: Seed of the stream, in [0, 2**64).
        directions: Family of the displacements.
        budget: Bytes for gradients: they are those of some inputs at a time.

    Returns:
        The sums over all displacements and those over each one's own group, both [M, N, C], float64.

    Example:
        >>> rows, ones = torch.arange(4), torch.ones(4, 1, 1, dtype=torch.float64)
        >>> by_all, by_own = gram_products(ones, rows, 1, {0: torch.zeros(3, 4)}, 1, "rademacher", 2**20)
        >>> by_own.flatten()
        tensor([12., 12., 12., 12.], dtype=torch.float64)
    """
    (count, inputs, c), d = numbers.shape, sum(parameter.numel() for parameter in parameters.values())
    if count * (d / 2 + inputs * c) <= (3 * inputs * c + 200) * d:
        return _by_matrix(numbers, size, displacement_gram(parameters, rows, seed, directions))
    made = torch.zeros_like(numbers), torch.zeros_like(numbers)
    for ordinal, parameter in parameters.items():
        # Two gradients are held, of these inputs.
        at_once = max(1, budget // (16 * c * max(1, parameter.numel())))
        for first in range(0, inputs, at_once):
            some = slice(first, first + at_once)
            products = _by_gradients(numbers[:, some], rows, size, {ordinal: parameter}, seed, directions)
            for total, part in zip(made, products, strict=True):
                total[:, some] += part
    return made


def _by_matrix(numbers: Tensor, size: int, gram: Tensor) -> tuple[Tensor, Tensor]:
    blocks = [gram[first : first + size, first : first + size] for first in range(0, len(gram), size)]
    pairs = zip(blocks, numbers.split(size), strict=True)
    own = torch.cat([torch.tensordot(block, group, dims=1) for block, group in pairs])
    return torch.tensordot(gram, numbers, dims=1), own


def _by_gradients(
    numbers: Tensor, rows: Tensor, size: int, tensor: dict[int, Tensor], seed: int, directions: str
) -> tuple[Tensor, Tensor]:
    """The share of one tensor: the gradients of groups add up to that of all."""
    length = sum(parameter.numel() for parameter in tensor.values())
    total, own = numbers.new_zeros(*numbers.shape[1:], length), []

    def multiply(gradients: Tensor, rows: Tensor) -> Tensor:
        products = multiply_displacements(tensor, rows, seed, gradients.flatten(0, 1), directions)
        return products.view(len(rows), *numbers.shape[1:])

    for group, some in zip(numbers.split(size), rows.split(size), strict=True):
        ones = group.new_ones(len(some))
        gradients = nonlocal_gradients(group, ones / length, ones, tensor, some, seed, directions)
        own.append(multiply(gradients, some))
        total += gradients
    return multiply(total, rows), torch.cat(own)
