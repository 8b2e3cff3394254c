"""Ridge regression and classification with nonlocal kernels, as estimators of scikit-learn, which must be installed."""

import copy
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
from nntk.learning.ridge_fits import fit_dual, fit_primal, posterior
from nntk.learning.training_data import (
    array_source,
    as_structured,
    has_structure,
    in_dtype_of,
    num_features,
    structured_targets,
)
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

    def _fit(self, x: Source, y: np.ndarray, sample_weight: Any) -> None:
        """Fit to inputs, targets [N, T] and weights [N] of the inputs, or None."""
        weights = _check_sample_weight(sample_weight, y, dtype=np.float64, ensure_non_negative=True)
        if not weights.any():
            raise ValueError(f"sample_weight must have an entry above zero, got {len(weights)} zeros.")
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
        mean = targets.mean(0) if sample_weight is None else torch.from_numpy(np.average(y, 0, weights)).double()
        self.intercept_ = mean.numpy()
        # Weights are lengths of rows: of features, and of targets.
        scales = torch.from_numpy(weights).sqrt()
        targets = scales[:, None] * (targets - mean)
        operator = self.kernel_.operator(self._on_device(x))
        fit = fit_dual if operator.is_wide else fit_primal
        coefficients, self.alpha_ = fit(operator, targets, scales, alpha)
        self.coef_ = coefficients.numpy()
        self._training = x, targets, scales
        self._posterior: tuple[Tensor, Tensor, Tensor] | None = None

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

    def _checked(self, x: Any) -> Source:
        """Return the inputs of a prediction on the device of the model."""
        check_is_fitted(self)
        if has_structure(x):
            source = as_structured(x, targets=self._has_pairs)
        else:
            source = array_source(validate_data(self, x, reset=False, dtype=_DTYPES))
        return self._on_device(source)

    def _predict(self, x: Any) -> np.ndarray:
        """Predict targets [N, T]."""
        inputs = self._checked(x)
        centred = self.kernel_.operator(inputs).expand(torch.as_tensor(self.coef_))
        predictions: np.ndarray = centred.numpy() + self.intercept_
        return predictions

    def _deviations(self, x: Any) -> np.ndarray:
        """Return the standard deviations of the posterior, [N, T]."""
        if self._posterior is None:
            training, targets, scales = self._training
            operator = self.kernel_.operator(self._on_device(training))
            self._posterior = posterior(operator, targets, scales, self.alpha_, torch.as_tensor(self.coef_))
        basis, shrunk, amplitudes = self._posterior
        operator = self.kernel_.operator(self._checked(x))
        variances = torch.empty(len(operator.x), dtype=torch.float64)
        for block, a in operator.features():
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

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> "KernelRidge":
        r"""Fit to inputs and targets [N] or [N, T] of any real dtype, which are computed with in float64.

        Weights s of the inputs count in the squared errors, in leave-one-out errors, and in the mean of the targets:
        :math:`\sum_n s_n |y_n - A_n w|^2 + \alpha |w|^2`.

        Args:
            X: Inputs, [N, K]; a mapping or a tuple of tensors, or :class:`nntk.Inputs`, for a model that takes them;
                or a DataLoader of pairs (inputs, targets), or any other :class:`nntk.Stream`, of which only a block is
                held at a time.
            y: Targets; None for those of a stream.
            sample_weight: Weights s, [N], at least 0; None for equal ones.

        Returns:
            The estimator.

        Raises:
            ValueError: If ``alpha`` is neither a positive number nor ``"loo"``, inputs, targets and weights do not fit
                or are not finite, a weight is negative, all are zero, or a setting of the kernel is out of range.
            TypeError: If a setting of the kernel has the wrong type.
        """
        X, y = self._read(X, y, multi_output=True, y_numeric=True)
        self._has_flat_targets = y.ndim == 1
        self._fit(X, y[:, None] if self._has_flat_targets else y, sample_weight)
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:
        r"""Predict targets at inputs, and how sure the predictions are.

        The deviation is that of a gaussian process with the covariance :math:`\tau^2 K` and noise of variance
        :math:`\tau^2 \alpha`, without the noise: :math:`\tau^2 (k(x, x) - k(x, X) (K + \alpha I)^{-1} k(X, x))`. Each
        target has the amplitude of largest likelihood, :math:`\tau^2 = y^\top (K + \alpha I)^{-1} y / N`. The error
        of the intercept is not part of it.

        Args:
            X: Inputs in any form that :meth:`fit` takes; an iterable of batches has pairs if that of the fit had them.
            return_std: Return the standard deviations too.

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
        deviations = self._deviations(X)
        return flat, deviations[:, 0] if self._has_flat_targets else deviations


class KernelRidgeClassifier(ClassifierMixin, _Ridge):
    """Classification by :class:`KernelRidge` with one target for each class: 1 for its members and 0 for the others.

    Arguments and attributes are those of :class:`KernelRidge`, with the sorted labels ``classes_`` in addition.
    """

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> "KernelRidgeClassifier":
        """Fit to inputs and labels [N].

        Args:
            X: Inputs, as :meth:`KernelRidge.fit` takes them.
            y: Labels; None for those of a stream.
            sample_weight: Weights of the inputs, [N], as for :meth:`KernelRidge.fit`.

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
