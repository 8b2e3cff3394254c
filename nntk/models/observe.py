"""Observation of the operators of PyTorch that some code runs."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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


class HeldBytes(Observe):
    """Context that measures the largest bytes of tensors that are held at a time, of those that are made within it.

    Attributes:
        largest: The bytes. What an operator needs for itself is not among them.
    """

    def __init__(self) -> None:
        super().__init__(self._count)
        self.largest = 0
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}

    def _count(self, function: Any, arguments: tuple[Any, ...], options: dict[str, Any], result: Any) -> None:
        for key in [key for key, (storage, _) in self._held.items() if storage.expired()]:
            del self._held[key]
        if not function.is_view:
            for tensor in tree_leaves(result):
                if isinstance(tensor, Tensor):
                    storage = StorageWeakRef(tensor.untyped_storage())
                    self._held[storage.cdata] = (storage, tensor.untyped_storage().nbytes())
        self.largest = max(self.largest, sum(size for _, size in self._held.values()))
