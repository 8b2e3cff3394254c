"""Evaluation in float64 of a model that names float32 in its forward pass."""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_METHODS = {Tensor.float: Tensor.double}
_DTYPES: dict[Any, Any] = {torch.float32: torch.float64, torch.FloatTensor: torch.DoubleTensor}


class Float64Casts(TorchFunctionMode):
    """Context in which float32 means float64: casts to it, and new tensors of it.

    A norm that computes "in float32" would otherwise round the values of an evaluation in float64, and differences at
    a small gamma would be left without digits.
    """

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        options = options or {}
        if getattr(function, "__name__", "").endswith("_"):
            # A function that writes into its first argument, or reads an attribute: its tensors stay as they are.
            return function(*arguments, **options)
        function = _METHODS.get(function, function)
        return _widen(function(*_widen(arguments), **{name: _widen(leaf) for name, leaf in options.items()}))


def _widen(tree: Any) -> Any:
    """Return dtypes and tensors with float64 in place of float32; lists and tuples too."""
    if isinstance(tree, Tensor):
        return tree.double() if tree.dtype == torch.float32 else tree
    if type(tree) in (tuple, list):
        return type(tree)(map(_widen, tree))
    return _DTYPES.get(tree, tree) if isinstance(tree, torch.dtype | str | type) else tree
