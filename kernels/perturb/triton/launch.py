"""Perturbation evaluation on a GPU: the ops, cut into pieces that fit the budget (``chunks.py``).

A chunk goes through the layers one launch at a time (``layers.py``), or a group through all at once (``fused.py``).
"""

import torch
from torch import Tensor

from nntk.kernels.fixed_weights import squared_norms
from nntk.kernels.mlp import Layer, displaced
from nntk.kernels.perturb import reference
from nntk.kernels.perturb.activations import decode
from nntk.kernels.perturb.triton.chunks import Plan, pieces, plan, plan_products
from nntk.kernels.perturb.triton.fused import evaluate_fused
from nntk.kernels.perturb.triton.group import Group
from nntk.kernels.perturb.triton.layers import Layers, paths_of, staged_bytes
from nntk.kernels.perturb.triton.operands import Call, Unmoved, as_operand, pad
from nntk.kernels.philox.directions import parse
from nntk.kernels.target import target_of


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
    call = Call(layers, operands, parse(directions), key, pairs, precision, target, path, max_bytes)
    shape = (len(rows), len(x), call.widths[-1])
    out = x.new_empty((2, *shape) if pairs == "both" else shape)
    if out.numel():
        _evaluate(call, x, rows.contiguous(), scales.float().contiguous(), out)
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
    call = Call([layer], [], family, (seed_low, seed_high), "none", "fp32", target, "step", max_bytes)
    out = q.new_empty(len(rows), length, height)
    order = _order(call, rows)
    cut = plan_products(width, height, length, len(rows), q.itemsize, max_bytes, family)
    for inputs in pieces(length, cut.inputs):
        for some in pieces(len(rows), cut.rows):
            at = some if order is None else order[some]
            operand = q[inputs] if q.dim() == 2 else q[:, inputs][at]
            padded = pad(operand.reshape(-1, width)).view(*operand.shape[:-1], -1)
            out[at, inputs] = _multiply(call, padded, rows[at].contiguous())
    return out


def _multiply(call: Call, q: Tensor, rows: Tensor) -> Tensor:
    """Products of [M, n, padded(K)] or [n, padded(K)] with the noise of the only layer, [M, n, H], a view."""
    one = torch.ones(len(rows), device=q.device)
    unmoved = Unmoved(q.shape[-2], [(one,)], [], [as_operand(q, call.precision, call.target)])
    made = Layers(call, unmoved, len(rows), ["step"])(Group.of(call, rows, one, len(rows)))
    return made[:, 0, :, : call.widths[-1]]


def _evaluate(call: Call, x: Tensor, rows: Tensor, scales: Tensor, out: Tensor) -> None:
    """Fill ``out``, [M, N, C] or [2, M, N, C], piece by piece."""
    order = _order(call, rows)
    if order is not None:
        rows, scales = rows[order], scales[order]
    fused = call.fused() is not None
    paths = [] if fused else paths_of(call, len(x))
    cut = plan(
        call.widths, len(x), len(rows), call.halves, call.dtype.itemsize, call.max_bytes, call.directions, fused,
        0 if fused else staged_bytes(call, paths),
    )  # fmt: skip
    # What a piece holds is its function's own, and gone before the next one begins.
    for inputs in pieces(len(x), cut.inputs):
        if fused:
            _evaluate_fused(call, x[inputs], rows, scales, cut.group, out[..., inputs, :])
        else:
            _evaluate_layers(call, x[inputs], rows, scales, order, paths, cut, out[..., inputs, :])


def _evaluate_fused(call: Call, x: Tensor, rows: Tensor, scales: Tensor, group: int, out: Tensor) -> None:
    unmoved = Unmoved.of(call, x)
    for some in pieces(len(rows), group):
        evaluate_fused(call, unmoved, rows[some], scales[some], out[..., some, :, :])


def _evaluate_layers(
    call: Call, x: Tensor, rows: Tensor, scales: Tensor, order: Tensor | None, paths: list[str], cut: Plan, out: Tensor
) -> None:
    layers = Layers(call, Unmoved.of(call, x), cut.rows, paths)

    def evaluate(some: slice) -> None:
        made = _paired(call, layers(Group.of(call, rows[some], scales[some], cut.rows)))
        if order is None:
            out[..., some, :, :] = made
        else:
            out.index_copy_(-3, order[some], made)

    for some in pieces(len(rows), cut.group):
        evaluate(some)


def _order(call: Call, rows: Tensor) -> Tensor | None:
    """Of flipout, whose displacements stand together that share a base: a chunk has few of them."""
    return torch.argsort(rows % call.directions.count, stable=True) if call.directions.name == "flipout" else None


def _paired(call: Call, made: Tensor) -> Tensor:
    """Of [M, halves, N, padded(C)], which is overwritten, [M, N, C] or [2, M, N, C]."""
    last = made[..., : call.widths[-1]]
    if call.pairs == "both":
        return last.transpose(0, 1)
    return last[:, 0] if call.pairs == "none" else last[:, 0].sub_(last[:, 1]).mul_(0.5)
