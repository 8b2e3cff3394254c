"""Evaluation of a module on a private copy, so that the user's module stays as it is."""

import logging
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cached_property, partial
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn

from nntk.models.data.inputs import Batch
from nntk.models.data.outputs import OutputChoice
from nntk.models.frozen.prefix import Budget, find_prefix, remember
from nntk.models.frozen.promotion import HALVES, Promotion
from nntk.models.functional import call, places_of
from nntk.models.isolation.findings import Findings, InputKind
from nntk.models.isolation.generators import seeded
from nntk.models.isolation.private_copy import StateTrace, private_copy

Trial = tuple[Mapping[str, Tensor], Batch]
"""Tensors by name, and inputs, of an evaluation."""
_log = logging.getLogger("nntk")

_GENERATORS = RLock()
"""Held while the global generators are seeded, which all threads share."""


class ModuleEvaluation:
    """Function that evaluates a module, given all its tensors by name.

    Several threads may call it: one evaluation waits for the other.

    Args:
        model: The module. Its structure is copied at the first evaluation, and it is never written to.
        findings: What is known of it. If the module keeps state, every evaluation is of a fresh copy, so that none of
            them sees what another one left behind.
        choose: Chooses the tensor that counts among what the module returns.
    """

    def __init__(self, model: nn.Module, findings: Findings, choose: OutputChoice | None = None) -> None:
        self._model, self._findings, self._choose = model, findings, choose
        # What is displaced is in float32 or float64 beside it.
        self._promotes = any(parameter.dtype in HALVES for parameter in model.parameters())
        self._lock = RLock()
        self._remembering: nn.Module | None = None

    @cached_property
    def _original(self) -> nn.Module:
        return private_copy(self._model)

    @cached_property
    def _places(self) -> dict[str, str]:
        return places_of(self._original)

    def __call__(self, tensors: Mapping[str, Tensor], x: Batch, seed: int | None = None) -> Any:
        """Return the module's outputs.

        Args:
            tensors: All parameters and buffers by name. Those that the module writes to are changed.
            x: Inputs, which are changed where the module writes to them.
            seed: Seed of the global generators, for a stochastic module.
        """
        with self._lock:
            module = private_copy(self._original) if self._findings.keeps_state else self._original
            if self._remembering is not None and seed is None and not self._findings.keeps_state:
                module = self._remembering
            return self._evaluate(module, tensors, x, seed)

    def remember_prefix(
        self, displaced: Collection[str], kind: InputKind, max_bytes: int, trials: Callable[[], Sequence[Trial]]
    ) -> None:
        """Let frozen layers that no displacement reaches keep their results, as far as there is room for them.

        Args:
            displaced: Names of the displaced parameters.
            kind: Kind of the inputs.
            max_bytes: Bytes that the results may take.
            trials: Function that returns tensors and inputs of two evaluations, which differ in displaced parameters.
        """
        with self._lock:
            if self._remembering is not None or self._findings.keeps_state:
                return
            if kind not in self._findings.prefixes:
                self._findings.prefixes[kind] = self._find_prefix(displaced, trials)
            if self._findings.prefixes[kind]:
                module = private_copy(self._original)
                remember(module, self._findings.prefixes[kind], Budget(max_bytes))
                self._remembering = module

    def _find_prefix(self, displaced: Collection[str], trials: Callable[[], Sequence[Trial]]) -> tuple[str, ...]:
        def evaluate(module: nn.Module, position: int) -> Any:
            return self._evaluate(module, *trials()[position], None)

        try:
            return find_prefix(private_copy(self._original), displaced, [partial(evaluate, position=n) for n in (0, 1)])
        except Exception as error:  # A model may raise anything; where it matters, it does so again.
            _log.info("No results of frozen layers are kept: %s: %s", type(error).__name__, error)
            return ()

    def changes_module(self, tensors: Mapping[str, Tensor], x: Batch, seed: int | None = None) -> bool:
        """Return True if an evaluation changes attributes of the module; the arguments are those of a call."""
        with self._lock:
            module = private_copy(self._original)
            before = StateTrace(module)
            self._evaluate(module, tensors, x, seed)
            return before != StateTrace(module)

    def _evaluate(self, module: nn.Module, tensors: Mapping[str, Tensor], x: Batch, seed: int | None) -> Any:
        with eager(), Promotion() if self._promotes else nullcontext():
            if seed is None:
                return self._chosen(call(module, tensors, x, self._places))
            with _GENERATORS, seeded(seed, x.device):
                return self._chosen(call(module, tensors, x, self._places))

    def _chosen(self, returned: Any) -> Any:
        return returned if self._choose is None else self._choose(returned)


@contextmanager
def plain_arithmetic() -> Iterator[None]:
    """Compute without gradients, and in the dtypes that are given even where the caller's code uses autocast."""
    with torch.no_grad(), ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def eager() -> AbstractContextManager[Any]:
    """Return a context in which functions that were compiled by ``torch.compile`` run as they are written."""
    # Where nothing was compiled, the compiler is not imported.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
