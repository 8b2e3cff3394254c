"""Largest eigenvalues of a kernel, from the smaller of its matrix and the Gram matrix of its features."""

import torch
from torch import Tensor

from nntk.kernels import checks


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


def check_rank(k: int, inputs: int, features: int) -> int:
    """Return a number of eigenvalues if a kernel of N inputs has as many beside those that are zero.

    Args:
        k: The number.
        inputs: Number N of inputs.
        features: Number F of features.

    Returns:
        The number.

    Raises:
        ValueError: If it is out of range.
        TypeError: If it is no integer.
    """
    most = min(inputs, features)
    hint = f"A kernel of {inputs} inputs by {features} features has at most {most} eigenvalues that are not zero."
    return checks.integer("k", k, 1, most, hint)
