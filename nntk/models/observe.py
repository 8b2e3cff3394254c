"""Observation of the operators of PyTorch that some code runs."""

from collections.abc import Callable
from typing import Any

import torch
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


_GRANULARITY = 1.05
"""Factor by which held bytes must have grown before they are counted anew, so that long evaluations take no longer."""


class HeldBytes(Observe):
    """Context that measures the largest bytes of tensors that are held at a time, of those that are made within it.

    Attributes:
        largest: The bytes, to a twentieth. What an operator needs for itself is not among them.
    """

    def __init__(self) -> None:
        super().__init__(self._count)
        self.largest: int = 0
        self._made: int = 0
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}

    def _count(self, function: Any, arguments: tuple[Any, ...], options: dict[str, Any], result: Any) -> None:
        if function.is_view:
            return
        for tensor in tree_leaves(result):
            # A sparse tensor has no storage of its own; the tensors that it consists of are made before it.
            if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
                storage, size = StorageWeakRef(tensor.untyped_storage()), tensor.untyped_storage().nbytes()
                if storage.cdata not in self._held or self._held[storage.cdata][0].expired():
                    self._made += size
                self._held[storage.cdata] = (storage, size)
        if self._made > _GRANULARITY * self.largest:
            self._held = {key: held for key, held in self._held.items() if not held[0].expired()}
            self._made = sum(size for _, size in self._held.values())
            self.largest = max(self.largest, self._made)
