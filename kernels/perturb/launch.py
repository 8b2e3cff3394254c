"""Perturbation evaluation on a GPU: the op, and the chunks that it is cut into.

Inputs are taken in chunks whose unperturbed pass is held, displacements in chunks whose differences fit the budget. A
chunk goes through the layers one launch at a time (``layers.py``), or through all at once (``fused.py``).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nntk.kernels.fixed_weights import squared_norms
from nntk.kernels.mlp import Layer, displaced
from nntk.kernels.perturb import reference
from nntk.kernels.perturb.activations import decode
from nntk.kernels.perturb.fused import evaluate_fused
from nntk.kernels.perturb.layers import multiply_noise, padded_rank
from nntk.kernels.perturb.operands import Call, Unmoved, as_operand, operand_dtype, pad
from nntk.kernels.perturb.recorded import Recorded
from nntk.kernels.philox import launch as philox
from nntk.kernels.philox.directions import Directions, parse
from nntk.kernels.target import target_of

_LARGEST_BUFFER = 2**30
"""Numbers of one buffer: kernels count them in 32 bits."""


def mlp_differences(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor | None],
    activations: list[str],
    activation_parameters: list[float],
    weight_ordinals: list[int],
    bias_ordinals: list[int],
    rows: Tensor,
    scales: Tensor,
    seed_low: int,
    seed_high: int,
    directions: str,
    pairs: str,
    propagation: str,
    precision: str,
    max_bytes: int,
    path: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The op ``nntk::mlp_differences`` for CUDA tensors; what the kernels do not serve goes to the reference."""
    if x.dtype != torch.float32 or propagation != "difference":
        return reference.mlp_differences(
            x, weights, biases, activations, activation_parameters, weight_ordinals, bias_ordinals, rows, scales,
            seed_low, seed_high, directions, pairs, propagation, precision, max_bytes,
        )  # fmt: skip
    layers = [
        Layer(weight, bias, activation, None if w < 0 else w, None if b < 0 or bias is None else b)
        for weight, bias, activation, w, b in zip(
            weights, biases, decode(activations, activation_parameters), weight_ordinals, bias_ordinals, strict=True
        )
    ]
    target, key = target_of(x.device), (seed_low, seed_high)
    operands = [pad(as_operand(weight, precision, target)) for weight in weights[1:]]
    call = Call(layers, operands, parse(directions), key, pairs, precision, target, path, max_bytes // 8)
    shape = (len(rows), len(x), call.widths[-1])
    out = x.new_empty((2, *shape) if pairs == "both" else shape)
    _evaluate(call, x, rows.contiguous(), scales.float().contiguous(), max_bytes, out)
    return out, squared_norms(displaced(layers), rows, seed_low | seed_high << 32, directions)


def displacement_products(
    q: Tensor,
    height: int,
    ordinal: int,
    rows: Tensor,
    seed_low: int,
    seed_high: int,
    directions: str,
    max_bytes: int,
) -> Tensor:
    """The op ``nntk::displacement_products`` for CUDA tensors: the layer step without a weight or an activation."""
    if q.dtype != torch.float32:
        return reference.displacement_products(q, height, ordinal, rows, seed_low, seed_high, directions, max_bytes)
    family, (length, width), target = parse(directions), q.shape[-2:], target_of(q.device)
    # Of the weight only its shape is asked.
    layer = Layer(q.new_zeros(()).expand(height, width), weight_ordinal=ordinal)
    call = Call([layer], [], family, (seed_low, seed_high), "none", "fp32", target, "step", max_bytes // 8)
    out = q.new_empty(len(rows), length, height)
    order = torch.argsort(rows % family.count, stable=True) if family.name == "flipout" else None
    # Of a displacement: its products and the padded operand; the noise that is held, and of low rank the products with
    # its right factors, are a small part.
    cut = plan([width, height], length, len(rows), 1, q.itemsize, max_bytes, directions=family)
    for inputs in _pieces(length, cut.inputs):
        for some in _pieces(len(rows), cut.rows):
            at = some if order is None else order[some]
            operand = q[inputs] if q.dim() == 2 else q[at][:, inputs]
            padded = pad(operand.reshape(-1, width)).view(*operand.shape[:-1], -1)
            out[at, inputs] = multiply_noise(call, padded, rows[at].contiguous())
    return out


def _pieces(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def _evaluate(call: Call, x: Tensor, rows: Tensor, scales: Tensor, max_bytes: int, out: Tensor) -> None:
    """Fill ``out``, [M, N, C] or [2, M, N, C], chunk by chunk."""
    order = None
    if call.directions.name == "flipout":
        # Displacements that share a base stand together: a chunk has few of them.
        order = torch.argsort(rows % call.directions.count, stable=True)
        rows, scales = rows[order], scales[order]
    fused = call.fused() is not None
    for inputs, chunks in _chunks(call, len(x), len(rows), max_bytes, fused):
        unmoved, part = Unmoved.of(call.layers, x[inputs], call.precision, call.target), out[..., inputs, :]
        evaluate = Recorded(call, unmoved, len(chunks))
        for chunk in chunks:
            if fused:
                evaluate_fused(call, unmoved, rows[chunk], scales[chunk], part[..., chunk, :, :])
                continue
            made = evaluate(rows[chunk], scales[chunk])
            if order is None:
                part[..., chunk, :, :] = made
            else:
                part.index_copy_(-3, order[chunk], made)


@dataclass(frozen=True)
class Plan:
    """How many inputs and displacements make a chunk, and what its buffers take."""

    inputs: int
    rows: int
    buffer_bytes: int


def plan(
    widths: Sequence[int],
    num_inputs: int,
    num_rows: int,
    halves: int,
    itemsize: int,
    max_bytes: int,
    fused: bool = False,
    directions: Directions | None = None,
) -> Plan:
    """Size chunks so that their buffers fit the budget.

    The unperturbed pass may take a quarter, differences and the noise that is held for a layer five eighths. The last
    eighth is for noise that is made piece by piece.

    Args:
        widths: Widths of the network, inputs and outputs included.
        num_inputs: Number N of inputs.
        num_rows: Number M of displacements.
        halves: Evaluations of a displacement.
        itemsize: Bytes of an operand of the products.
        max_bytes: The budget; a chunk has one input and one displacement at least.
        fused: Whether nothing but the outputs leaves the chip.
        directions: Family of the displacements; None for one without noise in memory.

    Returns:
        The plan. It depends neither on M, beyond M itself, nor, but for flipout's bases, on the number of parameters.
    """
    lines = [philox.padded(width) for width in widths]
    pairs = list(zip(lines[:-1], lines[1:], strict=True))
    # Of an input: float64 pass, float32 states, operands. Of an evaluation: d and, but for low rank, q of two layers,
    # products with right factors, and the output in float32.
    state = sum(lines) * (2 * 8 + 4 * 4 + itemsize)
    evaluation = 4 * halves * lines[-1]
    if not fused:
        operands = 1 if directions is not None and directions.name == "lowrank" else 2
        evaluation += halves * itemsize * (operands * max(map(sum, pairs)) + 64) + itemsize * lines[0]
    own, base = (0, 0) if fused else _noise_bytes(pairs, directions, itemsize)
    budget, most = max_bytes * 5 // 8, _LARGEST_BUFFER // (halves * max(lines))
    bases = directions.count if directions else 0
    inputs = max(1, min(num_inputs, max_bytes // 4 // state, (budget - own - base) // evaluation, most))
    rows = (budget - bases * base) // (evaluation * inputs + own)
    if base and rows < bases:  # So few that each may have a base of its own.
        rows = budget // (evaluation * inputs + own + base)
    rows = max(1, min(num_rows, rows, most // inputs))
    held = rows * (inputs * evaluation + own) + min(bases, rows) * base
    return Plan(inputs, rows, inputs * state + held)


def _noise_bytes(pairs: Sequence[tuple[int, int]], directions: Directions | None, itemsize: int) -> tuple[int, int]:
    """Bytes of noise in memory, at the largest layer: of a displacement, and of a base of flipout."""
    widest = max(map(sum, pairs))
    bias = 4 * max(height for _, height in pairs)
    if directions is not None and directions.name == "lowrank":
        return bias + padded_rank(directions.count) * itemsize * widest, 0
    if directions is not None and directions.name == "flipout":
        # Signs of both sides, and while they are unpacked.
        return bias + (2 * itemsize + 16) * widest, itemsize * max(width * height for width, height in pairs)
    return bias, 0


def _chunks(
    call: Call, num_inputs: int, num_rows: int, max_bytes: int, fused: bool
) -> Iterator[tuple[slice, list[slice]]]:
    """Pieces of the inputs, and for each the pieces of the displacements."""
    if not num_inputs or not num_rows:
        return
    itemsize = operand_dtype(call.precision, call.target).itemsize
    cut = plan(call.widths, num_inputs, num_rows, call.halves, itemsize, max_bytes, fused, call.directions)
    rows = [slice(m, min(m + cut.rows, num_rows)) for m in range(0, num_rows, cut.rows)]
    for n in range(0, num_inputs, cut.inputs):
        yield slice(n, min(n + cut.inputs, num_inputs)), rows
