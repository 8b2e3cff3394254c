"""Calls of a module with other tensors in place of its parameters and buffers."""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.func import functional_call


def call(model: nn.Module, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Return the outputs of a module with some of its parameters and buffers replaced; the module stays as it is.

    ``torch.func.functional_call`` alone leaves a replacement behind in a module that is registered in two places.
    Therefore every place of a parameter is named here exactly once.

    Args:
        model: The module.
        parameters: Replacements, by the names of ``model.named_parameters()`` and ``model.named_buffers()``. A
            parameter that is registered in several places is replaced in all of them.
        x: Inputs of the module.

    Returns:
        The module's return value.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    places = {
        f"{path}.{local_name}" if path else local_name: names[id(parameter)]
        for path, module in model.named_modules()
        for local_name, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
    }
    replacements = {place: parameters[name] for place, name in places.items() if name in parameters}
    replacements |= {name: parameters[name] for name, _ in model.named_buffers() if name in parameters}
    outputs: Tensor = functional_call(model, replacements, (x,), tie_weights=False)
    return outputs
