"""Kernel ridge regression over ranks, by the features of the kernel."""

from collections.abc import Callable

import torch
from torch import Tensor

from nntk.distributed.operator import ShardedOperator
from nntk.distributed.sharded import Sharded
from nntk.kernels import checks
from nntk.linalg import ridge
from nntk.linalg.vectors import as_columns


class KernelRidge:
    r"""Ridge regression with a kernel that ranks compute together: :math:`\min_w |y - A w|^2 + \alpha |w|^2`.

    Where there are more inputs than features, the normal equations :math:`A^\top A` are summed in float64, by each rank
    over its share of the inputs and by one all-reduce over the ranks; else the kernel of all inputs is used. The
    decomposition is repeated on every rank. Targets are centred. Predictions are those of :class:`nntk.KernelRidge`
    with the same kernel.

    Args:
        kernel: The kernel on all ranks; it has features (see :meth:`nntk.NonlocalNTK.features`).
        alpha: Ridge, in units of the kernel, or ``"loo"`` for the candidate of least leave-one-out error.

    Attributes:
        alpha_: Ridge of the fit.
        coef_: Weights of the features, [F, T] float64, on every rank.
        intercept_: Mean of the targets, [T] float64.

    Raises:
        ValueError: If the kernel has no features, or the ridge is out of range.
        TypeError: If an argument has the wrong type.

    Example:
        >>> import torch.distributed as dist
        >>> from nntk import NonlocalNTK
        >>> dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())  # torchrun: no arguments
        >>> x = torch.linspace(-1, 1, 40)[:, None]
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
        >>> fit = KernelRidge(Sharded(NonlocalNTK(model, samples=128))).fit(x, x[:, 0])
        >>> bool((fit.predict(x) - x[:, 0]).abs().max() < 0.2)
        True
        >>> dist.destroy_process_group()
    """

    def __init__(self, kernel: Sharded, alpha: float | str = "loo") -> None:
        if not isinstance(kernel, Sharded):
            raise TypeError(f"kernel must be a Sharded kernel, got {type(kernel).__name__}.")
        kernel.kernel.check_features()
        self.kernel = kernel
        if isinstance(alpha, str) and alpha != "loo":
            raise ValueError(f"alpha must be a positive number or 'loo', got {alpha!r}.")
        hint = "The ridge is added to the diagonal."
        self.alpha = alpha if isinstance(alpha, str) else checks.positive_float("alpha", alpha, 1e-30, 1e30, hint)

    def fit(self, x: Tensor, y: Tensor) -> "KernelRidge":
        """Fit to inputs and targets; a collective call.

        Args:
            x: Inputs of this rank, [N, ...].
            y: Targets of these inputs, [N] or [N, T], of any real dtype.

        Returns:
            The fit.

        Raises:
            RankError: If ranks differ, or one raised an error or does not answer.
            ValueError: If inputs and targets do not fit or are not finite, on all ranks.
            TypeError: If an argument has the wrong type on all ranks.
        """
        mesh = self.kernel.mesh
        with mesh.agreement.together("reading targets"):
            targets = as_columns("y", y, len(x), mesh.device, "T")
            columns = targets if targets.dim() == 2 else targets[:, None]
        mesh.agreement.exchange({"shape of y": [*targets.shape[1:]], "alpha": self.alpha})
        self._has_flat_targets = targets.dim() == 1
        operator = self.kernel.operator(x)
        self.intercept_ = mesh.inputs.sum(columns.sum(0)) / max(1, operator.shape[0])
        centred = columns - self.intercept_
        fit = self._fit_dual if operator.is_wide else self._fit_primal
        self.coef_, self.alpha_ = fit(operator, centred)
        return self

    def predict(self, x: Tensor) -> Tensor:
        """Predict targets; a collective call.

        Args:
            x: Inputs of this rank, [N, ...].

        Returns:
            Predictions at these inputs, [N] or [N, T] like the targets, float64.

        Raises:
            RankError: If ranks differ, or one raised an error or does not answer.
            RuntimeError: If nothing was fitted.
            ValueError: If inputs do not fit or are not finite, on all ranks.
            TypeError: If inputs have another dtype than the model on all ranks.
        """
        if not hasattr(self, "coef_"):
            raise RuntimeError("fit must be called before predict.")
        predictions = self.kernel.operator(x).expand(self.coef_) + self.intercept_
        return predictions[:, 0] if self._has_flat_targets else predictions

    def _fit_dual(self, operator: ShardedOperator, y: Tensor) -> tuple[Tensor, float]:
        """Fit by the eigenvectors of K [N, N], where there are no more inputs than features."""
        kernel, targets = operator.matrix, self.kernel.gather(y)
        with self.kernel.mesh.agreement.together("decomposing the kernel"):
            spectrum = ridge.decompose(kernel, targets)
            alpha = self._choose(
                float(kernel.diagonal().mean()),
                lambda value: float(ridge.leave_one_out_dual(spectrum, value).square().mean()),
            )
            solution = ridge.solution(spectrum, alpha)
        first = sum(operator.rows[: self.kernel.mesh.inputs.index])
        return operator.project(solution[first : first + len(y)]), alpha

    def _fit_primal(self, operator: ShardedOperator, y: Tensor) -> tuple[Tensor, float]:
        """Fit by the eigenvectors of the features' Gram matrix [F, F], where there are more inputs than features."""
        gram, projected = operator.gram_and_projection(y)
        mean = float(gram.diagonal().sum()) / operator.shape[0]
        with self.kernel.mesh.agreement.together("decomposing the kernel"):
            spectrum = ridge.decompose(gram, projected)
        if self.alpha != "loo":
            return ridge.solution(spectrum, float(self.alpha)), float(self.alpha)
        candidates = ridge.candidates(mean)
        # Leverages and residuals of the inputs of this rank, from products of its features with the eigenvectors.
        rotated = operator.expand(spectrum.vectors)
        errors = torch.stack(
            [ridge.leave_one_out_primal(spectrum, value, rotated, y).square().sum() for value in candidates]
        )
        errors = self.kernel.mesh.inputs.sum(errors)
        alpha = float(candidates[int(errors.argmin())])
        return ridge.solution(spectrum, alpha), alpha

    def _choose(self, mean: float, error: Callable[[Tensor], float]) -> float:
        """Return the ridge as given, or the candidate of least error."""
        if self.alpha != "loo":
            return float(self.alpha)
        return float(min(ridge.candidates(mean), key=error))
