"""Layer by layer: the buffers between launches, and the noise that each layer step reads."""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from nntk.kernels.perturb import kernel, tiles
from nntk.kernels.perturb.noise import FORMED_UNITS
from nntk.kernels.perturb.operands import Call, Unmoved, as_operand, described, pad, parameters
from nntk.kernels.philox import launch as philox
from nntk.kernels.philox.reference import DISPLACEMENT, INPUT_SIGNS, OUTPUT_SIGNS

LEAST_RANK = 16
"""Low rank is padded to what a product sums over at least."""


def padded_rank(rank: int) -> int:
    """Rows of a factor in memory."""
    return tiles.power_of_two(rank, LEAST_RANK, 64)


@dataclass(frozen=True)
class _Bases:
    """The bases of flipout that a chunk needs, its rows being sorted by base.

    Which they are stays on the device, so nobody waits for it: there are as many slots as there may be bases, and those
    left over stay empty.
    """

    numbers: Tensor
    """Base of each slot, int64, -1 where it is empty."""
    slots: Tensor
    """Slot of each row's base, int32."""

    @classmethod
    def of(cls, rows: Tensor, bases: int) -> "_Bases":
        """The bases of some rows, each once."""
        base = rows % bases
        starts = torch.ones_like(base)
        starts[1:] = base[1:] != base[:-1]
        slots = starts.cumsum(0) - 1
        numbers = torch.full((min(bases, len(rows)),), -1, dtype=torch.int64, device=rows.device)
        return cls(numbers.scatter_(0, slots, base), slots.int())


@dataclass(frozen=True)
class _Noise:
    """Noise that the layer step reads: slabs or bases [groups, H, K], or left factors [M, rank, H]."""

    operand: TensorDescriptor | None = None
    slots: Tensor | None = None
    """With flipout where each displacement's base stands."""
    factors: TensorDescriptor | None = None
    """With low rank the columns' products with the right factors, [M, halves, N, rank]."""
    in_signs: TensorDescriptor | None = None
    """With flipout s_m, [M, K]."""
    out_signs: Tensor | None = None
    """With flipout r_m, [M, padded(H)]."""
    rank: int = LEAST_RANK


@dataclass(frozen=True)
class _Chunk:
    """Some inputs and some displacements."""

    call: Call
    unmoved: Unmoved
    rows: Tensor
    scales: Tensor
    bases: _Bases | None
    """With flipout."""


@dataclass(frozen=True)
class _Operands:
    """What one layer reads of the one before: its differences d, and q = +-(h + s d), [M, halves, N, padded(K)]."""

    q: Tensor | None
    """At layer 0 the inputs, [N, K]; None where no product takes it."""
    d: Tensor | None
    """None where the product with the weight is not made here, as at layer 0."""
    first: bool = False
    """Whether this is layer 0, or a product of its own of what is given, [N, K] or [M, N, K]."""


def evaluate_layers(call: Call, unmoved: Unmoved, rows: Tensor, scales: Tensor) -> Tensor:
    """Layer by layer; rows of flipout sorted by base. Returns [M, N, C] or [2, M, N, C], a view of a buffer."""
    bases = _Bases.of(rows, call.directions.count) if call.directions.name == "flipout" else None
    chunk = _Chunk(call, unmoved, rows, scales, bases)
    operands = _Operands(unmoved.operands[0], None, first=True)
    for number in range(len(call.layers)):
        operands = _Step(chunk, number, operands).launch()
    assert operands.d is not None, "there is a last layer"
    last = operands.d[..., : call.widths[-1]]
    if call.pairs == "both":
        return last.transpose(0, 1)
    return last[:, 0] if call.pairs == "none" else last[:, 0].sub_(last[:, 1]).mul_(0.5)


def multiply_noise(call: Call, q: Tensor, rows: Tensor) -> Tensor:
    """Products of [M, n, padded(K)] or [n, padded(K)] with the noise of the only layer; rows of flipout sorted by base.

    Returns:
        [M, n, H], a view of a buffer.
    """
    bases = _Bases.of(rows, call.directions.count) if call.directions.name == "flipout" else None
    one, operand = torch.ones(len(rows), device=q.device), as_operand(q, call.precision, call.target)
    chunk = _Chunk(call, Unmoved(q.shape[-2], [(one,)], [], []), rows, one, bases)
    made = _Step(chunk, 0, _Operands(operand, None, first=True)).launch().d
    assert made is not None, "the layer gives it"
    return made[:, 0, :, : call.widths[-1]]


class _Step:
    """One layer of one chunk: its buffers, its noise, its launch."""

    def __init__(self, chunk: _Chunk, number: int, operands: _Operands) -> None:
        self.chunk, self.call, self.rows, self.operands = chunk, chunk.call, chunk.rows, operands
        self.number, self.layer, self.first = number, self.call.layers[number], operands.first
        self.height, self.width = self.layer.weight.shape
        self.num_inputs = chunk.unmoved.num_inputs
        self.halves = 1 if self.first else self.call.halves
        """Of the columns: at layer 0 one stands for both."""
        self.columns = self.num_inputs * self.halves
        """Columns of one displacement."""
        self.source = self.call.source(self.layer)
        self.last = number + 1 == len(self.call.layers)
        self.formed = self.source == "lowrank" and self.height <= FORMED_UNITS
        """Whether low rank's E is written: a tile of units, which then reads differences once."""

    def launch(self) -> _Operands:
        """Evaluate the layer; what the next one reads."""
        shape = (len(self.rows), self.call.halves, self.num_inputs, philox.padded(self.height))
        d = torch.empty(shape, dtype=torch.float32 if self.last else self.call.dtype, device=self.rows.device)
        q = torch.empty_like(d) if self._gives_q() else None
        bias = self._bias_noise()
        path = self._path()
        if path == "staged" or self.formed:
            self._staged(d, q, bias)
        elif path == "stationary":
            self._stationary(d, q, bias)
        else:
            self._in_registers(d, q, bias, slice(0, len(self.rows)), None)
        return _Operands(q, d)

    def _gives_q(self) -> bool:
        """Whether the next layer multiplies q."""
        following = None if self.last else self.call.layers[self.number + 1].weight_ordinal
        return following is not None and self.call.directions.name != "lowrank"

    def _path(self) -> str:
        call, forced = self.call, self.call.path
        if self.source == "none" or forced == "step":
            return "step"
        problem = (self.source, call.precision, self.width)
        if forced is None:
            return tiles.choose_path_on(call.target, *problem, self.height, self.columns, self.first)
        if not tiles.applies(forced, *problem, call.target.arch):
            raise ValueError(
                f"path {forced!r} does not apply to {self.source} in {call.precision} with {self.width} inputs of a "
                f"layer on {call.target.arch}; leave the choice to the cost model with None, or force 'step'."
            )
        return forced

    def _bias_noise(self) -> Tensor | None:
        ordinal = self.layer.bias_ordinal
        if ordinal is None:
            return None
        noise = torch.zeros(len(self.rows), philox.padded(self.height), device=self.rows.device)
        signs = self.call.directions.name != "gaussian"
        philox.write_vector(noise, self.rows, ordinal, self.height, self.call.key, signs)
        return noise

    def _epilogue(self, bias: Tensor | None, some: slice) -> tuple[object, ...]:
        """Arguments of the epilogue up to what it writes."""
        state = self.chunk.unmoved.states[self.number]
        hidden = None if self.last else self.chunk.unmoved.hidden[self.number + 1]
        noise = None if bias is None else bias[some]
        return (noise, state[0], state[-1], hidden, self.chunk.scales[some], *parameters([self.layer]))

    def _weight(self, cut: tiles.Tiles) -> TensorDescriptor | None:
        if self.operands.d is None:
            return None
        return described(self.call.weights[self.number - 1], self.width, (cut.block_h, cut.block_k))

    def _key_arguments(self) -> tuple[int, int, int]:
        return (*philox.keys(self.call.key), philox.signed(self.layer.weight_ordinal or 0))

    def _stationary(self, d: Tensor, q: Tensor | None, bias: Tensor | None) -> None:
        call, operands = self.call, self.operands
        cut = tiles.stationary_tiles(self.source, call.precision, self.width, call.target.arch)
        assert cut is not None, "the path was chosen"
        everyone = slice(None)
        kernel.stationary_step[(triton.cdiv(self.height, cut.block_h) * len(self.rows),)](
            self._inputs(operands.q, cut, everyone), self._inputs(operands.d, cut, everyone),
            self._weight(cut), self.rows, *self._key_arguments(), self.width, self.height, self.num_inputs,
            *self._epilogue(bias, everyone), d, q, d.shape[-1],
            self.source, self.first, self.last, call.halves, self.layer.activation.name, call.input_precision,
            call.element, call.target.ptx, cut.parts, cut.block_h, cut.block_n, cut.block_k,
            num_warps=cut.num_warps, num_stages=cut.num_stages,
        )  # fmt: skip

    def _staged(self, d: Tensor, q: Tensor | None, bias: Tensor | None) -> None:
        """Noise of a slab of displacements into memory, small enough for the cache, then their products."""
        width, itemsize = philox.padded(self.width), self.call.dtype.itemsize
        row = self.height * width * itemsize
        if self.formed:  # In float32, of factors that are copied to it.
            rank = self.call.directions.count
            row += 4 * self.height * width + (4 + itemsize) * rank * (philox.padded(self.height) + width)
        at_once = max(1, min(tiles.STAGED_BYTES, self.call.slab_bytes) // row)
        for start in range(0, len(self.rows), at_once):
            some = slice(start, min(start + at_once, len(self.rows)))
            self._in_registers(d, q, bias, some, self._slab(self.rows[some]))

    def _slab(self, rows: Tensor) -> Tensor:
        """Displacements of the weight, [rows, H, padded(K)], as operands."""
        call, ordinal, width = self.call, self.layer.weight_ordinal, philox.padded(self.width)
        assert ordinal is not None, "the weight moves"
        if self.formed:
            left, right, scale = self._factors(rows, call.directions.count)
            formed = left[..., : self.height].float().mT @ right.float()
            return as_operand(formed.mul_(scale[:, None, None]), call.precision, call.target)
        noise = torch.empty(len(rows), self.height, width, dtype=call.dtype, device=rows.device)
        philox.write_matrix(noise, rows, ordinal, self.width, call.key, self.source == "rademacher", DISPLACEMENT)
        return noise

    def _in_registers(
        self, d: Tensor, q: Tensor | None, bias: Tensor | None, some: slice, staged: Tensor | None
    ) -> None:
        """The layer step of some displacements, whose noise is made in it, or was written to memory before."""
        call, count = self.call, some.stop - some.start
        source = self.source if staged is None else "staged"
        cut = tiles.step_tiles_on(call.target, source, call.precision, self.width, self.height, self.columns)
        inputs, noise = cut.block_n // self.halves, self._noise(cut, staged)
        x = self._multiplied()
        kernel.layer_step[(triton.cdiv(self.height, cut.block_h) * triton.cdiv(self.num_inputs, inputs) * count,)](
            self._inputs(x, cut, some), self._inputs(self.operands.d, cut, some, self._halves_a_tile()),
            self._weight(cut), noise.operand, noise.factors, noise.slots, noise.in_signs, noise.out_signs,
            self.rows[some], *self._key_arguments(), self.width, self.height, self.num_inputs,
            *self._epilogue(bias, some), d[some], None if q is None else q[some], d.shape[-1],
            source, self.first, self.last, x is not None and x.dim() > 2, call.halves, self.layer.activation.name,
            call.input_precision, call.element, call.target.ptx, philox.is_wide(self.height, self.width), cut.parts,
            cut.block_h, cut.block_n, cut.block_k, noise.rank,
            num_warps=cut.num_warps, num_stages=cut.num_stages,
        )  # fmt: skip

    def _halves_a_tile(self) -> int:
        """Of d: one where one is multiplied by W + s E and the other by W - s E."""
        return 1 if self.formed else self.halves

    def _multiplied(self) -> Tensor | None:
        """What the displacement multiplies: q, [M, ..., N, K], or the unperturbed inputs, [N, K]."""
        if self.source in ("none", "lowrank") and not self.formed:
            return None
        return self.chunk.unmoved.operands[self.number] if self.operands.q is None else self.operands.q

    def _inputs(
        self, operand: Tensor | None, cut: tiles.Tiles, some: slice, halves: int | None = None
    ) -> TensorDescriptor | None:
        """A descriptor of what columns read: the inputs, [N, K], or of some displacements q or d, so many halves."""
        if operand is None:
            return None
        block = (cut.block_n // self.halves, cut.block_k)
        if operand.dim() == 2:
            return described(operand, self.width, block)
        columns = operand[some].view(-1, self.halves, self.num_inputs, operand.shape[-1])
        return described(columns, self.width, (1, halves or self.halves, *block))

    def _noise(self, cut: tiles.Tiles, staged: Tensor | None) -> _Noise:
        """What the layer step reads of the noise; nothing where it makes it."""
        block = (cut.block_h, cut.block_k)
        if staged is not None:
            return _Noise(described(staged, self.width, block))
        if self.source == "flipout":
            return self._flipout(block)
        return self._lowrank(cut) if self.source == "lowrank" else _Noise()

    def _flipout(self, block: tuple[int, int]) -> _Noise:
        """The bases, [slots, H, padded(K)], and the signs on either side."""
        call, ordinal, bases = self.call, self.layer.weight_ordinal, self.chunk.bases
        assert ordinal is not None and bases is not None, "the weight moves, by bases"
        made = philox.flipout_bases(bases.numbers, ordinal, self.height, self.width, call.key, call.dtype)
        signs = [
            philox.signs_of(philox.packed_signs(self.rows, ordinal, length, call.key, purpose), length, call.dtype)
            for length, purpose in ((self.width, INPUT_SIGNS), (self.height, OUTPUT_SIGNS))
        ]
        ins, outs = (pad(part) for part in signs)
        return _Noise(
            described(made, self.width, block), bases.slots, None, described(ins, self.width, (1, block[1])), outs
        )

    def _lowrank(self, cut: tiles.Tiles) -> _Noise:
        """The left factors, and the columns' products with the right ones."""
        call, rank = self.call, padded_rank(self.call.directions.count)
        left, right, scale = self._factors(self.rows, rank)
        shape = (len(self.rows), self.halves, self.num_inputs, rank)
        products = torch.empty(shape, dtype=call.dtype, device=self.rows.device)
        h, d = self._parts_of_q()
        kernel.project[(len(self.rows) * self.halves * triton.cdiv(self.num_inputs, cut.block_n),)](
            *(None if part is None else described(part, self.width, (cut.block_n, cut.block_k)) for part in (h, d)),
            described(right, self.width, (rank, cut.block_k)), scale, self.chunk.scales, products, self.width,
            self.num_inputs, self.halves, call.input_precision, cut.block_n, cut.block_k, rank,
            num_warps=tiles.projection_warps(rank), num_stages=cut.num_stages,
        )  # fmt: skip
        factors = described(products, rank, (1, self.halves, cut.block_n // self.halves, rank))
        return _Noise(described(left, self.height, (rank, cut.block_h)), factors=factors, rank=rank)

    def _factors(self, rows: Tensor, lines: int) -> tuple[Tensor, Tensor, Tensor]:
        """Low rank's factors, [rows, lines, padded(H)] and [rows, lines, padded(K)], and their scales in float32."""
        call, ordinal = self.call, self.layer.weight_ordinal
        assert ordinal is not None, "the weight moves"
        left, right, scale = philox.lowrank_factors(
            rows, call.directions.count, ordinal, self.height, self.width, call.key, call.dtype, lines, call.slab_bytes
        )
        return left, right, scale.float()

    def _parts_of_q(self) -> tuple[Tensor | None, Tensor | None]:
        """What q = +-(h + s d) is made of: h, [N, K], and d; of a single product of given q, either."""
        q, d = self.operands.q, self.operands.d
        if q is not None:
            return (q, None) if q.dim() == 2 else (None, q)
        return self.chunk.unmoved.operands[self.number], d
