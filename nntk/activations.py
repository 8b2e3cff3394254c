"""Activation modules whose gradient is zero or uninformative, and the sine.

Autograd returns the gradient of each almost everywhere: zero for sign, step and quantise, 1 / period for the sawtooth.
"""

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from nntk.kernels import activations as functions
from nntk.kernels import checks

__all__ = ["Quantise", "Sawtooth", "Sign", "Sin", "Step"]


def activate(z: Tensor, function: functions.Activation) -> Tensor:
    """Apply an activation elementwise.

    Subclasses of tensors may override this function by ``__torch_function__``.

    Args:
        z: Pre-activations, of any shape.
        function: One of the activations that the fused kernels support.

    Returns:
        The activations, in the shape of ``z``.
    """
    if has_torch_function_unary(z):
        result: Tensor = handle_torch_function(activate, (z,), z, function)
        return result
    return function.value(z)


class _Elementwise(torch.nn.Module):
    """A module that applies an activation which the fused kernels support.

    Args:
        function: The activation.
    """

    def __init__(self, function: functions.Activation) -> None:
        super().__init__()
        self.function = function

    def forward(self, z: Tensor) -> Tensor:
        """Apply the activation elementwise."""
        return activate(z, self.function)

    def extra_repr(self) -> str:
        """Return the parameters of the activation, for printing."""
        return ", ".join(f"{name}={value}" for name, value in vars(self.function).items())


class Sign(_Elementwise):
    """Sign of the input: 1 where z >= 0, else -1; unlike ``torch.sign``, sign(0) = 1.

    Example:
        >>> Sign()(torch.tensor([-2.0, 0.0, 3.0]))
        tensor([-1.,  1.,  1.])
    """

    def __init__(self) -> None:
        super().__init__(functions.Sign())


class Step(_Elementwise):
    """Unit step: 1 where z >= 0, else 0.

    Example:
        >>> Step()(torch.tensor([-2.0, 0.0, 3.0]))
        tensor([0., 1., 1.])
    """

    def __init__(self) -> None:
        super().__init__(functions.Step())


class Sin(_Elementwise):
    """Sine of the input.

    Example:
        >>> Sin()(torch.zeros(2))
        tensor([0., 0.])
    """

    def __init__(self) -> None:
        super().__init__(functions.Sin())


class Quantise(_Elementwise):
    """Quantisation: the nearest of ``levels`` values, evenly spaced from -clamp to clamp; ties round up.

    Args:
        levels: Number of values, at least 2; with 2 and clamp 1 this is the sign.
        clamp: Largest value, > 0.

    Raises:
        ValueError: If ``levels`` or ``clamp`` is out of range.
        TypeError: If one of them is not a number.

    Example:
        >>> Quantise(levels=5, clamp=1.0)(torch.tensor([-7.0, -0.3, 0.2, 0.25]))
        tensor([-1.0000, -0.5000,  0.0000,  0.5000])
    """

    def __init__(self, levels: int = 16, clamp: float = 1.0) -> None:
        levels = checks.integer("levels", levels, 2, 2**16)
        super().__init__(functions.Quantise(levels, checks.positive_float("clamp", clamp, 1e-6, 1e6)))


class Sawtooth(_Elementwise):
    """Sawtooth: z / period minus its floor, in [0, 1).

    Args:
        period: Length of a tooth, > 0.

    Raises:
        ValueError: If ``period`` is out of range.
        TypeError: If it is not a number.

    Example:
        >>> Sawtooth(period=2.0)(torch.tensor([-0.5, 0.0, 1.5, 2.0]))
        tensor([0.7500, 0.0000, 0.7500, 0.0000])
    """

    def __init__(self, period: float = 1.0) -> None:
        super().__init__(functions.Sawtooth(checks.positive_float("period", period, 1e-6, 1e6)))
