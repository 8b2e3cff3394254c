"""Program of a lane: the calls that evaluate a task, recorded once and replayed for every task of the same size.

All arrays that a program reads and writes are allocated when it is recorded; it takes views of them, never copies. So
hardly any Python runs between two calls, and lanes rarely wait for the interpreter's lock.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nntk.kernels.activations import Activation, State
from nntk.kernels.cpu.elementwise import COMPILED
from nntk.kernels.cpu.smooth import ROWS
from nntk.kernels.mlp import Layer
from nntk.kernels.perturb.cpu import kernel
from nntk.kernels.perturb.cpu.config import LanePlan
from nntk.kernels.perturb.reference import UnperturbedPass
from nntk.kernels.philox.cpu.stream import Stream
from nntk.kernels.philox.directions import Directions
from nntk.kernels.slices import slices

Array = NDArray[Any]


@dataclass(frozen=True)
class Problem:
    """What all lanes of an evaluation read."""

    layers: list[Layer]
    """The MLP; its tensors are contiguous."""
    family: Directions
    stream: Stream
    plan: LanePlan
    members: int
    """Evaluations of a displacement."""
    sample_ids: Array
    """Stream numbers m, [M], int64."""
    scales: Array
    """Scales s, [M], in the dtype of the parameters."""
    mantissas: Array
    """Mantissas rho of the scales, [M]."""
    powers: Array
    """Powers of two sigma of the scales, [M]."""

    @property
    def signs(self) -> Array:
        """Signs of the members, [members]."""
        return np.array([1, -1][: self.members], dtype=self.scales.dtype)


class Workspace:
    """Arrays of a lane by name. The programs of the lane share them, one after the other."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._held: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        """Return a contiguous tensor of a shape."""
        size = math.prod(shape)
        held = self._held.get(name)
        if held is None or held.numel() < size:
            held = self._held[name] = torch.empty(size, dtype=self._dtype)
        return held[:size].view(shape)


@dataclass(frozen=True)
class Tile:
    """Inputs and units of a layer whose products are formed together."""

    inputs: slice
    units: slice

    @property
    def place(self) -> tuple[int, int, int, int]:
        """First input and number of inputs, first unit and number of units, as the kernels take them."""
        inputs, units = self.inputs, self.units
        return inputs.start, inputs.stop - inputs.start, units.start, units.stop - units.start


class Program(ABC):
    """Evaluation of some displacements at a block of inputs."""

    def __init__(self, problem: Problem, x: Tensor, workspace: Workspace, num_samples: int) -> None:
        self.problem, self.x, self.buffer, self.num_samples = problem, x, workspace, num_samples
        self._states: list[Array] = []
        self._calls: list[Callable[[], object]] = []
        self._counted: set[int] = set()
        self.samples = np.zeros(num_samples, dtype=np.int64)
        self.mantissas, self.powers = np.empty((2, num_samples), dtype=problem.scales.dtype)
        self.steps = np.empty((num_samples, problem.members), dtype=problem.scales.dtype)
        self.squares = np.zeros(num_samples) if problem.family.name == "gaussian" else None
        """Squared norms of the unit displacements, [T], float64; None where they are fixed."""
        self.result: Tensor
        """What a run leaves: [T, members, N, C]."""

    def record_differences(self, base_pass: UnperturbedPass) -> None:
        """Record the propagation of differences; the result is divided by sigma."""
        self._states = [_stacked(state) for _, state in base_pass.layers]
        d: Tensor | None = None
        for number, (layer, (h, _)) in enumerate(zip(self.problem.layers, base_pass.layers, strict=True)):
            d = self._record_layer(number, layer, h, d)
        assert d is not None, "there is at least one layer"
        self.result = d

    def run(self, positions: Array) -> None:
        """Evaluate the displacements at these positions."""
        problem = self.problem
        np.take(problem.sample_ids, positions, out=self.samples)
        np.take(problem.mantissas, positions, out=self.mantissas)
        np.take(problem.powers, positions, out=self.powers)
        np.multiply(problem.scales[positions, None], problem.signs, out=self.steps)
        if self.squares is not None:
            self.squares[:] = 0
        for call in self._calls:
            call()

    def record(self, function: Callable[..., object], *arguments: object, **keywords: object) -> None:
        """Add a call to the program."""
        self._calls.append(partial(function, *arguments, **keywords))

    def _record_layer(self, number: int, layer: Layer, h: Tensor, d: Tensor | None) -> Tensor:
        out = self.buffer(f"d{number % 2}", self.num_samples, self.problem.members, len(h), len(layer.weight))
        e = self.record_bias_noise(layer)
        if layer.weight_ordinal is None:
            for tile in self.tiles(layer):
                own = None if d is None else self.record_product("own", d[:, :, tile.inputs], layer.weight[tile.units])
                self.record_finish(number, tile, out, e, own=own)
        else:
            self.record_displaced_layer(number, layer, h, d, e, out)
            self._counted.add(layer.weight_ordinal)
        if layer.activation.name not in kernel.KINDS:
            self._record_smooth(layer.activation, self._states[number], out)
        return out

    def _record_smooth(self, activation: Activation, state: Array, out: Tensor) -> None:
        """Record the difference of a smooth activation, for which dz is in ``out``."""
        if activation.name in COMPILED and out.dtype == torch.float32:
            copy = self.buffer("dz", out.shape[1], math.prod(out.shape[2:])).numpy()
            self.record(_finish_smooth_rows, ROWS[activation.name], state[0].ravel(), copy, self.powers, out.numpy())
        else:
            parts = tuple(torch.from_numpy(part) for part in state)
            self.record(_finish_smooth, activation, parts, torch.from_numpy(self.powers), out)

    @abstractmethod
    def record_displaced_layer(
        self, number: int, layer: Layer, h: Tensor, d: Tensor | None, e: Tensor, out: Tensor
    ) -> None:
        """Record a layer whose weight is displaced.

        Args:
            number: Number of the layer.
            layer: The layer.
            h: Its unperturbed inputs, [N, K].
            d: Their differences divided by sigma, [T, members, N, K]; None at layer 0, which has none.
            e: Noise of the bias, [T, 1, H]; zeros if it is not displaced.
            out: Tensor for the differences behind the layer, [T, members, N, H].
        """

    def unit_slabs(self, layer: Layer) -> Iterator[slice]:
        """Yield the ranges of units whose noise is held together."""
        height, width = layer.weight.shape
        return slices(height, self.problem.plan.units(height, width))

    def tiles_of(self, units: slice) -> Iterator[Tile]:
        """Yield the tiles of a range of units."""
        return (Tile(inputs, units) for inputs in slices(len(self.x), self.problem.plan.tile_inputs))

    def tiles(self, layer: Layer) -> Iterator[Tile]:
        """Yield the tiles of a layer."""
        return (tile for units in self.unit_slabs(layer) for tile in self.tiles_of(units))

    def squares_of(self, ordinal: int) -> Array | None:
        """Return the array to which squared norms of a tensor are added; None if they were, or are not needed."""
        return None if ordinal in self._counted else self.squares

    def record_product(self, name: str, rows: Tensor, weight: Tensor) -> Tensor:
        """Record the product of rows [..., n, K] with one matrix [U, K] for all displacements; return its result."""
        out = self.buffer(name, *rows.shape[:-1], len(weight))
        if rows.is_contiguous():
            self.record(torch.mm, rows.view(-1, rows.shape[-1]), weight.T, out=out.view(-1, len(weight)))
        else:
            batch = rows.view(-1, *rows.shape[-2:])
            self.record(torch.bmm, batch, weight.T.expand(len(batch), -1, -1), out=out.view(-1, *out.shape[-2:]))
        return out

    def record_own_products(self, rows: Tensor, weights: Tensor, tile: Tile, out: Tensor) -> Tensor:
        """Record the products of rows [T, members, N, K] with weights [T, members, U, K] of their own.

        Returns:
            The products, [T, members, n, U]: a part of ``out``, where it is contiguous, else in a tensor beside it.
        """
        _, num_inputs, _, num_units = tile.place
        own = out[:, :, tile.inputs, tile.units]
        if not own.is_contiguous():
            own = self.buffer("own", *rows.shape[:2], num_inputs, num_units)
        members = rows.shape[0] * rows.shape[1]
        part = rows[:, :, tile.inputs]
        batch, matrices = part.view(members, *part.shape[2:]), weights.view(members, *weights.shape[2:])
        products = own.view(members, *own.shape[2:])
        if num_units > 1:
            self.record(torch.bmm, batch, matrices.mT, out=products)
        else:
            # PyTorch's batches of products with a vector take twice as long as one product after the other.
            for number in range(members):
                self.record(torch.mm, batch[number], matrices[number].T, out=products[number])
        return own

    def record_bias_noise(self, layer: Layer) -> Tensor:
        """Record the unit displacements of a bias; return their tensor, [T, 1, H], zeros if it is not displaced."""
        if layer.bias is None or layer.bias_ordinal is None:
            return layer.weight.new_zeros(1, 1, len(layer.weight)).expand(self.num_samples, -1, -1).contiguous()
        ordinal, length = layer.bias_ordinal, len(layer.bias)
        noise = self.buffer("bias", self.num_samples, 1, length)
        is_gaussian, squares = self.problem.family.name == "gaussian", self.squares_of(ordinal)
        indices = slice(0, length)
        self.record(*self.problem.stream.vector(is_gaussian, self.samples, ordinal, indices, noise.numpy(), squares))
        self._counted.add(ordinal)
        return noise

    def record_finish(
        self,
        number: int,
        tile: Tile,
        out: Tensor,
        e: Tensor,
        own: Tensor | None = None,
        product: Tensor | None = None,
        shared: Tensor | None = None,
        signs: Tensor | None = None,
        inner: Tensor | None = None,
        factors: Tensor | None = None,
    ) -> None:
        """Record what follows the products of a tile: :func:`nntk.kernels.perturb.cpu.kernel.finish_differences`."""
        activation = self.problem.layers[number].activation
        self.record(
            kernel.finish_differences, array(own), array(product), array(shared), array(signs), array(inner),
            array(factors), e.numpy(), self.mantissas, self.powers, self._states[number],
            kernel.KINDS.get(activation.name, kernel.IDENTITY), activation.parameters, tile.place, out.numpy(),
        )  # fmt: skip


def _finish_smooth(activation: Activation, state: State, powers: Tensor, dz: Tensor) -> None:
    """Replace dz by the difference of a smooth activation, displacement by displacement."""
    for part, sigma in zip(dz, powers, strict=True):
        part.copy_(activation.difference(state, part, sigma))


def _finish_smooth_rows(kernel: Callable[..., object], z: Array, copy: Array, powers: Array, dz: Array) -> None:
    """Replace dz by the difference of a smooth activation; ``copy`` has room for that of a displacement."""
    for t, part in enumerate(dz.reshape(len(dz), len(copy), -1)):
        # A kernel that reads what it writes would not be vectorised.
        np.copyto(copy, part)
        s = np.full(len(copy), powers[t])
        kernel(z, copy, s, 1 / s, part)


def _stacked(state: State) -> Array:
    stacked: Array = torch.stack(state).numpy()
    return stacked


def array(tensor: Tensor | None) -> Array | None:
    """Return the array that shares a tensor's memory; None for None."""
    return None if tensor is None else tensor.numpy()
