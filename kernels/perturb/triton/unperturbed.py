"""Unperturbed forward pass on a GPU: float64, rounded once. A layer is one product and one pass over its results.

Fourth file to read, after config.py, chunks.py and operands.py.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nntk.kernels.activations import Activation
from nntk.kernels.gpu.launches import launch
from nntk.kernels.mlp import Layer, affine
from nntk.kernels.perturb.triton import config, passes
from nntk.kernels.perturb.triton.operands import LaunchContext, as_operand, pad_rows
from nntk.kernels.philox.triton import launch as philox
from nntk.kernels.slices import count, slices

_FLOAT64_BYTES = 48
"""Bytes of temporaries of the float64 pass for each input and output of a layer: that number, and what it makes."""
BLOCK = 1024
"""Numbers that one program of ``passes.finish_layer`` rounds."""
OWN_STATES = ("sin", "quantise", "sawtooth")
"""Activations that keep something else than their pre-activations: PyTorch computes it."""
VALUES = ("identity", "relu", "sign", "step")
"""Activations that ``passes.finish_layer`` applies; PyTorch applies the others."""


@dataclass(frozen=True)
class UnperturbedPass:
    """Results of the unperturbed forward pass, computed in float64 and rounded once; rows are padded to 16 units."""

    num_inputs: int
    states: list[tuple[Tensor, ...]]
    """State of each activation, a tuple of tensors [N, padded(H)], float32."""
    hidden: list[Tensor]
    """Inputs of each layer, [N, padded(K)], float32."""
    operands: list[Tensor | None]
    """Inputs of each layer as operands of products, [N, padded(K)], for the first layer and, with low rank, for all
    layers; None elsewhere."""

    @classmethod
    def evaluate(cls, context: LaunchContext, x: Tensor) -> "UnperturbedPass":
        """Evaluate the network at ``x``, as many inputs at a time as fit the bytes reserved for temporaries.

        Weights are converted to float64 once if they take at most half of these bytes. Of an input, at most the
        numbers of one layer are held in float64: its inputs, its outputs, and what these are rounded by.

        Args:
            context: Settings that all launches share.
            x: Inputs, [N, K], float32.

        Returns:
            The results.
        """
        layers, spare = list(context.layers), context.temporary_bytes
        coefficients = sum(layer.weight.numel() + len(layer.weight) for layer in layers)
        if 12 * coefficients <= spare // 2:
            layers, spare = _in_float64(layers), spare - 12 * coefficients
        widths = context.widths
        hidden = [pad_rows(x)]
        hidden += [_rows(x, width) for width in widths[1:-1]]
        states = [
            tuple(_rows(x, width) for _ in range(layer.activation.state_parts))
            for layer, width in zip(layers, widths[1:], strict=True)
        ]
        widest = max(map(sum, zip(widths[:-1], widths[1:], strict=True)))
        for batch in slices(len(x), max(1, spare // (_FLOAT64_BYTES * widest))):
            h = x[batch].double()
            for number, layer in enumerate(layers):
                kept = None if number + 1 == len(layers) else hidden[number + 1][batch]
                h = _finish(layer.activation, affine(layer, h), [part[batch] for part in states[number]], kept)
        is_lowrank = context.directions.name == "lowrank"
        operands = [
            as_operand(inputs, context.precision, context.target) if is_lowrank or number == 0 else None
            for number, inputs in enumerate(hidden)
        ]
        return cls(len(x), states, hidden, operands)


def _in_float64(layers: list[Layer]) -> list[Layer]:
    """Convert all parameters together: two operations, whatever the number of layers."""
    biases = [layer.bias for layer in layers if layer.bias is not None]
    tensors = [*(layer.weight for layer in layers), *biases]
    numbers = torch.cat([tensor.flatten() for tensor in tensors]).double()
    parts = [
        part.view_as(tensor)
        for part, tensor in zip(numbers.split([tensor.numel() for tensor in tensors]), tensors, strict=True)
    ]
    converted = iter(parts[len(layers) :])
    return [
        replace(layer, weight=weight, bias=None if layer.bias is None else next(converted))
        for layer, weight in zip(layers, parts, strict=False)
    ]


def _rows(x: Tensor, width: int) -> Tensor:
    """Return rows of padded width for each input, which ``_finish`` fills."""
    return torch.empty(len(x), philox.padded(width), dtype=torch.float32, device=x.device)


def _finish(activation: Activation, z: Tensor, states: list[Tensor], hidden: Tensor | None) -> Tensor:
    """Write the state of pre-activations [N, H], float64, and the rounded values; return the values in float64."""
    height, by_kernel = z.shape[1], activation.name in VALUES
    if activation.name not in OWN_STATES:
        (state,) = states
        value = torch.empty(z.shape, dtype=z.dtype, device=z.device) if hidden is not None and by_kernel else None
        launch(
            passes.finish_layer, count(state.numel(), BLOCK), z, state, None if value is None else hidden, value,
            height, state.shape[1], state.numel(), activation.name if by_kernel else "identity", BLOCK,
            **config.OPTIONS,
        )  # fmt: skip
        if value is not None or hidden is None:
            return z if value is None else value
    else:
        for kept, part in zip(states, activation.state(z, torch.float32), strict=True):
            _fill(kept, part)
    if hidden is None:
        return z
    value = activation.value(z)
    _fill(hidden, value)
    return value


def _fill(rows: Tensor, numbers: Tensor) -> None:
    """Write numbers [N, width] into rows [N, padded(width)], with zeros behind them."""
    width = numbers.shape[1]
    rows[:, :width] = numbers
    if width < rows.shape[1]:
        rows[:, width:].zero_()
