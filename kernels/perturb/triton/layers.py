"""Layer by layer: what the layer steps of many chunks share, made once, and their launches.

A launch is a few tens of microseconds of the host's time, about as long as its kernel takes: so buffers and their
descriptors belong to the layer, and a chunk brings its displacements alone.
"""

import math
from collections.abc import Iterable, Sequence

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from nntk.kernels.perturb.triton import chunks, kernel
from nntk.kernels.perturb.triton import config as tiles
from nntk.kernels.perturb.triton.group import Group, Own, is_formed
from nntk.kernels.perturb.triton.operands import Call, Unmoved, described, parameters
from nntk.kernels.philox.integers import BASE, DISPLACEMENT
from nntk.kernels.philox.triton import launch as philox


class Layers:
    """All layers of an MLP, for some inputs and chunks of one size.

    Args:
        call: What all chunks share.
        unmoved: The unperturbed pass of the inputs.
        size: Displacements of a chunk.
        paths: Which of ``tiles.PATHS`` each layer takes.
    """

    def __init__(self, call: Call, unmoved: Unmoved, size: int, paths: Sequence[str]) -> None:
        self._call, self._unmoved, self._size = call, unmoved, size
        self._steps = [_Step(call, unmoved, number, size, path) for number, path in enumerate(paths)]
        # Layers take turns: with two buffers of d and of q, with one of noise and one of low rank's products.
        hidden = self._steps[:-1]
        d_buffers, q_buffers = (
            [self._buffer(getattr(step, shape) for step in hidden[parity::2]) for parity in (0, 1)]
            for shape in ("d_shape", "q_shape")
        )
        noise, products = (
            self._buffer(getattr(step, shape) for step in self._steps) for shape in ("noise_shape", "product_shape")
        )
        q, d = unmoved.operands[0], None
        for number, step in enumerate(self._steps):
            d_out = None if step.last else _shaped(d_buffers[number % 2], step.d_shape)
            q_out = _shaped(q_buffers[number % 2], step.q_shape) if step.gives_q else None
            step.connect(q, d, d_out, q_out, _shaped(noise, step.noise_shape), _shaped(products, step.product_shape))
            q, d = q_out, d_out

    def __call__(self, group: Group) -> Tensor:
        """Differences of a group, [M, halves, N, padded(C)], float32, of whose padding nothing is known."""
        steps, call = self._steps, self._call
        out = torch.empty(
            len(group.rows), call.halves, self._unmoved.num_inputs, philox.padded(call.widths[-1]),
            device=group.rows.device,
        )  # fmt: skip
        for number, some in enumerate(chunks.pieces(len(group.rows), self._size)):
            rows, scales, bases = group.rows[some], group.scales[some], group.bases
            numbers, slots = (None, None) if bases is None else (bases.numbers[number], bases.slots[some])
            for step, own in zip(steps, group.own, strict=True):
                step.launch(rows, scales, own[some], numbers, slots, out[some])
        return out

    def _buffer(self, shapes: Iterable[tuple[int, ...]]) -> Tensor:
        """Memory of operands for the largest of some shapes."""
        most = max(map(math.prod, shapes), default=0)
        return torch.empty(most, dtype=self._call.dtype, device=self._unmoved.states[0][0].device)


def _shaped(buffer: Tensor, shape: tuple[int, ...]) -> Tensor:
    return buffer[: math.prod(shape)].view(shape)


def paths_of(call: Call, num_inputs: int) -> list[str]:
    """Choose the path of each layer.

    Args:
        call: What all chunks share.
        num_inputs: Number N of inputs.

    Returns:
        One of ``tiles.PATHS`` for each.

    Raises:
        ValueError: If one is forced that does not apply.
    """
    return [_path(call, number, num_inputs) for number in range(len(call.layers))]


def staged_bytes(call: Call, paths: Sequence[str]) -> int:
    """Bytes of one displacement of the largest weight whose displacements are written to memory, 0 if there is none."""
    shapes = [layer.weight.shape for layer, path in zip(call.layers, paths, strict=True) if path == "staged"]
    return max((chunks.slab_bytes(height, width, call.dtype.itemsize) for height, width in shapes), default=0)


def _path(call: Call, number: int, num_inputs: int) -> str:
    layer, forced, first = call.layers[number], call.path, number == 0
    (height, width), source = layer.weight.shape, call.source(layer)
    if source == "none" or forced == "step":
        return "step"
    if forced is None:
        columns = num_inputs * (1 if first else call.halves)
        chosen = tiles.choose_path_on(call.target, source, call.precision, width, height, columns, first)
        held = chunks.slab_bytes(height, width, call.dtype.itemsize) <= chunks.largest_slab(call.max_bytes)
        return chosen if held or chosen != "staged" else "step"
    if not tiles.applies(forced, source, call.precision, width, call.target.arch):
        raise ValueError(
            f"path {forced!r} does not apply to {source} in {call.precision} with {width} inputs of a "
            f"layer on {call.target.arch}; leave the choice to the cost model with None, or force 'step'."
        )
    return forced


class _Step:
    """One layer: the shapes of its buffers, what it reads and writes, its launches."""

    def __init__(self, call: Call, unmoved: Unmoved, number: int, size: int, path: str) -> None:
        self.call, self.unmoved, self.number = call, unmoved, number
        self.layer, self.first, self.last = call.layers[number], number == 0, number + 1 == len(call.layers)
        self.height, self.width = self.layer.weight.shape
        self.num_inputs = unmoved.num_inputs
        self.halves = 1 if self.first else call.halves
        """Of the columns: at layer 0 one stands for both."""
        self.path, self.formed = path, is_formed(call, self.layer)
        source = call.source(self.layer)
        self.source = "staged" if self.path == "staged" or self.formed else source
        """What the kernel is told: noise in memory is a family of its own."""
        self.cut = self._tiles()
        self.rank = chunks.padded_rank(call.directions.count if self.source == "lowrank" else 1)
        following = None if self.last else call.layers[number + 1].weight_ordinal
        self.gives_q = following is not None and call.directions.name != "lowrank"
        self.d_shape = (size, call.halves, self.num_inputs, philox.padded(self.height))
        self.q_shape = self.d_shape if self.gives_q else (0,)
        held = {"flipout": min(call.directions.count, size), "staged": 0 if self.formed else size}.get(self.source, 0)
        self.noise_shape = (held, self.height, philox.padded(self.width))
        self.product_shape = (size, self.halves, self.num_inputs, self.rank) if self.source == "lowrank" else (0,)
        self._prepare()

    def _prepare(self) -> None:
        """Arguments that all launches share."""
        call, cut, state = self.call, self.cut, self.unmoved.states[self.number]
        self.states = (state[0], state[-1], None if self.last else self.unmoved.hidden[self.number + 1])
        self.words = (*philox.keys(call.key), philox.signed(self.layer.weight_ordinal or 0))
        self.sizes = (self.width, self.height, self.num_inputs)
        self.parameters = parameters([self.layer])
        self.kind = (call.halves, self.layer.activation.name, call.input_precision, call.element, call.target.ptx)
        self.wide = philox.is_wide(self.height, self.width)
        self.tile = (cut.parts, cut.block_h, cut.block_n, cut.block_k)
        self.options = {"num_warps": cut.num_warps, "num_stages": cut.num_stages}
        # Of a displacement: a program goes over all inputs where it holds its noise.
        pieces = 1 if self.path == "stationary" else triton.cdiv(self.num_inputs, cut.block_n // self.halves)
        self.programs = triton.cdiv(self.height, cut.block_h) * pieces

    def _tiles(self) -> tiles.Tiles:
        precision, target = self.call.precision, self.call.target
        if self.path == "stationary":
            cut = tiles.stationary_tiles(self.source, precision, self.width, target.arch)
            assert cut is not None, "the path was chosen"
            return cut
        columns = self.num_inputs * self.halves
        return tiles.step_tiles_on(target, self.source, precision, self.width, self.height, columns)

    def connect(
        self, q: Tensor | None, d: Tensor | None, d_out: Tensor | None, q_out: Tensor | None, noise: Tensor,
        products: Tensor,
    ) -> None:  # fmt: skip
        """Describe what the layer reads: q and d of the one before, at layer 0 the inputs for q; and what it writes."""
        call, cut = self.call, self.cut
        self.d_out, self.q_out, self.noise, self.products = d_out, q_out, noise, products
        multiplied = self.unmoved.operands[self.number] if q is None else q
        self.x = None if self.source in ("none", "lowrank") else self._columns(multiplied, self.halves)
        self.moved = self.x is not None and multiplied is not None and multiplied.dim() > 2
        """Whether x is each displacement's own."""
        # Of d one half, where one is multiplied by W + s E and the other by W - s E.
        self.d = self._columns(d, 1 if self.formed else self.halves)
        block = (cut.block_h, cut.block_k)
        self.weight = None if d is None else described(call.weights[self.number - 1], self.width, block)
        self.slabs = described(noise, self.width, block) if len(noise) else None
        self.factors = None
        if self.source == "lowrank":
            self.factors = described(products, self.rank, (1, self.halves, cut.block_n // self.halves, self.rank))
            given = q is not None and q.dim() > 2  # A product of given operands: they are differences to it.
            parts = (None, q) if given else (multiplied, d)
            lines = (cut.block_n, cut.block_k)
            self.parts = [None if part is None else described(part, self.width, lines) for part in parts]

    def _columns(self, operand: Tensor | None, halves: int) -> TensorDescriptor | None:
        """What columns read: the inputs, [N, K], or q or d of displacements, so many halves a tile."""
        if operand is None:
            return None
        block = (self.cut.block_n // self.halves, self.cut.block_k)
        if operand.dim() == 2:
            return described(operand, self.width, block)
        columns = operand.view(-1, self.halves, self.num_inputs, operand.shape[-1])
        return described(columns, self.width, (1, halves, *block))

    def launch(
        self, rows: Tensor, scales: Tensor, own: Own, numbers: Tensor | None, slots: Tensor | None, out: Tensor
    ) -> None:
        """Evaluate the layer for some displacements; the last one into ``out``."""
        d_out, options = out if self.d_out is None else self.d_out, self.options
        epilogue = (own.bias, *self.states, scales, *self.parameters, d_out, self.q_out, d_out.shape[-1])
        if self.path == "stationary":
            kernel.stationary_step[(self.programs * len(rows),)](
                self.x, self.d, self.weight, rows, *self.words, *self.sizes, *epilogue, self.source, self.first,
                self.last, *self.kind, *self.tile, **options,
            )  # fmt: skip
            return
        noise, in_signs = self._noise(rows, scales, own, numbers)
        kernel.layer_step[(self.programs * len(rows),)](
            self.x, self.d, self.weight, noise, self.factors, slots, in_signs, own.out_signs,
            rows, *self.words, *self.sizes, *epilogue, self.source, self.first, self.last, self.moved, *self.kind,
            self.wide, *self.tile, self.rank, **options,
        )  # fmt: skip

    def _noise(
        self, rows: Tensor, scales: Tensor, own: Own, numbers: Tensor | None
    ) -> tuple[TensorDescriptor | None, TensorDescriptor | None]:
        """Write what the layer step reads of the noise: matrices or left factors, and flipout's signs s_m."""
        call, ordinal, block = self.call, self.layer.weight_ordinal or 0, (self.cut.block_h, self.cut.block_k)
        if own.formed is not None:
            return described(own.formed, self.width, block), None
        if self.source == "staged":
            slab, signs = self.noise[: len(rows)], call.directions.name == "rademacher"
            philox.write_matrix(slab, rows, ordinal, self.width, call.key, signs, DISPLACEMENT)
        if numbers is not None and own.in_signs is not None:
            philox.write_matrix(self.noise, numbers, ordinal, self.width, call.key, True, BASE)
            return self.slabs, described(own.in_signs, self.width, (1, block[1]))
        if own.left is not None:
            self._project(scales, own)
            return described(own.left, self.height, (self.rank, block[0])), None
        return self.slabs, None

    def _project(self, scales: Tensor, own: Own) -> None:
        """The columns' products with the right factors of low rank."""
        cut, halves = self.cut, self.halves
        assert own.right is not None, "factors are two"
        kernel.project[(len(scales) * halves * triton.cdiv(self.num_inputs, cut.block_n),)](
            *self.parts, described(own.right, self.width, (self.rank, cut.block_k)), own.coefficients, scales,
            self.products, self.width, self.num_inputs, halves, self.call.input_precision, cut.block_n, cut.block_k,
            self.rank, num_warps=tiles.projection_warps(self.rank), num_stages=cut.num_stages,
        )  # fmt: skip
