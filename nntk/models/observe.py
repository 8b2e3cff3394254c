"""Watching the operators that some code runs."""

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

Seen = Callable[[Any, tuple[Any, ...], dict[str, Any], Any], None]
"""Is told of an operator, its arguments, its options and what it made."""


class Observe(TorchDispatchMode):
    """While it is entered, every operator runs as ever, and ``seen`` is told of it."""

    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        made = function(*arguments, **(options or {}))
        self.seen(function, arguments, options or {}, made)
        return made
