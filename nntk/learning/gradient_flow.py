"""Gradient flow: training of a wide network in closed form, as its kernel predicts it."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nntk.kernels import checks


@dataclass(frozen=True)
class GradientFlow:
    r"""Gradient flow of a wide network on the squared loss, predicted from its kernel at initialisation.

    With the kernel K [N, N] of the training inputs X, the loss :math:`\tfrac12 \sum_n |f(x_n) - y_n|^2` and time t (the
    learning rate times the number of steps), the outputs are

    .. math::
        f_t(x) = f_0(x) + K(x, X)\,K^{-1} (1 - e^{-K t}) (y - f_0(X)).

    Args:
        kernel: K, [N, N]: the NTK or a nonlocal kernel, positive semi-definite but for rounding.
        targets: y, [N] or [N, T].
        initial: f_0 at the training inputs, like ``targets``; zero by default.

    Raises:
        ValueError: If shapes do not fit, or an entry is not finite.
        TypeError: If an argument is no tensor.

    Example:
        >>> flow = GradientFlow(torch.tensor([[2.0]]), torch.tensor([1.0]))
        >>> round(float(flow.at(0.5)), 4), round(flow.largest_learning_rate, 4)  # 1 - exp(-1)
        (0.6321, 1.0)
    """

    kernel: Tensor
    targets: Tensor
    initial: Tensor | None = None
    rates: Tensor = field(init=False)
    """Rates of convergence, [N], float64, in rising order: mode i of the error falls as exp(-rate t)."""
    modes: Tensor = field(init=False)
    """Modes of the error, orthonormal columns [N, N]."""

    def __post_init__(self) -> None:
        for name in ("kernel", "targets") + (("initial",) if self.initial is not None else ()):
            checks.tensor(name, getattr(self, name))
            checks.finite(name, getattr(self, name))
        if self.targets.dim() not in (1, 2) or not len(self.targets):
            raise ValueError(f"targets must have shape [N] or [N, T], N > 0, got {tuple(self.targets.shape)}.")
        n = len(self.targets)
        if self.kernel.shape != (n, n):
            raise ValueError(f"kernel must have shape [{n}, {n}] like the targets, got {tuple(self.kernel.shape)}.")
        if self.initial is not None and self.initial.shape != self.targets.shape:
            raise ValueError(
                f"initial must have the targets' shape {tuple(self.targets.shape)}, got {tuple(self.initial.shape)}."
            )
        values, vectors = torch.linalg.eigh(self.kernel.double())
        object.__setattr__(self, "rates", values.clamp(min=0))
        object.__setattr__(self, "modes", vectors)

    @property
    def largest_learning_rate(self) -> float:
        """Bound of the learning rate below which gradient descent on this loss is stable: 2 over the largest rate."""
        largest = float(self.rates[-1])
        return 2 / largest if largest > 0 else math.inf

    def at(self, time: float, cross: Tensor | None = None, initial: Tensor | None = None) -> Tensor:
        """Predict outputs at a time, at the training inputs or at others.

        Args:
            time: Learning rate times steps, at least 0; ``math.inf`` for the end of training, without a ridge.
            cross: Kernel of other inputs with the training inputs, [N2, N]; None for predictions at the latter.
            initial: f_0 at the other inputs; zero by default.

        Returns:
            [N] or [N, T], in the targets' dtype.

        Raises:
            ValueError: If the time is negative or not a number, or shapes do not fit.
            TypeError: If the time is no number, or another argument no tensor.
        """
        time = checks.positive_float("time", time, 0, math.inf)
        targets = self.targets.double().reshape(len(self.targets), -1)
        start = torch.zeros_like(targets) if self.initial is None else self.initial.double().reshape(targets.shape)
        errors = self.modes.T @ (targets - start)
        # The fraction of each mode that is learnt by then; modes of rate zero are never learnt.
        threshold = self._smallest_rate
        learnt = -torch.expm1(-self.rates * time) if time < math.inf else (self.rates > threshold).double()
        if cross is None:
            outputs = start + self.modes @ (learnt[:, None] * errors)
        else:
            self._check_other_inputs(cross, initial)
            inverse = torch.where(self.rates > threshold, learnt / self.rates.clamp(min=1e-300), 0.0 * learnt)
            outputs = cross.double() @ self.modes @ (inverse[:, None] * errors)
            if initial is not None:
                outputs = outputs + initial.double().reshape(outputs.shape)
        return outputs.reshape(len(outputs), *self.targets.shape[1:]).to(self.targets.dtype)

    def _check_other_inputs(self, cross: Tensor, initial: Tensor | None) -> None:
        """Check the kernel and the initial outputs of other inputs against the targets."""
        checks.tensor("cross", cross)
        if cross.dim() != 2 or cross.shape[1] != len(self.targets):
            raise ValueError(f"cross must have shape [N2, {len(self.targets)}], got {tuple(cross.shape)}.")
        if initial is not None:
            checks.tensor("initial", initial)
            shape = (len(cross), *self.targets.shape[1:])
            if initial.shape != shape:
                raise ValueError(f"initial must have shape {shape}, got {tuple(initial.shape)}.")

    @property
    def _smallest_rate(self) -> float:
        """Bound below which a rate is rounding."""
        return float(self.rates[-1]) * len(self.rates) * torch.finfo(self.kernel.dtype).eps
