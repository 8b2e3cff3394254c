"""Gradient flow: training of a wide network in closed form, as its kernel predicts it."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nntk.kernels import checks
from nntk.linalg.vectors import check_real, result_dtype

_ASYMMETRY = 1e-2
"""Largest difference of two mirrored entries, over the kernel's largest entry, that may be rounding: of bfloat16."""
_RESIDUALS = 10_000
"""Smallest rate that is told from zero, in residuals of a decomposition in float64 of the largest rate 1."""


@dataclass(frozen=True)
class GradientFlow:
    r"""Gradient flow of a wide network on the squared loss, predicted from its kernel at initialisation.

    With the kernel K [N, N] of the training inputs X, the loss :math:`\tfrac12 \sum_n |f(x_n) - y_n|^2` and time t (the
    learning rate times the number of steps), the outputs are

    .. math::
        f_t(x) = f_0(x) + K(x, X)\,K^{-1} (1 - e^{-K t}) (y - f_0(X)).

    Everything is computed in float64, in the eigenvectors of K. An eigenvalue that is rounding counts as zero at all
    times and at all inputs: one that is at most the machine epsilon of the kernel's dtype, or 2e-12 for float64, times
    the largest eigenvalue. Its mode is never learnt, also not at the end of training. Therefore predictions at the
    training inputs are those of ``cross=kernel``, ``at(math.inf)`` is the limit of ``at(t)``, the training loss never
    rises, and the flow that starts at ``at(s)`` is after a time t at ``at(s + t)``. A kernel in float64 keeps more
    modes than one in float32.

    Args:
        kernel: K, [N, N]: the NTK or a nonlocal kernel, symmetric and positive semi-definite but for rounding. Its
            negative eigenvalues count as zero.
        targets: y, [N] or [N, T], of any real dtype, for example class labels.
        initial: f_0 at the training inputs, in the shape of ``targets``; zero by default.

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
    rates: Tensor = field(init=False)
    """Rates of convergence, [N], float64, in rising order: mode i of the error falls as exp(-rate t); those that are
    rounding are zero."""
    modes: Tensor = field(init=False)
    """Modes of the error, orthonormal columns [N, N]."""

    def __post_init__(self) -> None:
        checks.tensor("kernel", self.kernel)
        for name in ("kernel", "targets") + (("initial",) if self.initial is not None else ()):
            self._check_argument(name, getattr(self, name))
        if self.targets.dim() not in (1, 2) or not len(self.targets):
            raise ValueError(f"targets must have shape [N] or [N, T], N > 0, got {tuple(self.targets.shape)}.")
        n = len(self.targets)
        if self.kernel.shape != (n, n):
            raise ValueError(f"kernel must have shape [{n}, {n}] like the targets, got {tuple(self.kernel.shape)}.")
        if self.initial is not None and self.initial.shape != self.targets.shape:
            raise ValueError(
                f"initial must have the targets' shape {tuple(self.targets.shape)}, got {tuple(self.initial.shape)}."
            )
        values, vectors = torch.linalg.eigh(_symmetric(self.kernel.detach().double()))
        object.__setattr__(self, "rates", values.where(values > self._rounding * values[-1].clamp(min=0), 0.0))
        object.__setattr__(self, "modes", vectors)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of predictions: the widest floating one of kernel, targets and initial outputs."""
        given = (self.kernel, self.targets, self.initial)
        return result_dtype(*(tensor.dtype for tensor in given if tensor is not None))

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
            [N] or [N, T], in :attr:`dtype`; [N2] or [N2, T] with ``cross``. The initial outputs at time 0.

        Raises:
            ValueError: If the time is negative or not a number, shapes or devices do not fit, an entry is not finite,
                or ``initial`` is given without ``cross``.
            TypeError: If the time is no number, or another argument no tensor, or complex.
        """
        time = checks.positive_float("time", time, 0, math.inf)
        self._check_other_inputs(cross, initial)
        targets = self.targets.double().reshape(len(self.targets), -1)
        start = torch.zeros_like(targets) if self.initial is None else self.initial.double().reshape(targets.shape)
        errors = self.modes.T @ (targets - start)
        # The fraction of each mode that is learnt by then. A rate of zero times an infinite time is zero.
        exponents = torch.where(self.rates > 0, self.rates * time, 0.0)
        learnt = -torch.expm1(-exponents)
        if cross is None:
            outputs = start + self.modes @ (learnt[:, None] * errors)
        else:
            inverse = torch.where(self.rates > 0, learnt / self.rates, 0.0)
            outputs = cross.double() @ (self.modes @ (inverse[:, None] * errors))
            if initial is not None:
                outputs = outputs + initial.double().reshape(outputs.shape)
        return outputs.reshape(len(outputs), *self.targets.shape[1:]).to(self.dtype)

    def _check_argument(self, name: str, value: Tensor) -> None:
        """Check that an argument holds finite real numbers, on the device of the kernel."""
        checks.tensor(name, value)
        if value.device != self.kernel.device:
            raise ValueError(f"{name} must be on {self.kernel.device} like the kernel, got {value.device}.")
        check_real(name, value)

    def _check_other_inputs(self, cross: Tensor | None, initial: Tensor | None) -> None:
        """Check the kernel and the initial outputs of other inputs against the targets."""
        if cross is None:
            if initial is not None:
                raise ValueError(
                    "initial must be None without cross, got a tensor: the initial outputs at the training inputs "
                    "belong to the constructor."
                )
            return
        self._check_argument("cross", cross)
        if cross.dim() != 2 or cross.shape[1] != len(self.targets):
            raise ValueError(f"cross must have shape [N2, {len(self.targets)}], got {tuple(cross.shape)}.")
        if initial is not None:
            self._check_argument("initial", initial)
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
        return max(own, max(_RESIDUALS, len(self.targets)) * torch.finfo(torch.float64).eps)


def _symmetric(kernel: Tensor) -> Tensor:
    """Return the symmetric part of a kernel that is symmetric but for rounding."""
    difference = float((kernel - kernel.T).abs().max())
    if difference > _ASYMMETRY * float(kernel.abs().max()):
        raise ValueError(
            f"kernel must be symmetric, but two mirrored entries differ by {difference:g}; pass the kernel of the "
            "training inputs with themselves."
        )
    return (kernel + kernel.T) / 2
