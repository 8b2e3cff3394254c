"""Alignment: the cosine of the angle between two kernel matrices; and other numbers of one or two of them."""

import torch
from torch import Tensor


def alignment(first: Tensor, second: Tensor, inner: Tensor | None = None) -> float:
    r"""Return the alignment of two kernels K and L, their cosine in the Frobenius inner product.

    .. math::
        \frac{\langle K, L \rangle}{|K|_F\,|L|_F}

    It is 1 for kernels that differ by a positive factor only. With :math:`L = y y^\top` it is the alignment of K with a
    target y.

    Args:
        first: K, [N, N], of any real dtype, or a matrix of the same norm, such as :math:`A^\top A` where
            :math:`K = A A^\top`.
        second: L, [N, N], or a matrix of the same norm.
        inner: Inner product :math:`\langle K, L \rangle`, a scalar tensor; by default that of the two arguments, which
            must then be K and L themselves.

    Returns:
        The alignment, in [-1, 1], computed in float64; in [0, 1] for positive semi-definite kernels.

    Example:
        >>> import torch
        >>> round(alignment(torch.eye(4), torch.ones(4, 4)), 6)
        0.5
    """
    first, second = first.double(), second.double()
    inner = (first * second).sum() if inner is None else inner
    return float(inner / (first.norm() * second.norm()))


def centred(kernel: Tensor) -> Tensor:
    r"""Return the kernel of centred features, :math:`H K H` with :math:`H = I - 1 1^\top / N`.

    Args:
        kernel: K, [N, N].

    Returns:
        [N, N], in the kernel's dtype; its rows and columns sum to zero.
    """
    result: Tensor = kernel - kernel.mean(0, keepdim=True) - kernel.mean(1, keepdim=True) + kernel.mean()
    return result


def effective_rank(kernel: Tensor) -> float:
    r"""Return the squared trace over the squared norm, :math:`(\sum \lambda)^2 / \sum \lambda^2`.

    Args:
        kernel: K, [N, N], or a matrix of the same nonzero eigenvalues.

    Returns:
        The rank, 1 for a single direction, N for a multiple of the identity; nan for a matrix of zeros.
    """
    return float(kernel.trace() ** 2 / kernel.square().sum())


def principal_angles(first: Tensor, second: Tensor) -> Tensor:
    """Return the principal angles of two subspaces.

    A small angle is taken from its sine and a large one from its cosine, so that all are accurate to rounding.

    Args:
        first: Orthonormal columns that span the first subspace, [N, k], float64.
        second: Orthonormal columns that span the second one, [N, k].

    Returns:
        [k], float64, in radians, from 0 to pi / 2, in rising order.
    """
    product = first.T @ second
    cosines: Tensor = torch.linalg.svdvals(product).clamp(max=1)
    # Singular values are in falling order, and the smallest sine belongs to the largest cosine.
    sines = torch.linalg.svdvals(second - first @ product).flip(0).clamp(max=1)
    return torch.where(cosines.square() > 0.5, sines.arcsin(), cosines.arccos())
