"""Nonlocal kernels as covariances of gaussian processes, in gpytorch (which they need): low-rank from end to end."""

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
from torch import Tensor, nn

from nntk.files.storage import described, hash_of
from nntk.kernel import NonlocalNTK

_KEPT = 2
"""Inputs whose features are kept: those of training and of the present prediction."""


class GPyTorchKernel(Kernel):
    r"""The covariance :math:`K(x, x') = A(x) A(x')^\top` of a gaussian process, A the features of a nonlocal kernel.

    Where there are fewer features F than training inputs N, marginal likelihood and predictions go by Woodbury's
    identity through :math:`A^\top A` [F, F], and no [N, N] matrix is made; else through the kernel matrix, as gpytorch
    does it. In float32 the identity loses digits as the noise falls below the covariance: models in float64 are safer.

    The network is fixed and no part of the gaussian process: no optimiser trains it, and ``.to()``, ``.eval()`` and
    ``state_dict()`` do not reach it. What is trained stands around: noise, mean, and the scale by a ``ScaleKernel``,
    best started at one over the mean of ``kernel.diagonal(x)``.

    Features of the last inputs are kept (those of the training inputs are evaluated once, not at every step) for as
    long as inputs, settings, parameters and buffers of the network are the same, by their bytes. Whatever else a
    network computes with, such as numbers in its Python code, is not to change.

    gpytorch takes inputs as vectors [N, D], and more axes as a batch of data sets: for a network of images begin with
    ``nn.Unflatten``, ``nn.Sequential(nn.Unflatten(1, (1, 28, 28)), network)``.

    Args:
        kernel: The kernel, traced or averaged over outputs; its estimator has features.
        active_dims: Entries of the inputs that it sees, all by default.

    Raises:
        ValueError: If the kernel has no features.
        TypeError: If it is no :class:`nntk.NonlocalNTK`.

    Example:
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
        self._kept: dict[str, Tensor] = {}

    @property
    def dtype(self) -> torch.dtype:
        """Floating dtype of the network, and of the covariance."""
        return self.kernel.dtype

    def forward(
        self, x1: Tensor, x2: Tensor, diag: bool = False, last_dim_is_batch: bool = False, **params: Any
    ) -> Tensor | LinearOperator:
        """The covariance, as gpytorch asks for it.

        Args:
            x1: The rows' inputs, [..., N1, D], in the network's dtype.
            x2: The columns' inputs, [..., N2, D].
            diag: Return the covariance of each row with the column beside it, [..., N].
            last_dim_is_batch: Not supported: the network takes all entries of an input together.
            params: Not used.

        Returns:
            [..., N1, N2], as a product of features.

        Raises:
            ValueError: If ``last_dim_is_batch`` is asked for, inputs require a gradient, or they do not fit the
                network.
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
        # The same inputs have the same features, by the cache.
        if a1 is not a2:
            return MatmulLinearOperator(a1, a2.mT)
        return LowRankRootLinearOperator(a1) if a1.shape[-1] < a1.shape[-2] else RootLinearOperator(a1)

    def prediction_strategy(self, train_inputs: Any, train_prior_dist: Any, train_labels: Any, likelihood: Any) -> Any:
        """How gpytorch predicts: in the space of features where those are fewer than training inputs."""
        covariance = train_prior_dist.lazy_covariance_matrix.evaluate_kernel()
        is_narrow = isinstance(covariance, LowRankRootLinearOperator)
        strategy = LinearPredictionStrategy if is_narrow else DefaultPredictionStrategy
        return strategy(train_inputs, train_prior_dist, train_labels, likelihood)

    def _features(self, name: str, x: Tensor) -> Tensor:
        """Features [..., N, F] of inputs [..., N, D]: kept ones, if nothing that they depend on has changed."""
        if x.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{name} must not require a gradient, which the features of a nonlocal kernel do not have; pass "
                f"{name}.detach(), or call under torch.no_grad()."
            )
        key = self._key(x)
        made = self._kept.pop(key, None)
        if made is None:
            # Made for a prediction in inference mode, they may yet serve in training.
            with torch.inference_mode(False):
                made = self.kernel.features(x.reshape(-1, x.shape[-1]))
            made = made.reshape(*x.shape[:-1], -1)
        self._kept[key] = made
        while len(self._kept) > _KEPT:
            del self._kept[next(iter(self._kept))]
        return made

    def _key(self, x: Tensor) -> str:
        """All that features depend on: settings, tensors of the network, which of them move, and the inputs."""
        model = self.kernel.model
        module = model if isinstance(model, nn.Module) else nn.Module()
        moves = [parameter.requires_grad for parameter in module.parameters()]
        # Buffers by themselves: a state_dict leaves some out.
        tensors = hash_of(dict(module.named_buffers())), hash_of({"x": x})
        return repr((described(self.kernel), moves, tensors, x.device))
