"""Operators of PyTorch on a card that is not there: their results are empty tensors of the right shape.

On the device ``"meta"`` many operators are written in Python, and take the host a hundred times as long as the launch
of a kernel. A call is therefore recorded once, and from then on each of its operators returns what it returned then.
What these stand-ins take is known, since they can be called alone; a real operator takes less.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nntk.kernels.gpu.steps import fastest

_COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


def _is_launched(function: Any) -> bool:
    """Return False for operators that only allocate or look at memory, and for numbers on the host."""
    name = function._schema.name
    return "empty" not in name and name not in ("aten::_unsafe_view", "aten::scalar_tensor")


class _Recorder(TorchDispatchMode):
    """Results of the operators that compute something, in order; views compute nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # PyTorch does not type it.
        self.results: dict[Any, list[Any]] = {}
        self.calls: list[tuple[Any, list[Any], dict[str, Any]]] = []
        self.copies = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if function._can_decompose():
            with self:  # Such as `to`, which is a copy or nothing.
                return function.decompose(*arguments, **(options or {}))
        result = function(*arguments, **(options or {}))
        if function in _COPIES and any(isinstance(part, Tensor) and part.device.type == "cpu" for part in arguments):
            self.copies += 1
        if not function.is_view and _is_launched(function):
            self.calls.append(fastest(function, list(arguments), options or {}))
        if not function.is_view:
            self.results.setdefault(function, []).append(result)
        return result


class Replay:
    """Call whose operators of PyTorch return empty results.

    Args:
        call: Call whose tensors are on the device ``"meta"``. It must do the same each time.
    """

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        with _Recorder() as recorder:
            call()
        self._results, self._operator_calls = recorder.results, recorder.calls
        self.copies = recorder.copies
        """Number of copies of numbers from the host, for each of which it waits."""

    @property
    def operators(self) -> int:
        """Number of operators of a call that launch a kernel on a card."""
        return len(self._operator_calls)

    @contextmanager
    def fast_operators(self) -> Iterator[None]:
        """Let the operators of the call return at once."""
        with torch.library._scoped_library("aten", "IMPL") as library, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's own functions are replaced.
            for function, results in self._results.items():
                if _is_launched(function):
                    overload = function._overloadname
                    name = function._schema.name + ("" if overload == "default" else f".{overload}")
                    library.impl(name, _stand_in(function, results), "Meta")
            yield

    def run(self) -> None:
        """Make the call once."""
        self._call()

    def run_operators(self) -> None:
        """Call the operators of the call that launch a kernel, and nothing else."""
        for function, arguments, options in self._operator_calls:
            function(*arguments, **options)


def _stand_in(function: Any, results: list[Any]) -> Callable[..., Any]:
    """Return a function that returns the recorded results one after another, for one call after another."""
    if function._schema.is_mutable:
        return lambda target, *arguments, **options: target
    following = cycle(results).__next__
    return lambda *arguments, **options: following()
