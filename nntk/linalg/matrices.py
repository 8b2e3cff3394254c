"""Kernels as matrices: symmetric but for rounding, and with the outputs of an input side by side."""

from torch import Tensor

_ASYMMETRY = 1e-2
"""Largest difference of two mirrored entries, over the kernel's largest entry, that may be rounding: of bfloat16."""


def as_matrix(kernel: Tensor) -> Tensor:
    """Return a kernel as a matrix in float64, with the outputs of an input side by side.

    Args:
        kernel: [N2, N] or [N2, N, C, C].

    Returns:
        [N2, N] or [N2 C, N C].
    """
    return kernel.double() if kernel.dim() == 2 else kernel.double().transpose(1, 2).flatten(2).flatten(0, 1)


def symmetric(name: str, kernel: Tensor) -> Tensor:
    """Return the symmetric part of a kernel that is symmetric but for rounding.

    Args:
        name: Name of the argument, for messages.
        kernel: [N, N], not empty.

    Returns:
        [N, N].

    Raises:
        ValueError: If two mirrored entries differ by more than rounding.
    """
    difference = float((kernel - kernel.T).abs().max())
    if difference > _ASYMMETRY * float(kernel.abs().max()):
        raise ValueError(
            f"{name} must be symmetric, but two mirrored entries differ by {difference:g}; pass the kernel of the "
            "training inputs with themselves."
        )
    return (kernel + kernel.T) / 2
