"""Descent along nonlocal gradients of a loss, of which no derivative is needed."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from nntk.kernels import checks
from nntk.kernels.fixed_weights import squared_norms
from nntk.kernels.philox import parse, split_seed, unit_displacements
from nntk.kernels.philox.slabs import TILE

_EPSILON = 1e-12
"""Number that Adam adds to the root of the mean square, so that a gradient of zero makes no step."""


class NonlocalGradientDescent(torch.optim.Optimizer):
    r"""Descent along the nonlocal gradient of the loss, for models whose gradient is zero or does not exist.

    Each step evaluates the loss L at M antithetic pairs of displaced parameters, estimates its nonlocal gradient

    .. math::
        G = \frac{d}{M} \sum_m \frac{L(\theta + \delta_m) - L(\theta - \delta_m)}{2\,|\delta_m|^2}\,\delta_m,

    and gives it to :class:`torch.optim.Adam` in place of a derivative. The displacements come from the random stream,
    new ones at every step. The gradients that the parameters hold in ``.grad`` are neither used nor changed.

    Args:
        params: Parameters, or groups of them, of one dtype and device.
        lr: Learning rate, > 0.
        gamma: Length scale of the displacements (standard deviation :math:`\gamma / \sqrt 2`).
        samples: Number M of antithetic pairs; a step costs 2 M evaluations.
        directions: Family of the displacements.
        betas: Decay rates of the mean gradient and of the mean squared gradient, in [0, 1).
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
        lr = checks.positive_float("lr", lr, 1e-30, 1e30)
        if not isinstance(betas, tuple | list) or len(betas) != 2:
            raise TypeError(f"betas must be a pair of numbers, got {betas!r}.")
        for name, beta in zip(("the first of betas", "the second of betas"), betas, strict=True):
            if checks.positive_float(name, beta, 0, 1) == 1:
                raise ValueError(f"{name} must be below 1, got {beta!r}.")
        # Adam needs a parameter at construction; at each step it works on the groups and the state of this optimiser.
        self._adam = torch.optim.Adam([torch.zeros(())], lr, (betas[0], betas[1]), eps=_EPSILON)
        super().__init__(params, {**self._adam.defaults, "steps": 0})
        self.gamma = checks.positive_float("gamma", gamma, 1e-30, 1e30)
        self.samples = checks.integer("samples", samples, 1, 2**20)
        self.directions = str(parse(directions))
        split_seed(seed)
        self.seed = seed

    @property
    def steps(self) -> int:
        """Number of steps so far, those of a loaded state included; each step has displacements of its own."""
        return int(self.param_groups[0]["steps"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step.

        Args:
            closure: Function that evaluates the loss, a number, at the present parameters. It needs no derivative.
                Within a step the same parameters must give the same loss.

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
        gradients, loss = self._nonlocal_gradients(parameters, closure)
        for group in self.param_groups:
            group["steps"] += 1
        # Linked at every step, because loading a state replaces both.
        self._adam.param_groups, self._adam.state = self.param_groups, self.state
        with self._gradients_replaced(parameters, gradients):
            self._adam.step()
        return loss

    @contextmanager
    def _gradients_replaced(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> Iterator[None]:
        """Set ``.grad`` of ``parameters`` to ``gradients`` and of all others to None, and restore it afterwards."""
        all_parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        before = [parameter.grad for parameter in all_parameters]
        try:
            for parameter in all_parameters:
                parameter.grad = None
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            yield
        finally:
            for parameter, gradient in zip(all_parameters, before, strict=True):
                parameter.grad = gradient

    def _nonlocal_gradients(
        self, parameters: Sequence[Tensor], closure: Callable[[], Any]
    ) -> tuple[list[Tensor], float]:
        """Estimate the nonlocal gradient of the loss.

        Args:
            parameters: Displaced parameters; they hold their unperturbed values afterwards, also if the closure fails.
            closure: Function that evaluates the loss.

        Returns:
            The gradient for each parameter, and the mean of the losses at the displaced parameters.
        """
        scale, base = self.gamma / 2**0.5, [parameter.clone() for parameter in parameters]
        num_params, first = sum(parameter.numel() for parameter in parameters), self.steps * self.samples
        sample_ids = torch.arange(first, first + self.samples, device=parameters[0].device) % 2**32
        norms = squared_norms(dict(enumerate(parameters)), sample_ids, self.seed, self.directions)
        # A chunk of displacements has as many numbers as are generated efficiently together.
        chunks = [part.split(max(1, TILE // num_params)) for part in (sample_ids, norms)]
        gradients, mean_loss = [torch.zeros_like(parameter) for parameter in parameters], 0.0
        try:
            for ids, chunk_norms in zip(*chunks, strict=True):
                units = [
                    unit_displacements(ids, index, p.shape, self.seed, self.directions, p.dtype)
                    for index, p in enumerate(parameters)
                ]
                losses = torch.empty(len(ids), 2, dtype=torch.float64)
                for m in range(len(ids)):
                    for member, sign in enumerate((1, -1)):
                        for parameter, origin, unit in zip(parameters, base, units, strict=True):
                            torch.add(origin, unit[m], alpha=sign * scale, out=parameter)
                        losses[m, member] = self._loss(closure)
                mean_loss += float(losses.sum()) / (2 * self.samples)
                differences = (losses[:, 0] - losses[:, 1]).to(chunk_norms.device)
                slopes = num_params * differences / (2 * scale * chunk_norms * self.samples)
                for gradient, unit in zip(gradients, units, strict=True):
                    gradient.add_(torch.tensordot(slopes.to(gradient.dtype), unit, 1))
        finally:
            for parameter, origin in zip(parameters, base, strict=True):
                parameter.copy_(origin)
        return gradients, mean_loss

    def _loss(self, closure: Callable[[], Any]) -> float:
        """Evaluate the loss at the present parameters and check that it is a finite number."""
        value = closure()
        try:
            loss = float(value)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"closure must return a number, the loss; got {value!r}.") from None
        if not abs(loss) < float("inf"):
            raise ValueError(f"closure must return a finite loss, got {loss!r} at step {self.steps}.")
        return loss
