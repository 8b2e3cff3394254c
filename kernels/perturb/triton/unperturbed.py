"""Unperturbed forward pass on a GPU: float64, rounded once. A layer is one launch.

Fourth file to read, after config.py, chunks.py and operands.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from nntk.kernels.gpu.launches import launch
from nntk.kernels.mlp import Layer
from nntk.kernels.perturb.triton import config, passes
from nntk.kernels.perturb.triton.operands import LaunchContext, as_operand, pad_rows
from nntk.kernels.philox.triton import launch as philox
from nntk.kernels.slices import count, slices

_FLOAT64_BYTES = 48
"""Bytes of temporaries of the float64 pass for each input and output of a layer: that number, and what it makes."""
TILE = (32, 64, 16)
"""Inputs and units of a program of ``passes.unperturbed_layer``, and the terms of a sum that it loads together."""
WARPS = 8
"""Warps of such a program. With four, more registers are needed where products of float64 have no instruction."""
INTERPRETED_TILE = (128, 128, 128)
"""The same in the interpreter, where a program takes about as long whatever its size."""
OWN_STATES = ("sin", "quantise", "sawtooth")
"""Activations that keep something else than their pre-activations: PyTorch computes it."""
VALUES = ("identity", "relu", "sign", "step")
"""Activations that ``passes.unperturbed_layer`` applies; PyTorch applies the others."""


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

        Of an input, at most the numbers of one layer are held in float64: its inputs, its outputs, and what these are
        rounded by.

        Args:
            context: Settings that all launches share.
            x: Inputs, [N, K], float32.

        Returns:
            The results.
        """
        layers, widths, first = context.layers, context.widths, pad_rows(x)
        parts = [
            width for layer, width in zip(layers, widths[1:], strict=True) for _ in range(layer.activation.state_parts)
        ]
        rows = iter(_rows(x, [*parts, *widths[1:-1]], torch.float32))
        states = [tuple(islice(rows, layer.activation.state_parts)) for layer in layers]
        hidden = [first, *rows]
        operands: list[Tensor | None] = [as_operand(first, context.precision, context.target)]
        operands += _operand_rows(context, hidden[1:])
        widest = max(map(sum, zip(widths[:-1], widths[1:], strict=True)))
        for batch in slices(len(x), max(1, context.temporary_bytes // (_FLOAT64_BYTES * widest))):
            h = first[batch]
            for number, layer in enumerate(layers):
                kept = [part[batch] for part in states[number]]
                if number + 1 == len(layers):
                    _evaluate(context, layer, h, kept, None, None)
                else:
                    inputs, operand = hidden[number + 1][batch], operands[number + 1]
                    h = _evaluate(context, layer, h, kept, inputs, None if operand is None else operand[batch])
        return cls(len(x), states, hidden, operands)


def _rows(x: Tensor, widths: Sequence[int], dtype: torch.dtype) -> list[Tensor]:
    """Return rows of each padded width for each input, to be filled: parts of one buffer, [N, padded(H)] each."""
    padded = [philox.padded(width) for width in widths]
    buffer = torch.empty(len(x) * sum(padded), dtype=dtype, device=x.device)
    parts = buffer.split([len(x) * width for width in padded])
    return [part.view(len(x), width) for part, width in zip(parts, padded, strict=True)]


def _operand_rows(context: LaunchContext, hidden: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """Return what has room for the inputs of layers as operands, the inputs themselves where they are not rounded."""
    if not hidden or context.directions.name != "lowrank":
        return [None] * len(hidden)
    return hidden if context.precision == "fp32" else _rows(hidden[0], context.widths[1:-1], context.dtype)


def _evaluate(
    context: LaunchContext, layer: Layer, x: Tensor, states: list[Tensor], hidden: Tensor | None, operand: Tensor | None
) -> Tensor:
    """Compute a layer, fill its state and the inputs of the next layer; of the last layer only the state is needed.

    Returns:
        The inputs of the next layer, [N, H], float64.
    """
    activation, height = layer.activation, len(layer.weight)
    by_kernel, has_own_state = activation.name in VALUES, activation.name in OWN_STATES
    is_last, separate = hidden is None, None if operand is hidden else operand
    # What PyTorch computes is computed from z, in float64.
    needs_value = has_own_state or not is_last
    value = torch.empty(len(x), height, dtype=torch.float64, device=x.device) if needs_value else None
    tile = INTERPRETED_TILE if context.target.arch == "interpreter" else TILE
    (block_n, block_h, _), stride = tile, philox.padded(height)
    launch(
        passes.unperturbed_layer, count(len(x), block_n) * count(stride, block_h), x, x.stride(0), layer.weight,
        *layer.weight.stride(), layer.bias, 0 if layer.bias is None else layer.bias.stride(0),
        None if has_own_state else states[0], hidden if by_kernel else None, separate if by_kernel else None,
        value, len(x), layer.weight.shape[1], height, stride,
        activation.name if by_kernel and not is_last else "identity", context.input_precision,
        context.target.has_float64_products, *tile, num_warps=WARPS, **config.OPTIONS,
    )  # fmt: skip
    if value is None:
        return x
    if has_own_state:
        for kept, part in zip(states, activation.state(value, torch.float32), strict=True):
            _fill(kept, part)
    if hidden is not None and not by_kernel:
        value = activation.value(value)
        _fill(hidden, value)
        if separate is not None:
            separate.copy_(as_operand(hidden, context.precision, context.target))
    return value


def _fill(rows: Tensor, numbers: Tensor) -> None:
    """Write numbers [N, width] into rows [N, padded(width)], with zeros behind them."""
    width = numbers.shape[1]
    rows[:, :width] = numbers
    if width < rows.shape[1]:
        rows[:, width:].zero_()
