"""Alignment: the cosine of the angle between two kernel matrices."""

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
