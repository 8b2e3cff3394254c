"""How alike two kernels are."""

from torch import Tensor


def alignment(one: Tensor, other: Tensor) -> float:
    """<K, L> / (|K| |L|) in Frobenius norm, of kernels [N, N]; with y y' the alignment with a target y."""
    other = other.to(one)
    return float((one * other).sum() / (one.norm() * other.norm()))
