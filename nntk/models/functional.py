"""Calls of a module with other tensors in place of its parameters and buffers."""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.func import functional_call


def call(model: nn.Module, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Outputs of a module with some of its parameters and buffers replaced; the module itself is left as it is.

    ``torch.func.functional_call`` alone leaves a replacement behind in a module that stands in two places; so every
    place of a parameter is named here exactly once.

    Args:
        model: The module.
        parameters: Replacements, by the names of ``model.named_parameters()`` and ``model.named_buffers()``. A
            parameter that serves in several places is replaced in all of them.
        x: Inputs of the module.

    Returns:
        What the module returns.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    places = {
        f"{path}.{own}" if path else own: names[id(parameter)]
        for path, module in model.named_modules()
        for own, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
    }
    replaced = {place: parameters[name] for place, name in places.items() if name in parameters}
    replaced |= {name: parameters[name] for name, _ in model.named_buffers() if name in parameters}
    out: Tensor = functional_call(model, replaced, (x,), tie_weights=False)
    return out
