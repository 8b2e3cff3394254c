"""Wrappers of modules: those that evaluation sees through, and those that it refuses by name."""

from typing import Any

import torch
from torch import nn

_TRANSPARENT = {
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
}
"""Wrappers that compute what the module in this attribute of theirs computes."""


def unwrap(model: Any) -> Any:
    """Return the module within wrappers that compute the same; anything else as it is.

    Args:
        model: A model of any kind.

    Returns:
        The module that ``nn.DataParallel``, ``DistributedDataParallel`` and ``torch.compile`` wrap.
    """
    while isinstance(model, nn.Module) and (attribute := _TRANSPARENT.get(_type_name(model))) is not None:
        model = getattr(model, attribute)
    return model


def refuse_compiled(model: Any) -> None:
    """Check that the parameters of a model can be replaced in all its parts.

    Args:
        model: A model of any kind, unwrapped.

    Raises:
        TypeError: If the model or a layer of it is compiled by TorchScript, exported or sharded.
    """
    if type(model).__module__.startswith("torch.export"):
        raise TypeError(
            f"model must be an nn.Module whose parameters can be replaced, got {type(model).__name__} of torch.export; "
            "give the module that was exported."
        )
    if isinstance(model, torch.jit.ScriptFunction):
        raise TypeError("model must be written in Python, got a function of TorchScript; give the scripted function.")
    if not isinstance(model, nn.Module):
        return
    for name, module in model.named_modules():
        if reason := _reason_against(module):
            where = f"its layer {name!r}" if name else "it"
            raise TypeError(f"model must be a module whose parameters can be replaced, but {where} is {reason}.")


def _reason_against(module: nn.Module) -> str:
    if isinstance(module, torch.jit.ScriptModule):
        return "compiled by TorchScript; give the module before torch.jit.script or torch.jit.trace"
    if "_guards_fn" in module._modules:
        return "exported by torch.export; give the module that was exported"
    if _type_name(module).startswith("torch.distributed.fsdp"):
        return "sharded (FullyShardedDataParallel); give the whole module"
    if isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():
        return f"not initialised yet ({type(module).__name__}); evaluate it once"
    return ""


def _type_name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"
