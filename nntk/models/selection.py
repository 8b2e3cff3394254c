"""Selection of the displaced parameters of a module, by name or pattern."""

import fnmatch
from collections.abc import Sequence, Set

from torch import nn


def displaced_names(model: nn.Module, parameters: Sequence[str] | None) -> list[str]:
    """Return the names of the parameters of a module that are displaced.

    Args:
        model: The module.
        parameters: Names, or patterns such as ``"head.*"``; None for all parameters that require a gradient.

    Returns:
        Names in registration order, at least one.

    Raises:
        ValueError: If no parameter is selected, or a pattern matches no name; the message lists the names.
        TypeError: If ``parameters`` is not a sequence of names.
    """
    names = [name for name, _ in model.named_parameters()]
    if parameters is None:
        selected = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        if not selected:
            raise ValueError("model must have a parameter to displace, but none has requires_grad=True.")
        return selected
    is_sequence = isinstance(parameters, Sequence | Set) and not isinstance(parameters, str | bytes)
    if not is_sequence or not all(isinstance(pattern, str) for pattern in parameters):
        raise TypeError(f"parameters must be a sequence of names or patterns, got {parameters!r}.")
    for pattern in parameters:
        if not fnmatch.filter(names, pattern):
            raise ValueError(f"parameters must fit names of the model, {', '.join(names)}; got {pattern!r}.")
    selected = [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in parameters)]
    if not selected:
        raise ValueError("parameters must name at least one parameter to displace, got none.")
    return selected
