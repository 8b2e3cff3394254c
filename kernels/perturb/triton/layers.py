"""Layer-by-layer evaluation: buffers, descriptors and arguments that many chunks share, and the launches of a chunk.

Sixth file to read, after group.py. The host must not take longer to launch a kernel than the card takes to run it. So
buffers and their descriptors are made once a layer, the launches of a chunk are prepared once a group, and each chunk
repeats them with the addresses of its own displacements.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from nntk.kernels.gpu.launches import PartOf, RepeatedLaunch
from nntk.kernels.perturb.triton import chunks, config, kernel
from nntk.kernels.perturb.triton.group import PerSampleNoise, PreparedGroup, is_formed
from nntk.kernels.perturb.triton.operands import (
    LaunchContext,
    activation_parameters,
    tensor_descriptor,
)
from nntk.kernels.perturb.triton.unperturbed import UnperturbedPass
from nntk.kernels.philox.integers import BASE, DISPLACEMENT
from nntk.kernels.philox.triton import kernel as stream
from nntk.kernels.philox.triton import launch as philox
from nntk.kernels.slices import count, slices

_WRITTEN = ("staged", "stacked")
"""Paths whose noise is written to memory for a chunk."""


class LayerSteps:
    """All layers of an MLP, for one input block and chunks of one size.

    Args:
        context: Settings that all launches share.
        base_pass: Unperturbed pass of the inputs.
        chunk_samples: Displacements of a chunk.
        paths: Path of each layer, of ``config.PATHS``.
    """

    def __init__(
        self, context: LaunchContext, base_pass: UnperturbedPass, chunk_samples: int, paths: Sequence[str]
    ) -> None:
        self._context, self._base_pass, self._chunk_samples = context, base_pass, chunk_samples
        rows = _noise_rows(context, paths)
        self._steps = [
            _LayerStep(context, base_pass, number, chunk_samples, path, row)
            for number, (path, row) in enumerate(zip(paths, rows, strict=True))
        ]
        # Layers alternate between two buffers, each of a q and behind it a d. They share one buffer of noise, with the
        # weights of stacked layers in front of it, and one of projections.
        hidden = self._steps[:-1]
        between = [self._buffer([(step.q_shape, step.d_shape) for step in hidden[parity::2]]) for parity in (0, 1)]
        front = (stacked_bytes(context, paths) // context.dtype.itemsize,)
        noise = self._buffer([(front, step.noise_shape) for step in self._steps])
        projections = self._buffer([(step.projection_shape,) for step in self._steps])
        q, d = base_pass.operands[0], None
        for number, step in enumerate(self._steps):
            d_out = None if step.is_last else _view(between[number % 2], step.d_shape, step.q_shape)
            q_out = _view(between[number % 2], step.q_shape) if step.writes_q else None
            step_noise = _view(noise, step.noise_shape, front)
            step.connect(q, d, d_out, q_out, step_noise, _view(projections, step.projection_shape))
            q, d = q_out, d_out

    def __call__(self, group: PreparedGroup, out: Tensor, order: Tensor | None = None) -> None:
        """Evaluate a group.

        Args:
            group: The group, of M displacements.
            out: Unit differences that are filled, float32, [M, N, C], or [2, M, N, C] with both members of a pair; the
                numbers of a row lie next to each other.
            order: Row of ``out`` of each displacement, [M], int64, where it has more rows or another order.
        """
        outputs = _outputs(out, order, self._context.pairs)
        launches = [
            launch
            for step, noise in zip(self._steps, group.noise, strict=True)
            for launch in step.launches(group, noise, outputs)
        ]
        for number, chunk in enumerate(slices(group.sample_ids.shape[0], self._chunk_samples)):
            for launch in launches:
                launch(number, chunk)

    def _buffer(self, contents: Sequence[tuple[tuple[int, ...], ...]]) -> Tensor:
        """Allocate memory of operands for the largest of the contents, each of which is a row of shapes."""
        numbers = max((sum(map(math.prod, shapes)) for shapes in contents), default=0)
        return torch.empty(numbers, dtype=self._context.dtype, device=self._base_pass.states[0][0].device)


def _outputs(out: Tensor, order: Tensor | None, pairs: str) -> tuple[Any, ...]:
    """Return the kernels' arguments that say where the last layer writes what :class:`LayerSteps` fills."""
    first = out[0] if pairs == "both" else out
    return PartOf(first) if order is None else first, _part(order), first.stride(0), out.stride(0)


def _view(buffer: Tensor, shape: tuple[int, ...], before: tuple[int, ...] = (0,)) -> Tensor:
    """Return the part of a buffer that has a shape, behind the part that has the shape ``before``."""
    start = math.prod(before)
    return buffer[start : start + math.prod(shape)].view(shape)


def choose_paths(context: LaunchContext, num_inputs: int) -> list[str]:
    """Choose the path of each layer.

    Args:
        context: Settings that all launches share.
        num_inputs: Number N of inputs.

    Returns:
        One of ``config.PATHS`` for each layer.

    Raises:
        ValueError: If the forced path does not apply.
    """
    paths = [_choose_path(context, number, num_inputs) for number in range(len(context.layers))]
    # Layer 0 has one product, which the staged step sums in one loop.
    paths[0] = "staged" if paths[0] == "stacked" else paths[0]
    if context.forced_path is None and stacked_bytes(context, paths) > chunks.largest_staged_bytes(context.max_bytes):
        return ["staged" if path == "stacked" else path for path in paths]
    return paths


def staged_bytes(context: LaunchContext, paths: Sequence[str]) -> int:
    """Return the bytes of one displacement of the largest weight whose noise is written to memory; 0 without any."""
    shapes = [layer.weight.shape for layer, path in zip(context.layers, paths, strict=True) if path in _WRITTEN]
    return max((chunks.matrix_bytes(height, width, context.dtype.itemsize) for height, width in shapes), default=0)


def stacked_bytes(context: LaunchContext, paths: Sequence[str]) -> int:
    """Return the bytes of the copies of weights in front of the noise, for all stacked layers; 0 without any."""
    rows = _noise_rows(context, paths)
    lengths = [chunks.matrix_bytes(1, width, context.dtype.itemsize) for width in context.widths[:-1]]
    return max(row * length for row, length in zip(rows, lengths, strict=True))


def _noise_rows(context: LaunchContext, paths: Sequence[str]) -> list[int]:
    """Return where the noise begins for each layer, in rows from its weight; 0 for layers that are not stacked."""
    layers = zip(context.layers, paths, strict=True)
    return chunks.noise_rows([tuple(layer.weight.shape) if path == "stacked" else (0, 0) for layer, path in layers])


def _choose_path(context: LaunchContext, number: int, num_inputs: int) -> str:
    layer, forced, is_first = context.layers[number], context.forced_path, number == 0
    (height, width), source = layer.weight.shape, context.noise_source(layer)
    if source == "none" or forced == "step":
        return "step"
    if forced is None:
        columns = num_inputs * (1 if is_first else context.members)
        path = config.choose_path_on(context.target, source, context.precision, width, height, columns, is_first)
        weight_bytes = chunks.matrix_bytes(height, width, context.dtype.itemsize)
        fits = weight_bytes <= chunks.largest_staged_bytes(context.max_bytes)
        return path if fits or path not in _WRITTEN else "step"
    if not config.applies(forced, source, context.precision, width, context.target.arch):
        raise ValueError(
            f"path {forced!r} does not apply to {source} in {context.precision} with {width} inputs of a "
            f"layer on {context.target.arch}; leave the choice to the cost model with None, or force 'step'."
        )
    return forced


class _LayerStep:
    """One layer: the shapes of its buffers, its operands, and its launches."""

    def __init__(
        self, context: LaunchContext, base_pass: UnperturbedPass, number: int, chunk_samples: int, path: str,
        noise_row: int,
    ) -> None:  # fmt: skip
        self.context, self.base_pass, self.number, self.noise_row = context, base_pass, number, noise_row
        self.layer = context.layers[number]
        self.is_first, self.is_last = number == 0, number + 1 == len(context.layers)
        self.height, self.width = self.layer.weight.shape
        self.num_inputs = base_pass.num_inputs
        self.column_members = 1 if self.is_first else context.members
        """Members that have separate columns: at layer 0 one column serves both members of a pair."""
        self.path, self.is_formed = path, is_formed(context, self.layer)
        source = context.noise_source(self.layer)
        self.source = path if path in _WRITTEN else "staged" if self.is_formed else source
        """Family of the noise as the kernel is told it, where noise in memory counts as a family."""
        self.tiles = self._choose_tiles()
        self.rank = chunks.padded_rank(context.directions.count if self.source == "lowrank" else 1)
        next_ordinal = None if self.is_last else context.layers[number + 1].weight_ordinal
        self.writes_q = next_ordinal is not None and context.directions.name != "lowrank"
        self.d_shape = (chunk_samples, context.members, self.num_inputs, philox.padded(self.height))
        self.q_shape = self.d_shape if self.writes_q else (0,)
        bases = min(context.directions.count, chunk_samples)
        matrices = bases if self.source == "flipout" else chunk_samples if path in _WRITTEN else 0
        self.noise_shape = (matrices, self.height, philox.padded(self.width))
        projections = (chunk_samples, self.column_members, self.num_inputs, self.rank)
        self.projection_shape = projections if self.source == "lowrank" else (0,)
        self._prepare_arguments()

    def _prepare_arguments(self) -> None:
        """Prepare the arguments that all launches of the layer share."""
        context, tiles, state = self.context, self.tiles, self.base_pass.states[self.number]
        self.states = (state[0], state[-1], None if self.is_last else self.base_pass.hidden[self.number + 1])
        self.stream = (*philox.keys(context.key), philox.signed(self.layer.weight_ordinal or 0))
        self.sizes = (self.width, self.height, self.num_inputs)
        self.parameters = activation_parameters([self.layer])
        self.kind = (
            context.members, self.layer.activation.name, context.input_precision, context.triton_dtype,
            context.target.ptx,
        )  # fmt: skip
        self.is_wide = philox.has_wide_blocks(self.height, self.width)
        self.tile_sizes = (tiles.parts, tiles.block_h, tiles.block_n, tiles.block_k)
        self.options = {"num_warps": tiles.num_warps, "num_stages": tiles.num_stages, **config.OPTIONS}
        # A stationary program goes over all inputs, since it holds its noise.
        input_tiles = 1 if self.path == "stationary" else count(self.num_inputs, tiles.block_n // self.column_members)
        self.programs_per_sample = count(self.height, tiles.block_h) * input_tiles

    def _choose_tiles(self) -> config.Tiles:
        precision, target = self.context.precision, self.context.target
        if self.path == "stationary":
            tiles = config.stationary_tiles(self.source, precision, self.width, target.arch)
            assert tiles is not None, "the path applies"
            return tiles
        columns = self.num_inputs * self.column_members
        return config.step_tiles_on(target, self.source, precision, self.width, self.height, columns)

    def connect(
        self, q: Tensor | None, d: Tensor | None, d_out: Tensor | None, q_out: Tensor | None, noise: Tensor,
        projections: Tensor,
    ) -> None:  # fmt: skip
        """Describe the buffers that the layer reads and writes.

        Args:
            q: Operand of the product with E: the inputs at layer 0, then +-(h + s d) as the layer before writes it.
            d: Differences that the layer before writes; None at layer 0.
            d_out: Buffer of the layer's differences; None for the last layer, which writes the outputs.
            q_out: Buffer of the next layer's q; None where that layer reads none.
            noise: Buffer of noise matrices.
            projections: Buffer of products with the right factors of low rank.
        """
        context, tiles = self.context, self.tiles
        self.d_out, self.q_out, self.noise, self.projections = d_out, q_out, noise, projections
        if self.path == "stacked":
            self._connect_stacked(q)
            return
        operand = self.base_pass.operands[self.number] if q is None else q
        self.q = None if self.source in ("none", "lowrank") else self._column_descriptor(operand, self.column_members)
        self.q_per_sample = self.q is not None and operand is not None and operand.dim() > 2
        """True where each displacement has a different q."""
        # Where E is formed, one member of d is multiplied by W + s E and the other by W - s E, so each is read alone.
        self.d = self._column_descriptor(d, 1 if self.is_formed else self.column_members)
        block = (tiles.block_h, tiles.block_k)
        weights = context.weight_operands
        self.weight = None if d is None else tensor_descriptor(weights[self.number - 1], self.width, block)
        self.noise_descriptor = tensor_descriptor(noise, self.width, block) if len(noise) else None
        self.projection_descriptor = None
        if self.source == "lowrank":
            members, inputs = self.column_members, tiles.block_n // self.column_members
            self.projection_descriptor = tensor_descriptor(projections, self.rank, (1, members, inputs, self.rank))
            # A product with operands of each displacement passes them as differences.
            is_product = q is not None and q.dim() > 2
            projected = (None, q) if is_product else (operand, d)
            block = (tiles.block_n, tiles.block_k)
            self.projected = [
                None if part is None else tensor_descriptor(part, self.width, block) for part in projected
            ]

    def _connect_stacked(self, q: Tensor | None) -> None:
        """Describe q with the d behind it, and the noise with the weight in front of it, where W is copied."""
        assert q is not None, "a stacked layer is behind another, which writes q"
        tiles, noise, rows, length = self.tiles, self.noise, self.noise_row, self.noise.shape[-1]
        shape, start = (rows + len(noise) * self.height, length), noise.storage_offset() - rows * length
        matrices = noise.as_strided(shape, (length, 1), start)
        matrices[: self.height] = self.context.weight_operands[self.number - 1]
        columns = q.as_strided((2, *q.shape), (q.numel(), *q.stride()))
        members = self.column_members
        self.noise_descriptor = tensor_descriptor(matrices, self.width, (tiles.block_h, tiles.block_k))
        self.columns = tensor_descriptor(columns, self.width, (1, 1, members, tiles.block_n // members, tiles.block_k))

    def _column_descriptor(self, operand: Tensor | None, members: int) -> TensorDescriptor | None:
        """Describe columns: inputs [N, K], or q or d of displacements, of which a tile has so many members."""
        if operand is None:
            return None
        block = (self.tiles.block_n // self.column_members, self.tiles.block_k)
        if operand.dim() == 2:
            return tensor_descriptor(operand, self.width, block)
        columns = operand.view(-1, self.column_members, self.num_inputs, operand.shape[-1])
        return tensor_descriptor(columns, self.width, (1, members, *block))

    def launches(self, group: PreparedGroup, noise: PerSampleNoise, outputs: tuple[Any, ...]) -> list[RepeatedLaunch]:
        """Prepare the launches of a chunk, in order, which every chunk of a group repeats.

        Args:
            group: Displacements of the group.
            noise: Noise vectors of the layer.
            outputs: Arguments that say where the last layer writes its results.

        Returns:
            The launches.
        """
        sample_ids, scales = PartOf(group.sample_ids), PartOf(group.scales)
        epilogue = (
            _part(noise.bias), *self.states, scales, *self.parameters, self.d_out, self.q_out,
            philox.padded(self.height), *(outputs if self.is_last else (None, None, 0, 0)),
        )  # fmt: skip
        pairs = self.context.pairs if self.is_last else None
        if self.path == "stationary":
            arguments = (
                self.q, self.d, self.weight, sample_ids, *self.stream, *self.sizes, *epilogue, self.source,
                self.is_first, pairs, *self.kind, self.is_wide, *self.tile_sizes,
            )  # fmt: skip
            return [RepeatedLaunch(kernel.stationary_step, arguments, self.programs_per_sample, self.options)]
        launches, matrices, in_signs = self._prepare_noise(group, noise)
        if self.path == "stacked":
            members, activation, precision, _, ptx = self.kind
            arguments = (
                self.columns, matrices, self.noise_row, *self.sizes, *epilogue, pairs, members, activation, precision,
                ptx, *self.tile_sizes,
            )  # fmt: skip
            return [*launches, RepeatedLaunch(kernel.stacked_step, arguments, self.programs_per_sample, self.options)]
        slots = None if group.bases is None else PartOf(group.bases.slots)
        arguments = (
            self.q, self.d, self.weight, matrices, self.projection_descriptor, slots, in_signs,
            _part(noise.out_signs), sample_ids, *self.stream, *self.sizes, *epilogue, self.source, self.is_first,
            pairs, self.q_per_sample, *self.kind, self.is_wide, *self.tile_sizes, self.rank,
        )  # fmt: skip
        return [*launches, RepeatedLaunch(kernel.layer_step, arguments, self.programs_per_sample, self.options)]

    def _prepare_noise(
        self, group: PreparedGroup, noise: PerSampleNoise
    ) -> tuple[list[RepeatedLaunch], TensorDescriptor | PartOf | None, PartOf | None]:
        """Return the launches that write what the layer step reads, its matrices or left factors, and signs s_m."""
        context, block = self.context, (self.tiles.block_h, self.tiles.block_k)
        if noise.formed is not None:
            return [], PartOf(noise.formed, tensor_descriptor(noise.formed, self.width, block)), None
        if self.path in _WRITTEN:
            is_signs, tiles = context.directions.name == "rademacher", self._noise_tiles
            arguments = self._noise_arguments(PartOf(group.sample_ids), is_signs, DISPLACEMENT)
            return (
                [RepeatedLaunch(stream.write_noise, arguments, tiles(is_signs), philox.OPTIONS)],
                self.noise_descriptor,
                None,
            )
        if group.bases is not None and noise.in_signs is not None:
            base_ids = PartOf(group.bases.base_ids, is_by_launch=True)
            programs = group.bases.base_ids.shape[1] * self._noise_tiles(True)
            arguments = self._noise_arguments(base_ids, True, BASE)
            write = RepeatedLaunch(stream.write_noise, arguments, 0, philox.OPTIONS, programs_by_launch=programs)
            signs = tensor_descriptor(noise.in_signs, self.width, (1, block[1]))
            return [write], self.noise_descriptor, PartOf(noise.in_signs, signs)
        if noise.left is not None:
            left = tensor_descriptor(noise.left, self.height, (self.rank, block[0]))
            return [self._projection(group, noise)], PartOf(noise.left, left), None
        return [], self.noise_descriptor, None

    def _noise_tiles(self, is_signs: bool) -> int:
        return philox.matrix_tiles(*self.noise_shape[1:], is_signs)

    def _noise_arguments(self, sample_ids: PartOf, is_signs: bool, purpose: int) -> tuple[Any, ...]:
        """Return the arguments of the launch that writes matrices of noise or bases to the layer's buffer."""
        context = self.context
        return philox.matrix_arguments(
            self.noise, sample_ids, self.layer.weight_ordinal or 0, self.width, context.key, is_signs, purpose,
            context.target.ptx,
        )  # fmt: skip

    def _projection(self, group: PreparedGroup, noise: PerSampleNoise) -> RepeatedLaunch:
        """Return the launch that multiplies the columns by the right factors of low rank."""
        tiles, members = self.tiles, self.column_members
        assert noise.right is not None, "a left factor comes with a right one"
        right = tensor_descriptor(noise.right, self.width, (self.rank, tiles.block_k))
        arguments = (
            *self.projected, PartOf(noise.right, right), _part(noise.coefficients), PartOf(group.scales),
            self.projections, self.width, self.num_inputs, members, self.context.input_precision, tiles.block_n,
            tiles.block_k, self.rank,
        )  # fmt: skip
        options = {
            "num_warps": config.projection_warps(self.rank), "num_stages": tiles.num_stages, **config.OPTIONS
        }  # fmt: skip
        return RepeatedLaunch(kernel.project, arguments, members * count(self.num_inputs, tiles.block_n), options)


def _part(tensor: Tensor | None) -> PartOf | None:
    return None if tensor is None else PartOf(tensor)
