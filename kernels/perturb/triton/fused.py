"""Evaluation of a whole small MLP in one launch: stacked operands of all layers, and the grid.

Sixth file to read, beside layers.py, which evaluates larger networks.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from nntk.kernels.gpu.launches import launch
from nntk.kernels.mlp import Layer
from nntk.kernels.perturb.triton import config, kernel
from nntk.kernels.perturb.triton.operands import (
    LaunchContext,
    activation_parameters,
    tensor_descriptor,
)
from nntk.kernels.perturb.triton.unperturbed import UnperturbedPass
from nntk.kernels.philox.triton import launch as philox
from nntk.kernels.slices import count


def evaluate_fused(
    context: LaunchContext, base_pass: UnperturbedPass, sample_ids: Tensor, scales: Tensor, out: Tensor
) -> None:
    """Evaluate all layers in one launch.

    Args:
        context: Settings of the evaluation; the fused path applies.
        base_pass: Unperturbed pass of N inputs.
        sample_ids: Stream numbers m, [M], int64.
        scales: Scales s_m, [M], float32.
        out: View that is filled, [M, N, C], or [2, M, N, C] for both members of a pair.
    """
    tiles = context.fused_tiles()
    assert tiles is not None, "the caller checked that the path applies"
    num_inputs, widths, layers = base_pass.num_inputs, context.widths, context.layers
    padded_width, block_c, block_inputs = (
        tiles.padded_width, tiles.block_c(widths[-1]), tiles.block_n // context.members
    )  # fmt: skip
    state_block = (padded_width, min(tiles.part_columns, block_inputs))
    weights, last_weight = _stack_weights(context, tiles)
    result = out if out.is_contiguous() else torch.empty_like(out, memory_format=torch.contiguous_format)
    launch(
        kernel.small_mlp, len(sample_ids) * count(num_inputs, block_inputs),
        base_pass.hidden[0][:, : widths[0]].T.contiguous(),
        tensor_descriptor(weights, padded_width, (padded_width, padded_width)),
        tensor_descriptor(last_weight, padded_width, (block_c, padded_width)),
        *(tensor_descriptor(stack, num_inputs, state_block) for stack in _stack_states(context, base_pass, tiles)),
        sample_ids, scales, activation_parameters(layers), *philox.keys(context.key), num_inputs, len(sample_ids),
        result, context.directions.name, tuple(widths), tuple(_ordinals(layers)),
        tuple(layer.activation.name for layer in layers[:-1]),
        context.pairs, context.input_precision, context.triton_dtype, context.target.ptx,
        config.power_of_two(widths[0], 32, 128), padded_width, block_c, tiles.block_n, state_block[1],
        num_warps=tiles.num_warps, num_stages=1, **config.OPTIONS,
    )  # fmt: skip
    if result is not out:
        out.copy_(result)


def _stack_states(context: LaunchContext, base_pass: UnperturbedPass, tiles: config.FusedTiles) -> list[Tensor]:
    """Stack both tensors of the states, and the hidden activations: [L - 1, padded width, padded(N)] each."""
    columns = philox.padded(base_pass.num_inputs)

    def stack(parts: Sequence[Tensor | None]) -> Tensor:
        stacked = torch.zeros(
            len(parts), tiles.padded_width, columns, dtype=torch.float32, device=base_pass.hidden[0].device
        )
        for layer, part in enumerate(parts):
            if part is not None:
                height = context.widths[layer + 1]
                stacked[layer, :height, : len(part)] = part[:, :height].T
        return stacked

    states = base_pass.states[:-1]
    first, second = (stack([state[index] if index < len(state) else None for state in states]) for index in (0, 1))
    return [first, second, stack(base_pass.hidden[1:])]


def _stack_weights(context: LaunchContext, tiles: config.FusedTiles) -> tuple[Tensor, Tensor]:
    """Stack the weights, [L, padded width, padded width] with zeros for layer 0, and copy the last layer's."""
    layers, device, padded_width = context.layers, context.weight_operands[0].device, tiles.padded_width
    weights = torch.zeros(len(layers), padded_width, padded_width, dtype=context.dtype, device=device)
    last = torch.zeros(tiles.block_c(context.widths[-1]), padded_width, dtype=context.dtype, device=device)
    for stacked, weight in zip([*weights[1:-1], last], context.weight_operands, strict=True):
        stacked[: weight.shape[0], : min(weight.shape[1], padded_width)] = weight[:, :padded_width]
    return weights, last


def _ordinals(layers: Sequence[Layer]) -> Iterator[int]:
    """Yield the ordinals of each layer's weight and bias; -1 for a tensor that is not displaced."""
    for layer in layers:
        yield -1 if layer.weight_ordinal is None else layer.weight_ordinal
        yield -1 if layer.bias_ordinal is None else layer.bias_ordinal
