"""Perturbation evaluation on a GPU: the two ops for CUDA tensors.

Seventh file to read. An evaluation is divided such that its buffers fit the budget (``chunks.py``). Then either a chunk
goes through the layers with one launch for each (``layers.py``), or a group goes through all layers in one launch
(``fused.py``).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from nntk.kernels.activations import decode
from nntk.kernels.dispatch import report_slow_path
from nntk.kernels.fixed_weights import squared_norms
from nntk.kernels.gpu.recorder import Recorded
from nntk.kernels.mlp import Layer, displaced
from nntk.kernels.perturb import reference
from nntk.kernels.perturb.exactness import layers_with_ties, with_integer_rows
from nntk.kernels.perturb.triton.chunks import ChunkPlan, has_short_offsets, plan_chunks, plan_products
from nntk.kernels.perturb.triton.fused import evaluate_fused
from nntk.kernels.perturb.triton.group import PreparedGroup, sort_by_base
from nntk.kernels.perturb.triton.layers import LayerSteps, choose_paths, stacked_bytes, staged_bytes
from nntk.kernels.perturb.triton.operands import LaunchContext, as_operand, operand_rows, pad_rows
from nntk.kernels.perturb.triton.unperturbed import UnperturbedPass
from nntk.kernels.philox.directions import parse
from nntk.kernels.philox.triton import launch as philox
from nntk.kernels.slices import slices
from nntk.kernels.target import target_of

_FLOAT64 = "the kernels evaluate float32; a model in float64 is evaluated in float64"
_WIDE = "a layer is so wide that the kernels' offsets within a row overflow"


@Recorded
def mlp_differences(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor | None],
    activations: list[str],
    activation_parameters: list[float],
    weight_ordinals: list[int],
    bias_ordinals: list[int],
    sample_ids: Tensor,
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
    """Evaluate the op ``nntk::mlp_differences`` for CUDA tensors, or leave it to the reference, as README.md says."""
    layers = [
        Layer(weight, bias, activation, None if w < 0 else w, None if b < 0 or bias is None else b)
        for weight, bias, activation, w, b in zip(
            weights, biases, decode(activations, activation_parameters), weight_ordinals, bias_ordinals, strict=True
        )
    ]
    layers = with_integer_rows(layers)
    widths = (x.shape[1], *(len(weight) for weight in weights))
    if reason := network_obstacle(layers, widths, x.dtype, propagation, precision, directions, path):
        report_slow_path(reason)
        return reference.mlp_differences(
            x, weights, biases, activations, activation_parameters, weight_ordinals, bias_ordinals, sample_ids, scales,
            seed_low, seed_high, directions, pairs, propagation, precision, max_bytes,
        )  # fmt: skip
    target, key = target_of(x.device), (seed_low, seed_high)
    operands = [operand_rows(layer.weight, precision, target) for layer in layers[1:]]
    context = LaunchContext(layers, operands, parse(directions), key, pairs, precision, target, path, max_bytes)
    shape = (len(sample_ids), len(x), context.widths[-1])
    out = torch.empty((2, *shape) if pairs == "both" else shape, dtype=x.dtype, device=x.device)
    if out.numel():
        _evaluate(context, x, sample_ids.contiguous(), scales.float().contiguous(), out)
    return out, _norms(displaced(layers), sample_ids, key, directions)


def _norms(parameters: Mapping[int, Tensor], sample_ids: Tensor, key: philox.Key, directions: str) -> Tensor:
    """Return the squared norms of the unit displacements, [M], float64."""
    if sample_ids.device.type == "cpu":  # The reference is faster than interpreted kernels.
        return squared_norms(parameters, sample_ids, key[0] | key[1] << 32, directions)
    return philox.squared_norms(list(parameters.values()), list(parameters), sample_ids, *key, directions)


def network_obstacle(
    layers: list[Layer],
    widths: Sequence[int],
    dtype: torch.dtype,
    propagation: str,
    precision: str,
    directions: str,
    path: str | None,
) -> str:
    """Return why the kernels cannot evaluate a network; an empty string if they can."""
    if dtype != torch.float32:
        return _FLOAT64
    if propagation != "difference":
        return "propagation='direct' has no kernels; propagation='difference' has, and is as accurate or more"
    if not has_short_offsets(widths, 2):
        return _WIDE
    if path is None and _has_ties(layers, precision, directions):
        return "this network has pre-activations exactly on a jump, which are decided in float64"
    return ""


def _has_ties(layers: list[Layer], precision: str, directions: str) -> bool:
    """Return True if rounding may put a pre-activation on the wrong side of a jump at which it lies exactly."""
    # The kernels multiply float32 as three products of TF32, which are exact for operands that TF32 holds.
    precision = "tf32" if precision == "fp32" else precision
    return any(layers_with_ties(layers, precision, parse(directions).name))


@Recorded
def displacement_products(
    q: Tensor,
    height: int,
    ordinal: int,
    sample_ids: Tensor,
    seed_low: int,
    seed_high: int,
    directions: str,
    max_bytes: int,
) -> Tensor:
    """Evaluate the op ``nntk::displacement_products`` for CUDA tensors by the layer step without weight."""
    reason = _FLOAT64 if q.dtype != torch.float32 else "" if has_short_offsets((q.shape[-1], height), 1) else _WIDE
    if reason:
        report_slow_path(reason)
        return reference.displacement_products(
            q, height, ordinal, sample_ids, seed_low, seed_high, directions, max_bytes
        )
    family, (length, width), target = parse(directions), q.shape[-2:], target_of(q.device)
    # Only the shape of this weight is read.
    layer = Layer(q.new_zeros(()).expand(height, width), weight_ordinal=ordinal)
    context = LaunchContext([layer], [], family, (seed_low, seed_high), "none", "fp32", target, "step", max_bytes)
    out = torch.empty(len(sample_ids), length, height, dtype=q.dtype, device=q.device)
    ones = torch.ones(len(sample_ids), dtype=torch.float32, device=q.device)
    order, sample_ids, ones = sort_by_base(context, sample_ids.contiguous(), ones)
    plan = plan_products(width, height, length, len(sample_ids), q.itemsize, max_bytes, family)
    for inputs in slices(length, plan.block_inputs):
        for chunk in slices(len(sample_ids), plan.chunk_samples):
            samples = chunk if order is None else order[chunk]
            operand = q[inputs] if q.dim() == 2 else _rows(q[:, inputs], samples)
            padded = pad_rows(operand.reshape(-1, width)).view(*operand.shape[:-1], -1)
            part = out[:, inputs] if isinstance(samples, Tensor) else out[samples, inputs]
            _multiply(context, padded, sample_ids[chunk], ones[chunk], part, None if order is None else order[chunk])
    return out


def _rows(tensor: Tensor, rows: slice | Tensor) -> Tensor:
    """Return some rows of a tensor."""
    # For all that PyTorch knows, an index may be a mask, and calls with masks are not recorded.
    return tensor[rows] if isinstance(rows, slice) else tensor.index_select(0, rows)


def _multiply(
    context: LaunchContext, q: Tensor, sample_ids: Tensor, ones: Tensor, out: Tensor, order: Tensor | None
) -> None:
    """Fill ``out``, [M, n, H], or rows of it, with products of [M, n, padded(K)] or [n, padded(K)] with the noise."""
    base_pass = UnperturbedPass(q.shape[-2], [(ones,)], [], [as_operand(q, context.precision, context.target)])
    steps = LayerSteps(context, base_pass, len(sample_ids), ["step"])
    steps(PreparedGroup.prepare(context, sample_ids, ones, len(sample_ids)), out, order)


def network_paths(context: LaunchContext, num_inputs: int) -> list[str]:
    """Return the path of each layer, one of ``config.PATHS``; the fused path is that of all layers or of none."""
    if context.fused_tiles() is not None:
        return ["fused"] * len(context.layers)
    return choose_paths(context, num_inputs)


def _evaluate(context: LaunchContext, x: Tensor, sample_ids: Tensor, scales: Tensor, out: Tensor) -> None:
    """Fill ``out``, [M, N, C] or [2, M, N, C], one input block after another."""
    order, sample_ids, scales = sort_by_base(context, sample_ids, scales)
    paths = network_paths(context, len(x))
    fused = "fused" in paths
    plan = plan_chunks(
        context.widths, len(x), len(sample_ids), context.members, context.dtype.itemsize, context.max_bytes,
        context.directions, fused, 0 if fused else staged_bytes(context, paths),
        0 if fused else stacked_bytes(context, paths),
    )  # fmt: skip
    # The buffers of an input block are local to the function below, so they are freed before the next block starts.
    for block in slices(len(x), plan.block_inputs):
        given, part = (context, x[block], block.start == 0), out[..., block, :]
        if fused:
            _evaluate_fused(*given, sample_ids, scales, plan.group_samples, part)
        else:
            _evaluate_layers(*given, sample_ids, scales, order, paths, plan, part)


def _evaluate_fused(
    context: LaunchContext, x: Tensor, is_first: bool, sample_ids: Tensor, scales: Tensor, group_samples: int,
    out: Tensor,
) -> None:  # fmt: skip
    base_pass = UnperturbedPass.evaluate(context, x, is_first)
    for group in slices(len(sample_ids), group_samples):
        evaluate_fused(context, base_pass, sample_ids[group], scales[group], out[..., group, :, :])


def _evaluate_layers(
    context: LaunchContext, x: Tensor, is_first: bool, sample_ids: Tensor, scales: Tensor, order: Tensor | None,
    paths: list[str], plan: ChunkPlan, out: Tensor,
) -> None:  # fmt: skip
    steps = LayerSteps(context, UnperturbedPass.evaluate(context, x, is_first), plan.chunk_samples, paths)

    def evaluate(group: slice) -> None:
        # The noise vectors are freed as soon as the steps are done.
        prepared = PreparedGroup.prepare(context, sample_ids[group], scales[group], plan.chunk_samples)
        if order is None:
            steps(prepared, out[..., group, :, :])
        else:
            steps(prepared, out, order[group])

    for group in slices(len(sample_ids), plan.group_samples):
        evaluate(group)
