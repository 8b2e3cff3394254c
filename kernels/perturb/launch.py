"""Perturbation evaluation on a GPU: the loops around the kernels, and the buffers between them.

Inputs are taken in chunks whose unperturbed pass is held, displacements in chunks whose differences fit the budget. A
chunk goes through the layers one launch at a time (``evaluate_layers``), or through all at once (``evaluate_fused``).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from nntk.kernels.fixed_weights import squared_norms
from nntk.kernels.mlp import Layer, displaced, unperturbed
from nntk.kernels.perturb import kernel, reference, tiles
from nntk.kernels.perturb.activations import decode, encode
from nntk.kernels.philox import launch as philox
from nntk.kernels.philox.directions import Directions, parse
from nntk.kernels.philox.reference import DISPLACEMENT, INPUT_SIGNS, OUTPUT_SIGNS
from nntk.kernels.target import Target, target_of

_LARGEST_BUFFER = 2**30
"""Numbers of one buffer: kernels count them in 32 bits."""


@dataclass(frozen=True)
class Call:
    """What all chunks of one call share."""

    layers: Sequence[Layer]
    weights: list[Tensor]
    """The layers' weights as operands of the products, [H, padded(K)]; made once for all chunks."""
    directions: Directions
    key: philox.Key
    pairs: str
    precision: str
    target: Target
    path: str | None
    """Forces one of ``tiles.PATHS`` wherever it applies; None leaves the choice to the cost model."""

    @property
    def halves(self) -> int:
        """Evaluations of a displacement."""
        return 1 if self.pairs == "none" else 2

    @property
    def operand(self) -> torch.dtype:
        """Dtype of the products' operands."""
        return _operand(self.precision, self.target)

    @property
    def element(self) -> tl.dtype:
        """The same for Triton."""
        return philox.triton_type(self.operand)

    @property
    def input_precision(self) -> str:
        """What Triton calls the precision of a product of float32."""
        return tiles.input_precision(self.precision, self.target.arch)

    @property
    def widths(self) -> list[int]:
        """Widths of the network, inputs and outputs included."""
        return [self.layers[0].weight.shape[1], *(layer.weight.shape[0] for layer in self.layers)]

    def source(self, layer: Layer) -> str:
        """Family of a layer's noise, ``"none"`` where its weight stays."""
        return "none" if layer.weight_ordinal is None else self.directions.name

    def fused(self) -> tiles.Fused | None:
        """Tiles of the fused path where it is taken."""
        if self.directions.name not in tiles.GENERATED or self.path not in (None, "fused"):
            return None
        names = [layer.activation.name for layer in self.layers]
        return tiles.fused_tiles(self.directions.name, self.precision, self.widths, names, self.target.arch)


def _operand(precision: str, target: Target) -> torch.dtype:
    if precision != "bf16":
        return torch.float32
    # The interpreter has no bfloat16: float16 stands for it there.
    return torch.bfloat16 if target.arch != "interpreter" else torch.float16


@dataclass(frozen=True)
class Unmoved:
    """The unperturbed pass of a chunk of inputs, made in float64 and rounded once; rows padded to 16 units."""

    inputs: Tensor
    """[N, padded(K)], float32."""
    states: list[tuple[Tensor, ...]]
    """What each activation keeps of z, [N, padded(H)] each, float32."""
    hidden: list[Tensor]
    """Inputs of the next layer, [N, padded(H)], float32; none behind the last."""

    @classmethod
    def of(cls, layers: Sequence[Layer], x: Tensor) -> "Unmoved":
        """The pass of some inputs."""
        passed, _ = unperturbed(layers, x)
        states = [layer.activation.state(z, torch.float32) for layer, (_, z) in zip(layers, passed, strict=True)]
        rows = [_pad(h, torch.float32) for h, _ in passed]
        return cls(rows[0], [tuple(_pad(part, torch.float32) for part in state) for state in states], rows[1:])


def _pad(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy in ``dtype`` with rows padded by zeros, as descriptors and wide stores want."""
    out = torch.zeros(matrix.shape[0], philox.padded(matrix.shape[1]), dtype=dtype, device=matrix.device)
    out[:, : matrix.shape[1]] = matrix
    return out


def _described(rows: Tensor, width: int, block: tuple[int, int]) -> TensorDescriptor:
    """A descriptor of a matrix [lines, >= width]; what it reads beyond is zero."""
    flat = rows.view(-1, rows.shape[-1])
    return TensorDescriptor(flat, [flat.shape[0], width], [flat.stride(0), 1], list(block))


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
    target, rows, scales = target_of(x.device), rows.contiguous(), scales.float().contiguous()
    operands = [_pad(weight, _operand(precision, target)) for weight in weights]
    call = Call(layers, operands, parse(directions), (seed_low, seed_high), pairs, precision, target, path)
    shape = (len(rows), len(x), call.widths[-1])
    out = x.new_empty((2, *shape) if pairs == "both" else shape)
    evaluate = evaluate_layers if call.fused() is None else evaluate_fused
    for inputs, some in _chunks(call, len(x), len(rows), max_bytes):
        unmoved = Unmoved.of(layers, x[inputs])
        for chunk in some:
            evaluate(call, unmoved, rows[chunk], scales[chunk], out[..., chunk, inputs, :])
    moved = displaced(layers)
    norms = squared_norms(moved, rows, seed_low | seed_high << 32, directions)
    return out, norms


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
) -> Plan:
    """Size chunks so that their buffers fit the budget: the unperturbed pass a quarter, differences five eighths.

    Args:
        widths: Widths of the network, inputs and outputs included.
        num_inputs: Number N of inputs.
        num_rows: Number M of displacements.
        halves: Evaluations of a displacement.
        itemsize: Bytes of an operand of the products.
        max_bytes: The budget; a chunk has one input and one displacement at least.
        fused: Whether nothing but the outputs leaves the chip.

    Returns:
        The plan. It depends neither on M, beyond M itself, nor on the number of parameters.
    """
    lines = [philox.padded(width) for width in widths]
    # Of an input: float64 pass and float32 states. Of an evaluation: d and q of two layers, and the output in float32.
    state = sum(lines) * (2 * 8 + 4 * 4)
    pairs = [before + after for before, after in zip(lines[:-1], lines[1:], strict=True)]
    evaluation = 4 * halves * lines[-1]
    if not fused:
        evaluation += halves * itemsize * (2 * max(pairs) + 64) + itemsize * lines[0]
    largest = max(1, _LARGEST_BUFFER // (halves * max(lines)))
    inputs = max(1, min(num_inputs, max_bytes // 4 // state, max_bytes * 5 // 8 // evaluation, largest))
    rows = max(1, min(num_rows, max_bytes * 5 // 8 // (evaluation * inputs), largest // inputs))
    return Plan(inputs, rows, inputs * state + inputs * rows * evaluation)


def _chunks(call: Call, num_inputs: int, num_rows: int, max_bytes: int) -> Iterator[tuple[slice, list[slice]]]:
    """Pieces of the inputs, and for each the pieces of the displacements."""
    if not num_inputs or not num_rows:
        return
    fused = call.fused() is not None
    cut = plan(call.widths, num_inputs, num_rows, call.halves, call.operand.itemsize, max_bytes, fused)
    rows = [slice(m, min(m + cut.rows, num_rows)) for m in range(0, num_rows, cut.rows)]
    for n in range(0, num_inputs, cut.inputs):
        yield slice(n, min(n + cut.inputs, num_inputs)), rows


def evaluate_fused(call: Call, unmoved: Unmoved, rows: Tensor, scales: Tensor, out: Tensor) -> None:
    """All layers in one launch; ``out`` is [M, N, C] or [2, M, N, C], a view."""
    cut = call.fused()
    assert cut is not None, "the caller looked"
    num_inputs, widths, layers = len(unmoved.inputs), call.widths, call.layers
    block_c, columns = cut.block_c(widths[-1]), philox.padded(num_inputs)

    def stacked(parts: Sequence[Tensor | None]) -> Tensor:
        whole = torch.zeros(len(parts), cut.pad, columns, device=rows.device)
        for layer, part in enumerate(parts):
            if part is not None:
                whole[layer, : widths[layer + 1], :num_inputs] = part[:, : widths[layer + 1]].T
        return whole

    first, second = (
        stacked([state[place] if place < len(state) else None for state in unmoved.states[:-1]]) for place in (0, 1)
    )
    weights = torch.zeros(len(layers), cut.pad, cut.pad, dtype=call.operand, device=rows.device)
    last = torch.zeros(block_c, cut.pad, dtype=call.operand, device=rows.device)
    for place, weight in zip([*weights[1:-1], last], call.weights[1:], strict=True):
        place[: weight.shape[0], : min(weight.shape[1], cut.pad)] = weight[:, : cut.pad]
    parameters = torch.tensor([_parameters(layer) for layer in layers], device=rows.device)
    result = out if out.is_contiguous() else torch.empty_like(out, memory_format=torch.contiguous_format)
    block_inputs = cut.block_n // call.halves
    state_block = (cut.pad, min(cut.part, block_inputs))
    kernel.small_mlp[(len(rows) * triton.cdiv(num_inputs, block_inputs),)](
        unmoved.inputs[:, : widths[0]].T.contiguous(),
        _described(weights, cut.pad, (cut.pad, cut.pad)),
        _described(last, cut.pad, (block_c, cut.pad)),
        *(_described(part, num_inputs, state_block) for part in (first, second, stacked(unmoved.hidden))),
        rows, scales, parameters, *philox.keys(call.key), num_inputs, len(rows), result,
        call.directions.name, tuple(widths), tuple(_ordinals(layers)),
        tuple(layer.activation.name for layer in layers[:-1]),
        call.pairs, call.input_precision, call.element, call.target.ptx,
        tiles.power_of_two(widths[0], 32, 128), cut.pad, block_c, cut.block_n, state_block[1],
        num_warps=cut.num_warps, num_stages=1,
    )  # fmt: skip
    if result is not out:
        out.copy_(result)


def _parameters(layer: Layer) -> list[float]:
    return encode([layer.activation])[1]


def _ordinals(layers: Sequence[Layer]) -> Iterator[int]:
    for layer in layers:
        yield -1 if layer.weight_ordinal is None else layer.weight_ordinal
        yield -1 if layer.bias_ordinal is None else layer.bias_ordinal


@dataclass(frozen=True)
class _Operands:
    """What one layer reads of the one before: its differences d, and q = +-(h + s d), [M, halves, N, padded(K)]."""

    q: Tensor
    d: Tensor | None
    """None at layer 0, where q is h for all displacements, or with flipout the inputs with their signs, [M, N, K]."""


def evaluate_layers(call: Call, unmoved: Unmoved, rows: Tensor, scales: Tensor, out: Tensor) -> None:
    """Layer by layer; ``out`` is [M, N, C] or [2, M, N, C], a view."""
    if call.directions.name == "flipout":
        # Displacements that share a base stand together: their columns make one large product.
        order = torch.argsort(rows % call.directions.count, stable=True)
        rows, scales = rows[order], scales[order]
    operands = _Operands(_first_operand(call, unmoved, rows), None)
    for number in range(len(call.layers)):
        operands = _Step(call, unmoved, rows, scales, number, operands).launch()
    assert operands.d is not None, "there is a last layer"
    last = operands.d[..., : call.widths[-1]]
    if call.directions.name == "flipout":
        last = last[torch.argsort(order)]
    if call.pairs == "both":
        out.copy_(last.transpose(0, 1))
    elif call.pairs == "none":
        out.copy_(last[:, 0])
    else:
        torch.sub(last[:, 0], last[:, 1], out=out).mul_(0.5)


def _first_operand(call: Call, unmoved: Unmoved, rows: Tensor) -> Tensor:
    h, signs = unmoved.inputs.to(call.operand), _flipout_signs(call, rows, 0, INPUT_SIGNS)
    return h if signs is None else philox.signs_of(signs, h.shape[1], call.operand)[:, None, :] * h


def _flipout_signs(call: Call, rows: Tensor, number: int, purpose: int) -> Tensor | None:
    """Packed signs r_m or s_m of a layer's weight, [M, words]; None where there are none."""
    if number == len(call.layers) or call.source(call.layers[number]) != "flipout":
        return None
    layer = call.layers[number]
    assert layer.weight_ordinal is not None, "the weight moves"
    length = layer.weight.shape[0 if purpose == OUTPUT_SIGNS else 1]
    return philox.packed_signs(rows, layer.weight_ordinal, length, call.key, purpose)


class _Step:
    """One layer of one chunk: its buffers, its noise, its launch."""

    def __init__(
        self, call: Call, unmoved: Unmoved, rows: Tensor, scales: Tensor, number: int, operands: _Operands
    ) -> None:
        self.call, self.unmoved, self.rows, self.scales, self.operands = call, unmoved, rows, scales, operands
        self.number, self.layer, self.first = number, call.layers[number], operands.d is None
        self.height, self.width = self.layer.weight.shape
        self.num_inputs = len(unmoved.inputs)
        self.columns = self.num_inputs * (1 if self.first else call.halves)
        """Columns of one displacement."""
        self.source = call.source(self.layer)
        self.last = number + 1 == len(call.layers)

    def launch(self) -> _Operands:
        """Evaluate the layer; what the next one reads."""
        shape = (len(self.rows), self.call.halves, self.num_inputs, philox.padded(self.height))
        d = torch.empty(shape, dtype=torch.float32 if self.last else self.call.operand, device=self.rows.device)
        q = d if self.last else torch.empty_like(d)
        bias = self._bias_noise()
        path = self._path()
        if path == "staged":
            self._staged(d, q, bias)
        elif path == "stationary":
            self._stationary(d, q, bias)
        else:
            self._in_registers(d, q, bias, slice(0, len(self.rows)), None)
        return _Operands(q, d)

    def _path(self) -> str:
        arch, forced = self.call.target.arch, self.call.path
        if self.source not in tiles.GENERATED or forced == "step":
            return "step"
        held = tiles.stationary_tiles(self.source, self.call.precision, self.width, arch)
        if forced == "stationary" and held is not None and self.width <= tiles.STATIONARY_WIDTH:
            return "stationary"
        if forced is not None:
            return "staged" if forced == "staged" else "step"
        return tiles.choose_path(self.source, self.call.precision, self.width, self.columns, self.first, arch)

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
        state = self.unmoved.states[self.number]
        hidden = None if self.last else self.unmoved.hidden[self.number]
        noise = None if bias is None else bias[some]
        return (noise, state[0], state[-1], hidden, self.scales[some], *_parameters(self.layer))

    def _weight(self, cut: tiles.Tiles) -> TensorDescriptor | None:
        if self.first:
            return None
        return _described(self.call.weights[self.number], self.width, (cut.block_h, cut.block_k))

    def _key_arguments(self) -> tuple[int, int, int]:
        return (*philox.keys(self.call.key), philox.signed(self.layer.weight_ordinal or 0))

    def _stationary(self, d: Tensor, q: Tensor, bias: Tensor | None) -> None:
        call, operands = self.call, self.operands
        cut = tiles.stationary_tiles(self.source, call.precision, self.width, call.target.arch)
        assert cut is not None, "the path was chosen"
        everyone = slice(None)
        kernel.stationary_step[(triton.cdiv(self.height, cut.block_h) * len(self.rows),)](
            self._inputs(operands.q, cut, everyone),
            None if operands.d is None else self._inputs(operands.d, cut, everyone),
            self._weight(cut), self.rows, *self._key_arguments(), self.width, self.height, self.num_inputs,
            self.columns, *self._epilogue(bias, everyone), d, None if self.last else q, d.shape[-1],
            self.source, self.first, call.halves, self.layer.activation.name, call.input_precision,
            call.element, call.target.ptx, cut.parts, cut.block_h, cut.block_n, cut.block_k,
            num_warps=cut.num_warps, num_stages=cut.num_stages,
        )  # fmt: skip

    def _staged(self, d: Tensor, q: Tensor, bias: Tensor | None) -> None:
        """Noise of a slab of displacements into memory, small enough for the cache, then their products."""
        ordinal, stride = self.layer.weight_ordinal, philox.padded(self.width)
        assert ordinal is not None, "the weight moves"
        at_once = max(1, tiles.STAGED_BYTES // (self.height * stride * self.call.operand.itemsize))
        for start in range(0, len(self.rows), at_once):
            some = slice(start, min(start + at_once, len(self.rows)))
            noise = d.new_empty(some.stop - start, self.height, stride, dtype=self.call.operand)
            signs = self.source == "rademacher"
            philox.write_matrix(noise, self.rows[some], ordinal, self.width, self.call.key, signs, DISPLACEMENT)
            self._in_registers(d, q, bias, some, noise)

    def _in_registers(self, d: Tensor, q: Tensor, bias: Tensor | None, some: slice, staged: Tensor | None) -> None:
        """The layer step of some displacements, whose noise is made in it, or was written to memory before."""
        call, count = self.call, some.stop - some.start
        source = self.source if staged is None else "staged"
        columns = self.columns * (count if source == "flipout" else 1)
        cut = tiles.step_tiles(source, call.precision, self.width, self.height, columns, call.target.arch)
        groups, noise = self._column_groups(cut, count), self._noise(cut, staged)
        following = _flipout_signs(call, self.rows, self.number + 1, INPUT_SIGNS)
        kernel.layer_step[(triton.cdiv(self.height, cut.block_h) * groups.tiles,)](
            None if source in ("none", "lowrank") else self._inputs(self.operands.q, cut, some),
            None if self.operands.d is None else self._inputs(self.operands.d, cut, some),
            self._weight(cut), noise.operand, noise.factors,
            self.rows[some], *self._key_arguments(), self.width, self.height, self.num_inputs, self.columns,
            groups.starts, groups.stops, groups.bases, *_words(noise.signs),
            *self._epilogue(bias, some), *_words(following), d[some], None if self.last else q[some], d.shape[-1],
            source, self.first, call.halves, self.layer.activation.name, call.input_precision, call.element,
            call.target.ptx, philox.is_wide(self.height, self.width), cut.parts,
            cut.block_h, cut.block_n, cut.block_k, noise.rank,
            num_warps=cut.num_warps, num_stages=cut.num_stages,
        )  # fmt: skip

    def _inputs(self, operand: Tensor, cut: tiles.Tiles, some: slice) -> TensorDescriptor:
        """A descriptor of q or d of some displacements; the inputs themselves, [N, K], serve all."""
        part = operand if operand.dim() == 2 else operand[some]
        return _described(part, self.width, (cut.block_n, cut.block_k))

    def _column_groups(self, cut: tiles.Tiles, count: int) -> "_Groups":
        if self.source == "flipout":
            return _Groups.of_bases(self.rows, self.call.directions.count, self.columns, cut.block_n)
        return _Groups(count * triton.cdiv(self.columns, cut.block_n))

    def _noise(self, cut: tiles.Tiles, staged: Tensor | None) -> "_Noise":
        """What the layer step reads of the noise; nothing where it makes it."""
        block = (cut.block_h, cut.block_k)
        if staged is not None:
            return _Noise(_described(staged, self.width, block))
        if self.source == "flipout":
            signs = _flipout_signs(self.call, self.rows, self.number, OUTPUT_SIGNS)
            return _Noise(_described(self._bases(), self.width, block), signs=signs)
        return self._lowrank(cut) if self.source == "lowrank" else _Noise()

    def _bases(self) -> Tensor:
        """Flipout's bases, [bases, H, padded(K)]."""
        call, ordinal = self.call, self.layer.weight_ordinal
        assert ordinal is not None, "the weight moves"
        shape = (call.directions.count, ordinal, self.height, self.width)
        return philox.flipout_bases(*shape, call.key, call.operand, self.rows.device)

    def _lowrank(self, cut: tiles.Tiles) -> "_Noise":
        """The left factors, and the columns' products with the right ones."""
        call, ordinal = self.call, self.layer.weight_ordinal
        assert ordinal is not None, "the weight moves"
        rank = tiles.power_of_two(call.directions.count, 16, 64)
        left, right, scale = philox.lowrank_factors(
            self.rows, call.directions.count, ordinal, self.height, self.width, call.key, call.operand, rank
        )
        products = torch.empty(len(self.rows) * self.columns, rank, dtype=call.operand, device=self.rows.device)
        kernel.project[(len(self.rows) * triton.cdiv(self.columns, cut.block_n),)](
            self._inputs(self.operands.q, cut, slice(0, len(self.rows))),
            _described(right, self.width, (rank, cut.block_k)), scale.float(), products, self.width, self.columns,
            self.first, call.input_precision, cut.block_n, cut.block_k, rank, num_warps=4, num_stages=cut.num_stages,
        )  # fmt: skip
        factors = _described(products, rank, (cut.block_n, rank))
        return _Noise(_described(left, self.height, (rank, cut.block_h)), factors, rank=rank)


@dataclass(frozen=True)
class _Noise:
    """Noise that the layer step reads: slabs or bases [groups, H, K], or left factors [M, rank, H]."""

    operand: TensorDescriptor | None = None
    factors: TensorDescriptor | None = None
    """With low rank the columns' products with the right factors, [columns, rank]."""
    signs: Tensor | None = None
    """With flipout the packed signs r_m, [M, words]."""
    rank: int = 16


def _words(packed: Tensor | None) -> tuple[Tensor | None, int]:
    return packed, 0 if packed is None else packed.shape[1]


@dataclass(frozen=True)
class _Groups:
    """Tiles of columns that share their noise. Without tensors: each displacement's columns, in order."""

    tiles: int
    starts: Tensor | None = None
    """First column of each tile, int32."""
    stops: Tensor | None = None
    """End of the tile's group."""
    bases: Tensor | None = None
    """Its base."""

    @classmethod
    def of_bases(cls, rows: Tensor, bases: int, columns: int, block: int) -> "_Groups":
        """Tiles of the columns that share a base of flipout.

        The counts stay on the device, so nobody waits for them: there are at most as many tiles as listed, and those
        beyond have no columns.

        Args:
            rows: Row numbers in the order of their bases.
            bases: Number of bases.
            columns: Columns of one row.
            block: Columns of a tile.

        Returns:
            The tiles.
        """
        counts = (rows[:, None] % bases == torch.arange(bases, device=rows.device)).sum(0) * columns
        tiles_of = (counts + block - 1) // block
        ends, tile_ends = counts.cumsum(0), tiles_of.cumsum(0)
        tile = torch.arange(len(rows) * columns // block + min(bases, len(rows)), device=rows.device)
        group = torch.searchsorted(tile_ends, tile, right=True)
        beyond, group = group == bases, group.clamp(max=bases - 1)
        first = (ends - counts)[group] + (tile - (tile_ends - tiles_of)[group]) * block
        stop = torch.where(beyond, 0, ends[group])
        return cls(len(tile), first.int(), stop.int(), group.int())
