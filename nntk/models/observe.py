"""Observation of the operators of PyTorch that some code runs."""

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

Observer = Callable[[Any, tuple[Any, ...], dict[str, Any], Any], None]
"""Function that receives an operator, its arguments, its options and its result."""


class Observe(TorchDispatchMode):
    """Context in which every operator runs as usual and is then reported to an observer.

    Args:
        observer: Receives each operator with its arguments, options and result.
    """

    def __init__(self, observer: Observer) -> None:
        super().__init__()
        self.observer = observer

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        result = function(*arguments, **(options or {}))
        self.observer(function, arguments, options or {}, result)
        return result
