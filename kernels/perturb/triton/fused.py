"""A whole small MLP in one launch: stacks of what all layers read, and the grid."""

from collections.abc import Iterator, Sequence

import torch
import triton
from torch import Tensor

from nntk.kernels.mlp import Layer
from nntk.kernels.perturb.triton import config as tiles
from nntk.kernels.perturb.triton import kernel
from nntk.kernels.perturb.triton.operands import Call, Unmoved, described, parameters
from nntk.kernels.philox.triton import launch as philox


def evaluate_fused(call: Call, unmoved: Unmoved, rows: Tensor, scales: Tensor, out: Tensor) -> None:
    """All layers in one launch; ``out`` is [M, N, C] or [2, M, N, C], a view."""
    cut = call.fused()
    assert cut is not None, "the caller looked"
    num_inputs, widths, layers = unmoved.num_inputs, call.widths, call.layers
    block_c, block_inputs = cut.block_c(widths[-1]), cut.block_n // call.halves
    state_block = (cut.pad, min(cut.part, block_inputs))
    weights, last = _weights(call, cut)
    result = out if out.is_contiguous() else torch.empty_like(out, memory_format=torch.contiguous_format)
    kernel.small_mlp[(len(rows) * triton.cdiv(num_inputs, block_inputs),)](
        unmoved.hidden[0][:, : widths[0]].T.contiguous(),
        described(weights, cut.pad, (cut.pad, cut.pad)),
        described(last, cut.pad, (block_c, cut.pad)),
        *(described(part, num_inputs, state_block) for part in _stacks(call, unmoved, cut)),
        rows, scales, parameters(layers), *philox.keys(call.key), num_inputs, len(rows), result,
        call.directions.name, tuple(widths), tuple(_ordinals(layers)),
        tuple(layer.activation.name for layer in layers[:-1]),
        call.pairs, call.input_precision, call.element, call.target.ptx,
        tiles.power_of_two(widths[0], 32, 128), cut.pad, block_c, cut.block_n, state_block[1],
        num_warps=cut.num_warps, num_stages=1,
    )  # fmt: skip
    if result is not out:
        out.copy_(result)


def _stacks(call: Call, unmoved: Unmoved, cut: tiles.Fused) -> list[Tensor]:
    """Both parts of the activations' states, and the hidden activations: [layers, pad, padded(N)] each."""
    columns = philox.padded(unmoved.num_inputs)

    def stacked(parts: Sequence[Tensor | None]) -> Tensor:
        whole = torch.zeros(len(parts), cut.pad, columns, device=unmoved.hidden[0].device)
        for layer, part in enumerate(parts):
            if part is not None:
                height = call.widths[layer + 1]
                whole[layer, :height, : len(part)] = part[:, :height].T
        return whole

    states = unmoved.states[:-1]
    first, second = (stacked([state[place] if place < len(state) else None for state in states]) for place in (0, 1))
    return [first, second, stacked(unmoved.hidden[1:])]


def _weights(call: Call, cut: tiles.Fused) -> tuple[Tensor, Tensor]:
    """Weights of the layers behind the first: [layers, pad, pad], whose first is empty, and the last layer's."""
    layers, device = call.layers, call.weights[0].device
    weights = torch.zeros(len(layers), cut.pad, cut.pad, dtype=call.dtype, device=device)
    last = torch.zeros(cut.block_c(call.widths[-1]), cut.pad, dtype=call.dtype, device=device)
    for place, weight in zip([*weights[1:-1], last], call.weights, strict=True):
        place[: weight.shape[0], : min(weight.shape[1], cut.pad)] = weight[:, : cut.pad]
    return weights, last


def _ordinals(layers: Sequence[Layer]) -> Iterator[int]:
    for layer in layers:
        yield -1 if layer.weight_ordinal is None else layer.weight_ordinal
        yield -1 if layer.bias_ordinal is None else layer.bias_ordinal
