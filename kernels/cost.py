"""Minimum work of an op, whatever its kernel: products, memory traffic, random coefficients. Each op declares its own.

A product counts two operations for each multiply-add; elementwise work does not count. Memory traffic counts every
argument whose values are read once, and every result once. Random coefficients count where they are drawn; padding does
not count.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Cost:
    """Minimum work of one call.

    Attributes:
        flops: Number of operations of products, two for a multiply-add.
        bytes: Number of bytes read and written.
        normals: Number of normal random coefficients.
        signs: Number of random signs.
    """

    flops: float = 0.0
    bytes: float = 0.0
    normals: float = 0.0
    signs: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.flops + other.flops, self.bytes + other.bytes, self.normals + other.normals, self.signs + other.signs
        )


CostFunction = Callable[..., Cost]
"""Function from the arguments of an op, of which only shapes and dtypes are read, to its cost without its results."""


def read(*tensors: Tensor | Iterable[Tensor | None] | None) -> float:
    """Return the bytes of tensors, of nested sequences of them, and zero for None."""
    total = 0.0
    for tensor in tensors:
        if isinstance(tensor, Tensor):
            total += tensor.numel() * tensor.element_size()
        elif tensor is not None:
            total += read(*tensor)
    return total


def call(declared: CostFunction, fake: Callable[..., Any], arguments: Iterable[Any]) -> Cost:
    """Return the cost of one call of an op.

    Args:
        declared: Cost function of the op.
        fake: Fake kernel of the op, which knows the shapes of the results.
        arguments: Arguments of the call; their values are not read.

    Returns:
        The declared cost plus the bytes of the results.
    """
    shapes = [_meta(argument) for argument in arguments]
    results = fake(*shapes)
    cost = declared(*shapes)
    return replace(cost, bytes=cost.bytes + read(results if isinstance(results, Tensor) else list(results)))


def _meta(argument: Any) -> Any:
    if isinstance(argument, list | tuple):
        return type(argument)(_meta(part) for part in argument)
    return argument.to("meta") if isinstance(argument, Tensor) else argument
