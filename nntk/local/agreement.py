"""Agreement of a method with plain autograd: weights of sums, tolerances, and the error if they differ."""

import torch
from torch import Tensor

_TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-8}
"""Relative differences that rounding explains: two methods for a deep network differ by some ten epsilons."""
_GPU_TOLERANCE = 5e-3
"""The same in float32 on a GPU, where convolutions may round their operands to TF32."""


class Disagreement(ArithmeticError):
    """Error of a method whose result is not that of plain reverse-mode autograd."""


def tolerance_of(dtype: torch.dtype, device: torch.device) -> float:
    """Return the largest relative difference that rounding in a dtype on a device explains."""
    return _GPU_TOLERANCE if dtype == torch.float32 and device.type == "cuda" else _TOLERANCES[dtype]


def fixed_weights(num_inputs: int, num_outputs: int, like: Tensor) -> Tensor:
    """Return weights of inputs and outputs, [n, C]: normal numbers that are the same in every call.

    One weighted sum of gradients then checks all of them: errors do not cancel by chance.

    Args:
        num_inputs: Number n of inputs.
        num_outputs: Number C of outputs.
        like: Tensor whose dtype and device the weights have.
    """
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num_inputs, num_outputs, generator=generator, dtype=torch.float64).to(like)


def relative_difference(actual: Tensor, expected: Tensor, scale: float | None = None) -> float:
    """Return the norm of a difference relative to a scale, or to the larger one of the norms; 0 if both are zero.

    Args:
        actual: Vector to be judged.
        expected: Vector of the same length.
        scale: The scale, where it is not the norm of the vectors.
    """
    actual, expected = actual.double(), expected.double()
    difference = float((actual - expected).norm())
    if scale is None:
        scale = max(float(actual.norm()), float(expected.norm()))
    return difference / scale if difference else 0.0


def require_agreement(actual: Tensor, expected: Tensor, tolerance: float, where: str, scale: float = 0.0) -> None:
    """Check that sums of gradients by a method are those of plain autograd.

    Where both are not finite they count as equal: the kernel is then refused for that reason.

    Args:
        actual: Vector by the method.
        expected: Vector by ``torch.autograd.grad``.
        tolerance: Largest relative difference.
        where: Inputs at which they were computed, for the message.
        scale: Scale that differences are relative to; 0 for the norm of the vectors.

    Raises:
        Disagreement: If they differ by more.
    """
    if not (torch.isfinite(actual).all() or torch.isfinite(expected).all()):
        return
    difference = relative_difference(actual, expected, scale or None)
    if not difference <= tolerance:
        raise Disagreement(
            f"its derivatives differ by {difference:.1e} (relative) from those of torch.autograd.grad at {where}, "
            f"where {tolerance:.0e} is rounding"
        )


def failure_of(error: Exception) -> str:
    """Return why a method failed, as a part of a sentence."""
    if isinstance(error, Disagreement):
        return str(error)
    lines = str(error).strip().splitlines()
    return f"torch.func raised {type(error).__name__}" + (f" ({lines[0].strip().rstrip('.')})" if lines else "")
