"""Noise vectors of a group of displacements, generated at once for many chunks.

Fifth file to read, after unperturbed.py. The vectors are bias noise, factors of low rank and signs of flipout. Matrices
of noise belong to a chunk, and layers.py writes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nntk.kernels.gpu.launches import launch
from nntk.kernels.mlp import Layer
from nntk.kernels.perturb.noise import FORMED_UNITS
from nntk.kernels.perturb.triton import config, kernel
from nntk.kernels.perturb.triton.chunks import padded_rank
from nntk.kernels.perturb.triton.operands import LaunchContext
from nntk.kernels.philox.integers import INPUT_SIGNS, OUTPUT_SIGNS
from nntk.kernels.philox.triton import launch as philox
from nntk.kernels.slices import count, slices

FORMED_COLUMNS = 64
"""Columns of E that a program forms, for all units of a layer."""


@dataclass(frozen=True)
class PerSampleNoise:
    """Noise vectors of one layer for M displacements; None for what the family or the layer does not have."""

    bias: Tensor | None = None
    """Bias noise e_m, [M, padded(H)], float32."""
    formed: Tensor | None = None
    """With low rank in layers of few units: E_m as operands, [M, H, padded(K)]."""
    left: Tensor | None = None
    """With low rank in other layers: left factors, [M, padded rank, padded(H)], zero beyond their rank."""
    right: Tensor | None = None
    """With low rank in other layers: right factors, [M, padded rank, padded(K)]."""
    coefficients: Tensor | None = None
    """With low rank in other layers: scales c_m of the products of factors, [M], float64."""
    in_signs: Tensor | None = None
    """With flipout: s_m as operands, [M, padded(K)]."""
    out_signs: Tensor | None = None
    """With flipout: r_m as operands, [M, padded(H)]."""


@dataclass(frozen=True)
class FlipoutBases:
    """Bases of flipout that each chunk of a group uses, where displacements are sorted by base.

    The bases are known on the device only, and the host does not wait for them. So a chunk has as many slots as it can
    have bases, and unused slots stay empty.
    """

    base_ids: Tensor
    """Base in each slot, [chunks, slots], int64; -1 where the slot is empty."""
    slots: Tensor
    """Slot of the base of each displacement, [M], int32."""

    @classmethod
    def assign(cls, sample_ids: Tensor, bases: int, chunk_samples: int) -> "FlipoutBases":
        """Assign each base of a chunk one slot; chunks have ``chunk_samples`` displacements, the last maybe fewer."""
        missing = -len(sample_ids) % chunk_samples
        base = torch.cat([sample_ids, sample_ids[-1:].expand(missing)]).view(-1, chunk_samples) % bases
        starts = torch.ones_like(base)
        starts[:, 1:] = base[:, 1:] != base[:, :-1]
        slots = starts.cumsum(1) - 1
        base_ids = torch.full((len(base), min(bases, chunk_samples)), -1, dtype=torch.int64, device=sample_ids.device)
        return cls(base_ids.scatter_(1, slots, base), slots.flatten()[: len(sample_ids)].int())


@dataclass(frozen=True)
class PreparedGroup:
    """Displacements with their noise vectors."""

    sample_ids: Tensor
    """Stream numbers m, [M], int64; with flipout sorted by base."""
    scales: Tensor
    """Scales s_m, [M], float32."""
    noise: Sequence[PerSampleNoise]
    """Noise vectors of each layer."""
    bases: FlipoutBases | None
    """Bases of flipout; None for other families."""

    @classmethod
    def prepare(cls, context: LaunchContext, sample_ids: Tensor, scales: Tensor, chunk_samples: int) -> "PreparedGroup":
        """Generate the noise vectors of displacements that are evaluated ``chunk_samples`` at a time."""
        family, bases = context.directions, None
        if family.name == "flipout":
            bases = FlipoutBases.assign(sample_ids, family.count, chunk_samples)
        return cls(sample_ids, scales, [_generate(context, layer, sample_ids) for layer in context.layers], bases)


def is_formed(context: LaunchContext, layer: Layer) -> bool:
    """Return whether E of low rank is written for a layer of few units, whose only tile reads differences once."""
    return context.noise_source(layer) == "lowrank" and len(layer.weight) <= FORMED_UNITS


def _generate(context: LaunchContext, layer: Layer, sample_ids: Tensor) -> PerSampleNoise:
    bias = None if layer.bias_ordinal is None else _bias(context, layer, sample_ids)
    source = context.noise_source(layer)
    if source == "flipout":
        height, width = layer.weight.shape
        return PerSampleNoise(
            bias,
            in_signs=_signs(context, layer, sample_ids, width, INPUT_SIGNS),
            out_signs=_signs(context, layer, sample_ids, height, OUTPUT_SIGNS),
        )
    if is_formed(context, layer):
        return PerSampleNoise(bias, formed=_form(context, layer, sample_ids))
    if source == "lowrank":
        left, right, scale = _factors(context, layer, sample_ids, padded_rank(context.directions.count))
        return PerSampleNoise(bias, left=left, right=right, coefficients=scale)
    return PerSampleNoise(bias)


def _bias(context: LaunchContext, layer: Layer, sample_ids: Tensor) -> Tensor:
    """Generate bias noise, [M, padded(H)], float32."""
    assert layer.bias_ordinal is not None, "the bias is displaced"
    length, uses_signs = philox.padded(len(layer.weight)), context.directions.name != "gaussian"
    noise = torch.empty(len(sample_ids), length, dtype=torch.float32, device=sample_ids.device)
    # What pads a row is noise too, and is never read.
    philox.write_vector(noise, sample_ids, layer.bias_ordinal, length, context.key, uses_signs)
    return noise


def _signs(context: LaunchContext, layer: Layer, sample_ids: Tensor, length: int, purpose: int) -> Tensor:
    """Generate the signs of a vector as operands, [M, padded(length)]."""
    assert layer.weight_ordinal is not None, "the weight is displaced"
    signs = torch.empty(len(sample_ids), philox.padded(length), device=sample_ids.device, dtype=context.dtype)
    philox.write_vector(signs, sample_ids, layer.weight_ordinal, signs.shape[1], context.key, True, purpose)
    return signs


def _form(context: LaunchContext, layer: Layer, sample_ids: Tensor) -> Tensor:
    """Form E of low rank as operands, [M, H, padded(K)]."""
    (height, width), rank = layer.weight.shape, context.directions.count
    columns, block_h = philox.padded(width), config.power_of_two(height, 1, FORMED_UNITS)
    formed = torch.empty(len(sample_ids), height, columns, dtype=context.dtype, device=sample_ids.device)
    sample_bytes = context.dtype.itemsize * rank * (philox.padded(height) + columns)
    for samples in slices(len(sample_ids), max(1, context.temporary_bytes // sample_bytes)):
        left, right, scale = _factors(context, layer, sample_ids[samples], rank)
        launch(
            kernel.form, len(scale) * count(columns, FORMED_COLUMNS), left, right, left.stride(1), scale,
            formed[samples], columns, height, rank, context.input_precision, block_h, FORMED_COLUMNS, **config.OPTIONS,
        )  # fmt: skip
    return formed


def _factors(
    context: LaunchContext, layer: Layer, sample_ids: Tensor, factor_rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Generate factors of low rank, [M, factor_rows, padded(H)] and [.., padded(K)], and their scales, float64."""
    assert layer.weight_ordinal is not None, "the weight is displaced"
    (height, width), rank = layer.weight.shape, context.directions.count
    return philox.lowrank_factors(
        sample_ids, rank, layer.weight_ordinal, height, width, context.key, context.dtype, factor_rows,
        context.temporary_bytes,
    )  # fmt: skip
