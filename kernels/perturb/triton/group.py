"""Noise that each displacement of a group has to itself, but for its matrices: made at once for many chunks."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nntk.kernels.mlp import Layer
from nntk.kernels.perturb.noise import FORMED_UNITS
from nntk.kernels.perturb.triton.chunks import padded_rank, pieces
from nntk.kernels.perturb.triton.operands import Call, as_operand
from nntk.kernels.philox.integers import INPUT_SIGNS, OUTPUT_SIGNS
from nntk.kernels.philox.triton import launch as philox


@dataclass(frozen=True)
class Own:
    """One layer's; None what its family does not have."""

    bias: Tensor | None = None
    """Bias noise e_m, [M, padded(H)], float32."""
    formed: Tensor | None = None
    """With low rank, of layers of few units, E_m as operands, [M, H, padded(K)]."""
    left: Tensor | None = None
    """With low rank, of other layers, left factors, [M, rank, padded(H)], zero beyond their own rank."""
    right: Tensor | None = None
    """And right ones, [M, rank, padded(K)]."""
    coefficients: Tensor | None = None
    """And their scales, [M], float32."""
    in_signs: Tensor | None = None
    """With flipout s_m as operands, [M, padded(K)]."""
    out_signs: Tensor | None = None
    """And r_m, [M, padded(H)]."""

    def __getitem__(self, some: slice) -> "Own":
        """Of some displacements."""
        return Own(**{name: None if part is None else part[some] for name, part in vars(self).items()})


@dataclass(frozen=True)
class Bases:
    """The bases of flipout that each chunk of a group needs, rows being sorted by base.

    Which they are stays on the device, so nobody waits for it: a chunk has as many slots as it may have bases, and
    those left over stay empty.
    """

    numbers: Tensor
    """Base of each slot, [chunks, slots], int64, -1 where it is empty."""
    slots: Tensor
    """Slot of each row's base, [M], int32."""

    @classmethod
    def of(cls, rows: Tensor, bases: int, chunk: int) -> "Bases":
        """The bases of rows that are taken ``chunk`` at a time, each once in a chunk."""
        missing = -len(rows) % chunk
        base = torch.cat([rows, rows[-1:].expand(missing)]).view(-1, chunk) % bases
        starts = torch.ones_like(base)
        starts[:, 1:] = base[:, 1:] != base[:, :-1]
        slots = starts.cumsum(1) - 1
        numbers = torch.full((len(base), min(bases, chunk)), -1, dtype=torch.int64, device=rows.device)
        return cls(numbers.scatter_(1, slots, base), slots.flatten()[: len(rows)].int())


@dataclass(frozen=True)
class Group:
    """Displacements that share their preparation."""

    rows: Tensor
    """Row numbers, [M], int64; of flipout sorted by base."""
    scales: Tensor
    """s_m, [M], float32."""
    own: Sequence[Own]
    """Of each layer."""
    bases: Bases | None
    """With flipout."""

    @classmethod
    def of(cls, call: Call, rows: Tensor, scales: Tensor, chunk: int) -> "Group":
        """Prepare some displacements, which are taken ``chunk`` at a time."""
        family = call.directions
        bases = Bases.of(rows, family.count, chunk) if family.name == "flipout" else None
        return cls(rows, scales, [_own(call, layer, rows) for layer in call.layers], bases)


def is_formed(call: Call, layer: Layer) -> bool:
    """Whether low rank's E is written: a tile of units, which then reads differences once."""
    return call.source(layer) == "lowrank" and len(layer.weight) <= FORMED_UNITS


def _own(call: Call, layer: Layer, rows: Tensor) -> Own:
    bias = None if layer.bias_ordinal is None else _bias(call, layer, rows)
    source = call.source(layer)
    if source == "flipout":
        height, width = layer.weight.shape
        return Own(
            bias,
            in_signs=_signs(call, layer, rows, width, INPUT_SIGNS),
            out_signs=_signs(call, layer, rows, height, OUTPUT_SIGNS),
        )
    if is_formed(call, layer):
        return Own(bias, formed=_formed(call, layer, rows))
    if source == "lowrank":
        left, right, scale = _factors(call, layer, rows, padded_rank(call.directions.count))
        return Own(bias, left=left, right=right, coefficients=scale.float())
    return Own(bias)


def _bias(call: Call, layer: Layer, rows: Tensor) -> Tensor:
    height = len(layer.weight)
    noise = torch.zeros(len(rows), philox.padded(height), device=rows.device)
    assert layer.bias_ordinal is not None, "the bias moves"
    philox.write_vector(noise, rows, layer.bias_ordinal, height, call.key, call.directions.name != "gaussian")
    return noise


def _signs(call: Call, layer: Layer, rows: Tensor, length: int, purpose: int) -> Tensor:
    """Signs of a vector as operands, [M, padded(length)]: 128 at a time are made, of 16 bytes each on their way."""
    assert layer.weight_ordinal is not None, "the weight moves"
    signs = torch.zeros(len(rows), philox.padded(length), dtype=call.dtype, device=rows.device)
    for some in pieces(len(rows), max(1, call.piece_bytes // (16 * 128 * -(-length // 128)))):
        packed = philox.packed_signs(rows[some], layer.weight_ordinal, length, call.key, purpose)
        signs[some, :length] = philox.signs_of(packed, length, call.dtype)
    return signs


def _formed(call: Call, layer: Layer, rows: Tensor) -> Tensor:
    """E of low rank as operands: in float32 first, of factors that are copied to it."""
    (height, width), rank = layer.weight.shape, call.directions.count
    line = philox.padded(width)
    formed = torch.empty(len(rows), height, line, dtype=call.dtype, device=rows.device)
    row = 4 * height * line + (4 + call.dtype.itemsize) * rank * (philox.padded(height) + line)
    for some in pieces(len(rows), max(1, call.piece_bytes // row)):
        left, right, scale = _factors(call, layer, rows[some], rank)
        product = left[..., :height].float().mT @ right.float()
        formed[some] = as_operand(product.mul_(scale.float()[:, None, None]), call.precision, call.target)
    return formed


def _factors(call: Call, layer: Layer, rows: Tensor, lines: int) -> tuple[Tensor, Tensor, Tensor]:
    """Low rank's factors, [M, lines, padded(H)] and [M, lines, padded(K)], and their scales, float64."""
    assert layer.weight_ordinal is not None, "the weight moves"
    (height, width), rank = layer.weight.shape, call.directions.count
    return philox.lowrank_factors(
        rows, rank, layer.weight_ordinal, height, width, call.key, call.dtype, lines, call.piece_bytes
    )
