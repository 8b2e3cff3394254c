"""Ridge regression by any kernel, through features of it, with the ridge of least leave-one-out error."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

ALPHAS = np.logspace(-5, 3, 33)
"""Ridges to choose from, in means of the training kernel's diagonal; below, rounding would choose among them."""


@dataclass(frozen=True)
class Fit:
    """Ridge regressions of T targets.

    Attributes:
        predictions: At the held-out inputs, [held-out, T].
        left_out: At each training input, of the fit to the others, [training, T].
        alpha: The ridge of each target, in means of the training kernel's diagonal, [T].
        loo: Mean squared leave-one-out error of each target, [T].
    """

    predictions: np.ndarray
    left_out: np.ndarray
    alpha: np.ndarray
    loo: np.ndarray


def root(kernel: Tensor) -> np.ndarray:
    """Some R with K = R R^T, which are features of the kernel.

    Args:
        kernel: Symmetric, [N, N]; eigenvalues below zero are taken for rounding.

    Returns:
        R, [N, N], float64.
    """
    values, vectors = torch.linalg.eigh(kernel.double())
    made: np.ndarray = (vectors * values.clamp(min=0).sqrt()).cpu().numpy()
    return made


def fit(features: np.ndarray, targets: np.ndarray, training: int, shared: bool = False) -> Fit:
    """Fit to the first inputs and predict at the others, with an intercept that no ridge holds back.

    Args:
        features: Of training inputs first, then of held-out ones, [N, F].
        targets: Of the training inputs, [training] or [training, T].
        training: Number of training inputs.
        shared: Whether all targets have the same ridge.

    Returns:
        The fit.
    """
    from sklearn.linear_model import RidgeCV  # imported late: it takes a second that --help need not wait for

    known, columns = features[:training], targets.reshape(training, -1)
    unit = float(np.square(known).sum(1).mean())
    ridge = RidgeCV(unit * ALPHAS, store_cv_results=True, alpha_per_target=not shared).fit(known, columns)
    alpha = np.broadcast_to(ridge.alpha_, columns.shape[1])
    place = np.searchsorted(unit * ALPHAS, alpha)
    squared = np.take_along_axis(ridge.cv_results_.reshape(*columns.shape, -1), place[None, :, None], 2)[:, :, 0]
    predictions = (features @ ridge.coef_.reshape(columns.shape[1], -1).T) + ridge.intercept_
    # Leaving an input out moves its residual away from zero: squared errors tell all but the sign.
    left_out = columns - np.copysign(np.sqrt(squared), columns - predictions[:training])
    return Fit(predictions[training:], left_out, alpha / unit, squared.mean(0))
