"""Ridge regression and classification with nonlocal kernels, as estimators of scikit-learn, which must be installed."""

import copy
import warnings
from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, MultiOutputMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from torch import Tensor, nn

from nntk.kernel import NonlocalNTK
from nntk.linalg import ridge
from nntk.linalg.operator import KernelOperator

ModelBuilder = Callable[[int], nn.Module]
"""Function from the number of features of an input to a network."""
_DTYPES = [np.float64, np.float32]
"""Dtypes of inputs, in which the network is evaluated."""


def relu_network(num_features: int) -> nn.Module:
    """Build the default model: two hidden layers of 256 relu units with He's initialisation.

    Args:
        num_features: Number of features of an input.

    Returns:
        The network, with one output.
    """
    affine = [nn.Linear(num_features, 256), nn.Linear(256, 256), nn.Linear(256, 1)]
    for layer in affine:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    return nn.Sequential(affine[0], nn.ReLU(), affine[1], nn.ReLU(), affine[2])


class _Ridge(BaseEstimator):
    """Base of regression and classification: ridge regression of centred targets [N, T] on the features of a kernel."""

    def __init__(
        self,
        model: nn.Module | ModelBuilder = relu_network,
        *,
        gamma: float = 0.1,
        samples: int = 1024,
        directions: str = "gaussian",
        antithetic: bool = True,
        estimator: str = "energy",
        alpha: float | str = "loo",
        seed: int = 0,
        max_memory: int | None = None,
    ) -> None:
        self.model = model
        self.gamma = gamma
        self.samples = samples
        self.directions = directions
        self.antithetic = antithetic
        self.estimator = estimator
        self.alpha = alpha
        self.seed = seed
        self.max_memory = max_memory

    def _fit(self, x: np.ndarray, y: np.ndarray, sample_weight: Any) -> None:
        """Fit to inputs [N, K], targets [N, T] and weights [N] of the inputs, or None."""
        weights = _check_sample_weight(sample_weight, x, dtype=np.float64, ensure_non_negative=True)
        if not weights.any():
            raise ValueError(f"sample_weight must have an entry above zero, got {len(weights)} zeros.")
        alpha = _check_alpha(self.alpha)
        self.kernel_ = NonlocalNTK(
            self._build_model(x.shape[1]).to(torch.as_tensor(x).dtype),
            gamma=self.gamma,
            samples=self.samples,
            directions=self.directions,
            antithetic=self.antithetic,
            estimator=self.estimator,
            seed=self.seed,
            max_memory=self.max_memory,
        )
        targets = torch.as_tensor(np.asarray(y, dtype=np.float64))
        mean = targets.mean(0) if sample_weight is None else torch.from_numpy(np.average(y, 0, weights)).double()
        self.intercept_ = mean.numpy()
        # Weights are lengths of rows: of features, and of targets.
        scales = torch.from_numpy(weights).sqrt()
        targets = scales[:, None] * (targets - mean)
        operator = self.kernel_.operator(self._to_tensor(x))
        fit = _fit_dual if operator.is_wide else _fit_primal
        coefficients, self.alpha_ = fit(operator, targets, scales, alpha)
        self.coef_ = coefficients.numpy()
        self._training = x, targets, scales
        self._posterior: tuple[Tensor, Tensor, Tensor] | None = None

    def _build_model(self, num_features: int) -> nn.Module:
        """Copy the model, or build it with the estimator's seed; PyTorch's random numbers are as before afterwards."""
        if isinstance(self.model, nn.Module):
            return copy.deepcopy(self.model).eval()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return self.model(num_features).eval()

    def _to_tensor(self, x: np.ndarray) -> Tensor:
        """Return inputs in the dtype and on the device of the model."""
        assert isinstance(self.kernel_.model, nn.Module), "_fit built it"
        return torch.as_tensor(x).to(next(self.kernel_.model.parameters()))

    def _predict(self, x: np.ndarray) -> np.ndarray:
        """Predict targets [N, T]."""
        check_is_fitted(self)
        x = validate_data(self, x, reset=False, dtype=_DTYPES)
        inputs = self._to_tensor(x)
        centred = self.kernel_.operator(inputs).expand(torch.as_tensor(self.coef_))
        predictions: np.ndarray = centred.numpy() + self.intercept_
        return predictions

    def _deviations(self, x: np.ndarray) -> np.ndarray:
        """Return the standard deviations of the posterior, [N, T], at inputs that were checked."""
        if self._posterior is None:
            training, targets, scales = self._training
            operator = self.kernel_.operator(self._to_tensor(training))
            self._posterior = _posterior(operator, targets, scales, self.alpha_, torch.as_tensor(self.coef_))
        basis, shrunk, amplitudes = self._posterior
        inputs = self._to_tensor(x)
        variances = torch.empty(len(inputs), dtype=torch.float64)
        for block, a in self.kernel_.operator(inputs).features(inputs):
            variances[block] = a.square().sum(1) - (a @ basis).square() @ shrunk
        deviations: np.ndarray = (variances.clamp(min=0)[:, None] * amplitudes).sqrt().numpy()
        return deviations


class KernelRidge(MultiOutputMixin, RegressorMixin, _Ridge):
    r"""Ridge regression with a nonlocal kernel: :math:`\min_w |y - A w|^2 + \alpha |w|^2`, A its features.

    Where there are more inputs than features, the normal equations :math:`A^\top A` are summed in float64 over blocks
    of inputs: no matrix [N, N] or [N, M] is ever held. Targets are centred. The network is evaluated in the dtype of
    the inputs: float32 inputs are faster.

    Args:
        model: Network, or function that builds one from the number of features (seeded by ``seed``).
        gamma: Length scale of the displacements. See :class:`nntk.NonlocalNTK` for it and for ``samples``,
            ``directions``, ``antithetic``, ``estimator``, ``seed`` and ``max_memory``.
        samples: Number M of displacements.
        directions: Family of the displacements.
        antithetic: Use of antithetic pairs: differences are then odd parts.
        estimator: Form of the kernel, ``"energy"`` or ``"plugin"``.
        alpha: Ridge, in units of the kernel, or ``"loo"`` for the candidate of least leave-one-out error. Where M is
            near the number of inputs, a small ridge overfits badly, and a warning says so.
        seed: Seed of the displacements and of the function that builds the network.
        max_memory: Budget of temporary memory in bytes.

    Attributes:
        alpha_: Ridge of the fit.
        kernel_: Kernel of the fit.
        coef_: Weights of the features, [F, T].
        intercept_: Mean of the targets, [T].

    Example:
        >>> x = np.linspace(-1, 1, 40)[:, None]
        >>> model = KernelRidge(samples=256).fit(x, np.sign(x[:, 0]))
        >>> bool(model.score(x, np.sign(x[:, 0])) > 0.8)
        True
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "KernelRidge":
        r"""Fit to inputs [N, K] and targets [N] or [N, T] of any real dtype, which are computed with in float64.

        Weights s of the inputs, [N], at least 0, count in the squared errors, in leave-one-out errors, and in the mean
        of the targets: :math:`\sum_n s_n |y_n - A_n w|^2 + \alpha |w|^2`.

        Returns:
            The estimator.

        Raises:
            ValueError: If ``alpha`` is neither a positive number nor ``"loo"``, inputs, targets and weights do not fit
                or are not finite, a weight is negative, all are zero, or a setting of the kernel is out of range.
            TypeError: If a setting of the kernel has the wrong type.
        """
        X, y = validate_data(self, X, y, multi_output=True, y_numeric=True, dtype=_DTYPES)
        self._has_flat_targets = y.ndim == 1
        self._fit(X, y[:, None] if self._has_flat_targets else y, sample_weight)
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:
        r"""Predict targets at inputs [N, K], and how sure the predictions are.

        The deviation is that of a gaussian process with the covariance :math:`\tau^2 K` and noise of variance
        :math:`\tau^2 \alpha`, without the noise: :math:`\tau^2 (k(x, x) - k(x, X) (K + \alpha I)^{-1} k(X, x))`. Each
        target has the amplitude of largest likelihood, :math:`\tau^2 = y^\top (K + \alpha I)^{-1} y / N`. The error
        of the intercept is not part of it.

        Returns:
            Predictions, [N] or [N, T] like the targets; with ``return_std``, a pair of them and of the standard
            deviations, in the same shape. The first such call takes about as long as the fit.

        Raises:
            ValueError: If the estimator was not fitted, or inputs do not fit or are not finite.
        """
        predictions = self._predict(X)
        flat = predictions[:, 0] if self._has_flat_targets else predictions
        if not return_std:
            return flat
        deviations = self._deviations(validate_data(self, X, reset=False, dtype=_DTYPES))
        return flat, deviations[:, 0] if self._has_flat_targets else deviations


class KernelRidgeClassifier(ClassifierMixin, _Ridge):
    """Classification by :class:`KernelRidge` with one target for each class: 1 for its members and 0 for the others.

    Arguments and attributes are those of :class:`KernelRidge`, with the sorted labels ``classes_`` in addition.
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "KernelRidgeClassifier":
        """Fit to inputs [N, K] and labels [N], with weights [N] of the inputs as for :meth:`KernelRidge.fit`.

        Returns:
            The estimator.

        Raises:
            ValueError: If there is only one class, or for any reason that :meth:`KernelRidge.fit` names.
            TypeError: If a setting of the kernel has the wrong type.
        """
        X, y = validate_data(self, X, y, dtype=_DTYPES)
        check_classification_targets(y)
        self.classes_, indices = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y must have two classes at least, got one class: {self.classes_[0]!r}.")
        self._fit(X, np.eye(len(self.classes_))[indices], sample_weight)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Score the classes at inputs [N, K].

        Returns:
            Scores, [N, classes]; for two classes [N], the score of the second minus that of the first.

        Raises:
            ValueError: If the estimator was not fitted, or inputs do not fit or are not finite.
        """
        scores = self._predict(X)
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: Any) -> np.ndarray:
        """Predict the class of the highest score at inputs [N, K].

        Returns:
            Labels, [N].

        Raises:
            ValueError: If the estimator was not fitted, or inputs do not fit or are not finite.
        """
        indices = self._predict(X).argmax(1)
        labels: np.ndarray = self.classes_[indices]
        return labels


def _check_alpha(alpha: object) -> float | None:
    """Check the ridge and return it; None stands for leave-one-out."""
    if isinstance(alpha, str) and alpha == "loo":
        return None
    if isinstance(alpha, bool) or not isinstance(alpha, Real) or not 0 < float(alpha) < np.inf:
        raise ValueError(f"alpha must be a positive number or 'loo', got {alpha!r}.")
    return float(alpha)


def _fit_dual(operator: KernelOperator, y: Tensor, scales: Tensor, alpha: float | None) -> tuple[Tensor, float]:
    """Fit by the eigenvectors of K [N, N], where there are no more inputs than features."""
    kernel = _scaled(operator.matrix, scales)
    mean = float(kernel.diagonal().mean())
    _warn_near_interpolation(operator, alpha, mean)
    spectrum = ridge.decompose(kernel, y)
    if alpha is None:
        candidates = ridge.candidates(mean)
        errors = [float(ridge.leave_one_out_dual(spectrum, value).square().mean()) for value in candidates]
        alpha = float(candidates[int(np.argmin(errors))])
    return operator.project(scales[:, None] * ridge.solution(spectrum, alpha)), alpha


def _fit_primal(operator: KernelOperator, y: Tensor, scales: Tensor, alpha: float | None) -> tuple[Tensor, float]:
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


def _scaled(kernel: Tensor, scales: Tensor) -> Tensor:
    """Return the kernel of scaled features, which is no copy where all scales are one."""
    return kernel if bool((scales == 1).all()) else scales[:, None] * kernel * scales


def _posterior(
    operator: KernelOperator, y: Tensor, scales: Tensor, alpha: float, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the variance of the posterior is made of: |a|^2 - sum_r shrunk_r (a . basis_r)^2, and amplitudes.

    Returns:
        Basis, [F, R], shrunk, [R], and the amplitude of each target, [T].
    """
    if operator.is_wide:
        spectrum = ridge.decompose(_scaled(operator.matrix, scales), y[:, :0])
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
