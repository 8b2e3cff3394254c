"""Operators of PyTorch on a card that is not there: their results are empty tensors of the right shape.

On the device ``"meta"`` many operators are written in Python, and take the host a hundred times as long as the launch
of a kernel. A call is therefore recorded once, and from then on each of its operators returns what it returned then, at
about the cost of launching a kernel.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

Launchers = Mapping[Any, Callable[..., Any]]
"""Functions that serve ops of nntk on a card, by the op, e.g. ``torch.ops.nntk.squared_norms.default``."""


class _Recorder(TorchDispatchMode):
    """Results of the operators that compute something, in order; views compute nothing."""

    def __init__(self, launchers: Launchers) -> None:
        super().__init__()
        self._launchers = launchers
        self.results: dict[Any, list[Any]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if function in self._launchers:
            with self:  # What an op of nntk computes is recorded, too.
                return self._launchers[function](*arguments)
        if function._can_decompose():
            with self:  # Such as `to`, which is a copy or nothing.
                return function.decompose(*arguments, **(options or {}))
        result = function(*arguments, **(options or {}))
        if not function.is_view:
            self.results.setdefault(function, []).append(result)
        return result


class Replay:
    """Call whose operators of PyTorch return empty results.

    Args:
        call: Call whose tensors are on the device ``"meta"``. It must do the same each time.
        launchers: Functions that serve the ops of nntk that it calls.
    """

    def __init__(self, call: Callable[[], object], launchers: Launchers) -> None:
        self._call, self._launchers = call, launchers
        with _Recorder(launchers) as recorder:
            call()
        self._results = recorder.results

    @property
    def operators(self) -> int:
        """Number of operators of a call that launch a kernel on a card; those that only allocate do not."""
        return sum(len(results) for function, results in self._results.items() if "empty" not in str(function))

    @contextmanager
    def fast_operators(self) -> Iterator[None]:
        """Let the operators return at once; :meth:`run` makes the call."""
        with ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # PyTorch's own functions are replaced.
            aten, nntk = (
                stack.enter_context(torch.library._scoped_library(name, "IMPL")) for name in ("aten", "nntk")
            )
            for op, launcher in self._launchers.items():
                nntk.impl(op._schema.name, launcher, "Meta")
            self._remaining: dict[Any, Iterator[Any]] = {}
            for function in self._results:
                if "empty" not in str(function):
                    overload = function._overloadname
                    name = function._schema.name + ("" if overload == "default" else f".{overload}")
                    aten.impl(name, self._stand_in(function), "Meta")
            yield

    def run(self) -> None:
        """Make the call once."""
        for function, results in self._results.items():
            self._remaining[function] = iter(results)
        self._call()

    def _stand_in(self, function: Any) -> Callable[..., Any]:
        remaining = self._remaining
        if function._schema.is_mutable:
            return lambda target, *arguments, **options: target
        return lambda *arguments, **options: next(remaining[function])
