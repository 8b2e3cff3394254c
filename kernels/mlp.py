"""The multilayer perceptron as the fused ops see it: a list of affine layers, each followed by an activation."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nntk.kernels import checks
from nntk.kernels.activations import Activation

_FLOAT64_NUMBERS = 2**21
"""Of a weight as float64, at once."""


@dataclass(frozen=True)
class Layer:
    r"""One layer :math:`\varphi(W h + b)` and which of its tensors are displaced.

    Attributes:
        weight: W, [H, K].
        bias: b, [H], or None.
        activation: :math:`\varphi`, elementwise; the identity by default.
        weight_ordinal: The weight's number in the random stream (registration order in its model), None if it stays.
        bias_ordinal: The bias's number, None if it stays or there is no bias.
        name: What messages call the layer; its position where empty.
    """

    weight: Tensor
    bias: Tensor | None = None
    activation: Activation = Activation()
    weight_ordinal: int | None = None
    bias_ordinal: int | None = None
    name: str = ""

    def displaced(self) -> Iterable[tuple[int, Tensor]]:
        """The tensors that move, with their ordinals."""
        for ordinal, tensor in ((self.weight_ordinal, self.weight), (self.bias_ordinal, self.bias)):
            if ordinal is not None and tensor is not None:
                yield ordinal, tensor


def displaced(layers: Sequence[Layer]) -> dict[int, Tensor]:
    """The tensors that move, by ordinal; a tensor shared by several layers appears once."""
    found = dict(pair for layer in layers for pair in layer.displaced())
    return {ordinal: found[ordinal] for ordinal in sorted(found)}


def is_tied(layers: Sequence[Layer]) -> bool:
    """Whether some displaced tensor serves more than one layer."""
    return sum(1 for layer in layers for _ in layer.displaced()) > len(displaced(layers))


def shared(layers: Sequence[Layer]) -> str:
    """The ordinals of displaced tensors that serve more than one layer, for messages."""
    ordinals = [ordinal for layer in layers for ordinal, _ in layer.displaced()]
    return ", ".join(
        f"ordinal {one} {ordinals.count(one)} times" for one in displaced(layers) if ordinals.count(one) > 1
    )


def unperturbed(layers: Sequence[Layer], x: Tensor) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Inputs h and pre-activations z of every layer in float64, and the outputs.

    Float64 because every displacement of an input inherits the rounding of its z: next to a kink the last digit of a
    float32 z already spoils small differences.

    Args:
        layers: The MLP.
        x: Inputs, [N, K].

    Returns:
        A pair (h [N, K], z [N, H]) a layer, and the outputs [N, C].
    """
    h, passed = x.double(), []
    for layer in layers:
        z = _affine(layer, h)
        passed.append((h, z))
        h = layer.activation.value(z)
    return passed, h


def _affine(layer: Layer, h: Tensor) -> Tensor:
    """W h + b in float64, of so many units at a time that their weights take 16 MB."""
    units = max(1, _FLOAT64_NUMBERS // layer.weight.shape[1])
    biases = itertools.repeat(None) if layer.bias is None else layer.bias.double().split(units)
    parts = zip(layer.weight.split(units), biases, strict=False)
    return torch.cat([torch.nn.functional.linear(h, weight.double(), bias) for weight, bias in parts], dim=1)


def check(layers: Sequence[Layer], x: Tensor) -> None:
    """Check that the layers fit each other and the inputs in shape, dtype and device.

    Raises:
        ValueError: If there are no layers, shapes or devices disagree, or an ordinal is out of range.
        TypeError: If dtypes disagree or are not float32 or float64, or an ordinal is no integer.
    """
    if not layers:
        raise ValueError("layers must hold at least one layer, got none.")
    if x.dtype not in checks.FLOATS:
        raise TypeError(f"x must be float32 or float64, got {x.dtype}.")
    if x.dim() != 2:
        raise ValueError(f"x must be a matrix [N, K], got shape {tuple(x.shape)}.")
    width, source = x.shape[1], "the inputs have"
    for number, layer in enumerate(layers):
        name = f"layer {layer.name or str(number)!r}"
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
