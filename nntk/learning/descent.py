"""Descent along nonlocal gradients of a loss, of which no derivative is needed."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nntk.kernels import checks
from nntk.kernels.fixed_weights import squared_norms
from nntk.kernels.philox import parse, split_seed, unit_displacements
from nntk.kernels.philox.slabs import TILE

_EPSILON = 1e-12
"""Number that AdamW adds to the root of the mean square, so that a gradient of zero makes no step."""


class NonlocalGradientDescent(torch.optim.Optimizer):
    r"""Descent along the nonlocal gradient of the loss, for models whose gradient is zero or does not exist.

    Each step evaluates the loss L at M antithetic pairs of displaced parameters, estimates its nonlocal gradient

    .. math::
        G = \frac{d}{M} \sum_m \frac{L(\theta + \delta_m) - L(\theta - \delta_m)}{2\,|\delta_m|^2}\,\delta_m,

    and gives it to :class:`torch.optim.AdamW` in place of a derivative. The displacements come from the random stream,
    new ones at every step. The gradients that the parameters hold in ``.grad`` are neither used nor changed.

    Every parameter has its own count of steps, which begins with its first gradient that is not zero: the first step of
    one that joins late, because it was frozen, because its group was added, or because the loss was constant before,
    has the length of its learning rate, as in a new optimiser. For parameters of float16
    or bfloat16, displacements, gradients and moments are float32, and what rounding takes from an update is kept for
    the next one. Gamma should be well above the rounding of such parameters.

    Args:
        params: Parameters of any floating dtypes on one device, or groups of them. A group may have its own ``lr``,
            ``betas``, ``weight_decay`` and ``maximize``.
        lr: Learning rate, > 0: a number, or a tensor with one entry, which may change between steps.
        gamma: Length scale of the displacements (standard deviation :math:`\gamma / \sqrt 2`).
        samples: Number M of antithetic pairs; a step costs 2 M evaluations.
        directions: Family of the displacements.
        betas: Decay rates of the mean gradient and of the mean squared gradient, in [0, 1).
        weight_decay: Decoupled weight decay, >= 0, as in :class:`torch.optim.AdamW`: each step multiplies the displaced
            parameters by ``1 - lr * weight_decay`` first. It is no part of the loss.
        maximize: Ascend instead of descending.
        seed: Seed of the displacements.

    Raises:
        ValueError: If a number is out of range, a name unknown, or there are no parameters, or some on another device.
        TypeError: If an argument has the wrong type, or a parameter is not floating.

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
        lr: float | Tensor = 1e-2,
        *,
        gamma: float = 0.1,
        samples: int = 64,
        directions: str = "gaussian",
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        maximize: bool = False,
        seed: int = 0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize, "steps": 0}
        _check_group(defaults)
        self.gamma = checks.positive_float("gamma", gamma, 1e-30, 1e30)
        self.samples = checks.integer("samples", samples, 1, 2**20)
        self.directions = str(parse(directions))
        split_seed(seed)
        self.seed = seed
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, which begin with a step of the length of their learning rate.

        Args:
            param_group: Parameters as ``"params"``, and settings of their own by name.

        Raises:
            ValueError: If a setting is out of range, or the parameters are on another device or in another group.
            TypeError: If a setting has the wrong type, or a parameter is not floating.
        """
        super().add_param_group(param_group)
        try:
            _check_group(self.param_groups[-1])
            _check_parameters(self.param_groups)
        except (ValueError, TypeError):
            self.param_groups.pop()
            raise

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of another optimiser of such parameters, in the dtype that the state has.

        Args:
            state_dict: The result of ``state_dict()`` of an optimiser of as many groups and parameters.

        Raises:
            ValueError: If the groups or their parameters are of other numbers.
        """
        # Without a copy, both optimisers would change the same tensors.
        super().load_state_dict({**state_dict, "state": copy.deepcopy(state_dict["state"])})
        # PyTorch has cast the state to the dtype of the parameters, which rounds the moments of float16 to zero.
        names = [name for group in state_dict["param_groups"] for name in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for name, parameter in zip(names, parameters, strict=True):
            for key, value in state_dict["state"].get(name, {}).items():
                if isinstance(value, Tensor) and key != "step":
                    dtype = _working_dtype(parameter)
                    self.state[parameter][key] = value.to(device=parameter.device, dtype=dtype, copy=True)

    def __getstate__(self) -> dict[str, Any]:
        own = ("gamma", "samples", "directions", "seed")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    @property
    def steps(self) -> int:
        """Number of steps so far, those of a loaded state included; each step has displacements of its own."""
        return int(self.param_groups[0]["steps"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step.

        Args:
            closure: Function that evaluates the loss at the present parameters: a Python number, or a tensor with one
                entry. It needs no derivative. Within a step the same parameters must give the same loss.

        Returns:
            Mean of the losses at the displaced parameters.

        Raises:
            ValueError: If there is no closure, a loss or the gradient is not finite, or no parameter requires a
                gradient. The parameters and the state are then as before.
            TypeError: If a loss is no number.
        """
        if closure is None:
            raise ValueError("closure must be given, got None: the loss is evaluated at displaced parameters.")
        parameters = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        if not parameters:
            raise ValueError("params must hold a parameter with requires_grad=True, got none.")
        for group in self.param_groups:
            checks.positive_float("lr", group["lr"], 0, 1e30)
        gradients, loss = self._nonlocal_gradients(parameters, closure)
        for gradient in gradients:
            checks.finite("the nonlocal gradient of the loss", gradient)
        self._update(dict(zip(parameters, gradients, strict=True)))
        for group in self.param_groups:
            group["steps"] += 1
        return loss

    def _update(self, gradients: Mapping[Tensor, Tensor]) -> None:
        """Make the step of AdamW for the parameters that have a gradient, at copies of them in their working dtype."""
        copies = {parameter: self._working_copy(parameter) for parameter in gradients}
        for parameter, gradient in gradients.items():
            copies[parameter].grad = gradient
        groups = [
            {
                **{name: group[name] for name in ("betas", "weight_decay", "maximize")},
                "lr": float(group["lr"]),
                "params": [copies[parameter] for parameter in group["params"] if parameter in gradients],
            }
            for group in self.param_groups
        ]
        adam = torch.optim.AdamW(groups, eps=_EPSILON)
        adam.state.update({working: self.state[parameter] for parameter, working in copies.items()})
        idle = [p for p, gradient in gradients.items() if not self.state[p] and not gradient.any()]
        adam.step()
        for parameter, working in copies.items():
            if working.dtype != parameter.dtype:
                parameter.copy_(working)
                self.state[parameter]["remainder"] = working - parameter
        for parameter in idle:
            del self.state[parameter]  # Its count of steps has not begun.

    def _working_copy(self, parameter: Tensor) -> Tensor:
        """Return a parameter in its working dtype: an alias of it, or for float16 and bfloat16 the unrounded value."""
        alias = parameter.detach()
        dtype = _working_dtype(parameter)
        if dtype == parameter.dtype:
            return alias
        rounded, remainder = alias.to(dtype), self.state.get(parameter, {}).get("remainder", 0.0)
        # Where the parameter was changed since, the remainder belongs to another value.
        return torch.where((rounded + remainder).to(alias.dtype) == alias, rounded + remainder, rounded)

    def _nonlocal_gradients(
        self, parameters: Sequence[Tensor], closure: Callable[[], Any]
    ) -> tuple[list[Tensor], float]:
        """Estimate the nonlocal gradient of the loss.

        Args:
            parameters: Displaced parameters; they hold their unperturbed values afterwards, also if the closure fails.
            closure: Function that evaluates the loss.

        Returns:
            The gradient for each parameter, in its working dtype, and the mean of the losses at the displaced
            parameters.
        """
        scale, originals = self.gamma / 2**0.5, [parameter.clone() for parameter in parameters]
        base = [self._working_copy(original).clone() for original in parameters]
        num_params, first = sum(parameter.numel() for parameter in parameters), self.steps * self.samples
        sample_ids = torch.arange(first, first + self.samples, device=parameters[0].device) % 2**32
        norms = squared_norms(dict(enumerate(parameters)), sample_ids, self.seed, self.directions)
        # A chunk of displacements has as many numbers as are generated efficiently together.
        chunks = [part.split(max(1, TILE // num_params)) for part in (sample_ids, norms)]
        gradients, mean_loss = [torch.zeros_like(origin) for origin in base], 0.0
        try:
            for ids, chunk_norms in zip(*chunks, strict=True):
                units = [
                    unit_displacements(ids, index, p.shape, self.seed, self.directions, p.dtype)
                    for index, p in enumerate(base)
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
            for parameter, original in zip(parameters, originals, strict=True):
                parameter.copy_(original)
        return gradients, mean_loss

    def _loss(self, closure: Callable[[], Any]) -> float:
        """Evaluate the loss at the present parameters and check that it is a finite number."""
        value = closure()
        value = value.detach() if isinstance(value, Tensor) else value
        try:
            loss = float("no number" if isinstance(value, str | bytes) else value)
        except (TypeError, ValueError, RuntimeError):
            kind = (
                f"a tensor of shape {tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else repr(value)
            )
            raise TypeError(f"closure must return a number, the loss; got {kind}.") from None
        if not abs(loss) < float("inf"):
            raise ValueError(
                f"closure must return a finite loss, got {loss!r} at step {self.steps}; where it overflows, compute it "
                "in float32."
            )
        return loss


def _working_dtype(parameter: Tensor) -> torch.dtype:
    """Return the dtype of displacements, gradients and moments: that of the parameter, but float32 at least."""
    return torch.float32 if parameter.dtype.itemsize < 4 else parameter.dtype


def _check_group(group: dict[str, Any]) -> None:
    """Check the settings of a group of parameters, and convert them to numbers where they are no tensors."""
    lr = checks.positive_float("lr", group["lr"], 1e-30, 1e30)
    group["lr"] = group["lr"] if isinstance(group["lr"], Tensor) else lr
    betas = group["betas"]
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise TypeError(f"betas must be a pair of numbers, got {betas!r}.")
    for name, beta in zip(("the first of betas", "the second of betas"), betas, strict=True):
        if checks.positive_float(name, beta, 0, 1) == 1:
            raise ValueError(f"{name} must be below 1, got {beta!r}.")
    group["betas"] = (float(betas[0]), float(betas[1]))
    group["weight_decay"] = checks.positive_float("weight_decay", group["weight_decay"], 0, 1e30)
    checks.boolean("maximize", group["maximize"])


def _check_parameters(groups: Sequence[dict[str, Any]]) -> None:
    """Check that all parameters are floating and on one device."""
    parameters = [parameter for group in groups for parameter in group["params"]]
    for parameter in parameters:
        if not parameter.is_floating_point():
            raise TypeError(f"params must be floating tensors, got one of {parameter.dtype}.")
        if parameter.device != parameters[0].device:
            raise ValueError(f"params must be on one device, got {parameters[0].device} and {parameter.device}.")
