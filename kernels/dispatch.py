"""Registration of the ops with PyTorch's dispatcher, which alone chooses the backend."""

import importlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("nntk", "DEF")


def _tensors(arguments: Iterable[Any]) -> Iterator[Tensor]:
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, list):
            yield from _tensors(argument)


Op = TypeVar("Op", bound=Callable[..., Tensor | tuple[Tensor, ...]])


def register(
    schema: str, reference: Op, fake: Callable[..., Tensor | tuple[Tensor, ...]], launcher: str | None = None
) -> Op:
    """Define ``nntk::<name>`` by its schema, with a reference for every backend and a fake kernel for tracing.

    Args:
        schema: The op in the dispatcher's language, e.g. ``"square(Tensor x) -> Tensor"``.
        reference: Plain torch implementation; serves every backend that registers no kernel of its own.
        fake: Returns empty tensors of the right shape, dtype and device.
        launcher: Module whose function of the op's name serves CUDA tensors by Triton kernels. It is imported at the
            first such call; where Triton is not installed, the reference serves them.

    Returns:
        The op, with the signature of its reference.
    """
    name = schema.partition("(")[0]
    qualified = f"nntk::{name}"
    _LIBRARY.define(schema)

    def without_autocast(function: Callable[..., Any], arguments: Any) -> Any:
        device = next(_tensors(arguments)).device
        with torch.autocast(device.type, enabled=False):
            return function(*arguments)

    def launch(*arguments: Any) -> Any:
        device = next(_tensors(arguments)).device
        # Triton launches on the current device, which need not be the tensors'.
        with torch.cuda.device(device):
            return without_autocast(getattr(importlib.import_module(str(launcher)), name), arguments)

    _LIBRARY.impl(name, lambda *arguments: without_autocast(reference, arguments), "CompositeExplicitAutograd")
    if launcher is not None and importlib.util.find_spec("triton") is not None:
        _LIBRARY.impl(name, launch, "CUDA")
    torch.library.register_fake(qualified, fake, lib=_LIBRARY)

    def backward(ctx: Any, *gradients: Tensor) -> None:
        raise RuntimeError(
            f"{qualified} has no backward: nonlocal kernels replace gradients by finite displacements. "
            "Call it under torch.no_grad(), or use nntk.local_ntk where a derivative is wanted."
        )

    torch.library.register_autograd(qualified, backward, lib=_LIBRARY)
    op: Op = getattr(torch.ops.nntk, name)
    return op
