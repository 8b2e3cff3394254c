"""Models that are functions: of parameters by name, or of one vector of parameters (a black box)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nntk.kernels import checks
from nntk.models.data.inputs import Batch, call_with, map_tensors
from nntk.models.data.outputs import OutputChoice
from nntk.models.draws import Draws
from nntk.models.general import GeneralModel, Tensors
from nntk.models.isolation.findings import Findings

Function = Callable[..., Any]
"""Model ``f(parameters, x)``, with parameters by name; several inputs are its further arguments."""


@dataclass(frozen=True, eq=False)
class BlackBox:
    """Model that takes all its parameters as one vector; it need not be differentiable, nor written in PyTorch.

    Args:
        function: Takes the vector [d] and inputs [N, ...], and returns outputs [N, ...]: NumPy arrays if
            ``parameters`` is a NumPy array, else tensors. The same vector must give the same outputs. A stochastic
            function (``draws`` of :class:`nntk.NonlocalNTK`) is given a seed as its last argument, and must return the
            same outputs for the same seed.
        parameters: Vector of the parameters, [d], float32 or float64.
        points: For a function of the vector alone, which returns outputs at this many points of its own: the inputs of
            the kernel are then numbers of points, such as ``torch.arange(points)``.

    Raises:
        TypeError: If ``function`` is not callable, ``parameters`` is not an array or a tensor of float32 or float64, or
            ``points`` is not an integer.
        ValueError: If ``parameters`` is not a vector or not finite, or ``points`` is below 1.

    Example:
        >>> simulate = BlackBox(lambda theta: np.sign(theta[:2] - 0.5), np.array([0.1, 0.9, 0.3]), points=2)
        >>> simulate.outputs(simulate.vector, torch.arange(2)).tolist()
        [-1.0, 1.0]
    """

    function: Callable[..., Any]
    parameters: Any
    points: int | None = None

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"function must be callable, got {type(self.function).__name__}.")
        if self.points is not None:
            checks.integer("points", self.points, 1)
        if not isinstance(self.parameters, np.ndarray | Tensor) or self.vector.dtype not in checks.FLOATS:
            kind = getattr(self.parameters, "dtype", type(self.parameters).__name__)
            raise TypeError(f"parameters must be an array or a tensor of float32 or float64, got {kind}.")
        if self.vector.dim() != 1 or not len(self.vector):
            raise ValueError(f"parameters must be a vector [d], got shape {tuple(self.vector.shape)}.")
        checks.finite("parameters", self.vector)

    @property
    def vector(self) -> Tensor:
        """Parameters as a tensor, [d]."""
        vector: Tensor = torch.as_tensor(self.parameters).detach()
        return vector

    def outputs(self, vector: Tensor, x: Batch, *seed: int, choose: OutputChoice | None = None) -> Tensor:
        """Return the outputs at a vector of parameters.

        Args:
            vector: The parameters, [d].
            x: Inputs, [N, ...], or numbers of points.
            seed: Seed of a draw, for a stochastic function.
            choose: Chooses the outputs among what the function returns.

        Returns:
            Outputs, [N, ...], as a tensor.

        Raises:
            TypeError: If inputs are several tensors where they should be numbers of points.
        """
        is_numpy = isinstance(self.parameters, np.ndarray)
        theta: Any = vector.cpu().numpy() if is_numpy else vector
        if self.points is not None:
            returned = self.function(theta, *seed)
        else:
            returned = call_with(self.function, _as_numpy(x) if is_numpy else x, theta, seed=seed)
        outputs: Tensor = torch.as_tensor(returned if choose is None else choose(returned), device=vector.device)
        if self.points is None:
            return outputs
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a tensor of numbers of points for a BlackBox with points=, got {x!r}.")
        return outputs[x]


def _as_numpy(x: Batch) -> Any:
    """Return inputs with NumPy arrays in place of their tensors."""

    def convert(tensor: Tensor) -> Any:
        return tensor.cpu().numpy()

    return map_tensors(convert, x)


def view_black_box(
    box: BlackBox,
    draws: Draws | None = None,
    findings: Findings | None = None,
    choose: OutputChoice | None = None,
) -> GeneralModel:
    """Return the view of a black box: one parameter, evaluated at one displacement after another.

    Args:
        box: The black box.
        draws: Draws that a stochastic one is averaged over.
        findings: What earlier calls found out about it.
        choose: Chooses the outputs among what it returns.

    Returns:
        The view.
    """

    def evaluate(parameters: Tensors, x: Batch, *seed: int) -> Tensor:
        return box.outputs(parameters["parameters"], x, *seed, choose=choose)

    known = Findings() if findings is None else findings
    return GeneralModel(evaluate, {0: box.vector}, {0: "parameters"}, is_opaque=True, draws=draws, findings=known)


def view_function(
    function: Callable[..., Any],
    parameters: Mapping[str, Tensor],
    draws: Draws | None = None,
    findings: Findings | None = None,
    choose: OutputChoice | None = None,
) -> GeneralModel:
    """Return the view of a function of parameters by name.

    Args:
        function: ``f(parameters, x)`` with outputs [N, ...]; with draws, ``f(parameters, x, seed)``.
        parameters: All parameters by name; their order is that of the random stream.
        draws: Draws that a stochastic function is averaged over.
        findings: What earlier calls found out about the function.
        choose: Chooses the outputs among what it returns; by default :class:`OutputChoice`.

    Returns:
        The view.

    Raises:
        ValueError: If there are no parameters, or one is not finite.
        TypeError: If a parameter is not a float32 or float64 tensor, or they have several dtypes.
    """
    if not parameters:
        raise ValueError("parameters must hold the tensors of the function by name, got none.")
    for name, tensor in parameters.items():
        checks.tensor(f"parameter {name!r}", tensor)
        if tensor.dtype not in checks.FLOATS or tensor.dtype != next(iter(parameters.values())).dtype:
            raise TypeError(f"parameters must all be float32, or all float64; {name!r} is {tensor.dtype}.")
        checks.finite(f"parameter {name!r}", tensor.detach())
    displaced = {index: tensor.detach() for index, tensor in enumerate(parameters.values())}
    names = dict(enumerate(parameters))
    known, chosen = Findings() if findings is None else findings, OutputChoice() if choose is None else choose

    def evaluate(tensors: Tensors, x: Batch, *seed: int) -> Any:
        return chosen(call_with(function, x, tensors, seed=seed))

    return GeneralModel(evaluate, displaced, names, draws=draws, findings=known)
