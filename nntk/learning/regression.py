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
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from nntk.kernel import NonlocalNTK
from nntk.learning.training_data import (
    array_source,
    as_structured,
    has_structure,
    in_dtype_of,
    num_features,
    structured_targets,
)
from nntk.linalg import ridge
from nntk.linalg.operator import KernelOperator
from nntk.models.data.inputs import cast_tensor, map_tensors
from nntk.models.data.outputs import Output
from nntk.models.data.streams import Source, Stream

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
        output: Output = None,
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
        self.output = output

    def _read(self, x: Any, y: Any, **options: Any) -> tuple[Source, np.ndarray]:
        """Return inputs and targets: arrays as scikit-learn checks them, several tensors, or a stream of batches."""
        self._has_pairs = has_structure(x) and y is None
        if has_structure(x):
            source = as_structured(x, targets=self._has_pairs)
            return source, structured_targets(source, y)
        array, targets = validate_data(self, x, y, dtype=_DTYPES, **options)
        return array_source(array), targets

    def _fit(self, x: Source, y: np.ndarray) -> None:
        """Fit to inputs and targets [N, T]."""
        alpha = _check_alpha(self.alpha)
        self.kernel_ = NonlocalNTK(
            in_dtype_of(x, self._build_model(x)),
            gamma=self.gamma,
            samples=self.samples,
            directions=self.directions,
            antithetic=self.antithetic,
            estimator=self.estimator,
            seed=self.seed,
            max_memory=self.max_memory,
            output=self.output,
        )
        targets = torch.as_tensor(np.asarray(y, dtype=np.float64))
        self.intercept_ = targets.mean(0).numpy()
        targets = targets - targets.mean(0)
        operator = self.kernel_.operator(self._on_device(x))
        fit = _fit_dual if operator.is_wide else _fit_primal
        coefficients, self.alpha_ = fit(operator, targets, alpha)
        self.coef_ = coefficients.numpy()

    def _build_model(self, x: Source) -> nn.Module:
        """Copy the model, or build it with the estimator's seed; PyTorch's random numbers are as before afterwards."""
        if isinstance(self.model, nn.Module):
            return copy.deepcopy(self.model).eval()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return self.model(num_features(x)).eval()

    def _on_device(self, x: Source) -> Source:
        """Return inputs on the device of the model, in its dtype where they are held."""
        assert isinstance(self.kernel_.model, nn.Module), "_fit built it"
        device, dtype = next(self.kernel_.model.parameters()).device, self.kernel_.dtype
        return x if isinstance(x, Stream) else map_tensors(lambda tensor: cast_tensor(tensor.to(device), dtype), x)

    def _predict(self, x: Any) -> np.ndarray:
        """Predict targets [N, T]."""
        check_is_fitted(self)
        if has_structure(x):
            source = as_structured(x, targets=self._has_pairs)
        else:
            source = array_source(validate_data(self, x, reset=False, dtype=_DTYPES))
        inputs = self._on_device(source)
        centred = self.kernel_.operator(inputs).expand(torch.as_tensor(self.coef_))
        predictions: np.ndarray = centred.numpy() + self.intercept_
        return predictions


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
        output: Choice among several outputs of the network.

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

    def fit(self, X: Any, y: Any = None) -> "KernelRidge":
        """Fit to inputs and targets [N] or [N, T] of any real dtype, which are computed with in float64.

        Args:
            X: Inputs, [N, K]; a mapping or a tuple of tensors, or :class:`nntk.Inputs`, for a model that takes them;
                or a DataLoader of pairs (inputs, targets), or any other :class:`nntk.Stream`, of which only a block is
                held at a time.
            y: Targets; None for those of a stream.

        Returns:
            The estimator.

        Raises:
            ValueError: If ``alpha`` is neither a positive number nor ``"loo"``, inputs and targets do not fit or are
                not finite, or a setting of the kernel is out of range.
            TypeError: If a setting of the kernel has the wrong type.
        """
        X, y = self._read(X, y, multi_output=True, y_numeric=True)
        self._has_flat_targets = y.ndim == 1
        self._fit(X, y[:, None] if self._has_flat_targets else y)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Predict targets at inputs.

        Args:
            X: Inputs in any form that :meth:`fit` takes; an iterable of batches has pairs if that of the fit had them.

        Returns:
            Predictions, [N] or [N, T] like the targets.

        Raises:
            ValueError: If the estimator was not fitted, or inputs do not fit or are not finite.
        """
        predictions = self._predict(X)
        return predictions[:, 0] if self._has_flat_targets else predictions


class KernelRidgeClassifier(ClassifierMixin, _Ridge):
    """Classification by :class:`KernelRidge` with one target for each class: 1 for its members and 0 for the others.

    Arguments and attributes are those of :class:`KernelRidge`, with the sorted labels ``classes_`` in addition.
    """

    def fit(self, X: Any, y: Any = None) -> "KernelRidgeClassifier":
        """Fit to inputs and labels [N].

        Args:
            X: Inputs, as :meth:`KernelRidge.fit` takes them.
            y: Labels; None for those of a stream.

        Returns:
            The estimator.

        Raises:
            ValueError: If there is only one class, or for any reason that :meth:`KernelRidge.fit` names.
            TypeError: If a setting of the kernel has the wrong type.
        """
        X, y = self._read(X, y)
        check_classification_targets(y)
        self.classes_, indices = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y must have two classes at least, got one class: {self.classes_[0]!r}.")
        self._fit(X, np.eye(len(self.classes_))[indices])
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


def _fit_dual(operator: KernelOperator, y: Tensor, alpha: float | None) -> tuple[Tensor, float]:
    """Fit by the eigenvectors of K [N, N], where there are no more inputs than features."""
    kernel = operator.matrix
    mean = float(kernel.diagonal().mean())
    _warn_near_interpolation(operator, alpha, mean)
    spectrum = ridge.decompose(kernel, y)
    if alpha is None:
        candidates = ridge.candidates(mean)
        errors = [float(ridge.leave_one_out_dual(spectrum, value).square().mean()) for value in candidates]
        alpha = float(candidates[int(np.argmin(errors))])
    return operator.project(ridge.solution(spectrum, alpha)), alpha


def _fit_primal(operator: KernelOperator, y: Tensor, alpha: float | None) -> tuple[Tensor, float]:
    """Fit by the eigenvectors of the features' Gram matrix [F, F], where there are more inputs than features."""
    gram, projected = operator.gram_and_projection(y)
    mean = float(gram.diagonal().sum()) / len(y)
    _warn_near_interpolation(operator, alpha, mean)
    spectrum = ridge.decompose(gram, projected)
    if alpha is None:
        candidates = ridge.candidates(mean)
        errors = torch.zeros(len(candidates), dtype=torch.float64)
        for block, features in operator.features():
            rotated = features @ spectrum.vectors
            for index, value in enumerate(candidates):
                errors[index] += ridge.leave_one_out_primal(spectrum, value, rotated, y[block]).square().sum()
        alpha = float(candidates[int(errors.argmin())])
    return ridge.solution(spectrum, alpha), alpha


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
