"""Largest eigenvalues of a kernel, from the smaller of its matrix and the Gram matrix of its features."""

import torch
from torch import Tensor


def leading_eigenpairs(matrix: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the largest eigenvalues of a symmetric matrix, the largest first, and their eigenvectors.

    Args:
        matrix: The matrix, [n, n], positive semi-definite, float64.
        k: Number of eigenvalues.

    Returns:
        Eigenvalues, [k]; eigenvectors, [n, k]; and the roots of the eigenvalues, by which products of features with
        eigenvectors of their Gram matrix are divided. A root is never zero: an eigenvalue that is rounding has no
        meaningful eigenvector, and the bound keeps its length finite.
    """
    values, vectors = torch.linalg.eigh(matrix)
    values, vectors = values[-k:].flip(0), vectors[:, -k:].flip(1)
    float64 = torch.finfo(torch.float64)
    roots = values.clamp(min=max(float64.eps * float(values[0]), float64.tiny)).sqrt()
    return values, vectors, roots
