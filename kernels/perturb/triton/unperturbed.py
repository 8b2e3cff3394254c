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
from nntk.kernels.perturb.triton.operands import LaunchContext, as_operand, operand_rows
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
    """Inputs of each layer, float32: [N, K] of the first, and [N, padded(K)] of the others."""
    operands: list[Tensor | None]
    """Inputs of each layer as operands of products, [N, padded(K)], for the first layer and, with low rank, for all
    layers; None elsewhere."""

    @classmethod
    def evaluate(cls, context: LaunchContext, x: Tensor, fills_weights: bool = False) -> "UnperturbedPass":
        """Evaluate the network at ``x``, as many inputs at a time as fit the bytes reserved for temporaries.

        Of an input, at most the numbers of one layer are held in float64: its inputs, its outputs, and what these are
        rounded by.

        Args:
            context: Settings that all launches share.
            x: Inputs, [N, K], float32.
            fills_weights: Fill the operands of weights, too.

        Returns:
            The results.
        """
        layers, widths, first = context.layers, context.widths, x if x.stride(1) == 1 else x.contiguous()
        parts = [
            width for layer, width in zip(layers, widths[1:], strict=True) for _ in range(layer.activation.state_parts)
        ]
        rows = iter(_rows(x, [*parts, *widths[1:-1]], torch.float32))
        states = [tuple(islice(rows, layer.activation.state_parts)) for layer in layers]
        hidden = [first, *rows]
        operands: list[Tensor | None] = [operand_rows(first, context.precision, context.target)]
        operands += _operand_rows(context, hidden[1:])
        (first_operand,) = _unfilled(operands[:1], [first])
        weights: list[Tensor | None] = [None] * len(layers)
        if fills_weights:
            weights[1:] = _unfilled(context.weight_operands, [layer.weight for layer in layers[1:]])
        widest = max(map(sum, zip(widths[:-1], widths[1:], strict=True)))
        for batch in slices(len(x), max(1, context.temporary_bytes // (_FLOAT64_BYTES * widest))):
            h = first[batch]
            for number, layer in enumerate(layers):
                is_first, is_last = number == 0, number + 1 == len(layers)
                results = _Results(
                    _rows_of(first_operand if is_first else None, batch),
                    weights[number] if batch.start == 0 else None,
                    [part[batch] for part in states[number]],
                    None if is_last else hidden[number + 1][batch],
                    None if is_last else _rows_of(operands[number + 1], batch),
                )
                h = _evaluate(context, layer, h, results)
        return cls(len(x), states, hidden, operands)


@dataclass(frozen=True)
class _Results:
    """Rows of one layer that are to be filled; None for what is not needed.

    Attributes:
        x_operand: The inputs of the first layer as operands.
        weight_operand: The weights as operands.
        states: State of the activation.
        hidden: Inputs of the next layer; of the last layer only the state is needed.
        operand: These inputs as operands.
    """

    x_operand: Tensor | None
    weight_operand: Tensor | None
    states: Sequence[Tensor]
    hidden: Tensor | None
    operand: Tensor | None


def _unfilled(operands: Sequence[Tensor | None], matrices: Sequence[Tensor]) -> list[Tensor | None]:
    """Return the operands that are not the matrices themselves."""
    return [None if one is matrix else one for one, matrix in zip(operands, matrices, strict=True)]


def _rows_of(tensor: Tensor | None, rows: slice) -> Tensor | None:
    return None if tensor is None else tensor[rows]


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


def _evaluate(context: LaunchContext, layer: Layer, x: Tensor, results: _Results) -> Tensor:
    """Compute a layer, and fill its results.

    Returns:
        The inputs of the next layer, [N, H], float64.
    """
    activation, height, hidden = layer.activation, len(layer.weight), results.hidden
    by_kernel, has_own_state = activation.name in VALUES, activation.name in OWN_STATES
    is_last, separate = hidden is None, None if results.operand is hidden else results.operand
    # What PyTorch computes is computed from z, in float64.
    needs_value = has_own_state or not is_last
    value = torch.empty(len(x), height, dtype=torch.float64, device=x.device) if needs_value else None
    tile = INTERPRETED_TILE if context.target.arch == "interpreter" else TILE
    (block_n, block_h, _), stride = tile, philox.padded(height)
    launch(
        passes.unperturbed_layer, count(len(x), block_n) * count(stride, block_h), x, x.stride(0), layer.weight,
        *layer.weight.stride(), layer.bias, 0 if layer.bias is None else layer.bias.stride(0), results.x_operand,
        results.weight_operand, None if has_own_state else results.states[0], hidden if by_kernel else None,
        separate if by_kernel else None, value, len(x), layer.weight.shape[1], height, stride,
        activation.name if by_kernel and not is_last else "identity", context.input_precision,
        context.target.has_float64_products, *tile, num_warps=WARPS, **config.OPTIONS,
    )  # fmt: skip
    if value is None:
        return x
    if has_own_state:
        for kept, part in zip(results.states, activation.state(value, torch.float32), strict=True):
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
