"""Calls of a module with other tensors in place of its parameters and buffers."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from nntk.models.data.inputs import Batch, Inputs


def call(model: nn.Module, parameters: Mapping[str, Tensor], x: Batch, places: Mapping[str, str] | None = None) -> Any:
    """Return the outputs of a module with some of its parameters and buffers replaced; these are put back afterwards.

    ``torch.func.functional_call`` alone leaves a replacement behind in a module that is registered in two places.
    Therefore every place of a parameter is named here exactly once.

    Args:
        model: The module.
        parameters: Replacements, by the names of ``model.named_parameters()`` and ``model.named_buffers()``. A
            parameter that is registered in several places is replaced in all of them.
        x: Inputs of the module; several tensors are its arguments.
        places: Result of :func:`places_of` for the module, where it is known.

    Returns:
        The module's return value.
    """
    places = places_of(model) if places is None else places
    replacements = {place: parameters[name] for place, name in places.items() if name in parameters}
    positional, keywords = (x.positional, x.keywords) if isinstance(x, Inputs) else ((x,), None)
    return functional_call(model, replacements, positional, keywords, tie_weights=False)


def places_of(model: nn.Module) -> dict[str, str]:
    """Return the names of a module's parameters and buffers, by each place at which they are registered.

    Args:
        model: The module.

    Returns:
        Names by places. A parameter that is registered in several places has the same name in all of them.
    """
    names = {id(tensor): name for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    return {
        f"{path}.{local_name}" if path else local_name: names[id(tensor)]
        for path, module in model.named_modules()
        for registered in (module._parameters, module._buffers)
        for local_name, tensor in registered.items()
        if tensor is not None
    }
