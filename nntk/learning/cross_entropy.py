"""Gradient flow on the cross-entropy: training of a wide classifier, as its kernel predicts it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from nntk.kernels import checks
from nntk.linalg.matrices import as_matrix, symmetric
from nntk.linalg.vectors import check_beside, result_dtype

METHODS = ("LSODA", "BDF", "Radau", "DOP853", "RK45")
_STIFF = ("LSODA", "BDF", "Radau")


@dataclass(frozen=True)
class CrossEntropyFlow:
    r"""Gradient flow of a wide network on the cross-entropy of its C outputs, integrated by SciPy.

    The loss is :math:`-\sum_n \sum_c y_{nc} \log p_{nc}` with the softmax p of the outputs, summed over the training
    inputs X. It has no closed form. In the linearised network the outputs are those of coefficients a [N, C],

    .. math::
        f_t(x) = f_0(x) + K(x, X)\,a_t, \qquad
        \frac{da}{dt} = y - \mathrm{softmax}(f_t(X)) - \alpha\,a, \qquad a_0 = 0,

    where the ridge :math:`\alpha` is weight decay towards the initial parameters. :func:`scipy.integrate.solve_ivp`
    integrates a, with the exact Jacobian for the methods that use one: their steps factorise a matrix [N C, N C].

    Args:
        kernel: K of the training inputs, symmetric and positive semi-definite but for rounding: [N, N], the same for
            each output, or [N, N, C, C], as of ``outputs="full"``.
        targets: Class labels, integers [N]; or probabilities y, [N, C], at least 0.
        initial: f_0 at the training inputs, [N, C]; zero by default. Without it, and with a
            kernel [N, N], the largest label says how many outputs there are.
        ridge: Weight decay, at least 0. Without it the outputs grow for ever where classes can be separated.
        method: Method of SciPy: ``"LSODA"`` switches by itself, ``"BDF"`` and ``"Radau"`` are for stiff problems (late
            times), ``"DOP853"`` and ``"RK45"`` need no matrix and suit many inputs and early times.
        rtol: Relative tolerance of the integration.
        atol: Absolute tolerance of the integration, of coefficients whose scale is one.

    Raises:
        ValueError: If shapes or devices do not fit, the kernel is not symmetric, a label or a probability is negative,
            an entry is not finite, a number is out of range, or the method unknown.
        TypeError: If an argument has the wrong type.

    Example:
        >>> flow = CrossEntropyFlow(torch.eye(2), torch.tensor([0, 1]))
        >>> flow.at(1.0).softmax(1).diagonal() > 0.6
        tensor([True, True])
    """

    kernel: Tensor
    targets: Tensor
    initial: Tensor | None = None
    ridge: float = 0.0
    method: str = "LSODA"
    rtol: float = 1e-6
    atol: float = 1e-9

    def __post_init__(self) -> None:
        for name in ("kernel", "targets") + (("initial",) if self.initial is not None else ()):
            check_beside(name, getattr(self, name), self.kernel)
        checks.choice("method", self.method, METHODS)
        for name, least, largest in (("ridge", 0, 1e30), ("rtol", 3e-14, 0.1), ("atol", 0, 1.0)):
            object.__setattr__(self, name, checks.positive_float(name, getattr(self, name), least, largest))
        n = len(self.targets) if self.targets.dim() else 0
        if self.targets.dim() not in (1, 2) or not n:
            raise ValueError(f"targets must have shape [N] or [N, C], N > 0, got {tuple(self.targets.shape)}.")
        if self.targets.dim() == 1 and self.targets.is_floating_point():
            raise TypeError(f"targets of shape [N] must be integer labels, got {self.targets.dtype}.")
        if float(self.targets.min()) < 0:
            raise ValueError(f"targets must be at least 0, got {self.targets.min().item()}.")
        if self.initial is not None and (self.initial.dim() != 2 or len(self.initial) != n):
            raise ValueError(f"initial must have shape [{n}, C], got {tuple(self.initial.shape)}.")
        c = self.num_outputs
        if (
            self.targets.dim() == 2
            and self.targets.shape[1] != c
            or self.targets.dim() == 1
            and int(self.targets.max()) >= c
        ):
            raise ValueError(f"targets must be labels below {c} or have {c} columns, got {tuple(self.targets.shape)}.")
        if self.kernel.shape not in ((n, n), (n, n, c, c)):
            expected = f"[{n}, {n}] or [{n}, {n}, {c}, {c}]"
            raise ValueError(f"kernel must have shape {expected}, got {tuple(self.kernel.shape)}.")
        symmetric("kernel", as_matrix(self.kernel.detach()))

    @property
    def num_outputs(self) -> int:
        """Number C of outputs: that of the initial outputs, the kernel or the targets, in this order."""
        if self.initial is not None:
            return self.initial.shape[1]
        if self.kernel.dim() == 4:
            return self.kernel.shape[3]
        return self.targets.shape[1] if self.targets.dim() == 2 else int(self.targets.max()) + 1

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of predictions: the widest floating one of kernel, targets and initial outputs."""
        given = (self.kernel, self.targets, self.initial)
        return result_dtype(*(tensor.dtype for tensor in given if tensor is not None))

    def at(self, time: float | Sequence[float], cross: Tensor | None = None, initial: Tensor | None = None) -> Tensor:
        """Predict outputs, the logits, at one time or several, at the training inputs or at others.

        Args:
            time: Learning rate times steps, at least 0 and finite; several times must rise.
            cross: Kernel of other inputs with the training inputs, [N2, N] or [N2, N, C, C] like ``kernel``; None for
                predictions at the training inputs.
            initial: f_0 at the other inputs, [N2, C]; zero by default.

        Returns:
            [N, C] or [N2, C], in :attr:`dtype`; [times, N, C] for several times.

        Raises:
            ValueError: If a time is out of range, shapes or devices do not fit, an entry is not finite, ``initial`` is
                given without ``cross``, or the integration fails.
            TypeError: If a time is no number, or another argument no tensor, or complex.
        """
        is_single = not isinstance(time, list | tuple)
        given: Sequence[Any] = time if isinstance(time, list | tuple) else [time]
        times = [checks.positive_float("time", one, 0, 1e300) for one in given]
        if not times or times != sorted(times):
            raise ValueError(f"time must hold rising times, got {time!r}.")
        self._check_other_inputs(cross, initial)
        coefficients = self.coefficients(times)
        kernel, start = (self.kernel, self.initial) if cross is None else (cross, initial)
        outputs = torch.stack([_product(kernel.double(), one) for one in coefficients])
        if start is not None:
            outputs = outputs + start.double()
        return (outputs[0] if is_single else outputs).to(self.dtype)

    def coefficients(self, times: Sequence[float]) -> Tensor:
        """Integrate the coefficients a of the training inputs.

        Args:
            times: Rising times, at least 0.

        Returns:
            [times, N, C], float64.

        Raises:
            ValueError: If the integration fails.
        """
        kernel, n, c = self.kernel.double().cpu(), len(self.targets), self.num_outputs
        y = torch.nn.functional.one_hot(self.targets.long(), c) if self.targets.dim() == 1 else self.targets
        y = y.double().cpu()
        start = torch.zeros_like(y) if self.initial is None else self.initial.double().cpu()
        by_output = kernel.transpose(1, 2) if kernel.dim() == 4 else None

        def slope(_: float, flat: np.ndarray) -> np.ndarray:
            a = torch.from_numpy(flat).view(n, c)
            p = (start + _product(kernel, a)).softmax(1)
            result: np.ndarray = (y - y.sum(1, keepdim=True) * p - self.ridge * a).flatten().numpy()
            return result

        def jacobian(_: float, flat: np.ndarray) -> np.ndarray:
            p = (start + _product(kernel, torch.from_numpy(flat).view(n, c))).softmax(1)
            curvature = (torch.diag_embed(p) - p[:, :, None] * p[:, None]) * y.sum(1)[:, None, None]
            if by_output is None:
                result = -torch.einsum("ncd,nj->ncjd", curvature, kernel).reshape(n * c, n * c)
            else:
                result = -torch.einsum("nce,nejd->ncjd", curvature, by_output).reshape(n * c, n * c)
            result.diagonal().sub_(self.ridge)
            return np.asarray(result.numpy())

        if times[-1] == 0:
            return torch.zeros(len(times), n, c, dtype=torch.float64, device=self.kernel.device)
        solved = solve_ivp(
            slope, (0.0, times[-1]), np.zeros(n * c), self.method, times, rtol=self.rtol, atol=self.atol,
            **({"jac": jacobian} if self.method in _STIFF else {}),
        )  # fmt: skip
        if not solved.success or not np.isfinite(solved.y).all():
            raise ValueError(f"method must integrate up to time {times[-1]:g}, got {self.method}: {solved.message}")
        return torch.from_numpy(solved.y.T.copy()).view(len(times), n, c).to(self.kernel.device)

    def _check_other_inputs(self, cross: Tensor | None, initial: Tensor | None) -> None:
        """Check the kernel and the initial outputs of other inputs."""
        if cross is None:
            if initial is not None:
                raise ValueError("initial must be None without cross, got a tensor; the constructor takes that of X.")
            return
        check_beside("cross", cross, self.kernel)
        if cross.dim() != self.kernel.dim() or cross.shape[1:] != self.kernel.shape[1:]:
            sizes = ", ".join(map(str, self.kernel.shape[1:]))
            raise ValueError(f"cross must have shape [N2, {sizes}], got {tuple(cross.shape)}.")
        if initial is not None:
            check_beside("initial", initial, self.kernel)
            if initial.shape != (len(cross), self.num_outputs):
                expected = (len(cross), self.num_outputs)
                raise ValueError(f"initial must have shape {expected}, got {tuple(initial.shape)}.")


def _product(kernel: Tensor, coefficients: Tensor) -> Tensor:
    """Multiply a kernel by coefficients [N, C]."""
    if kernel.dim() == 2:
        return kernel @ coefficients
    result: Tensor = torch.einsum("ijcd,jd->ic", kernel, coefficients)
    return result
