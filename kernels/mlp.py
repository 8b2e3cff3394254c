"""Multilayer perceptron as the fused ops see it: a list of affine layers, each followed by an activation."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nntk.kernels import checks
from nntk.kernels.activations import Activation

FLOAT64_COEFFICIENTS = 2**21
"""Coefficients of a weight that are converted to float64 together."""


@dataclass(frozen=True)
class Layer:
    r"""One layer :math:`\varphi(W h + b)`, with the tensors that are displaced.

    Attributes:
        weight: W, [H, K].
        bias: b, [H], or None.
        activation: :math:`\varphi`, elementwise; the identity by default.
        weight_ordinal: Ordinal of the weight in the random stream (registration order in its model), None if the weight
            is not displaced.
        bias_ordinal: Ordinal of the bias, None if it is not displaced or there is no bias.
        name: Name of the layer in messages; if empty, messages give its position.
    """

    weight: Tensor
    bias: Tensor | None = None
    activation: Activation = Activation()
    weight_ordinal: int | None = None
    bias_ordinal: int | None = None
    name: str = ""

    def displaced(self) -> Iterable[tuple[int, Tensor]]:
        """Return the displaced tensors with their ordinals."""
        for ordinal, tensor in ((self.weight_ordinal, self.weight), (self.bias_ordinal, self.bias)):
            if ordinal is not None and tensor is not None:
                yield ordinal, tensor


def displaced(layers: Sequence[Layer]) -> dict[int, Tensor]:
    """Return the displaced tensors by ordinal; a tensor shared by several layers appears once."""
    tensors = dict(pair for layer in layers for pair in layer.displaced())
    return {ordinal: tensors[ordinal] for ordinal in sorted(tensors)}


def is_tied(layers: Sequence[Layer]) -> bool:
    """Return True if a displaced tensor serves more than one layer."""
    return sum(1 for layer in layers for _ in layer.displaced()) > len(displaced(layers))


def shared_ordinals(layers: Sequence[Layer]) -> str:
    """Return the ordinals of displaced tensors that serve more than one layer, for messages."""
    uses = [ordinal for layer in layers for ordinal, _ in layer.displaced()]
    return ", ".join(
        f"ordinal {ordinal} {uses.count(ordinal)} times" for ordinal in displaced(layers) if uses.count(ordinal) > 1
    )


def unperturbed(layers: Sequence[Layer], x: Tensor) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Compute the unperturbed inputs h and pre-activations z of every layer in float64, and the outputs.

    Float64, because every displacement of an input inherits the rounding of its z: next to a kink the last digit of a
    float32 z already spoils small differences.

    Args:
        layers: Layers of the MLP.
        x: Inputs, [N, K].

    Returns:
        A pair (h [N, K], z [N, H]) for each layer, and the outputs [N, C], all float64.
    """
    h, states = x.double(), []
    for layer in layers:
        z = affine(layer, h)
        states.append((h, z))
        h = layer.activation.value(z)
    return states, h


def affine(layer: Layer, h: Tensor) -> Tensor:
    """Compute W h + b in float64, a few units at a time, so that their float64 weights take 16 MB.

    Args:
        layer: The layer. Parameters in float64 are used as they are.
        h: Inputs, [N, K], float64.

    Returns:
        The pre-activations, [N, H], float64.
    """
    units = max(1, FLOAT64_COEFFICIENTS // layer.weight.shape[1])
    if len(layer.weight) <= units:
        return torch.nn.functional.linear(h, layer.weight.double(), None if layer.bias is None else layer.bias.double())
    biases = itertools.repeat(None) if layer.bias is None else layer.bias.double().split(units)
    parts = zip(layer.weight.split(units), biases, strict=False)
    return torch.cat([torch.nn.functional.linear(h, weight.double(), bias) for weight, bias in parts], dim=1)


def check(layers: Sequence[Layer], x: Tensor) -> None:
    """Check that the layers fit each other and the inputs in shape, dtype and device.

    Raises:
        ValueError: If there are no layers, shapes or devices disagree, or an ordinal is out of range.
        TypeError: If dtypes disagree or are not float32 or float64, or an ordinal is not an integer.
    """
    if not layers:
        raise ValueError("layers must hold at least one layer, got none.")
    if x.dtype not in checks.FLOATS:
        raise TypeError(f"x must be float32 or float64, got {x.dtype}.")
    if x.dim() != 2:
        raise ValueError(f"x must be a matrix [N, K], got shape {tuple(x.shape)}.")
    width, source = x.shape[1], "the inputs have"
    for position, layer in enumerate(layers):
        name = f"layer {layer.name or str(position)!r}"
        for kind, ordinal in (("weight_ordinal", layer.weight_ordinal), ("bias_ordinal", layer.bias_ordinal)):
            if ordinal is not None:
                checks.integer(f"{kind} of {name}", ordinal, 0, 2**32 - 1)
        for kind, tensor in (("weight", layer.weight), ("bias", layer.bias)):
            if tensor is None:
                continue
            if tensor.dtype != x.dtype:
                raise TypeError(f"{kind} of {name} must be {x.dtype} like the inputs, got {tensor.dtype}.")
            if tensor.device != x.device:
                raise ValueError(f"{kind} of {name} must be on {x.device} like the inputs, got {tensor.device}.")
        if layer.weight.dim() != 2 or layer.weight.shape[1] != width or 0 in layer.weight.shape:
            raise ValueError(
                f"weight of {name} must be a non-empty matrix [H, {width}], since {source} {width} features; "
                f"got shape {tuple(layer.weight.shape)}."
            )
        width, source = layer.weight.shape[0], f"{name} gives"
        if layer.bias is not None and layer.bias.shape != (width,):
            raise ValueError(f"bias of {name} must have shape ({width},), got {tuple(layer.bias.shape)}.")
