"""Gradient flow: training of a wide network in closed form, as its kernel predicts it."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from nntk.kernels import checks
from nntk.linalg.matrices import as_matrix, symmetric
from nntk.linalg.vectors import check_beside, result_dtype

_RESIDUALS = 10_000
"""Smallest rate that is told from zero, in residuals of a decomposition in float64 of the largest rate 1."""


class FlowEnsemble(NamedTuple):
    """Gaussian law of the outputs of networks that differ in their initial parameters, at one time of training.

    Attributes:
        mean: Mean outputs, like those of :meth:`nntk.GradientFlow.at`.
        covariance: Covariance, [N2, N2], that each target has by itself; [N2, N2, C, C] for coupled outputs.
    """

    mean: Tensor
    covariance: Tensor


@dataclass(frozen=True)
class GradientFlow:
    r"""Gradient flow of a wide network on the squared loss, predicted from its kernel at initialisation.

    With the kernel K [N, N] of the training inputs X, the loss :math:`\tfrac12 \sum_n |f(x_n) - y_n|^2` and time t (the
    learning rate times the number of steps), the outputs are

    .. math::
        f_t(x) = f_0(x) + K(x, X)\,K^{-1} (1 - e^{-K t}) (y - f_0(X)).

    With a ridge :math:`\alpha`, the loss has :math:`\tfrac{\alpha}{2} |\theta - \theta_0|^2` in addition, the weight
    decay towards the initial parameters, and :math:`K^{-1} (1 - e^{-K t})` becomes
    :math:`(K + \alpha)^{-1} (1 - e^{-(K + \alpha) t})`: the end of training is kernel ridge regression.

    The C outputs of a network are coupled by a kernel [N, N, C, C], as of ``outputs="full"``: an error of one output
    changes the others. With a kernel [N, N] every column of the targets is learnt by itself.

    Everything is computed in float64, in the eigenvectors of K. An eigenvalue that is rounding counts as zero at all
    times and at all inputs: one that is at most the machine epsilon of the kernel's dtype, or 2e-12 for float64, times
    the largest eigenvalue. Its mode is never learnt, also not at the end of training. Therefore predictions at the
    training inputs are those of ``cross=kernel``, ``at(math.inf)`` is the limit of ``at(t)``, the training loss never
    rises, and the flow that starts at ``at(s)`` is after a time t at ``at(s + t)``. A kernel in float64 keeps more
    modes than one in float32.

    Args:
        kernel: K, [N, N], or [N, N, C, C] for coupled outputs: the NTK or a nonlocal kernel, symmetric and positive
            semi-definite but for rounding. Its negative eigenvalues count as zero.
        targets: y, [N] or [N, T], of any real dtype, for example class labels; [N, C] for coupled outputs.
        initial: f_0 at the training inputs, in the shape of ``targets``; zero by default.
        ridge: Weight decay towards the initial parameters, at least 0. For decay towards zero, ``initial`` is what the
            linearised network returns at parameters of zero.

    Raises:
        ValueError: If shapes or devices do not fit, the kernel is not symmetric, or an entry is not finite.
        TypeError: If an argument is no tensor, or complex.

    Example:
        >>> flow = GradientFlow(torch.tensor([[2.0]]), torch.tensor([1.0]))
        >>> round(float(flow.at(0.5)), 4), round(flow.largest_learning_rate, 4)  # 1 - exp(-1)
        (0.6321, 1.0)
    """

    kernel: Tensor
    targets: Tensor
    initial: Tensor | None = None
    ridge: float = 0.0
    rates: Tensor = field(init=False)
    """Rates of convergence, [N] or [N C], float64, in rising order, without the ridge: mode i of the error falls as
    exp(-(rate + ridge) t); those that are rounding are zero."""
    modes: Tensor = field(init=False)
    """Modes of the error, orthonormal columns [N, N], or [N C, N C] with the outputs of an input side by side."""

    def __post_init__(self) -> None:
        for name in ("kernel", "targets") + (("initial",) if self.initial is not None else ()):
            check_beside(name, getattr(self, name), self.kernel)
        if self.targets.dim() not in (1, 2) or not len(self.targets):
            raise ValueError(f"targets must have shape [N] or [N, T], N > 0, got {tuple(self.targets.shape)}.")
        n = len(self.targets)
        expected = (n, n, *2 * self.targets.shape[1:]) if self.is_coupled else (n, n)
        if self.kernel.shape != expected:
            raise ValueError(
                f"kernel must have shape {list(expected)} like the targets, got {tuple(self.kernel.shape)}."
            )
        if self.initial is not None and self.initial.shape != self.targets.shape:
            raise ValueError(
                f"initial must have the targets' shape {tuple(self.targets.shape)}, got {tuple(self.initial.shape)}."
            )
        object.__setattr__(self, "ridge", checks.positive_float("ridge", self.ridge, 0, 1e30))
        values, vectors = torch.linalg.eigh(symmetric("kernel", as_matrix(self.kernel.detach())))
        object.__setattr__(self, "rates", values.where(values > self._rounding * values[-1].clamp(min=0), 0.0))
        object.__setattr__(self, "modes", vectors)

    @property
    def is_coupled(self) -> bool:
        """True if the kernel couples outputs, [N, N, C, C]."""
        return self.kernel.dim() == 4

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of predictions: the widest floating one of kernel, targets and initial outputs."""
        given = (self.kernel, self.targets, self.initial)
        return result_dtype(*(tensor.dtype for tensor in given if tensor is not None))

    @property
    def largest_learning_rate(self) -> float:
        """Bound of the learning rate below which gradient descent on this loss is stable: 2 over the largest rate.

        The ridge is part of the rate. With momentum m the bound is higher: by 1 + m, with Nesterov's momentum by
        (1 + m) / (1 + 2 m).
        """
        largest = float(self.rates[-1]) + self.ridge
        return 2 / largest if largest > 0 else math.inf

    def at(self, time: float, cross: Tensor | None = None, initial: Tensor | None = None) -> Tensor:
        """Predict outputs at a time, at the training inputs or at others.

        Args:
            time: Learning rate times steps, at least 0; ``math.inf`` for the end of training.
            cross: Kernel of other inputs with the training inputs, [N2, N], or [N2, N, C, C] for coupled outputs; None
                for predictions at the training inputs.
            initial: f_0 at the other inputs; zero by default.

        Returns:
            [N] or [N, T], in :attr:`dtype`; [N2] or [N2, T] with ``cross``. The initial outputs at time 0.

        Raises:
            ValueError: If the time is negative or not a number, shapes or devices do not fit, an entry is not finite,
                or ``initial`` is given without ``cross``.
            TypeError: If the time is no number, or another argument no tensor, or complex.
        """
        return self._predict(self._flow_filter(time), cross, initial)

    def after(
        self,
        steps: int,
        learning_rate: float,
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        cross: Tensor | None = None,
        initial: Tensor | None = None,
    ) -> Tensor:
        r"""Predict outputs after steps of full-batch gradient descent, of any length, not only of small ones.

        The steps are those of :class:`torch.optim.SGD` for the linearised network: with the gradient g of the loss,
        :math:`v \leftarrow m v + g` from v = 0, and :math:`\theta \leftarrow \theta - \eta v`, or
        :math:`\theta - \eta (g + m v)` with Nesterov's momentum.

        Args:
            steps: Number of steps, at least 0.
            learning_rate: Learning rate :math:`\eta`, above 0; see :attr:`largest_learning_rate`.
            momentum: Momentum m, in [0, 1).
            nesterov: Use of Nesterov's momentum.
            cross: Kernel of other inputs with the training inputs, as for :meth:`at`.
            initial: f_0 at the other inputs; zero by default.

        Returns:
            Like :meth:`at`. As the learning rate falls, it tends to ``at(steps * learning_rate / (1 - momentum))``.

        Raises:
            ValueError: If a number is out of range, shapes or devices do not fit, an entry is not finite, or the steps
                diverge beyond the range of float64.
            TypeError: If a number is no number, or another argument no tensor, or complex.
        """
        steps = checks.integer("steps", steps, 0)
        rate = checks.positive_float("learning_rate", learning_rate, 1e-300, 1e300)
        if checks.positive_float("momentum", momentum, 0, 1) == 1:
            raise ValueError("momentum must be below 1, got 1.")
        checks.boolean("nesterov", nesterov)
        shrinking, m, zero = (
            self.rates + self.ridge,
            torch.full_like(self.rates, momentum),
            torch.zeros_like(self.rates),
        )
        # One step of each mode: (coefficient, velocity, 1), where the gradient is h coefficient - 1.
        velocity = [shrinking, m, zero - 1]
        direction = [(1 + m) * shrinking, m * m, -1 - m] if nesterov else velocity
        coefficient = [1 - rate * direction[0], -rate * direction[1], -rate * direction[2]]
        rows = [torch.stack(row, -1) for row in (coefficient, velocity, [zero, zero, zero + 1])]
        coefficients = torch.linalg.matrix_power(torch.stack(rows, -2), steps)[:, 0, 2]
        if not bool(torch.isfinite(coefficients).all()):
            raise ValueError(
                f"learning_rate must not let {steps} steps diverge, got {rate:g}; without momentum, steps are stable "
                f"below {self.largest_learning_rate:g}."
            )
        return self._predict((self.rates * coefficients, coefficients), cross, initial)

    def ensemble(
        self,
        time: float,
        prior: Tensor,
        *,
        cross: Tensor | None = None,
        prior_cross: Tensor | None = None,
        prior_other: Tensor | None = None,
        initial: Tensor | None = None,
    ) -> FlowEnsemble:
        r"""Return the law of the outputs of an ensemble of wide networks, whose kernel is the same.

        Their initial outputs are a gaussian process with covariance P, for example the NNGP kernel or the covariance of
        a number of networks. With :math:`B = K(x, X)\,K^{-1} (1 - e^{-K t})`, outputs are gaussian at all times, with

        .. math::
            \mathrm{Cov}_t = P(x, x) + B\,P(X, X)\,B^\top - B\,P(X, x) - P(x, X)\,B^\top.

        Args:
            time: Time, as for :meth:`at`.
            prior: P at the training inputs, [N, N], or [N, N, C, C] for coupled outputs.
            cross: Kernel of other inputs with the training inputs, as for :meth:`at`; None for the training inputs.
            prior_cross: P of the other inputs with the training inputs, [N2, N] or [N2, N, C, C].
            prior_other: P of the other inputs, [N2, N2] or [N2, N2, C, C].
            initial: Mean of the initial outputs at the other inputs; zero by default.

        Returns:
            Mean, that of :meth:`at`, and covariance, in :attr:`dtype`.

        Raises:
            ValueError: If the time is out of range, shapes or devices do not fit, an entry is not finite, or the priors
                of other inputs are not given with ``cross`` and only with it.
            TypeError: If the time is no number, or another argument no tensor, or complex.
        """
        learnt, inverse = self._flow_filter(time)
        mean = self._predict((learnt, inverse), cross, initial)
        given = {"prior": prior} | ({} if cross is None else {"prior_cross": prior_cross, "prior_other": prior_other})
        if cross is None and not (prior_cross is None and prior_other is None):
            raise ValueError("prior_cross and prior_other must be None without cross, got a tensor.")
        sizes = {"prior": 2 * self.kernel.shape[:1], "prior_cross": mean.shape[:1] + self.kernel.shape[:1]}
        matrices: list[Tensor] = []
        for name, value in given.items():
            if not isinstance(value, Tensor):
                raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}.")
            check_beside(name, value, self.kernel)
            shape = (*sizes.get(name, 2 * mean.shape[:1]), *self.kernel.shape[2:])
            if value.shape != shape:
                raise ValueError(f"{name} must have shape {shape}, got {tuple(value.shape)}.")
            matrices.append(as_matrix(value))
        if cross is None:
            left = torch.eye(len(learnt), dtype=torch.float64, device=learnt.device)
            left -= self.modes * learnt @ self.modes.T
            covariance = left @ matrices[0] @ left.T
        else:
            map_ = as_matrix(cross) @ (self.modes * inverse) @ self.modes.T
            mixed = map_ @ matrices[1].T
            covariance = matrices[2] + map_ @ matrices[0] @ map_.T - mixed - mixed.T
        if self.is_coupled:
            covariance = covariance.unflatten(0, (len(mean), -1)).unflatten(2, (len(mean), -1)).transpose(1, 2)
        return FlowEnsemble(mean, covariance.to(self.dtype))

    def _flow_filter(self, time: float) -> tuple[Tensor, Tensor]:
        """Return the fraction of each mode that is learnt by a time, and that over its rate."""
        time = checks.positive_float("time", time, 0, math.inf)
        shrinking = self.rates + self.ridge
        # A rate of zero times an infinite time is zero.
        grown = -torch.expm1(-torch.where(self.rates > 0, shrinking * time, 0.0))
        inverse = torch.where(self.rates > 0, grown / shrinking, 0.0)
        return torch.where(self.rates > 0, grown * (self.rates / shrinking), 0.0), inverse

    def _predict(self, mode_filter: tuple[Tensor, Tensor], cross: Tensor | None, initial: Tensor | None) -> Tensor:
        """Return the outputs where each mode is learnt by a fraction, which is also given over its rate."""
        self._check_other_inputs(cross, initial)
        learnt, inverse = mode_filter
        targets = self.targets.double().reshape(len(self.rates), -1)
        start = torch.zeros_like(targets) if self.initial is None else self.initial.double().reshape(targets.shape)
        errors = self.modes.T @ (targets - start)
        if cross is None:
            outputs = start + self.modes @ (learnt[:, None] * errors)
        else:
            kept = torch.where(self.rates > 0, inverse, 0.0)
            outputs = as_matrix(cross) @ (self.modes @ (kept[:, None] * errors))
            if initial is not None:
                outputs = outputs + initial.double().reshape(outputs.shape)
        number = len(self.targets if cross is None else cross)
        return outputs.reshape(number, *self.targets.shape[1:]).to(self.dtype)

    def _check_other_inputs(self, cross: Tensor | None, initial: Tensor | None) -> None:
        """Check the kernel and the initial outputs of other inputs against the targets."""
        if cross is None:
            if initial is not None:
                raise ValueError(
                    "initial must be None without cross, got a tensor: the initial outputs at the training inputs "
                    "belong to the constructor."
                )
            return
        check_beside("cross", cross, self.kernel)
        if cross.dim() != self.kernel.dim() or cross.shape[1:] != self.kernel.shape[1:]:
            sizes = ", ".join(map(str, self.kernel.shape[1:]))
            raise ValueError(f"cross must have shape [N2, {sizes}], got {tuple(cross.shape)}.")
        if initial is not None:
            check_beside("initial", initial, self.kernel)
            shape = (len(cross), *self.targets.shape[1:])
            if initial.shape != shape:
                raise ValueError(f"initial must have shape {shape}, got {tuple(initial.shape)}.")

    @property
    def _rounding(self) -> float:
        """Bound below which an eigenvalue is rounding, in units of the largest.

        Rounding the entries of a kernel changes eigenvalues by about a fifth of its dtype's epsilon. The decomposition
        in float64 has residuals of about one epsilon, and a mode that is divided by its rate has that error over the
        rate: at the bound it is good to 1e-4.
        """
        own = torch.finfo(self.kernel.dtype).eps if self.kernel.is_floating_point() else 0.0
        size = math.prod(self.kernel.shape[1:3])
        return max(own, max(_RESIDUALS, size) * torch.finfo(torch.float64).eps)
