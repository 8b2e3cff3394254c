"""Activations whose gradient is zero or tells nothing, as modules; plus the sine.

Each is differentiated by autograd as it stands: zero for sign, step and quantise, 1 / period for the sawtooth.
"""

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from nntk.kernels import activations as functions
from nntk.kernels import checks

__all__ = ["Quantise", "Sawtooth", "Sign", "Sin", "Step"]


def activate(z: Tensor, function: functions.Activation) -> Tensor:
    """Apply one of the functions that the fused paths know, elementwise; other kinds of tensors may override it."""
    if has_torch_function_unary(z):
        made: Tensor = handle_torch_function(activate, (z,), z, function)
        return made
    return function.value(z)


class _Elementwise(torch.nn.Module):
    """A module that applies one of the functions which the fused paths know."""

    def __init__(self, function: functions.Activation) -> None:
        super().__init__()
        self.function = function

    def forward(self, z: Tensor) -> Tensor:
        """Apply the function elementwise."""
        return activate(z, self.function)

    def extra_repr(self) -> str:
        """Parameters of the function, for printing."""
        return ", ".join(f"{name}={value}" for name, value in vars(self.function).items())


class Sign(_Elementwise):
    """1 where z >= 0, else -1; unlike ``torch.sign``, sign(0) = 1.

    Example:
        >>> Sign()(torch.tensor([-2.0, 0.0, 3.0]))
        tensor([-1.,  1.,  1.])
    """

    def __init__(self) -> None:
        super().__init__(functions.Sign())


class Step(_Elementwise):
    """1 where z >= 0, else 0.

    Example:
        >>> Step()(torch.tensor([-2.0, 0.0, 3.0]))
        tensor([0., 1., 1.])
    """

    def __init__(self) -> None:
        super().__init__(functions.Step())


class Sin(_Elementwise):
    """sin(z).

    Example:
        >>> Sin()(torch.zeros(2))
        tensor([0., 0.])
    """

    def __init__(self) -> None:
        super().__init__(functions.Sin())


class Quantise(_Elementwise):
    """The nearest of ``levels`` values spaced evenly from -clamp to clamp; halves round up.

    Args:
        levels: Number of values, at least 2; with 2 and clamp 1 this is the sign.
        clamp: Largest value, > 0.

    Raises:
        ValueError: If ``levels`` or ``clamp`` is out of range.
        TypeError: If one is no number.

    Example:
        >>> Quantise(levels=5, clamp=1.0)(torch.tensor([-7.0, -0.3, 0.2, 0.25]))
        tensor([-1.0000, -0.5000,  0.0000,  0.5000])
    """

    def __init__(self, levels: int = 16, clamp: float = 1.0) -> None:
        levels = checks.integer("levels", levels, 2, 2**16)
        super().__init__(functions.Quantise(levels, checks.positive_float("clamp", clamp, 1e-6, 1e6)))


class Sawtooth(_Elementwise):
    """z / period minus its floor, in [0, 1).

    Args:
        period: Length of a tooth, > 0.

    Raises:
        ValueError: If ``period`` is out of range.
        TypeError: If it is no number.

    Example:
        >>> Sawtooth(period=2.0)(torch.tensor([-0.5, 0.0, 1.5, 2.0]))
        tensor([0.7500, 0.0000, 0.7500, 0.0000])
    """

    def __init__(self, period: float = 1.0) -> None:
        super().__init__(functions.Sawtooth(checks.positive_float("period", period, 1e-6, 1e6)))
