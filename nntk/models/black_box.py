"""Models that are functions: of parameters by name, or of one vector of parameters (a black box)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nntk.kernels import checks
from nntk.models.draws import Draws
from nntk.models.general import GeneralModel, Tensors
from nntk.models.isolation.findings import Findings

Function = Callable[[Tensors, Tensor], Tensor]
"""Model ``f(parameters, x)``, with parameters by name."""


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

    def outputs(self, vector: Tensor, x: Tensor, *seed: int) -> Tensor:
        """Return the outputs at a vector of parameters.

        Args:
            vector: The parameters, [d].
            x: Inputs, [N, ...], or numbers of points.
            seed: Seed of a draw, for a stochastic function.

        Returns:
            Outputs, [N, ...], as a tensor.
        """
        arguments: tuple[Any, ...] = (vector,) if self.points is not None else (vector, x)
        if isinstance(self.parameters, np.ndarray):
            arguments = tuple(argument.cpu().numpy() for argument in arguments)
        outputs: Tensor = torch.as_tensor(self.function(*arguments, *seed), device=vector.device)
        return outputs if self.points is None else outputs[x]


def view_black_box(box: BlackBox, draws: Draws | None = None, findings: Findings | None = None) -> GeneralModel:
    """Return the view of a black box: one parameter, evaluated at one displacement after another.

    Args:
        box: The black box.
        draws: Draws that a stochastic one is averaged over.
        findings: What earlier calls found out about it.

    Returns:
        The view.
    """

    def evaluate(parameters: Tensors, x: Tensor, *seed: int) -> Tensor:
        return box.outputs(parameters["parameters"], x, *seed)

    known = Findings() if findings is None else findings
    return GeneralModel(evaluate, {0: box.vector}, {0: "parameters"}, is_opaque=True, draws=draws, findings=known)


def view_function(
    function: Callable[..., Tensor],
    parameters: Mapping[str, Tensor],
    draws: Draws | None = None,
    findings: Findings | None = None,
) -> GeneralModel:
    """Return the view of a function of parameters by name.

    Args:
        function: ``f(parameters, x)`` with outputs [N, ...]; with draws, ``f(parameters, x, seed)``.
        parameters: All parameters by name; their order is that of the random stream.
        draws: Draws that a stochastic function is averaged over.
        findings: What earlier calls found out about the function.

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
    known = Findings() if findings is None else findings
    return GeneralModel(function, displaced, names, draws=draws, findings=known)
