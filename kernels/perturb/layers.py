"""Layer by layer: the buffers between launches, and the noise that each layer step reads."""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from nntk.kernels.perturb import kernel, tiles
from nntk.kernels.perturb.operands import Call, Unmoved, as_operand, described, parameters
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
    """With low rank the columns' products with the right factors, [columns, rank]."""
    signs: Tensor | None = None
    """With flipout the packed signs r_m, [M, words]."""
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

    def signs(self, number: int, purpose: int) -> Tensor | None:
        """Packed signs r_m or s_m of a layer's weight, [M, words]; None where there are none."""
        layers = self.call.layers
        if number == len(layers) or self.call.source(layers[number]) != "flipout":
            return None
        ordinal = layers[number].weight_ordinal
        assert ordinal is not None, "the weight moves"
        length = layers[number].weight.shape[0 if purpose == OUTPUT_SIGNS else 1]
        return philox.packed_signs(self.rows, ordinal, length, self.call.key, purpose)

    def first_operand(self) -> Tensor:
        """The inputs, [N, K], with flipout under every displacement's signs, [M, N, K]."""
        h = as_operand(self.unmoved.inputs, self.call.precision, self.call.target)
        signs = self.signs(0, INPUT_SIGNS)
        return h if signs is None else philox.signs_of(signs, h.shape[1], h.dtype)[:, None, :] * h


@dataclass(frozen=True)
class _Operands:
    """What one layer reads of the one before: its differences d, and q = +-(h + s d), [M, halves, N, padded(K)]."""

    q: Tensor | None
    """None where nothing multiplies it."""
    d: Tensor | None
    """None where the product with the weight is not made here, as at layer 0."""
    first: bool = False
    """Whether this is layer 0: q is h for all displacements, or with flipout the inputs with their signs, [M, N, K]."""


def evaluate_layers(call: Call, unmoved: Unmoved, rows: Tensor, scales: Tensor) -> Tensor:
    """Layer by layer; rows of flipout sorted by base. Returns [M, N, C] or [2, M, N, C], a view of a buffer."""
    bases = _Bases.of(rows, call.directions.count) if call.directions.name == "flipout" else None
    chunk = _Chunk(call, unmoved, rows, scales, bases)
    operands = _Operands(chunk.first_operand(), None, first=True)
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
    one = torch.ones(len(rows), device=q.device)
    chunk = _Chunk(call, Unmoved(q if q.dim() == 2 else q[0], [(one,)], []), rows, one, bases)
    signs, operand = chunk.signs(0, INPUT_SIGNS), as_operand(q, call.precision, call.target)
    if signs is not None:
        operand = philox.signs_of(signs, q.shape[-1], operand.dtype)[:, None, :] * operand
    made = _Step(chunk, 0, _Operands(operand, None, first=q.dim() == 2)).launch().d
    assert made is not None, "the layer gives it"
    return made[:, 0, :, : call.widths[-1]]


class _Step:
    """One layer of one chunk: its buffers, its noise, its launch."""

    def __init__(self, chunk: _Chunk, number: int, operands: _Operands) -> None:
        self.chunk, self.call, self.rows, self.operands = chunk, chunk.call, chunk.rows, operands
        self.number, self.layer, self.first = number, self.call.layers[number], operands.first
        self.height, self.width = self.layer.weight.shape
        self.num_inputs = len(chunk.unmoved.inputs)
        self.columns = self.num_inputs * (1 if self.first else self.call.halves)
        """Columns of one displacement."""
        self.source = self.call.source(self.layer)
        self.last = number + 1 == len(self.call.layers)

    def launch(self) -> _Operands:
        """Evaluate the layer; what the next one reads."""
        shape = (len(self.rows), self.call.halves, self.num_inputs, philox.padded(self.height))
        d = torch.empty(shape, dtype=torch.float32 if self.last else self.call.dtype, device=self.rows.device)
        q = torch.empty_like(d) if self._gives_q() else None
        bias = self._bias_noise()
        path = self._path()
        if path == "staged":
            self._staged(d, q, bias)
        elif path == "stationary":
            self._stationary(d, q, bias)
        else:
            self._in_registers(d, q, bias, slice(0, len(self.rows)), None)
        return _Operands(q, d)

    def _gives_q(self) -> bool:
        """Whether the next layer multiplies q: low rank takes its parts, and a weight that stays neither."""
        return not self.last and self.call.source(self.call.layers[self.number + 1]) not in ("none", "lowrank")

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
        """Arguments of the epilogue up to the next layer's signs."""
        state = self.chunk.unmoved.states[self.number]
        hidden = None if self.last else self.chunk.unmoved.hidden[self.number]
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
            self.columns, *self._epilogue(bias, everyone), d, q, d.shape[-1],
            self.source, self.first, self.last, call.halves, self.layer.activation.name, call.input_precision,
            call.element, call.target.ptx, cut.parts, cut.block_h, cut.block_n, cut.block_k,
            num_warps=cut.num_warps, num_stages=cut.num_stages,
        )  # fmt: skip

    def _staged(self, d: Tensor, q: Tensor | None, bias: Tensor | None) -> None:
        """Noise of a slab of displacements into memory, small enough for the cache, then their products."""
        ordinal, stride, call = self.layer.weight_ordinal, philox.padded(self.width), self.call
        assert ordinal is not None, "the weight moves"
        most = min(tiles.STAGED_BYTES, call.slab_bytes)
        at_once = max(1, most // (self.height * stride * call.dtype.itemsize))
        for start in range(0, len(self.rows), at_once):
            some = slice(start, min(start + at_once, len(self.rows)))
            noise = d.new_empty(some.stop - start, self.height, stride, dtype=call.dtype)
            signs = self.source == "rademacher"
            philox.write_matrix(noise, self.rows[some], ordinal, self.width, call.key, signs, DISPLACEMENT)
            self._in_registers(d, q, bias, some, noise)

    def _in_registers(
        self, d: Tensor, q: Tensor | None, bias: Tensor | None, some: slice, staged: Tensor | None
    ) -> None:
        """The layer step of some displacements, whose noise is made in it, or was written to memory before."""
        call, count = self.call, some.stop - some.start
        source = self.source if staged is None else "staged"
        cut = tiles.step_tiles_on(call.target, source, call.precision, self.width, self.height, self.columns)
        programs = triton.cdiv(self.height, cut.block_h) * triton.cdiv(self.columns, cut.block_n) * count
        noise = self._noise(cut, staged)
        following = self.chunk.signs(self.number + 1, INPUT_SIGNS)
        kernel.layer_step[(programs,)](
            None if source in ("none", "lowrank") else self._inputs(self.operands.q, cut, some),
            self._inputs(self.operands.d, cut, some),
            self._weight(cut), noise.operand, noise.factors,
            self.rows[some], *self._key_arguments(), self.width, self.height, self.num_inputs, self.columns,
            noise.slots, *_words(noise.signs),
            *self._epilogue(bias, some), *_words(following), d[some], None if q is None else q[some], d.shape[-1],
            source, self.first, self.last, call.halves, self.layer.activation.name, call.input_precision, call.element,
            call.target.ptx, philox.is_wide(self.height, self.width), cut.parts,
            cut.block_h, cut.block_n, cut.block_k, noise.rank,
            num_warps=cut.num_warps, num_stages=cut.num_stages,
        )  # fmt: skip

    def _inputs(self, operand: Tensor | None, cut: tiles.Tiles, some: slice) -> TensorDescriptor | None:
        """A descriptor of q or d of some displacements, where there is one; the inputs, [N, K], serve all."""
        if operand is None:
            return None
        part = operand if operand.dim() == 2 else operand[some]
        return described(part, self.width, (cut.block_n, cut.block_k))

    def _noise(self, cut: tiles.Tiles, staged: Tensor | None) -> _Noise:
        """What the layer step reads of the noise; nothing where it makes it."""
        block = (cut.block_h, cut.block_k)
        if staged is not None:
            return _Noise(described(staged, self.width, block))
        if self.source == "flipout":
            return self._flipout(block)
        return self._lowrank(cut) if self.source == "lowrank" else _Noise()

    def _flipout(self, block: tuple[int, int]) -> _Noise:
        """The bases, [slots, H, padded(K)], and the signs of what they give."""
        call, ordinal, bases = self.call, self.layer.weight_ordinal, self.chunk.bases
        assert ordinal is not None and bases is not None, "the weight moves, by bases"
        made = philox.flipout_bases(bases.numbers, ordinal, self.height, self.width, call.key, call.dtype)
        return _Noise(
            described(made, self.width, block), bases.slots, signs=self.chunk.signs(self.number, OUTPUT_SIGNS)
        )

    def _lowrank(self, cut: tiles.Tiles) -> _Noise:
        """The left factors, and the columns' products with the right ones."""
        call, ordinal, rank = self.call, self.layer.weight_ordinal, padded_rank(self.call.directions.count)
        assert ordinal is not None, "the weight moves"
        left, right, scale = philox.lowrank_factors(
            self.rows, call.directions.count, ordinal, self.height, self.width, call.key, call.dtype, rank,
            call.slab_bytes,
        )  # fmt: skip
        products = torch.empty(len(self.rows) * self.columns, rank, dtype=call.dtype, device=self.rows.device)
        h, d = self._parts_of_q()
        everyone, halves = slice(0, len(self.rows)), self.columns // self.num_inputs
        kernel.project[(len(self.rows) * halves * triton.cdiv(self.num_inputs, cut.block_n),)](
            self._inputs(h, cut, everyone), self._inputs(d, cut, everyone),
            described(right, self.width, (rank, cut.block_k)), scale.float(), self.chunk.scales, products, self.width,
            self.num_inputs, halves, call.input_precision, cut.block_n, cut.block_k, rank,
            num_warps=4, num_stages=cut.num_stages,
        )  # fmt: skip
        factors = described(products, rank, (cut.block_n, rank))
        return _Noise(described(left, self.height, (rank, cut.block_h)), factors=factors, rank=rank)

    def _parts_of_q(self) -> tuple[Tensor | None, Tensor | None]:
        """What q = +-(h + s d) is made of: h, [N, K], and d; of a single product of given q, either."""
        q, d = self.operands.q, self.operands.d
        if q is not None:
            return (q, None) if q.dim() == 2 else (None, q)
        hidden = self.chunk.unmoved.hidden[self.number - 1]
        return as_operand(hidden, self.call.precision, self.call.target), d


def _words(packed: Tensor | None) -> tuple[Tensor | None, int]:
    return packed, 0 if packed is None else packed.shape[1]
