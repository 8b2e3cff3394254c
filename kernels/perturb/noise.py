r"""The unit displacements E of a group of rows, as an evaluation meets them: by the products :math:`q E^T` of a layer.

Gaussian and rademacher displacements are matrices like any other, one product for each row. Those of flipout and
lowrank are formed in low precision alone, where kernels form them: the base that rows share makes one large product,
the few factors of a row a cheap one.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nntk.kernels.mlp import Layer, displaced
from nntk.kernels.perturb.config import Plan
from nntk.kernels.philox.directions import Directions
from nntk.kernels.philox.integers import BASE
from nntk.kernels.philox.noise import signs
from nntk.kernels.philox.reference import (
    displacements,
    flipout_bases,
    flipout_signs,
    lowrank_factors,
    unit_slabs,
)
from nntk.kernels.philox.slabs import Slab, slabs_of

FORMED_UNITS = 64
"""Units of a layer up to which low rank's kernels form E, a tile of it, and read differences once."""


@dataclass(frozen=True)
class Group:
    """Displacements that are made together, and what they are made for."""

    directions: Directions
    rows: Tensor
    """Row numbers m, [M], int64; of one base for flipout."""
    layers: Sequence[Layer]
    key: tuple[int, int]
    plan: Plan
    rounded: Callable[[Tensor], Tensor]
    """Rounds an operand of a product to the precision of the evaluation."""
    precision: str = "fp32"

    @property
    def dtype(self) -> torch.dtype:
        """Floating dtype of the parameters."""
        return self.layers[0].weight.dtype

    def shapes(self, axes: Sequence[int]) -> dict[int, tuple[int, ...]]:
        """Shapes of the displaced tensors that have so many axes, by ordinal."""
        found = {ordinal: tuple(tensor.shape) for ordinal, tensor in displaced(self.layers).items()}
        return {ordinal: shape for ordinal, shape in found.items() if len(shape) in axes}


def row_groups(directions: Directions, rows: Tensor, size: int) -> Iterator[Tensor]:
    """Positions of rows to group together, at most ``size`` at a time: those of flipout share a base."""
    shares = [torch.arange(len(rows), device=rows.device)]
    if directions.name == "flipout":
        bases, order = torch.sort(rows % directions.count, stable=True)
        shares = list(order.split(torch.unique_consecutive(bases, return_counts=True)[1].tolist()))
    return (group for share in shares for group in share.split(size) if len(group))


class Noise(ABC):
    """Unit displacements of a group; ``tile`` selects some of its rows, ``units`` some outputs of a layer."""

    def __init__(self, group: Group) -> None:
        self._group = group
        num_params = sum(tensor.numel() for tensor in displaced(group.layers).values())
        self.squared_norms = torch.full(group.rows.shape, num_params, dtype=torch.float64, device=group.rows.device)
        """[M]; complete after an evaluation."""

    def slabs(self, weight: Tensor) -> Iterator[slice]:
        """Ranges of output units that are evaluated together."""
        yield slice(0, len(weight))

    def _slabs_of_all(self, weight: Tensor) -> Iterator[slice]:
        """Ranges of which the displacements of all rows are a slab."""
        return _cut(weight, self._group.plan.slab_numbers // len(self._group.rows))

    def moved_weights(self, layer: Layer, units: slice, tile: slice, step: Tensor) -> Tensor | None:
        """The operand W + s E, where the kernels of a low precision multiply by it and not by q; W is rounded too.

        Args:
            layer: The layer; its weight moves.
            units: Which of its units.
            tile: Which rows.
            step: Signed scales s, [rows or 1, halves, 1, 1].

        Returns:
            [rows, halves, units, K], None where operands are d and q = +-(h + s d).
        """
        return None

    def _rounded_sum(self, weight: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        return self._group.rounded(torch.addcmul(self._group.rounded(weight), noise[:, None], step))

    def operand(self, h: Tensor, d: Tensor, signs: Tensor, scales: Tensor) -> Tensor:
        """The rounded operand q = +-(h + s d) of a layer behind the first.

        Args:
            h: Unperturbed inputs of the layer, [N, K].
            d: Their unit differences, [rows, halves, N, K].
            signs: [halves, 1, 1].
            scales: s, [rows or 1, 1, 1, 1].

        Returns:
            [rows, halves, N, K].
        """
        return self._group.rounded(torch.addcmul(signs * h, d, scales * signs))

    @abstractmethod
    def bias(self, ordinal: int, bias: Tensor, tile: slice) -> Tensor:
        """Unit displacement of a bias, [rows, H]."""

    @abstractmethod
    def product(self, q: Tensor, layer: Layer, units: slice, tile: slice, onto: Tensor | None = None) -> Tensor:
        r"""Products :math:`q E^T` with the unit displacement of a weight.

        Args:
            q: Rounded operand, [rows, n, K], or [n, K] for all rows.
            layer: The layer; its weight moves.
            units: Which of its units.
            tile: Which rows.
            onto: What to add the products to, in place, [rows, n, units].

        Returns:
            [rows, n, units].
        """

    def displaced_product(self, h: Tensor, layer: Layer, units: slice, tile: slice, step: Tensor) -> Tensor:
        r"""Products :math:`h (W + s E)^T` with a displaced weight.

        Args:
            h: [rows, halves, N, K], or [N, K] for all rows and halves.
            layer: The layer; its weight moves.
            units: Which of its units.
            tile: Which rows.
            step: Signed scales s, [rows or 1, halves, 1, 1].

        Returns:
            [rows, halves, N, units].
        """
        z = torch.matmul(h, layer.weight[units].T)
        if h.dim() == 2:
            return torch.addcmul(z, self.product(h, layer, units, tile)[:, None], step)
        return torch.addcmul(z, self.product(h.flatten(1, 2), layer, units, tile).view_as(z), step)


class ExplicitNoise(Noise):
    """Gaussian and rademacher displacements: made whole and kept, or slab by slab, as the plan says."""

    def __init__(self, group: Group) -> None:
        super().__init__(group)
        self._family = str(group.directions)
        self._kept: dict[int, Tensor] = {}
        self._counted: set[tuple[int, int]] = set()
        if not group.directions.has_fixed_norm:
            self.squared_norms.zero_()
        if group.plan.keep_noise:
            shapes, numbers = group.shapes(axes=(1, 2)), group.plan.slab_numbers
            self._kept = displacements(self._family, group.rows, shapes, group.key, group.dtype, numbers)
            for ordinal, noise in self._kept.items():
                self._count(ordinal, 0, noise)

    def _count(self, ordinal: int, start: int, noise: Tensor) -> None:
        """Add to the norms; a slab made again, for other inputs or another place of a tied tensor, counts once."""
        if not self._group.directions.has_fixed_norm and (ordinal, start) not in self._counted:
            self._counted.add((ordinal, start))
            self.squared_norms += noise.flatten(1).square().sum(1)

    def _displacement(self, ordinal: int | None, tensor: Tensor, units: slice, tile: slice) -> Tensor:
        assert ordinal is not None, "the tensor moves"
        if self._group.plan.keep_noise:
            return self._kept[ordinal][tile, units]
        slab = Slab(ordinal, tuple(tensor.shape), units.start, units.stop)
        (noise,) = unit_slabs(self._family, self._group.rows, [slab], self._group.key, tensor.dtype)
        self._count(ordinal, units.start, noise)
        return noise[tile]

    def slabs(self, weight: Tensor) -> Iterator[slice]:
        """All units, or as many as a slab holds."""
        if self._group.plan.keep_noise:
            yield from super().slabs(weight)
        else:
            yield from self._slabs_of_all(weight)

    def bias(self, ordinal: int, bias: Tensor, tile: slice) -> Tensor:
        """Unit displacement of a bias, [rows, H]."""
        return self._displacement(ordinal, bias, slice(0, len(bias)), tile)

    def product(self, q: Tensor, layer: Layer, units: slice, tile: slice, onto: Tensor | None = None) -> Tensor:
        """One product for each row."""
        noise = self._displacement(layer.weight_ordinal, layer.weight, units, tile)
        return torch.matmul(q, noise.mT) if onto is None else onto.baddbmm_(q, noise.mT)

    def displaced_product(self, h: Tensor, layer: Layer, units: slice, tile: slice, step: Tensor) -> Tensor:
        """One product for each row and half, with the sum."""
        noise = self._displacement(layer.weight_ordinal, layer.weight, units, tile)
        return torch.matmul(h, torch.addcmul(layer.weight[units], noise[:, None], step).mT)


class StructuredNoise(Noise):
    """What flipout and lowrank have in common: biases displaced by signs of their own."""

    def __init__(self, group: Group) -> None:
        super().__init__(group)
        shapes, numbers = group.shapes(axes=(1,)), group.plan.slab_numbers
        self._biases = displacements("rademacher", group.rows, shapes, group.key, group.dtype, numbers)

    def bias(self, ordinal: int, bias: Tensor, tile: slice) -> Tensor:
        """Unit displacement of a bias, [rows, H]."""
        return self._biases[ordinal][tile]


class FlipoutNoise(StructuredNoise):
    r"""Displacements :math:`S \circ r s^T` that share the base S: :math:`q E^T = ((q \circ s) S^T) \circ r`."""

    def __init__(self, group: Group) -> None:
        super().__init__(group)
        shapes, numbers = group.shapes(axes=(2,)), group.plan.slab_numbers
        self._signs = flipout_signs(group.rows, shapes, group.key, group.dtype, numbers)
        self._base = group.rows[:1] % group.directions.count
        self._kept: dict[int, Tensor] = {}
        if group.plan.keep_noise:
            self._kept = flipout_bases(self._base, shapes, group.key, group.dtype, numbers)

    def slabs(self, weight: Tensor) -> Iterator[slice]:
        """All units, or as many as a slab holds."""
        if self._group.plan.keep_noise:
            yield from super().slabs(weight)
        else:
            yield from _cut(weight, self._group.plan.slab_numbers)

    def product(self, q: Tensor, layer: Layer, units: slice, tile: slice, onto: Tensor | None = None) -> Tensor:
        """One product with the base for all rows of the tile, between signs."""
        assert layer.weight_ordinal is not None, "the weight moves"
        r, s = (part[tile, None] for part in self._signs[layer.weight_ordinal])
        made = torch.matmul(q * s, self._base_slab(layer.weight_ordinal, layer.weight, units).T)
        return made.mul_(r[..., units]) if onto is None else onto.addcmul_(made, r[..., units])

    def _base_slab(self, ordinal: int, weight: Tensor, units: slice) -> Tensor:
        if self._group.plan.keep_noise:
            return self._kept[ordinal][0, units]
        slab = Slab(ordinal, tuple(weight.shape), units.start, units.stop, BASE)
        return signs(self._base, [slab], self._group.key, weight.dtype)[0][0]


class LowRankNoise(StructuredNoise):
    r"""Displacements :math:`c A^T B` by their factors: :math:`q E^T = (c\,q B^T) A`, whose bracket is rounded too.

    Products with so few factors are cheap: those of h and of d are made apart, so that q itself need not be written.
    In low precision a layer of few units has its E formed, as kernels do.
    """

    def __init__(self, group: Group) -> None:
        super().__init__(group)
        rank, shapes, numbers = group.directions.count, group.shapes(axes=(2,)), group.plan.slab_numbers
        self._factors = lowrank_factors(group.rows, shapes, rank, group.key, group.dtype, numbers)

    def slabs(self, weight: Tensor) -> Iterator[slice]:
        """All units, or as many as a slab holds where E is formed."""
        return self._slabs_of_all(weight) if self._forms(weight) else super().slabs(weight)

    def _forms(self, weight: Tensor) -> bool:
        return self._group.precision != "fp32" and len(weight) <= FORMED_UNITS

    def _formed(self, layer: Layer, units: slice, tile: slice) -> Tensor | None:
        """E rounded to an operand, [rows, units, K], of a layer of few units in low precision."""
        assert layer.weight_ordinal is not None, "the weight moves"
        if not self._forms(layer.weight):
            return None
        left, right, scale = (factor[tile] for factor in self._factors[layer.weight_ordinal])
        formed = torch.matmul(left[..., units].mT, right).mul_(scale[:, None, None])
        return self._group.rounded(formed)

    def operand(self, h: Tensor, d: Tensor, signs: Tensor, scales: Tensor) -> Tensor:
        """The operand q = +-(h + s d), of h and d rounded apart."""
        return torch.addcmul(signs * self._group.rounded(h), self._group.rounded(d), scales * signs)

    def moved_weights(self, layer: Layer, units: slice, tile: slice, step: Tensor) -> Tensor | None:
        """Of layers of few units."""
        formed = self._formed(layer, units, tile)
        return None if formed is None else self._rounded_sum(layer.weight[units], formed, step)

    def product(self, q: Tensor, layer: Layer, units: slice, tile: slice, onto: Tensor | None = None) -> Tensor:
        """Two products of R numbers for each row, or one with E where it is formed."""
        assert layer.weight_ordinal is not None, "the weight moves"
        formed = self._formed(layer, units, tile)
        if formed is not None:
            return torch.matmul(q, formed.mT) if onto is None else onto.baddbmm_(q, formed.mT)
        left, right, scale = (factor[tile] for factor in self._factors[layer.weight_ordinal])
        inner = torch.matmul(q, right.mT) * scale[:, None, None]
        inner = self._group.rounded(inner.to(q.dtype))
        return torch.matmul(inner, left[..., units]) if onto is None else onto.baddbmm_(inner, left[..., units])


NOISE: dict[str, type[Noise]] = {
    "gaussian": ExplicitNoise,
    "rademacher": ExplicitNoise,
    "flipout": FlipoutNoise,
    "lowrank": LowRankNoise,
}


def _cut(weight: Tensor, numbers: int) -> Iterator[slice]:
    return (slice(slab.start, slab.stop) for slab in slabs_of(0, tuple(weight.shape), numbers))
