"""Nonlocal kernels as covariances of gaussian processes in gpytorch, which must be installed; low-rank throughout."""

from collections.abc import Sequence
from typing import Any

import torch
from gpytorch.kernels import Kernel
from gpytorch.models.exact_prediction_strategies import DefaultPredictionStrategy, LinearPredictionStrategy
from linear_operator.operators import (
    LinearOperator,
    LowRankRootLinearOperator,
    MatmulLinearOperator,
    RootLinearOperator,
)
from torch import Tensor

from nntk.files.fingerprint import fingerprint
from nntk.files.hashing import hash_tensors
from nntk.kernel import NonlocalNTK
from nntk.linalg.vectors import result_dtype

_CACHE_SIZE = 2
"""Number of sets of inputs whose features are cached: those of training and of the present prediction."""


class GPyTorchKernel(Kernel):
    r"""Covariance :math:`K(x, x') = A(x) A(x')^\top` of a gaussian process, where A are features of a nonlocal kernel.

    Where there are fewer features F than training inputs N, marginal likelihood and predictions use Woodbury's identity
    with :math:`A^\top A` [F, F], and no [N, N] matrix is formed; else gpytorch uses the kernel matrix. In float32 the
    identity loses digits as the noise falls below the covariance: models in float64 are safer.

    The network is fixed and no part of the gaussian process: no optimiser trains it, and ``.to()``, ``.eval()`` and
    ``state_dict()`` do not reach it. The trained parameters are those around it: noise, mean, and the scale of a
    ``ScaleKernel``, best started at one over the mean of ``kernel.diagonal(x)``.

    Features of the last inputs are cached, so that those of the training inputs are evaluated once and not at every
    step. The cache is used as long as inputs, settings, parameters and buffers of the network are the same, byte by
    byte. Anything else that the network computes with, such as numbers in its Python code, must not change.

    gpytorch takes inputs as vectors [N, D], and further axes as a batch of data sets. A network of images must
    therefore begin with ``nn.Unflatten``: ``nn.Sequential(nn.Unflatten(1, (1, 28, 28)), network)``.

    Args:
        kernel: The kernel, traced or averaged over outputs; its estimator has features.
        active_dims: Indices of the entries of an input that the network is given; all by default.

    Raises:
        ValueError: If the kernel has no features.
        TypeError: If the kernel is no :class:`nntk.NonlocalNTK`.

    Example:
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 1)).double()
        >>> kernel = NonlocalNTK(network, samples=64)
        >>> x = torch.randn(100, 3, dtype=torch.float64)
        >>> covariance = GPyTorchKernel(kernel)(x)
        >>> type(covariance.evaluate_kernel()).__name__, torch.allclose(covariance.to_dense(), kernel(x))
        ('LowRankRootLinearOperator', True)
    """

    def __init__(self, kernel: NonlocalNTK, active_dims: Sequence[int] | None = None) -> None:
        super().__init__(active_dims=None if active_dims is None else tuple(active_dims))
        if not isinstance(kernel, NonlocalNTK):
            raise TypeError(f"kernel must be a NonlocalNTK, got {type(kernel).__name__}.")
        kernel.check_features()
        self.kernel = kernel
        self._cache: dict[str, Tensor] = {}

    @property
    def dtype(self) -> torch.dtype:
        """Floating dtype of the network, and of the covariance."""
        return self.kernel.dtype

    def forward(
        self, x1: Tensor, x2: Tensor, diag: bool = False, last_dim_is_batch: bool = False, **params: Any
    ) -> Tensor | LinearOperator:
        """Return the covariance in the form that gpytorch calls for.

        Args:
            x1: Inputs of the rows, [..., N1, D], in the network's dtype.
            x2: Inputs of the columns, [..., N2, D].
            diag: Restriction to the covariances of each row with the column of the same index, [..., N].
            last_dim_is_batch: Must be False: the network takes all entries of an input together.
            params: Further arguments of gpytorch, which are ignored.

        Returns:
            [..., N1, N2], as a product of features; [..., N] with ``diag``.

        Raises:
            ValueError: If ``last_dim_is_batch`` is True, inputs require a gradient, or they do not fit the network.
            TypeError: If inputs have another dtype than the network.
        """
        if last_dim_is_batch:
            raise ValueError(
                "last_dim_is_batch must be False, got True: the network takes all entries of an input together. Sum "
                "kernels of networks of one entry each, with active_dims, instead."
            )
        a1 = self._features("x1", x1)
        a2 = a1 if x2 is x1 else self._features("x2", x2)
        if diag:
            return (a1 * a2).sum(-1)
        # Equal inputs have the same features, because of the cache.
        if a1 is not a2:
            return MatmulLinearOperator(a1, a2.mT)
        return LowRankRootLinearOperator(a1) if a1.shape[-1] < a1.shape[-2] else RootLinearOperator(a1)

    def prediction_strategy(self, train_inputs: Any, train_prior_dist: Any, train_labels: Any, likelihood: Any) -> Any:
        """Choose how gpytorch predicts: in the space of features where there are fewer of them than training inputs."""
        covariance = train_prior_dist.lazy_covariance_matrix.evaluate_kernel()
        # Class labels are integers or booleans, which gpytorch does not subtract from.
        train_labels = train_labels.to(result_dtype(self.dtype, train_labels.dtype))
        is_narrow = isinstance(covariance, LowRankRootLinearOperator)
        strategy = LinearPredictionStrategy if is_narrow else DefaultPredictionStrategy
        return strategy(train_inputs, train_prior_dist, train_labels, likelihood)

    def _features(self, name: str, x: Tensor) -> Tensor:
        """Return features [..., N, F] of inputs [..., N, D], from the cache if nothing that they depend on changed."""
        if x.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{name} must not require a gradient, which the features of a nonlocal kernel do not have; pass "
                f"{name}.detach(), or call under torch.no_grad()."
            )
        key = self._cache_key(x)
        features = self._cache.pop(key, None)
        if features is None:
            # Features of a prediction in inference mode may serve in training later.
            with torch.inference_mode(False):
                features = self.kernel.features(x.reshape(-1, x.shape[-1]))
            features = features.reshape(*x.shape[:-1], -1)
        self._cache[key] = features
        while len(self._cache) > _CACHE_SIZE:
            del self._cache[next(iter(self._cache))]
        return features

    def _cache_key(self, x: Tensor) -> str:
        """Identify everything that features depend on: the fingerprint of the kernel, and the inputs."""
        return repr((fingerprint(self.kernel), hash_tensors({"x": x}), x.device))
