"""The list of architectures, which the files beside it fill."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

ARCHITECTURES: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {}
"""Functions that return a model with seeded random weights, in evaluation mode, and a few inputs, by name."""


def architecture(name: str, shape: tuple[int, ...] = (), tokens: int = 0, count: int = 4) -> Callable:
    """Enter a function or class that makes a module, under a name.

    Args:
        name: The name.
        shape: Shape of one input.
        tokens: Number of different tokens, if the inputs are tokens; 0 for normal numbers.
        count: Number of inputs.

    Returns:
        The decorator.
    """

    def enter(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        def seeded() -> tuple[nn.Module, Tensor]:
            torch.manual_seed(7)
            model = make().eval()
            x = torch.randint(0, tokens, (count, *shape)) if tokens else torch.randn(count, *shape)
            return model, x

        assert name not in ARCHITECTURES, name
        ARCHITECTURES[name] = seeded
        return make

    return enter


class Layers(nn.Module):
    """Module whose submodules and parameters are given by name, and whose forward is a function of them and x."""

    def __init__(self, forward: Callable[..., Tensor], **parts: nn.Module | Tensor | int | float) -> None:
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)

    def forward(self, x: Tensor) -> Tensor:
        """Return the function's value."""
        return self.function(self, x)


def normal(*shape: int) -> Tensor:
    """Return normal numbers over the square root of the last size."""
    return torch.randn(*shape) / shape[-1] ** 0.5
