"""Ridge regression with an intercept by any kernel, through features of it, with the ridge chosen by leave-one-out."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nntk.linalg import ridge

_NEAR_BEST = 1.001
"""Leave-one-out errors that count as equal to the least one, as multiples of it.

Where the error hardly depends on the ridge, rounding must not choose the ridge.
"""


@dataclass(frozen=True)
class Fit:
    """Ridge regressions of T targets.

    Attributes:
        predictions: Predictions at the held-out inputs, [held-out, T].
        left_out: Predictions at each training input by the fit to all other training inputs, [training, T].
        alpha: Ridge of each target, in means of the training kernel's diagonal, [T].
        loo: Mean squared leave-one-out error of each target, [T].
    """

    predictions: np.ndarray
    left_out: np.ndarray
    alpha: np.ndarray
    loo: np.ndarray


def root(kernel: Tensor) -> np.ndarray:
    """Compute R with K = R R^T, whose rows are features of the kernel.

    Args:
        kernel: Symmetric kernel matrix, [N, N]; eigenvalues of the size of rounding become zero.

    Returns:
        R, [N, N], float64.
    """
    values, vectors = torch.linalg.eigh(kernel.double())
    rounding = len(values) * torch.finfo(values.dtype).eps * values[-1]
    features: np.ndarray = (vectors * torch.where(values > rounding, values, 0.0).sqrt()).cpu().numpy()
    return features


def fit(features: np.ndarray, targets: np.ndarray, training: int, shared: bool = False) -> Fit:
    """Fit to the training inputs and predict at the others, with an intercept that the ridge does not penalise.

    The ridge is the largest candidate whose leave-one-out error is within a thousandth of the least.

    Args:
        features: Features of the training inputs first, then of the held-out ones, [N, F].
        targets: Targets of the training inputs, [training] or [training, T].
        training: Number of training inputs.
        shared: True to use one ridge for all targets.

    Returns:
        The fit.
    """
    a, columns = (torch.from_numpy(np.array(part, np.float64)) for part in (features, targets.reshape(training, -1)))
    known = a[:training]
    mean, intercept = known.mean(0), columns.mean(0)
    centred, centred_columns = known - mean, columns - intercept
    # Uses singular values: in a Gram matrix, rounding errors would be as large as the smallest ridges.
    spectrum = ridge.decompose_features(centred, centred_columns)
    rotated = centred @ spectrum.vectors
    alphas = ridge.candidates(float(known.square().sum(1).mean()))
    errors = torch.stack(
        [ridge.leave_one_out_primal(spectrum, value, rotated, centred_columns, 1 / training) for value in alphas]
    )
    squared = errors.square().mean(1)
    loo = squared.mean(1, keepdim=True) if shared else squared
    near_best = loo <= _NEAR_BEST * loo.amin(0)
    indices = torch.where(near_best, torch.arange(len(alphas))[:, None], -1).amax(0).expand(columns.shape[1])
    weights = ridge.solution(spectrum, alphas[indices])
    chosen = torch.arange(columns.shape[1])
    return Fit(
        ((a[training:] - mean) @ weights + intercept).numpy(),
        (columns - errors[indices, :, chosen].T).numpy(),
        ridge.CANDIDATES[indices].numpy(),
        squared[indices, chosen].numpy(),
    )
