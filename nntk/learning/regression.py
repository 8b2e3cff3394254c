"""Ridge regression and classification with nonlocal kernels, in the manner of scikit-learn (which they need)."""

import copy
import warnings
from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, MultiOutputMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from nntk.kernel import NonlocalNTK
from nntk.linalg.operator import KernelOperator

ModelBuilder = Callable[[int], nn.Module]
_DTYPES = [np.float64, np.float32]
"""Dtypes of inputs, in which the network is evaluated."""
_ALPHAS = torch.logspace(-8, 3, 45, dtype=torch.float64)
"""Ridges that leave-one-out chooses from, in means of the kernel's diagonal."""


def relu_network(num_features: int) -> nn.Module:
    """The default model: two hidden layers of 256 relu units, He's initialisation."""
    affine = [nn.Linear(num_features, 256), nn.Linear(256, 256), nn.Linear(256, 1)]
    for layer in affine:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    return nn.Sequential(affine[0], nn.ReLU(), affine[1], nn.ReLU(), affine[2])


class _Ridge(BaseEstimator):
    """What regression and classification share: targets [N, T], centred, on features of the kernel."""

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

    def _fit(self, x: np.ndarray, y: np.ndarray) -> None:
        """Fit to targets [N, T]."""
        alpha = _checked(self.alpha)
        self.kernel_ = NonlocalNTK(
            self._built(x.shape[1]).to(torch.as_tensor(x).dtype),
            gamma=self.gamma,
            samples=self.samples,
            directions=self.directions,
            antithetic=self.antithetic,
            estimator=self.estimator,
            seed=self.seed,
            max_memory=self.max_memory,
        )
        targets = torch.as_tensor(y, dtype=torch.float64)
        self.intercept_ = targets.mean(0).numpy()
        targets = targets - targets.mean(0)
        operator = self.kernel_.operator(self._tensor(x))
        fit = _fit_dual if operator.is_wide else _fit_primal
        coefficients, self.alpha_ = fit(operator, targets, alpha)
        self.coef_ = coefficients.numpy()

    def _built(self, num_features: int) -> nn.Module:
        if isinstance(self.model, nn.Module):
            return copy.deepcopy(self.model).eval()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return self.model(num_features).eval()

    def _tensor(self, x: np.ndarray) -> Tensor:
        assert isinstance(self.kernel_.model, nn.Module), "it was built"
        return torch.as_tensor(x).to(next(self.kernel_.model.parameters()))

    def _predict(self, x: np.ndarray) -> np.ndarray:
        """Predictions [N, T]."""
        check_is_fitted(self)
        x = validate_data(self, x, reset=False, dtype=_DTYPES)
        inputs = self._tensor(x)
        made = self.kernel_.operator(inputs).expand(torch.as_tensor(self.coef_))
        predictions: np.ndarray = made.numpy() + self.intercept_
        return predictions


class KernelRidge(MultiOutputMixin, RegressorMixin, _Ridge):
    r"""Ridge regression with a nonlocal kernel: :math:`\min_w |y - A w|^2 + \alpha |w|^2`, A its features.

    Where there are more inputs than features the normal equations :math:`A^\top A` are summed over chunks of inputs, in
    float64: neither [N, N] nor [N, M] is ever held. Targets are centred. The network is evaluated in the dtype of the
    inputs: in float32 if they are, which is faster.

    Args:
        model: The network, or a function of the number of features that builds one (seeded by ``seed``).
        gamma: See :class:`nntk.NonlocalNTK`, as for ``samples``, ``directions``, ``antithetic``, ``estimator``
            (``"energy"`` or ``"plugin"``), ``seed`` and ``max_memory``.
        samples: Number M of displacements.
        directions: Family of the displacements.
        antithetic: Whether differences are odd parts.
        estimator: Form of the kernel.
        alpha: The ridge, in units of the kernel, or ``"loo"`` for the one of least leave-one-out error. Where M is near
            the number of inputs a small ridge overfits badly, and a warning says so.
        seed: Seed of the displacements and of the builder.
        max_memory: Bytes of temporary memory.

    Attributes:
        alpha_: The ridge that was taken.
        kernel_: The kernel.
        coef_: Weights of the features, [F, T].
        intercept_: Mean of the targets, [T].

    Example:
        >>> x = np.linspace(-1, 1, 40)[:, None]
        >>> model = KernelRidge(samples=256).fit(x, np.sign(x[:, 0]))
        >>> bool(model.score(x, np.sign(x[:, 0])) > 0.8)
        True
    """

    def fit(self, X: Any, y: Any) -> "KernelRidge":
        """Fit to inputs [N, K] and targets [N] or [N, T].

        Returns:
            The estimator.

        Raises:
            ValueError: If ``alpha`` is neither a positive number nor ``"loo"``, inputs and targets do not fit or are
                not finite, or a setting of the kernel is out of range.
            TypeError: If a setting of the kernel has the wrong type.
        """
        X, y = validate_data(self, X, y, multi_output=True, y_numeric=True, dtype=_DTYPES)
        self._flat = y.ndim == 1
        self._fit(X, y[:, None] if self._flat else y)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Predictions at inputs [N, K].

        Returns:
            [N] or [N, T], as the targets.

        Raises:
            ValueError: If nothing was fitted, or inputs do not fit or are not finite.
        """
        made = self._predict(X)
        return made[:, 0] if self._flat else made


class KernelRidgeClassifier(ClassifierMixin, _Ridge):
    """Classification by :class:`KernelRidge` on one target a class, 1 for its members and 0 for the others.

    Arguments and attributes are those of :class:`KernelRidge`, and ``classes_``.
    """

    def fit(self, X: Any, y: Any) -> "KernelRidgeClassifier":
        """Fit to inputs [N, K] and labels [N].

        Returns:
            The estimator.

        Raises:
            ValueError: If there is one class only, or for what :meth:`KernelRidge.fit` raises one.
            TypeError: If a setting of the kernel has the wrong type.
        """
        X, y = validate_data(self, X, y, dtype=_DTYPES)
        check_classification_targets(y)
        self.classes_, places = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y must have two classes at least, got one class: {self.classes_[0]!r}.")
        self._fit(X, np.eye(len(self.classes_))[places])
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores of the classes.

        Returns:
            [N, classes]; of two classes [N], that of the second over that of the first.

        Raises:
            ValueError: If nothing was fitted, or inputs do not fit or are not finite.
        """
        made = self._predict(X)
        return made[:, 1] - made[:, 0] if len(self.classes_) == 2 else made

    def predict(self, X: Any) -> np.ndarray:
        """The class of the highest score.

        Returns:
            Labels, [N].

        Raises:
            ValueError: If nothing was fitted, or inputs do not fit or are not finite.
        """
        places = self._predict(X).argmax(1)
        made: np.ndarray = self.classes_[places]
        return made


def _checked(alpha: object) -> float | None:
    """The ridge, None for leave-one-out."""
    if isinstance(alpha, str) and alpha == "loo":
        return None
    if isinstance(alpha, bool) or not isinstance(alpha, Real) or not 0 < float(alpha) < np.inf:
        raise ValueError(f"alpha must be a positive number or 'loo', got {alpha!r}.")
    return float(alpha)


def _fit_dual(operator: KernelOperator, y: Tensor, alpha: float | None) -> tuple[Tensor, float]:
    """By the eigenvectors of K [N, N]: no more inputs than features."""
    kernel = operator.kernel(operator.x).double()
    _warn_of_peak(operator, alpha, float(kernel.diagonal().mean()))
    values, vectors = torch.linalg.eigh(kernel)
    values, projected = values.clamp(min=0), vectors.T @ y
    if alpha is None:
        errors = []
        ridges = _ridges(float(kernel.diagonal().mean()))
        for ridge in ridges:
            shrunk = 1 / (values + ridge)
            # Leave-one-out residuals: (K + a)^-1 y over the diagonal of (K + a)^-1.
            residual = vectors @ (shrunk[:, None] * projected) / (vectors.square() @ shrunk)[:, None]
            errors.append(float(residual.square().mean()))
        alpha = float(ridges[int(np.argmin(errors))])
    dual = vectors @ (projected / (values + alpha)[:, None])
    return operator.project(dual), alpha


def _fit_primal(operator: KernelOperator, y: Tensor, alpha: float | None) -> tuple[Tensor, float]:
    """By the eigenvectors of the features' Gram matrix [F, F]: more inputs than features."""
    gram, right = operator.gram_and_projection(y)
    mean = float(gram.diagonal().sum()) / len(y)
    _warn_of_peak(operator, alpha, mean)
    values, vectors = torch.linalg.eigh(gram)
    values, projected = values.clamp(min=0), vectors.T @ right
    if alpha is None:
        ridges = _ridges(mean)
        errors = torch.zeros(len(ridges), dtype=torch.float64)
        for some, a in operator.features():
            turned = a @ vectors
            for number, ridge in enumerate(ridges):
                shrunk = 1 / (values + ridge)
                residual = y[some] - turned @ (shrunk[:, None] * projected)
                leverage = turned.square() @ shrunk
                errors[number] += (residual / (1 - leverage)[:, None].clamp(min=1e-12)).square().sum()
        alpha = float(ridges[int(errors.argmin())])
    return vectors @ (projected / (values + alpha)[:, None]), alpha


def _ridges(mean: float) -> Tensor:
    return _ALPHAS * (mean if mean > 0 else 1.0)


def _warn_of_peak(operator: KernelOperator, alpha: float | None, mean: float) -> None:
    """Warn of the double-descent peak: about as many features as inputs, and hardly a ridge."""
    ratio = operator.num_features / max(1, len(operator.x))
    if alpha is not None and alpha < 1e-2 * mean and 0.5 < ratio < 2:
        warnings.warn(
            f"alpha={alpha:g} is below a hundredth of the kernel's mean diagonal ({mean:g}) and there are as many "
            f"features ({operator.num_features}) as inputs ({len(operator.x)}): such fits err the most. Raise alpha, "
            "take alpha='loo', or change samples.",
            stacklevel=4,
        )
