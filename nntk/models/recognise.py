"""Recognition of models: an ``nn.Sequential`` of Linear layers and known activations becomes an MLP."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from nntk import activations
from nntk.kernels import activations as functions
from nntk.kernels import mlp
from nntk.kernels.mlp import Layer
from nntk.models.checks import check_evaluation_mode, check_parameters
from nntk.models.frozen.promotion import HALVES
from nntk.models.mlp import Mlp
from nntk.models.selection import displaced_names

_SMOOTH_SOFTPLUS = 20.0
"""Least threshold at which torch's softplus becomes the identity with a step of at most 2e-9."""

_ACTIVATIONS: dict[type[nn.Module], Callable[[Any], functions.Activation]] = {
    nn.Dropout: lambda module: functions.Activation(),
    nn.Identity: lambda module: functions.Activation(),
    nn.ReLU: lambda module: functions.Relu(),
    nn.LeakyReLU: lambda module: functions.LeakyRelu(module.negative_slope),
    nn.Tanh: lambda module: functions.Tanh(),
    nn.Sigmoid: lambda module: functions.Sigmoid(),
    nn.SiLU: lambda module: functions.Silu(),
    nn.GELU: lambda module: functions.Gelu() if module.approximate == "none" else functions.GeluTanh(),
    nn.Softplus: lambda module: functions.Softplus(module.beta),
    activations.Sign: lambda module: module.function,
    activations.Step: lambda module: module.function,
    activations.Sin: lambda module: module.function,
    activations.Quantise: lambda module: module.function,
    activations.Sawtooth: lambda module: module.function,
}


class NotRecognised(TypeError):
    """Error of a model that is not an MLP of known layers; it may have a kernel by another route."""


def recognise(model: nn.Module, parameters: Sequence[str] | None = None) -> Mlp:
    """Return an ``nn.Sequential`` of Linear layers and activations as an MLP.

    Nested Sequentials, a leading Flatten, Dropout in evaluation mode and Identity are accepted. Parameters that are not
    selected stay constant.

    Args:
        model: The module; nothing of it is changed or copied.
        parameters: Names of the displaced parameters, or patterns of them; None for all that require a gradient.

    Returns:
        The MLP; its tensors are views of the model's parameters.

    Raises:
        NotRecognised: If a layer is not recognised, or no Linear layer has a displaced parameter.
        TypeError: If the model is not a module, or a parameter is neither float32 nor float64.
        ValueError: If layers do not fit, a parameter is not finite, no parameter is selected, or a Dropout is in
            training mode.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
    layers: list[Layer] = []
    flattens = False
    param_indices: dict[Tensor, int] = {parameter: index for index, parameter in enumerate(model.parameters())}
    displaced = set(displaced_names(model, parameters)) if param_indices else set()
    constant: set[Tensor] = {parameter for name, parameter in model.named_parameters() if name not in displaced}
    if any(parameter.dtype in HALVES for parameter in model.parameters()):
        raise NotRecognised("model must have parameters in float32 or float64 to be evaluated by its layers.")
    for name, module in _flat_layers(model):
        if type(module) is nn.Flatten:
            if layers or (module.start_dim, module.end_dim) != (1, -1):
                raise NotRecognised(_unrecognised(name, module, "Flatten() may only stand first, with default axes"))
            flattens = True
        elif type(module) is nn.Linear:
            layers.append(_affine_layer(name, module, param_indices, constant))
        else:
            layers = _with_activation(layers, name, module)
    if not layers:
        raise NotRecognised("model must have at least one Linear layer, got none.")
    check_parameters(model)
    first = layers[0].weight
    mlp.check(layers, first.new_empty(0, first.shape[1]))
    names = dict(enumerate(name for name, _ in model.named_parameters()))
    view = Mlp(tuple(layers), {index: names[index] for index in mlp.displaced(layers)}, flattens)
    if not view.names:
        raise NotRecognised("model must have a Linear layer with a displaced parameter, got none.")
    return view


def _flat_layers(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers of nested Sequentials in order, with their qualified names."""
    if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
        raise NotRecognised(_unrecognised(prefix, module, "a hook or a forward of its own may change what it computes"))
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        for name, child in _children(module):
            yield from _flat_layers(child, f"{prefix}.{name}" if prefix else name)
    else:
        yield prefix, module


def _children(module: nn.Sequential) -> Iterator[tuple[str, nn.Module]]:
    # named_children() would skip a layer that is registered twice.
    return ((name, child) for name, child in module._modules.items() if child is not None)


def _affine_layer(name: str, module: nn.Linear, param_indices: dict[Tensor, int], constant: set[Tensor]) -> Layer:
    def param_index(parameter: Tensor | None) -> int | None:
        if parameter is not None and parameter not in param_indices:
            raise NotRecognised(_unrecognised(name, module, "a tensor of it is computed, not a parameter"))
        return param_indices[parameter] if parameter is not None and parameter not in constant else None

    return Layer(
        weight=module.weight.detach(),
        bias=None if module.bias is None else module.bias.detach(),
        weight_ordinal=param_index(module.weight),
        bias_ordinal=param_index(module.bias),
        name=name,
    )


def _with_activation(layers: list[Layer], name: str, module: nn.Module) -> list[Layer]:
    """Return the layers with the activation added to the last one."""
    function = _activation_of(name, module)
    if type(function) is functions.Activation:
        return layers
    if not layers:
        raise NotRecognised(_unrecognised(name, module, "an activation must follow a Linear layer"))
    last = layers[-1]
    if type(last.activation) is not functions.Activation:
        raise NotRecognised(_unrecognised(name, module, "it follows another activation, with no Linear layer between"))
    return [*layers[:-1], replace(last, activation=function)]


def _activation_of(name: str, module: nn.Module) -> functions.Activation:
    # The exact type counts: a subclass may compute something else.
    if type(module) is nn.Dropout:
        check_evaluation_mode(module, name)
    if type(module) is nn.Softplus and module.threshold < _SMOOTH_SOFTPLUS:
        raise NotRecognised(_unrecognised(name, module, f"threshold must be at least 20, got {module.threshold}"))
    if type(module) not in _ACTIVATIONS:
        raise NotRecognised(_unrecognised(name, module))
    return _ACTIVATIONS[type(module)](module)


def _unrecognised(name: str, module: nn.Module, reason: str = "") -> str:
    return (
        f"model must be an nn.Sequential of Linear layers and known activations; layer {name!r} "
        f"({type(module).__name__}) is not recognised{': ' + reason if reason else ''}. Known are Flatten (first), "
        "Linear, Dropout (in eval mode), Identity, ReLU, LeakyReLU, Tanh, Sigmoid, SiLU, GELU, Softplus, and Sign, "
        "Step, Sin, Quantise, Sawtooth of nntk.activations."
    )
