"""Noise vectors of a group of displacements, generated at once for many chunks.

Fifth file to read, after unperturbed.py. The vectors are bias noise, factors of low rank and signs of flipout. Matrices
of noise belong to a chunk, and layers.py writes them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nntk.kernels.gpu.launches import launch
from nntk.kernels.mlp import Layer
from nntk.kernels.perturb.noise import FORMED_UNITS
from nntk.kernels.perturb.triton import config, kernel, passes
from nntk.kernels.perturb.triton.chunks import padded_rank
from nntk.kernels.perturb.triton.operands import LaunchContext
from nntk.kernels.philox.integers import INPUT_SIGNS, OUTPUT_SIGNS
from nntk.kernels.philox.triton import launch as philox
from nntk.kernels.philox.triton.launch import Matrix, Vector
from nntk.kernels.slices import count, slices

ASSIGNED = 256
"""Displacements, or slots, that a program of ``passes.assign_bases`` looks at."""
SORTED_TOGETHER = 2**14
"""Most displacements that one launch of ``passes.sort_by_base`` sorts; PyTorch sorts more."""
SORTED_TILE = (64, 32)
"""Displacements of a program of that launch, and those that it compares them with at once."""
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
        samples, slot_count = len(sample_ids), min(bases, chunk_samples)
        slots = torch.empty(samples, dtype=torch.int32, device=sample_ids.device)
        shape = (count(samples, chunk_samples), slot_count)
        base_ids = torch.empty(shape, dtype=torch.int64, device=sample_ids.device)
        launch(
            passes.assign_bases, count(samples, ASSIGNED) + count(base_ids.numel(), ASSIGNED), sample_ids, slots,
            base_ids, samples, bases, chunk_samples, slot_count, chunk_samples.bit_length() + 1, ASSIGNED,
            **config.OPTIONS,
        )  # fmt: skip
        return cls(base_ids, slots)


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
        return cls(sample_ids, scales, _generate(context, sample_ids), bases)


def sort_by_base(context: LaunchContext, sample_ids: Tensor, scales: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
    """Sort displacements of flipout by base, so that a chunk has few bases; those of a base keep their order.

    Args:
        context: Settings that all launches share.
        sample_ids: Stream numbers m, [M], int64, contiguous.
        scales: Scales s_m, [M], float32, contiguous.

    Returns:
        The numbers of the displacements in order, None for other families; and what was given in this order.
    """
    samples, bases = len(sample_ids), context.directions.count
    if context.directions.name != "flipout":
        return None, sample_ids, scales
    if samples > SORTED_TOGETHER:
        order = torch.argsort(sample_ids % bases, stable=True)
        return order, sample_ids.index_select(0, order), scales.index_select(0, order)
    order, sorted_ids = torch.empty((2, samples), dtype=torch.int64, device=sample_ids.device)
    sorted_scales = torch.empty(samples, dtype=torch.float32, device=sample_ids.device)
    launch(
        passes.sort_by_base, count(samples, SORTED_TILE[0]), sample_ids, scales, order, sorted_ids, sorted_scales,
        samples, bases, *SORTED_TILE, **config.OPTIONS,
    )  # fmt: skip
    return order, sorted_ids, sorted_scales


def is_formed(context: LaunchContext, layer: Layer) -> bool:
    """Return whether E of low rank is written for a layer of few units, whose only tile reads differences once."""
    return context.noise_source(layer) == "lowrank" and len(layer.weight) <= FORMED_UNITS


def _generate(context: LaunchContext, sample_ids: Tensor) -> list[PerSampleNoise]:
    """Generate the noise vectors of all layers: the biases by one launch, and flipout's signs by another."""
    layers, uses_signs = context.layers, context.directions.name != "gaussian"
    # What pads a row is noise too, and is never read.
    biases = [
        None if layer.bias_ordinal is None else Vector(layer.bias_ordinal, philox.padded(len(layer.weight)))
        for layer in layers
    ]
    signs = [
        Vector(layer.weight_ordinal, philox.padded(length), purpose)
        for layer in layers
        if layer.weight_ordinal is not None and context.directions.name == "flipout"
        for length, purpose in zip(layer.weight.shape, (OUTPUT_SIGNS, INPUT_SIGNS), strict=True)
    ]
    wanted = [vector for vector in biases if vector is not None]
    written = iter(philox.vectors(sample_ids, wanted, context.key, uses_signs, torch.float32))
    written_signs = iter(philox.vectors(sample_ids, signs, context.key, True, context.dtype))
    factors, noise = _factors_of_rank_one(context, sample_ids), []
    for layer, bias in zip(layers, biases, strict=True):
        vectors = PerSampleNoise(None if bias is None else next(written))
        match context.noise_source(layer):
            case "flipout":
                vectors = replace(vectors, out_signs=next(written_signs), in_signs=next(written_signs))
            case "lowrank" if is_formed(context, layer):
                vectors = replace(vectors, formed=_form(context, layer, sample_ids, next(factors)))
            case "lowrank":
                left, right, scale = next(factors) or _factors(context, layer, sample_ids)
                vectors = replace(vectors, left=left, right=right, coefficients=scale)
        noise.append(vectors)
    return noise


def _factors_of_rank_one(context: LaunchContext, sample_ids: Tensor) -> Iterator[philox.Factors | None]:
    """Generate the factors of all layers of rank one together; None for layers of which fewer are held at a time."""
    layers = [layer for layer in context.layers if context.noise_source(layer) == "lowrank"]
    is_rank_one = context.directions.count == 1
    few = len(sample_ids) <= _held_samples(context, [layer for layer in layers if is_formed(context, layer)])
    together = [is_rank_one and (few or not is_formed(context, layer)) for layer in layers]
    matrices = [
        Matrix(layer.weight_ordinal or 0, len(layer.weight), layer.weight.shape[1], _factor_rows(context, layer))
        for layer, is_together in zip(layers, together, strict=True)
        if is_together
    ]
    factors = iter(philox.rank_one_factors(sample_ids, matrices, context.key, context.dtype))
    return iter([next(factors) if is_together else None for is_together in together])


def _held_samples(context: LaunchContext, layers: Sequence[Layer]) -> int:
    """Return the displacements whose factors are held at a time while E of some layers is formed."""
    lengths = [philox.padded(length) for layer in layers for length in layer.weight.shape]
    sample_bytes = context.dtype.itemsize * context.directions.count * sum(lengths)
    return max(1, context.temporary_bytes // max(1, sample_bytes))


def _factor_rows(context: LaunchContext, layer: Layer) -> int:
    """Return the rows of a factor in memory: zeros behind its rank where a product reads it."""
    rank = context.directions.count
    return rank if is_formed(context, layer) else padded_rank(rank)


def _form(context: LaunchContext, layer: Layer, sample_ids: Tensor, factors: philox.Factors | None) -> Tensor:
    """Form E of low rank as operands, [M, H, padded(K)], from its factors, which are generated if not given."""
    (height, width), rank = layer.weight.shape, context.directions.count
    columns, block_h = philox.padded(width), config.power_of_two(height, 1, FORMED_UNITS)
    formed = torch.empty(len(sample_ids), height, columns, dtype=context.dtype, device=sample_ids.device)
    for samples in slices(len(sample_ids), _held_samples(context, [layer])):
        left, right, scale = factors or _factors(context, layer, sample_ids[samples])
        launch(
            kernel.form, len(scale) * count(columns, FORMED_COLUMNS), left, right, left.stride(1), scale,
            formed[samples], columns, height, rank, context.input_precision, block_h, FORMED_COLUMNS, **config.OPTIONS,
        )  # fmt: skip
    return formed


def _factors(context: LaunchContext, layer: Layer, sample_ids: Tensor) -> philox.Factors:
    """Generate factors of low rank, [M, rows, padded(H)] and [.., padded(K)], and their scales, float64."""
    assert layer.weight_ordinal is not None, "the weight is displaced"
    (height, width), rank = layer.weight.shape, context.directions.count
    return philox.lowrank_factors(
        sample_ids, rank, layer.weight_ordinal, height, width, context.key, context.dtype, _factor_rows(context, layer),
        context.temporary_bytes,
    )  # fmt: skip
