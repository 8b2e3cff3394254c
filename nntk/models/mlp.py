"""Recognition of models: which modules become an MLP for the fused paths, and why others do not."""

import fnmatch
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from nntk import activations
from nntk.kernels import checks, mlp
from nntk.kernels.mlp import Layer
from nntk.kernels.perturb import activations as functions
from nntk.kernels.perturb import mlp_differences
from nntk.kernels.philox.slabs import TILE
from nntk.models.request import Request

_SMOOTH_SOFTPLUS = 20.0
"""Above this threshold torch's softplus becomes the identity, with a step of at most 2e-9 there."""

_FUNCTIONS: dict[type[nn.Module], Callable[[Any], functions.Activation]] = {
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


@dataclass(frozen=True)
class Mlp:
    """A recognised multilayer perceptron.

    Attributes:
        layers: Its affine layers with their activations.
        names: Names of the displaced parameters in the model, by ordinal.
        flattens: Whether inputs of more than two axes are flattened first.
    """

    layers: tuple[Layer, ...]
    names: dict[int, str]
    flattens: bool

    @property
    def displaced(self) -> dict[int, Tensor]:
        """The displaced parameters by ordinal: those that require a gradient, tied ones once."""
        return mlp.displaced(self.layers)

    @property
    def is_tied(self) -> bool:
        """Whether a displaced parameter serves more than one layer."""
        return mlp.is_tied(self.layers)

    @property
    def num_params(self) -> int:
        """Number d of displaced parameters."""
        return sum(parameter.numel() for parameter in self.displaced.values())

    def num_outputs(self, x: Tensor) -> int:
        """Number C of outputs; the inputs do not matter."""
        return self.layers[-1].weight.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """Floating dtype of the parameters."""
        return self.layers[0].weight.dtype

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.layers[0].weight.device

    def unit_differences(self, x: Tensor, request: Request) -> tuple[Tensor, Tensor]:
        """Differences over their scales, and squared norms: :func:`nntk.kernels.perturb.mlp_differences`."""
        return mlp_differences(
            x, self.layers, request.rows, request.scales, request.seed, request.directions, request.pairs,
            request.propagation, request.precision, request.max_memory, request.samples,
        )  # fmt: skip

    def outputs(self, x: Tensor) -> Tensor:
        """Outputs [N, C] at the unmoved parameters, in their dtype, of inputs as :meth:`inputs` gives them."""
        # Some inputs at a time: the pass holds every layer in float64.
        parts = torch.split(x, max(1, TILE // sum(layer.weight.shape[0] for layer in self.layers)))
        return torch.cat([mlp.unperturbed(self.layers, part)[1] for part in parts]).to(x.dtype)

    def inputs(self, name: str, x: Tensor) -> Tensor:
        """Check inputs against the model and give them as a matrix [N, K].

        Args:
            name: Name of the argument, for messages.
            x: Inputs, [N, K], or [N, ...] where the model flattens.

        Returns:
            [N, K], detached.

        Raises:
            ValueError: If the shape or the device does not fit, or an entry is not finite.
            TypeError: If ``x`` is no tensor or has another dtype than the model.
        """
        check_inputs(name, x, self.dtype, self.device)
        width = self.layers[0].weight.shape[1]
        if self.flattens and x.dim() > 2:
            x = x.flatten(1)
        if x.dim() != 2 or x.shape[1] != width:
            flat = " (flattened from its second axis on)" if self.flattens else ""
            raise ValueError(
                f"{name} must have shape [N, {width}]{flat}, as the model's first layer; got {tuple(x.shape)}."
            )
        return x.detach()


class NotRecognised(TypeError):
    """A model that is no MLP of known layers; it may have a kernel by plain evaluation."""


def moved_names(model: nn.Module, parameters: Sequence[str] | None) -> list[str]:
    """Which parameters of a module move.

    Args:
        model: The module.
        parameters: Names, or patterns such as ``"head.*"``; None for all that require a gradient.

    Returns:
        Their names, in registration order.

    Raises:
        ValueError: If none moves, or a pattern fits none; the message lists the names.
        TypeError: If ``parameters`` is no sequence of names.
    """
    names = [name for name, _ in model.named_parameters()]
    if parameters is None:
        moved = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        if not moved:
            raise ValueError("model must have a parameter to displace, but none has requires_grad=True.")
        return moved
    is_names = isinstance(parameters, Sequence | Set) and not isinstance(parameters, str | bytes)
    if not is_names or not all(isinstance(pattern, str) for pattern in parameters):
        raise TypeError(f"parameters must be a sequence of names or patterns, got {parameters!r}.")
    for pattern in parameters:
        if not fnmatch.filter(names, pattern):
            raise ValueError(f"parameters must fit names of the model, {', '.join(names)}; got {pattern!r}.")
    moved = [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in parameters)]
    if not moved:
        raise ValueError("parameters must name at least one parameter to displace, got none.")
    return moved


def recognise(model: nn.Module, parameters: Sequence[str] | None = None) -> Mlp:
    """See an ``nn.Sequential`` of Linear layers and activations as an MLP.

    Nested Sequentials, a leading Flatten, Dropout in eval mode and Identity are seen through. The parameters that
    require a gradient are displaced; the others stay.

    Args:
        model: The module; nothing of it is changed or copied.
        parameters: Names of the parameters that move, or patterns of them; None for all that require a gradient.

    Returns:
        The MLP; its tensors are views of the model's parameters.

    Raises:
        NotRecognised: If it has a layer that is not recognised, or none that moves.
        TypeError: If the model is no module, or parameters have another dtype than float32 or float64.
        ValueError: If layers do not fit, a parameter is not finite, none moves, or a Dropout trains.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
    layers: list[Layer] = []
    flattens = False
    ordinals: dict[Tensor, int] = {parameter: ordinal for ordinal, parameter in enumerate(model.parameters())}
    moved = set(moved_names(model, parameters)) if ordinals else set()
    still: set[Tensor] = {parameter for name, parameter in model.named_parameters() if name not in moved}
    for name, module in _leaves(model):
        if type(module) is nn.Flatten:
            if layers or (module.start_dim, module.end_dim) != (1, -1):
                raise NotRecognised(_unrecognised(name, module, "Flatten() may only stand first, with default axes"))
            flattens = True
        elif type(module) is nn.Linear:
            layers.append(_affine(name, module, ordinals, still))
        else:
            layers = _activate(layers, name, module)
    if not layers:
        raise NotRecognised("model must have at least one Linear layer, got none.")
    check_parameters(model)
    first = layers[0].weight
    mlp.check(layers, first.new_empty(0, first.shape[1]))
    names = dict(enumerate(name for name, _ in model.named_parameters()))
    found = Mlp(tuple(layers), {ordinal: names[ordinal] for ordinal in mlp.displaced(layers)}, flattens)
    if not found.names:
        raise NotRecognised("model must have a Linear layer of which something moves, got none.")
    return found


def check_inputs(name: str, x: Tensor, dtype: torch.dtype, device: torch.device) -> None:
    """Check inputs against the dtype and device of a model.

    Raises:
        ValueError: If the device does not fit, there is no batch axis, or an entry is not finite.
        TypeError: If ``x`` is no tensor or has another dtype.
    """
    checks.tensor(name, x)
    if x.dtype != dtype:
        raise TypeError(f"{name} must be {dtype} like the model's parameters, got {x.dtype}; use {name}.to({dtype}).")
    if x.device != device:
        raise ValueError(f"{name} must be on {device} like the model's parameters, got {x.device}.")
    if x.dim() < 2:
        raise ValueError(f"{name} must have a batch axis and features, [N, ...]; got shape {tuple(x.shape)}.")
    checks.finite(name, x)


def check_parameters(model: nn.Module) -> None:
    """Check that all parameters of a model are finite and of a dtype that the kernels compute in.

    Raises:
        ValueError: If one is not finite, or has no numbers.
        TypeError: If one is neither float32 nor float64.
    """
    for name, parameter in model.named_parameters():
        if parameter.dtype not in checks.FLOATS:
            raise TypeError(f"parameter {name!r} must be float32 or float64, got {parameter.dtype}.")
        if parameter.is_meta:
            raise ValueError(f"parameter {name!r} must hold numbers, but is on the meta device.")
        checks.finite(f"parameter {name!r}", parameter.detach())


def check_evaluation_mode(model: nn.Module, prefix: str = "", may_draw: bool = False) -> None:
    """Check that no layer of a model draws random numbers or mixes the inputs of a batch.

    Args:
        model: The model, or a layer of it.
        prefix: Name of the layer in its model.
        may_draw: Whether random numbers are allowed.

    Raises:
        ValueError: If one does.
    """
    for name, module in model.named_modules(prefix=prefix):
        layer = f"layer {name!r} ({type(module).__name__})"
        random = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
        mixes = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if module.training and (mixes or random and not may_draw):
            also = ", or take its mean over draws of the noise: draws=16" if random else ""
            raise ValueError(
                f"model must be in evaluation mode, but {layer} is in training mode; call model.eval(){also}."
            )
        if mixes and not module.track_running_stats:
            raise ValueError(f"model must treat inputs one by one, but {layer} takes the statistics of the batch.")


def _leaves(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The layers of nested Sequentials in order, with their qualified names."""
    if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
        raise NotRecognised(_unrecognised(prefix, module, "a hook or a forward of its own may change what it computes"))
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        for name, child in _children(module):
            yield from _leaves(child, f"{prefix}.{name}" if prefix else name)
    else:
        yield prefix, module


def _children(module: nn.Sequential) -> Iterator[tuple[str, nn.Module]]:
    # named_children() would skip a layer that stands twice.
    return ((name, child) for name, child in module._modules.items() if child is not None)


def _affine(name: str, module: nn.Linear, ordinals: dict[Tensor, int], still: set[Tensor]) -> Layer:
    def ordinal(parameter: Tensor | None) -> int | None:
        if parameter is not None and parameter not in ordinals:
            raise NotRecognised(_unrecognised(name, module, "a tensor of it is computed, not a parameter"))
        return ordinals[parameter] if parameter is not None and parameter not in still else None

    return Layer(
        weight=module.weight.detach(),
        bias=None if module.bias is None else module.bias.detach(),
        weight_ordinal=ordinal(module.weight),
        bias_ordinal=ordinal(module.bias),
        name=name,
    )


def _activate(layers: list[Layer], name: str, module: nn.Module) -> list[Layer]:
    """Give the last layer its activation."""
    function = _function(name, module)
    if type(function) is functions.Activation:
        return layers
    if not layers:
        raise NotRecognised(_unrecognised(name, module, "an activation must follow a Linear layer"))
    last = layers[-1]
    if type(last.activation) is not functions.Activation:
        raise NotRecognised(_unrecognised(name, module, "it follows another activation, with no Linear layer between"))
    return [*layers[:-1], replace(last, activation=function)]


def _function(name: str, module: nn.Module) -> functions.Activation:
    # By exact type: a subclass may compute something else.
    if type(module) is nn.Dropout:
        check_evaluation_mode(module, name)
    if type(module) is nn.Softplus and module.threshold < _SMOOTH_SOFTPLUS:
        raise NotRecognised(_unrecognised(name, module, f"threshold must be at least 20, got {module.threshold}"))
    if type(module) not in _FUNCTIONS:
        raise NotRecognised(_unrecognised(name, module))
    return _FUNCTIONS[type(module)](module)


def _unrecognised(name: str, module: nn.Module, reason: str = "") -> str:
    return (
        f"model must be an nn.Sequential of Linear layers and known activations; layer {name!r} "
        f"({type(module).__name__}) is not recognised{': ' + reason if reason else ''}. Known are Flatten (first), "
        "Linear, Dropout (in eval mode), Identity, ReLU, LeakyReLU, Tanh, Sigmoid, SiLU, GELU, Softplus, and Sign, "
        "Step, Sin, Quantise, Sawtooth of nntk.activations."
    )
