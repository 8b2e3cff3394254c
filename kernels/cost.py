"""What an op must do at the least, whatever its kernel: products, memory, random numbers. Declared next to each kernel.

A product counts two operations for each multiply-add; elementwise work does not count. Memory counts arguments whose
values are read, once, and results, written once. Random numbers count where they are drawn; the padding does not.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Cost:
    """The least work of one call.

    Attributes:
        flops: Operations of products, two for a multiply-add.
        bytes: Bytes read and written.
        normals: Normal random numbers.
        signs: Random signs.
    """

    flops: float = 0.0
    bytes: float = 0.0
    normals: float = 0.0
    signs: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.flops + other.flops, self.bytes + other.bytes, self.normals + other.normals, self.signs + other.signs
        )


Declared = Callable[..., Cost]
"""From an op's arguments, of which shapes and dtypes alone are read, its cost without the results' bytes."""


def read(*tensors: Tensor | Iterable[Tensor | None] | None) -> float:
    """Bytes of some arguments."""
    total = 0.0
    for tensor in tensors:
        if isinstance(tensor, Tensor):
            total += tensor.numel() * tensor.element_size()
        elif tensor is not None:
            total += read(*tensor)
    return total


def call(declared: Declared, fake: Callable[..., Any], arguments: Iterable[Any]) -> Cost:
    """The cost of one call of an op.

    Args:
        declared: What the op declares.
        fake: Its fake kernel, which knows the results' shapes.
        arguments: Its arguments; nothing is computed from them.

    Returns:
        The declared cost and the results' bytes.
    """
    shapes = [_meta(argument) for argument in arguments]
    results = fake(*shapes)
    cost = declared(*shapes)
    return replace(cost, bytes=cost.bytes + read(results if isinstance(results, Tensor) else list(results)))


def _meta(argument: Any) -> Any:
    if isinstance(argument, list | tuple):
        return type(argument)(_meta(part) for part in argument)
    return argument.to("meta") if isinstance(argument, Tensor) else argument
