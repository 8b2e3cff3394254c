"""Training as the kernel sees it: gradient flow in closed form, and descent along nonlocal gradients."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nntk.kernels import checks
from nntk.kernels.fixed_weights import squared_norms
from nntk.kernels.philox import parse, split_seed, unit_displacements
from nntk.kernels.philox.slabs import TILE


@dataclass(frozen=True)
class GradientFlow:
    r"""Gradient flow of a wide network on the squared loss, predicted from its kernel at initialisation.

    With the kernel K [N, N] of the training inputs, the loss :math:`\tfrac12 \sum_n |f(x_n) - y_n|^2` and time t (the
    learning rate times the number of steps),

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

    rates: Tensor = field(init=False)
    """Rates of convergence, [N], float64, rising: mode i of the error falls as exp(-rate t)."""
    modes: Tensor = field(init=False)
    """The modes, orthonormal columns [N, N]."""

    @property
    def largest_learning_rate(self) -> float:
        """Gradient descent on this loss is stable below it: 2 over the largest rate."""
        largest = float(self.rates[-1])
        return 2 / largest if largest > 0 else math.inf

    def at(self, time: float, cross: Tensor | None = None, initial: Tensor | None = None) -> Tensor:
        """Predictions at a time.

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
        columns = self.targets.double().reshape(len(self.targets), -1)
        start = torch.zeros_like(columns) if self.initial is None else self.initial.double().reshape(columns.shape)
        errors = self.modes.T @ (columns - start)
        shape = self.targets.shape[1:]
        # The part of each mode that is learnt; modes without a rate stay.
        learnt = -torch.expm1(-self.rates * time) if time < float("inf") else (self.rates > self._least).double()
        if cross is None:
            made = start + self.modes @ (learnt[:, None] * errors)
        else:
            checks.tensor("cross", cross)
            if cross.dim() != 2 or cross.shape[1] != len(columns):
                raise ValueError(f"cross must have shape [N2, {len(columns)}], got {tuple(cross.shape)}.")
            inverse = torch.where(self.rates > self._least, learnt / self.rates.clamp(min=1e-300), 0.0 * learnt)
            made = cross.double() @ self.modes @ (inverse[:, None] * errors)
            if initial is not None:
                checks.tensor("initial", initial)
                if initial.shape != (len(cross), *shape):
                    raise ValueError(f"initial must have shape {(len(cross), *shape)}, got {tuple(initial.shape)}.")
                made = made + initial.double().reshape(made.shape)
        return made.reshape(len(made), *shape).to(self.targets.dtype)

    @property
    def _least(self) -> float:
        """Rates below it are rounding."""
        return float(self.rates[-1]) * len(self.rates) * torch.finfo(self.kernel.dtype).eps


class NonlocalGradientDescent(torch.optim.Optimizer):
    r"""Descent along the nonlocal gradient of the loss: for models whose gradient is zero, or that have none.

    Each step evaluates the loss at M antithetic pairs of displaced parameters, estimates its nonlocal gradient

    .. math::
        G = \frac{d}{M} \sum_m \frac{L(\theta + \delta_m) - L(\theta - \delta_m)}{2\,|\delta_m|^2}\,\delta_m,

    and goes along it by the rule of Adam (Kingma & Ba 2015). The displacements are those of the random stream, fresh at
    every step; nothing is differentiated.

    Args:
        params: Parameters, or groups of them, of one dtype and device.
        lr: Learning rate, > 0.
        gamma: Length scale of the displacements (standard deviation :math:`\gamma / \sqrt 2`).
        samples: Number M of pairs; a step costs 2 M evaluations.
        directions: Family of the displacements.
        betas: Decay of the mean of gradients and of their squares, in [0, 1).
        seed: Seed of the displacements.

    Raises:
        ValueError: If a number is out of range, a name unknown, or there are no parameters.
        TypeError: If an argument has the wrong type.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([3.0]))
        >>> optimizer = NonlocalGradientDescent([weight], lr=0.3, gamma=0.5, samples=4)
        >>> for _ in range(60):
        ...     loss = optimizer.step(lambda: (weight - 1).abs().sum())
        >>> bool((weight - 1).abs() < 0.3)
        True
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        *,
        gamma: float = 0.1,
        samples: int = 64,
        directions: str = "gaussian",
        betas: tuple[float, float] = (0.9, 0.999),
        seed: int = 0,
    ) -> None:
        checks.positive_float("lr", lr, 1e-30, 1e30)
        if not isinstance(betas, tuple | list) or len(betas) != 2:
            raise TypeError(f"betas must be a pair of numbers, got {betas!r}.")
        for name, beta in zip(("the first of betas", "the second of betas"), betas, strict=True):
            if checks.positive_float(name, beta, 0, 1) == 1:
                raise ValueError(f"{name} must be below 1, got {beta!r}.")
        super().__init__(params, {"lr": lr, "betas": betas, "steps": 0})
        self.gamma = checks.positive_float("gamma", gamma, 1e-30, 1e30)
        self.samples = checks.integer("samples", samples, 1, 2**20)
        self.directions = str(parse(directions))
        split_seed(seed)
        self.seed = seed

    @property
    def steps(self) -> int:
        """Steps so far, those of a state that was loaded included: the next one has displacements of its own."""
        return int(self.param_groups[0]["steps"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step.

        Args:
            closure: Evaluates the loss, a number, at the present parameters; nothing is to be differentiated. The same
                parameters must give the same loss within a step.

        Returns:
            Mean of the losses at the displaced parameters.

        Raises:
            ValueError: If there is no closure, a loss is not finite, or no parameter requires a gradient.
            TypeError: If a loss is no number.
        """
        if closure is None:
            raise ValueError("closure must be given, got None: the loss is evaluated at displaced parameters.")
        parameters = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        if not parameters:
            raise ValueError("params must hold a parameter with requires_grad=True, got none.")
        gradient, loss = self._gradient(parameters, closure)
        for group in self.param_groups:
            group["steps"] += 1
        groups = ((group, p) for group in self.param_groups for p in group["params"] if p.requires_grad)
        for (group, parameter), g in zip(groups, gradient, strict=True):
            state, (first, second) = self.state[parameter], group["betas"]
            if not state:
                state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            state["mean"].lerp_(g, 1 - first)
            state["square"].lerp_(g.square(), 1 - second)
            mean = state["mean"] / (1 - first**self.steps)
            square = state["square"] / (1 - second**self.steps)
            parameter.addcdiv_(mean, square.sqrt().add_(1e-12), value=-group["lr"])
        return loss

    def _gradient(self, parameters: list[Tensor], closure: Callable[[], Any]) -> tuple[list[Tensor], float]:
        """The nonlocal gradient of the loss, and the mean of the losses; parameters are as before afterwards."""
        scale, still = self.gamma / 2**0.5, [parameter.clone() for parameter in parameters]
        count, first = sum(parameter.numel() for parameter in parameters), self.steps * self.samples
        rows = torch.arange(first, first + self.samples, device=parameters[0].device) % 2**32
        norms = squared_norms(dict(enumerate(parameters)), rows, self.seed, self.directions)
        total, losses = [torch.zeros_like(parameter) for parameter in parameters], 0.0
        try:
            # As much noise at once as is made well together.
            for some, norm in zip(*(part.split(max(1, TILE // count)) for part in (rows, norms)), strict=True):
                units = [
                    unit_displacements(some, ordinal, p.shape, self.seed, self.directions, p.dtype)
                    for ordinal, p in enumerate(parameters)
                ]
                ends = torch.empty(len(some), 2, dtype=torch.float64)
                for m in range(len(some)):
                    one = [unit[m] for unit in units]
                    for end, sign in enumerate((scale, -scale)):
                        ends[m, end] = self._loss(parameters, still, one, sign, closure)
                losses += float(ends.sum()) / (2 * self.samples)
                slopes = count * (ends[:, 0] - ends[:, 1]).to(norm.device) / (2 * scale * norm * self.samples)
                for part, unit in zip(total, units, strict=True):
                    part.add_(torch.tensordot(slopes.to(part.dtype), unit, 1))
        finally:
            for parameter, base in zip(parameters, still, strict=True):
                parameter.copy_(base)
        return total, losses

    def _loss(
        self,
        parameters: list[Tensor],
        still: list[Tensor],
        units: list[Tensor],
        scale: float,
        closure: Callable[[], Any],
    ) -> float:
        """The loss at one displacement, which is left in the parameters."""
        for parameter, base, unit in zip(parameters, still, units, strict=True):
            torch.add(base, unit, alpha=scale, out=parameter)
        made = closure()
        try:
            loss = float(made)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"closure must return a number, the loss; got {made!r}.") from None
        if not abs(loss) < float("inf"):
            raise ValueError(f"closure must return a finite loss, got {loss!r} at step {self.steps}.")
        return loss
