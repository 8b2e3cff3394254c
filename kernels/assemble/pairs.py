r"""Sums over pairs of different displacements, without the cancellation that the sums over all pairs have.

If one displacement has nearly all the weight, :math:`1 - \sum_m \alpha_m \alpha'_m` is a difference of nearly equal
numbers. The same number is a sum of positive terms, :math:`\sum_m \alpha_m \sum_{m' \ne m} \alpha'_{m'}`, which keeps
its digits as long as the small weights do.
"""

import torch
from torch import Tensor

_LEAST_PAIRS = 1e-290
"""Least sum of weights of pairs: products with smaller ones leave the normal numbers of float64."""


def sum_of_others(weights: Tensor) -> Tensor:
    """Return for each displacement the sum of the weights of all others.

    Args:
        weights: Weights [M, ...], >= 0, with M >= 1.

    Returns:
        Sums in the shape of ``weights``. Their relative error is a few roundings: the largest weight is left out of a
        sum of its own, and to subtract any other loses at most one bit.

    Example:
        >>> sum_of_others(torch.tensor([1.0, 1e-20, 1e-20]))
        tensor([2.0000e-20, 1.0000e+00, 1.0000e+00])
    """
    largest = weights.argmax(0, keepdim=True)
    others = weights.sum(0) - weights
    return others.scatter(0, largest, weights.scatter(0, largest, 0.0).sum(0, keepdim=True))


def sum_over_pairs(weights1: Tensor, weights2: Tensor) -> Tensor:
    r"""Return :math:`\sum_{m \ne m'} \alpha_m(x) \alpha_{m'}(x')`, which is one minus the pairs of equal m.

    Args:
        weights1: Weights at the inputs of the rows, [M, N1] or [M, 1], float64.
        weights2: Weights at the inputs of the columns, [M, N2] or [M, 1], float64.

    Returns:
        [N1, N2], with an axis of size 1 where weights ignore the input.
    """
    return weights1.T @ sum_of_others(weights2)


def check_pairs(pairs: Tensor, effective_samples: float) -> None:
    """Check that some pair of different displacements has a weight.

    Args:
        pairs: Sums of the weights of pairs.
        effective_samples: Effective number of displacements where it is least, for the message.

    Raises:
        ValueError: If the sum is zero, or smaller than float64 can divide by.
    """
    if bool((pairs < _LEAST_PAIRS).any()):
        raise ValueError(
            "weights must be shared by two displacements or more for estimator='unbiased', got an effective sample "
            f"size 1 / sum alpha^2 of {effective_samples:.3g}, where one displacement has all the weight within "
            "float64: raise the temperature of the attention or draw from a proposal nearer to the kernel, take more "
            "samples, or use estimator='energy' or 'plugin'."
        )


def concentrated(weights1: Tensor, weights2: Tensor) -> Tensor:
    """Return the positions of displacements that have more than half of the weight at some input.

    Args:
        weights1: Weights at the inputs of the rows, [M, N1] or [M, 1].
        weights2: Weights at the inputs of the columns, [M, N2] or [M, 1].

    Returns:
        Positions, [P], int64, at most one for each input.
    """
    most = torch.maximum(weights1.amax(1), weights2.amax(1)) if weights1.numel() and weights2.numel() else weights1[:0]
    return (most > 0.5).nonzero().flatten()
