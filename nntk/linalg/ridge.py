r"""Kernel ridge regression in float64: one decomposition of the kernel serves all ridges and all targets.

For features A [N, F], the kernel :math:`K = A A^\top` [N, N], targets y [N, T] and a ridge :math:`\alpha > 0`, the
weights of the features are

.. math::
    w = (A^\top A + \alpha I)^{-1} A^\top y = A^\top (K + \alpha I)^{-1} y.

The first form, the primal, decomposes :math:`A^\top A` [F, F]; the second, the dual, decomposes K. Each gives the
errors :math:`y_n - f_{-n}(x_n)` of the fits that leave input n out, without any other fit:

.. math::
    \text{dual: } \frac{[(K + \alpha I)^{-1} y]_n}{[(K + \alpha I)^{-1}]_{nn}}, \qquad
    \text{primal: } \frac{y_n - a_n^\top w}{1 - a_n^\top (A^\top A + \alpha I)^{-1} a_n}.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

CANDIDATES = torch.logspace(-8, 3, 45, dtype=torch.float64)
"""Ridges that leave-one-out chooses from, in means of the kernel's diagonal."""


@dataclass(frozen=True)
class Spectrum:
    r"""Eigendecomposition of a positive semi-definite matrix S [D, D], with right-hand sides b [D, T] in its basis.

    Attributes:
        values: Eigenvalues of S, at least 0, [R].
        vectors: Orthonormal eigenvectors of S in columns, [D, R].
        projected: Right-hand sides in the basis of the eigenvectors, ``vectors.T @ b``, [R, T].
    """

    values: Tensor
    vectors: Tensor
    projected: Tensor


def decompose(matrix: Tensor, right: Tensor) -> Spectrum:
    r"""Decompose K with right-hand sides y for the dual, or :math:`A^\top A` with :math:`A^\top y` for the primal.

    Args:
        matrix: Matrix, [D, D], float64, positive semi-definite but for rounding.
        right: Right-hand sides, [D, T], float64.

    Returns:
        The spectrum. Negative eigenvalues are rounding, and become zero.
    """
    values, vectors = torch.linalg.eigh(matrix)
    return Spectrum(values.clamp(min=0), vectors, vectors.T @ right)


def decompose_features(features: Tensor, targets: Tensor) -> Spectrum:
    r"""Decompose :math:`A^\top A` for the primal by the singular values of A.

    Small eigenvalues are more accurate than by :func:`decompose`, because :math:`A^\top A` is never rounded.

    Args:
        features: A, [N, F], float64.
        targets: y, [N, T], float64.

    Returns:
        The spectrum, of R = min(N, F) eigenvalues.
    """
    left, singular, right = torch.linalg.svd(features, full_matrices=False)
    return Spectrum(singular.square(), right.T, singular[:, None] * (left.T @ targets))


def solution(spectrum: Spectrum, alpha: float | Tensor) -> Tensor:
    r"""Return :math:`(S + \alpha I)^{-1} b`: the weights of the features in the primal, of the inputs in the dual.

    Args:
        spectrum: Decomposition of S with the right-hand sides b.
        alpha: The ridge, or one for each right-hand side, [T].

    Returns:
        [D, T], float64.
    """
    return spectrum.vectors @ (spectrum.projected / (spectrum.values[:, None] + alpha))


def leave_one_out_dual(spectrum: Spectrum, alpha: float | Tensor) -> Tensor:
    """Return the leave-one-out errors by the decomposition of K.

    Args:
        spectrum: Decomposition of K [N, N] with the targets y [N, T].
        alpha: The ridge, a number or a scalar tensor.

    Returns:
        Targets minus predictions, [N, T], float64.
    """
    shrunk = 1 / (spectrum.values + alpha)
    weights = spectrum.vectors @ (shrunk[:, None] * spectrum.projected)
    return weights / (spectrum.vectors.square() @ shrunk)[:, None]


def leave_one_out_primal(
    spectrum: Spectrum, alpha: float | Tensor, rotated: Tensor, targets: Tensor, intercept: float = 0.0
) -> Tensor:
    r"""Return the leave-one-out errors of a block of inputs by the decomposition of :math:`A^\top A`.

    Args:
        spectrum: Decomposition of :math:`A^\top A` [F, F] of all inputs, with :math:`A^\top y`.
        alpha: The ridge, a number or a scalar tensor.
        rotated: Features of the block in the basis of the eigenvectors, ``features @ spectrum.vectors``, [n, R].
        targets: Targets of the block, [n, T].
        intercept: Leverage that an intercept adds to each input: 1 / N where features and targets are centred by their
            means and the mean is fitted anew without the input; 0 without an intercept.

    Returns:
        Targets minus predictions, [n, T], float64.
    """
    shrunk = 1 / (spectrum.values + alpha)
    residuals = targets - rotated @ (shrunk[:, None] * spectrum.projected)
    leverages = rotated.square() @ shrunk
    # An input that alone determines a feature has leverage 1, and rounding may exceed it.
    return residuals / ((1 - intercept) - leverages)[:, None].clamp(min=1e-12)


def candidates(mean_diagonal: float) -> Tensor:
    """Return the ridges that leave-one-out chooses from.

    Args:
        mean_diagonal: Mean of the kernel's diagonal, which is their unit; a kernel of zeros has the unit 1.

    Returns:
        Ridges in rising order, [45], float64.
    """
    return CANDIDATES * (mean_diagonal if mean_diagonal > 0 else 1.0)


def solve(matrix: Tensor, alpha: float, right: Tensor) -> Tensor:
    r"""Solve :math:`(S + \alpha I) v = b` for one ridge, without a decomposition.

    Args:
        matrix: S, [N, N], positive semi-definite but for rounding.
        alpha: The ridge.
        right: Right-hand sides b, [N] or [N, T].

    Returns:
        v, like ``right``: by Cholesky's decomposition, or by the LU decomposition where rounding made a pivot negative.
    """
    shifted = matrix.clone()
    shifted.diagonal().add_(alpha)
    factor, info = torch.linalg.cholesky_ex(shifted)
    columns = right if right.dim() == 2 else right[:, None]
    result = torch.linalg.solve(shifted, columns) if int(info) else torch.cholesky_solve(columns, factor)
    return result if right.dim() == 2 else result[:, 0]
