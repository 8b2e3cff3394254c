"""Registration of the ops with the dispatcher of PyTorch, which alone chooses the backend."""

import importlib
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from nntk.kernels import cost as costs
from nntk.kernels import cpu
from nntk.kernels.cost import Cost, CostFunction
from nntk.kernels.target import obstacle_of

_LIBRARY = torch.library.Library("nntk", "DEF")

_log = logging.getLogger("nntk")


@dataclass(frozen=True)
class Registered:
    """Functions that an op was registered with.

    Attributes:
        reference: Plain torch implementation.
        fake: Function that returns empty results of the right shape, dtype and device.
        cost: Minimum work of a call, without the bytes of the results.
        launch: Function that serves CUDA tensors; None where the reference does.
    """

    reference: Callable[..., Any]
    fake: Callable[..., Any]
    cost: CostFunction
    launch: Callable[..., Any] | None


REGISTERED: dict[str, Registered] = {}
"""Registered ops by their name in ``torch.ops.nntk``."""


def cost_of(name: str, arguments: Iterable[Any]) -> Cost:
    """Return the minimum work of one call of an op, results included. Only shapes are read; nothing is computed."""
    op = REGISTERED[name]
    return costs.call(op.cost, op.fake, arguments)


def _tensors(arguments: Iterable[Any]) -> Iterator[Tensor]:
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, list):
            yield from _tensors(argument)


def _without_autocast(function: Callable[..., Any], arguments: Any, device: torch.device) -> Any:
    with torch.autocast(device.type, enabled=False):
        return function(*arguments)


@cache
def report_slow_path(reason: str) -> None:
    """Log why plain torch serves a GPU instead of the kernels, once in a process for each reason."""
    _log.warning("Plain torch serves the GPU, many times slower than the kernels of nntk, because %s.", reason)


@cache
def report_compilation(device: torch.device) -> None:
    """Log that first launches on a card wait for a compiler, once in a process."""
    _log.info(
        "Triton compiles each kernel for %s at its first launch, for seconds, and keeps it on disk for later "
        "processes; nntk.warm_up compiles those of a call ahead, in parallel.",
        torch.cuda.get_device_name(device),
    )


def _implementation(
    name: str, reference: Callable[..., Any], launcher: str | None, device: torch.device
) -> Callable[..., Any]:
    """Return the function that serves CUDA tensors on a device: that of the launcher, or the reference."""
    if launcher is None:
        return reference
    if obstacle := obstacle_of(device):
        report_slow_path(obstacle)
        return reference
    function: Callable[..., Any] = getattr(importlib.import_module(launcher), name)
    return function


Op = TypeVar("Op", bound=Callable[..., Tensor | tuple[Tensor, ...]])


def register(
    schema: str,
    reference: Op,
    cost: CostFunction,
    fake: Callable[..., Tensor | tuple[Tensor, ...]],
    launcher: str | None = None,
    compiled: str | Callable[..., Any] | None = None,
) -> Op:
    """Define ``nntk::<name>`` by its schema, with a reference for every backend and a fake kernel for tracing.

    Args:
        schema: Schema of the op in the language of the dispatcher, e.g. ``"square(Tensor x) -> Tensor"``.
        reference: Plain torch implementation. It serves every backend without a registered kernel.
        cost: Minimum work of a call from its arguments, without the bytes of the results: see nntk.kernels.cost.
        fake: Function that returns empty tensors of the right shape, dtype and device.
        launcher: Module whose function of the op's name serves CUDA tensors by Triton kernels. It is imported at the
            first such call. The reference serves cards that the kernels are not written for (``target.serves``), and
            all tensors where Triton is not installed.
        compiled: Function that serves CPU tensors by kernels that Numba compiles, or the module whose function of the
            op's name does. The module is imported at the first such call. The reference serves where Numba is not
            installed.

    Returns:
        The op, with the signature of its reference.
    """
    name = schema.partition("(")[0]
    qualified = f"nntk::{name}"
    _LIBRARY.define(schema)

    def call_reference(*arguments: Any) -> Any:
        return _without_autocast(reference, arguments, next(_tensors(arguments)).device)

    def call_launcher(*arguments: Any) -> Any:
        device = next(tensor.device for tensor in _tensors(arguments) if tensor.device.type == "cuda")
        function = _implementation(name, reference, launcher, device)
        if function is not reference:
            report_compilation(device)
        # Triton launches on the current device, which may differ from the device of the tensors.
        with torch.cuda.device(device):
            return _without_autocast(function, arguments, device)

    def call_compiled(*arguments: Any) -> Any:
        function: Callable[..., Any] = reference
        if cpu.serves() and compiled is not None:
            function = getattr(importlib.import_module(compiled), name) if isinstance(compiled, str) else compiled
        return _without_autocast(function, arguments, torch.device("cpu"))

    REGISTERED[name] = Registered(reference, fake, cost, None if launcher is None else call_launcher)
    _LIBRARY.impl(name, call_reference, "CompositeExplicitAutograd")
    if compiled is not None:
        _LIBRARY.impl(name, call_compiled, "CPU")
    if launcher is not None:
        _LIBRARY.impl(name, call_launcher, "CUDA")
    torch.library.register_fake(qualified, fake, lib=_LIBRARY)

    def backward(ctx: Any, *gradients: Tensor) -> None:
        raise RuntimeError(
            f"{qualified} has no backward: nonlocal kernels replace gradients by finite displacements. "
            "Call it under torch.no_grad(), or use nntk.local_ntk where you need a derivative."
        )

    torch.library.register_autograd(qualified, backward, lib=_LIBRARY)
    op: Op = getattr(torch.ops.nntk, name)
    return op
