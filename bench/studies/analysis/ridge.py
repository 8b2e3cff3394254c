"""Ridge regression by any kernel, through features of it, with a ridge chosen by leave-one-out."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

ALPHAS = np.logspace(-8, 3, 45)
"""Ridges to choose from, in means of the training kernel's diagonal."""

_AS_GOOD = 1.001
"""Leave-one-out errors that are taken for equal: where they hardly depend on the ridge, rounding must not choose it."""


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
        kernel: Symmetric, [N, N]; eigenvalues of the size of rounding are taken for zero.

    Returns:
        R, [N, N], float64.
    """
    values, vectors = torch.linalg.eigh(kernel.double())
    rounding = len(values) * torch.finfo(values.dtype).eps * values[-1]
    made: np.ndarray = (vectors * torch.where(values > rounding, values, 0.0).sqrt()).cpu().numpy()
    return made


def fit(features: np.ndarray, targets: np.ndarray, training: int, shared: bool = False) -> Fit:
    """Fit to the first inputs and predict at the others, with an intercept that no ridge holds back.

    The ridge is the largest whose leave-one-out error is within a thousandth of the least.

    Args:
        features: Of training inputs first, then of held-out ones, [N, F].
        targets: Of the training inputs, [training] or [training, T].
        training: Number of training inputs.
        shared: Whether all targets have the same ridge.

    Returns:
        The fit.
    """
    from sklearn.linear_model import Ridge, RidgeCV  # imported late: it takes a second that --help need not wait for

    known, columns = features[:training], targets.reshape(training, -1)
    unit = float(np.square(known).sum(1).mean())
    # By singular values: of a Gram matrix, the smallest ridges would be near its rounding.
    tried = RidgeCV(unit * ALPHAS, gcv_mode="svd", store_cv_results=True).fit(known, columns)
    squared = tried.cv_results_.reshape(*columns.shape, -1)
    loo = squared.mean((0, 1) if shared else 0).reshape(1 if shared else -1, len(ALPHAS))
    as_good = loo <= _AS_GOOD * loo.min(1, keepdims=True)
    place = np.broadcast_to(len(ALPHAS) - 1 - as_good[:, ::-1].argmax(1), columns.shape[1])
    squared = np.take_along_axis(squared, place[None, :, None], 2)[:, :, 0]
    ridge = Ridge(unit * ALPHAS[place], solver="svd").fit(known, columns)
    predictions = ridge.predict(features).reshape(-1, columns.shape[1])
    # Leaving an input out moves its residual away from zero: squared errors tell all but the sign.
    left_out = columns - np.copysign(np.sqrt(squared), columns - predictions[:training])
    return Fit(predictions[training:], left_out, ALPHAS[place], squared.mean(0))
