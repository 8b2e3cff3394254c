"""Fits of ridge regressions to the features of a kernel: by K or by the features' Gram matrix, whichever is smaller."""

import warnings

import numpy as np
import torch
from torch import Tensor

from nntk.linalg import ridge
from nntk.linalg.operator import KernelOperator


def fit_dual(operator: KernelOperator, y: Tensor, scales: Tensor, alpha: float | None) -> tuple[Tensor, float]:
    """Fit by the eigenvectors of K [N, N], where there are no more inputs than features."""
    kernel = weighted_matrix(operator, scales)
    mean = float(kernel.diagonal().mean())
    _warn_near_interpolation(operator, alpha, mean)
    spectrum = ridge.decompose(kernel, y)
    if alpha is None:
        candidates = ridge.candidates(mean)
        errors = [float(ridge.leave_one_out_dual(spectrum, value).square().mean()) for value in candidates]
        alpha = float(candidates[int(np.argmin(errors))])
    return operator.project(scales[:, None] * ridge.solution(spectrum, alpha)), alpha


def weighted_matrix(operator: KernelOperator, scales: Tensor) -> Tensor:
    """Return K with its rows and columns scaled; without weights of inputs it is K itself, and no copy."""
    return operator.matrix if bool((scales == 1).all()) else scales[:, None] * operator.matrix * scales


def fit_primal(operator: KernelOperator, y: Tensor, scales: Tensor, alpha: float | None) -> tuple[Tensor, float]:
    """Fit by the eigenvectors of the features' Gram matrix [F, F], where there are more inputs than features."""
    gram, projected = operator.gram_and_projection(y, scales)
    mean = float(gram.diagonal().sum()) / len(y)
    _warn_near_interpolation(operator, alpha, mean)
    spectrum = ridge.decompose(gram, projected)
    if alpha is None:
        candidates = ridge.candidates(mean)
        errors = torch.zeros(len(candidates), dtype=torch.float64)
        for block, features in operator.features():
            rotated = scales[block, None] * features @ spectrum.vectors
            for index, value in enumerate(candidates):
                errors[index] += ridge.leave_one_out_primal(spectrum, value, rotated, y[block]).square().sum()
        alpha = float(candidates[int(errors.argmin())])
    return ridge.solution(spectrum, alpha), alpha


def posterior(
    operator: KernelOperator, y: Tensor, scales: Tensor, alpha: float, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the variance of the posterior is made of: |a|^2 - sum_r shrunk_r (a . basis_r)^2, and amplitudes.

    Returns:
        Basis, [F, R], shrunk, [R], and the amplitude of each target, [T].
    """
    if operator.is_wide:
        spectrum = ridge.decompose(weighted_matrix(operator, scales), y[:, :0])
        basis, shrunk = operator.project(scales[:, None] * spectrum.vectors), 1 / (spectrum.values + alpha)
    else:
        spectrum = ridge.decompose(*operator.gram_and_projection(y[:, :0], scales))
        basis, shrunk = spectrum.vectors, spectrum.values / (spectrum.values + alpha)
    residuals = y - scales[:, None] * operator.expand(weights)
    amplitudes = (residuals.square().sum(0) / alpha + weights.square().sum(0)) / (scales > 0).sum()
    return basis, shrunk, amplitudes


def _warn_near_interpolation(operator: KernelOperator, alpha: float | None, mean: float) -> None:
    """Warn of the peak of double descent: about as many features as inputs, and a ridge near zero."""
    ratio = operator.num_features / max(1, len(operator.x))
    if alpha is not None and alpha < 1e-2 * mean and 0.5 < ratio < 2:
        warnings.warn(
            f"alpha={alpha:g} is below a hundredth of the kernel's mean diagonal ({mean:g}) and there are as many "
            f"features ({operator.num_features}) as inputs ({len(operator.x)}): such fits err the most. Raise alpha, "
            "take alpha='loo', or change samples.",
            stacklevel=4,
        )
