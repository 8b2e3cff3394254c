r"""Layer steps by each family of displacements; README.md beside the op has the formulas.

Explicit noise (gaussian, rademacher) is written with the displaced weights in one pass. The layer step is sorted by
what multiplies it,

.. math:: dz_\pm = d_\pm (W \pm s E)^T \pm \rho\,[h E^T + e],

three products for a pair, since both members share the last one. Flipout and low rank are not formed:
:math:`dz_\pm = d_\pm W^T + \rho\,[q_\pm E^T \pm e]`, with products that all displacements of a task share.
"""

import numpy as np
import torch
from torch import Tensor

from nntk.kernels.activations import Activation
from nntk.kernels.mlp import Layer
from nntk.kernels.perturb.cpu import kernel
from nntk.kernels.perturb.cpu.program import Program, Tile, array
from nntk.kernels.philox.cpu.stream import Displaced
from nntk.kernels.philox.integers import BASE, INPUT_SIGNS, LEFT, OUTPUT_SIGNS, RIGHT


class ExplicitProgram(Program):
    """Gaussian and rademacher displacements."""

    def record_displaced_layer(
        self, number: int, layer: Layer, h: Tensor, d: Tensor | None, e: Tensor, out: Tensor
    ) -> None:
        """Record E and W + s E of a slab of units, their products, and what follows."""
        for units in self.unit_slabs(layer):
            shape = (units.stop - units.start, layer.weight.shape[1])
            noise = self.buffer("noise", self.num_samples, *shape)
            weights = None if d is None else self.buffer("weights", self.num_samples, self.problem.members, *shape)
            self._record_noise(layer, units, noise, weights)
            for tile in self.tiles_of(units):
                shared = self.buffer("shared", self.num_samples, tile.place[1], shape[0])
                self.record(torch.bmm, h[tile.inputs].expand(self.num_samples, -1, -1), noise.mT, out=shared)
                own = None if d is None or weights is None else self.record_own_products(d, weights, tile, out)
                self.record_finish(number, tile, out, e, own=own, shared=shared)

    def _record_noise(self, layer: Layer, units: slice, noise: Tensor | None, weights: Tensor | None) -> None:
        """Record the generation of E, [T, U, K], and W + s E, [T, members, U, K]; what is None is left out."""
        assert layer.weight_ordinal is not None, "the weight is displaced"
        displaced = None
        if weights is not None:
            displaced = Displaced(layer.weight[units].numpy(), self.steps, weights.numpy())
        self.record(
            *self.problem.stream.matrix(
                self.problem.family.name == "gaussian", self.samples, layer.weight_ordinal, units,
                layer.weight.shape[1], array(noise), displaced,
                self.squares_of(layer.weight_ordinal),
            )
        )  # fmt: skip

    def record_values(self, unperturbed: Tensor | None) -> None:
        """Record the evaluation of f at the displaced parameters.

        Args:
            unperturbed: f(theta), [N, C], which is subtracted; None to leave the values, as a pair's difference needs.
        """
        samples, members = self.num_samples, self.problem.members
        h = self.x.expand(samples, members, -1, -1)
        for number, layer in enumerate(self.problem.layers):
            e = self.record_bias_noise(layer)
            out = self.buffer(f"d{number % 2}", samples, members, h.shape[2], len(layer.weight))
            for units in self.unit_slabs(layer):
                weights = layer.weight[units].expand(samples, members, -1, -1)
                if layer.weight_ordinal is not None:
                    weights = self.buffer("weights", *weights.shape)
                    self._record_noise(layer, units, None, weights)
                for tile in self.tiles_of(units):
                    own = self.record_own_products(h, weights, tile, out)
                    self._record_finish_values(layer, tile, out, e, own)
            if layer.weight_ordinal is not None:
                self._counted.add(layer.weight_ordinal)
            if kernel.KINDS.get(layer.activation.name) not in kernel.VALUE_KINDS:
                self.record(_finish_smooth_values, layer.activation, out)
            h = out
        if unperturbed is not None:
            self.record(h.sub_, unperturbed)
        self.result = h

    def _record_finish_values(self, layer: Layer, tile: Tile, out: Tensor, e: Tensor, own: Tensor) -> None:
        kind = kernel.KINDS.get(layer.activation.name)
        bias = layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias
        self.record(
            kernel.finish_values, own.numpy(), bias.numpy(), e.numpy(), self.steps,
            kind if kind in kernel.VALUE_KINDS else kernel.IDENTITY, layer.activation.parameters, tile.place,
            out.numpy(),
        )  # fmt: skip


class FlipoutProgram(Program):
    r"""Displacements :math:`S \circ r s^T` of one base S: :math:`q E^T = ((q \circ s) S^T) \circ r`."""

    def record_displaced_layer(
        self, number: int, layer: Layer, h: Tensor, d: Tensor | None, e: Tensor, out: Tensor
    ) -> None:
        """Record the signs, the base of a slab of units, and products that all displacements share."""
        assert layer.weight_ordinal is not None, "the weight is displaced"
        samples, ordinal, (height, width) = self.num_samples, layer.weight_ordinal, layer.weight.shape
        r, s = self.buffer("r", samples, 1, height), self.buffer("s", samples, 1, width)
        stream = self.problem.stream
        self.record(*stream.vector(False, self.samples, ordinal, slice(0, height), r.numpy(), purpose=OUTPUT_SIGNS))
        self.record(*stream.vector(False, self.samples, ordinal, slice(0, width), s.numpy(), purpose=INPUT_SIGNS))
        q = self.buffer("q", samples, 1 if d is None else self.problem.members, len(h), width)
        self.record(kernel.flip_operands, h.numpy(), array(d), self.powers, s.numpy(), q.numpy())
        base = np.zeros(1, dtype=np.int64)
        self.record(np.remainder, self.samples[:1], self.problem.family.count, out=base)
        for units in self.unit_slabs(layer):
            matrix = self.buffer("noise", 1, units.stop - units.start, width)
            self.record(*stream.matrix(False, base, ordinal, units, width, matrix.numpy(), purpose=BASE))
            for tile in self.tiles_of(units):
                if d is None:
                    shared = self.record_product("shared", q[:, 0, tile.inputs], matrix[0])
                    self.record_finish(number, tile, out, e, shared=shared, signs=r)
                else:
                    own = self.record_product("own", d[:, :, tile.inputs], layer.weight[units])
                    product = self.record_product("product", q[:, :, tile.inputs], matrix[0])
                    self.record_finish(number, tile, out, e, own=own, product=product, signs=r)


class LowRankProgram(Program):
    r"""Displacements :math:`c A^T B`: :math:`q E^T = (c\,q B^T) A`, where h and d are multiplied by B apart."""

    def record_displaced_layer(
        self, number: int, layer: Layer, h: Tensor, d: Tensor | None, e: Tensor, out: Tensor
    ) -> None:
        """Record the factors, the inner products, and the product with W, to which outer products are added."""
        samples, members, rank = self.num_samples, self.problem.members, self.problem.family.count
        left, right = self._record_factors(layer)
        c = np.empty(samples, dtype=self.mantissas.dtype)
        self.record(kernel.scale_factors, left.numpy(), right.numpy(), c)
        projected_h = self.buffer("projected h", samples, len(h), rank)
        self.record(torch.bmm, h.expand(samples, -1, -1), right.mT, out=projected_h)
        projected_d = None
        if d is not None:
            projected_d = self.buffer("projected d", samples, members, len(h), rank)
            rows = d.view(samples, -1, d.shape[3])
            self.record(torch.bmm, rows, right.mT, out=projected_d.view(samples, -1, rank))
        inner = self.buffer("inner", samples, members, len(h), rank)
        self.record(
            kernel.combine_inner,
            projected_h.numpy(),
            array(projected_d),
            c,
            self.mantissas,
            self.powers,
            inner.numpy(),
        )
        for tile in self.tiles(layer):
            own = None if d is None else self.record_product("own", d[:, :, tile.inputs], layer.weight[tile.units])
            self.record_finish(number, tile, out, e, own=own, inner=inner, factors=left)

    def _record_factors(self, layer: Layer) -> tuple[Tensor, Tensor]:
        """Record the generation of A [T, R, H] and B [T, R, K]."""
        assert layer.weight_ordinal is not None, "the weight is displaced"
        rank, (height, width) = self.problem.family.count, layer.weight.shape
        factors = []
        for name, length, purpose in (("left", height, LEFT), ("right", width, RIGHT)):
            factor = self.buffer(name, self.num_samples, rank, length)
            self.record(
                *self.problem.stream.matrix(
                    True, self.samples, layer.weight_ordinal, slice(0, rank), length, factor.numpy(), purpose=purpose
                )
            )
            factors.append(factor)
        return factors[0], factors[1]


PROGRAMS: dict[str, type[Program]] = {
    "gaussian": ExplicitProgram,
    "rademacher": ExplicitProgram,
    "flipout": FlipoutProgram,
    "lowrank": LowRankProgram,
}
"""Program of each family of displacements."""


def _finish_smooth_values(activation: Activation, z: Tensor) -> None:
    """Replace pre-activations by the values of an activation, displacement by displacement."""
    for part in z:
        part.copy_(activation.value(part))
