"""Right-hand sides and targets of any real dtype: class labels are integers, results are not."""

import torch
from torch import Tensor

from nntk.kernels import checks


def check_real(name: str, value: Tensor) -> None:
    """Check that a value is a dense tensor of finite real numbers: floating, integers or booleans.

    Args:
        name: Name of the argument, for messages.
        value: The value.

    Raises:
        ValueError: If an entry is NaN or infinite.
        TypeError: If it is no dense tensor, or complex.
    """
    checks.tensor(name, value)
    if value.is_complex():
        raise TypeError(f"{name} must be real, got {value.dtype}; pass {name}.real and {name}.imag one by one.")
    if value.is_floating_point():
        checks.finite(name, value.double() if value.itemsize == 1 else value)


def check_beside(name: str, value: Tensor, kernel: Tensor) -> None:
    """Check that a value is a dense tensor of finite real numbers, on the device of a kernel.

    Args:
        name: Name of the argument, for messages.
        value: The value.
        kernel: The kernel.

    Raises:
        ValueError: If the device is another one, or an entry is NaN or infinite.
        TypeError: If it is no dense tensor, or complex.
    """
    checks.tensor("kernel", kernel)
    checks.tensor(name, value)
    if value.device != kernel.device:
        raise ValueError(f"{name} must be on {kernel.device} like the kernel, got {value.device}.")
    check_real(name, value)


def as_columns(name: str, value: Tensor, length: int, device: torch.device, letter: str = "R") -> Tensor:
    """Check vectors and return them in float64.

    Args:
        name: Name of the argument, for messages.
        value: Vectors, [length] or [length, R], of any real dtype.
        length: Number of entries of a vector.
        device: Device that they must be on.
        letter: Name of the second axis, for messages.

    Returns:
        The vectors in the same shape, float64.

    Raises:
        ValueError: If the shape or the device does not fit, or an entry is not finite.
        TypeError: If they are no dense tensor, or complex.
    """
    checks.tensor(name, value)
    if value.dim() not in (1, 2) or len(value) != length:
        raise ValueError(f"{name} must have shape [{length}] or [{length}, {letter}], got {tuple(value.shape)}.")
    if value.device != device:
        raise ValueError(f"{name} must be on {device} like the inputs, got {value.device}; use {name}.to({device}).")
    check_real(name, value)
    return value.double()


def result_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """Return the floating dtype of a result: PyTorch's promotion of the floating ones among some dtypes.

    Integers and booleans have no part in it, so that labels never truncate a result.

    Args:
        dtypes: Dtypes of the kernel first, and of the vectors.

    Returns:
        The widest of the floating dtypes, float32 for float16 with bfloat16; PyTorch's default dtype if there are none.

    Example:
        >>> result_dtype(torch.float32, torch.int64), result_dtype(torch.float32, torch.float64)
        (torch.float32, torch.float64)
    """
    # A dtype of one byte (float8) has no promotion, and every other floating dtype holds its numbers.
    floating = [dtype for dtype in dtypes if dtype.is_floating_point and dtype.itemsize > 1]
    if not floating:
        return torch.get_default_dtype()
    result = floating[0]
    for dtype in floating[1:]:
        result = torch.promote_types(result, dtype)
    return result
