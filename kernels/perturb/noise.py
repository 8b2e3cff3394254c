r"""Unit displacements E of a group, given to an evaluation as the products :math:`q E^T` of a layer.

A gaussian or rademacher displacement is an ordinary matrix: each displacement costs one product. The structured
families are cheaper. Displacements of flipout share a base, so one large product serves them all; a displacement of low
rank has a few factors, so its products are small. A structured E is formed only in low precision, and only in those
layers in which the Triton kernels form it too.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nntk.kernels.mlp import Layer, displaced
from nntk.kernels.perturb.config import ReferencePlan
from nntk.kernels.philox.directions import Directions
from nntk.kernels.philox.integers import BASE
from nntk.kernels.philox.reference import (
    displacements,
    flipout_bases,
    flipout_signs,
    lowrank_factors,
    unit_slabs,
)
from nntk.kernels.philox.slabs import Slab, slabs_of
from nntk.kernels.philox.source import PLAIN, Source

FORMED_UNITS = 64
"""Largest number of units of a layer for which the kernels form E of low rank. Such a layer fits one tile of units, so
the kernels then read the differences once."""


@dataclass(frozen=True)
class DisplacementGroup:
    """Displacements whose noise is generated together, with the layers and settings that the noise depends on."""

    directions: Directions
    sample_ids: Tensor
    """Stream numbers m, [M], int64. A group of flipout has one base."""
    layers: Sequence[Layer]
    key: tuple[int, int]
    plan: ReferencePlan
    round_operand: Callable[[Tensor], Tensor]
    """Function that rounds an operand of a product to the precision of the evaluation."""
    precision: str = "fp32"
    source: Source = PLAIN
    """Source of normals and signs."""

    @property
    def dtype(self) -> torch.dtype:
        """Floating dtype of the parameters."""
        return self.layers[0].weight.dtype

    def shapes(self, axes: Sequence[int]) -> dict[int, tuple[int, ...]]:
        """Return the shapes, by ordinal, of the displaced tensors whose number of axes is in ``axes``."""
        shapes = {ordinal: tuple(tensor.shape) for ordinal, tensor in displaced(self.layers).items()}
        return {ordinal: shape for ordinal, shape in shapes.items() if len(shape) in axes}


def split_into_groups(directions: Directions, sample_ids: Tensor, size: int) -> Iterator[Tensor]:
    """Yield index tensors of at most ``size`` displacements each; for flipout all of a group share a base."""
    shares = [torch.arange(len(sample_ids), device=sample_ids.device)]
    if directions.name == "flipout":
        bases, order = torch.sort(sample_ids % directions.count, stable=True)
        shares = list(order.split(torch.unique_consecutive(bases, return_counts=True)[1].tolist()))
    return (group for share in shares for group in share.split(size) if len(group))


class Noise(ABC):
    """Unit displacements of a group.

    In the methods, ``samples`` selects displacements of the group and ``units`` selects outputs of a layer.
    """

    def __init__(self, group: DisplacementGroup) -> None:
        self._group = group
        device, num_params = group.sample_ids.device, sum(tensor.numel() for tensor in displaced(group.layers).values())
        self.squared_norms = torch.full(group.sample_ids.shape, num_params, dtype=torch.float64, device=device)
        """Squared norms of the unit displacements, [M]; complete after an evaluation."""

    @property
    def sample_ids(self) -> Tensor:
        """Stream numbers m of the group, [M], int64."""
        return self._group.sample_ids

    def slabs(self, weight: Tensor) -> Iterator[slice]:
        """Yield the ranges of units that are evaluated together: here one range of all units."""
        yield slice(0, len(weight))

    def _slabs_of_all_samples(self, weight: Tensor) -> Iterator[slice]:
        """Yield ranges of units for which the noise of all displacements of the group together fills a slab."""
        return _split_units(weight, self._group.plan.slab_numbers // len(self._group.sample_ids))

    def displaced_weights(self, layer: Layer, units: slice, samples: slice, step: Tensor) -> Tensor | None:
        """Form the operand W + s E for those layers where the kernels multiply by it instead of by q.

        Args:
            layer: A layer whose weight is displaced.
            units: Range of its units.
            samples: Range of displacements.
            step: Signed scales s, [samples or 1, members, 1, 1].

        Returns:
            The rounded sum of the rounded W and s E, [samples, members, units, K]; None where the operands are d and
            q = +-(h + s d).
        """
        return None

    def _rounded_sum(self, weight: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        round_operand = self._group.round_operand
        return round_operand(torch.addcmul(round_operand(weight), noise[:, None], step))

    def operand(self, h: Tensor, d: Tensor, signs: Tensor, powers: Tensor) -> Tensor:
        """Return the rounded operand q = +-(h + sigma d) of a layer behind the first.

        Args:
            h: Unperturbed inputs of the layer, [N, K].
            d: Their differences divided by sigma, [samples, members, N, K].
            signs: Signs of the members of a pair, [members, 1, 1].
            powers: Powers of two sigma, [samples or 1, 1, 1, 1].

        Returns:
            The operand, [samples, members, N, K].
        """
        return self._group.round_operand(torch.addcmul(signs * h, d, powers * signs))

    @abstractmethod
    def bias(self, ordinal: int, bias: Tensor, samples: slice) -> Tensor:
        """Return the unit displacements of a bias, [samples, H]."""

    @abstractmethod
    def product(self, q: Tensor, layer: Layer, units: slice, samples: slice) -> Tensor:
        r"""Multiply by the unit displacements of a weight: :math:`q E^T`.

        Args:
            q: Rounded operand, [samples, n, K], or [n, K] for all displacements.
            layer: A layer whose weight is displaced.
            units: Range of its units.
            samples: Range of displacements.

        Returns:
            The products, [samples, n, units].
        """

    @abstractmethod
    def add_product(
        self, out: Tensor, q: Tensor, layer: Layer, units: slice, samples: slice, factor: float | Tensor
    ) -> None:
        r"""Add :math:`\rho\,q E^T` to ``out`` in place; sums are multiplied, not q, so that sums of signs stay exact.

        Args:
            out: Tensor to which the products are added, [samples, n, units].
            q: Rounded operand, [samples, n, K].
            layer: A layer whose weight is displaced.
            units: Range of its units.
            samples: Range of displacements.
            factor: The factor rho, a number for all displacements, or [samples, 1, 1].
        """

    def displaced_product(self, h: Tensor, layer: Layer, units: slice, samples: slice, step: Tensor) -> Tensor:
        r"""Multiply by a displaced weight: :math:`h (W + s E)^T`.

        Args:
            h: Inputs of the layer, [samples, members, N, K], or [N, K] for all displacements and members.
            layer: A layer whose weight is displaced.
            units: Range of its units.
            samples: Range of displacements.
            step: Signed scales s, [samples or 1, members, 1, 1].

        Returns:
            The products, [samples, members, N, units].
        """
        z = torch.matmul(h, layer.weight[units].T)
        if h.dim() == 2:
            return torch.addcmul(z, self.product(h, layer, units, samples)[:, None], step)
        return torch.addcmul(z, self.product(h.flatten(1, 2), layer, units, samples).view_as(z), step)


class ExplicitNoise(Noise):
    """Gaussian and rademacher displacements; the plan says whether they are kept whole or generated slab by slab."""

    def __init__(self, group: DisplacementGroup) -> None:
        super().__init__(group)
        self._family = str(group.directions)
        self._kept: dict[int, Tensor] = {}
        self._counted: set[tuple[int, int]] = set()
        if not group.directions.has_fixed_norm:
            self.squared_norms.zero_()
        if group.plan.keep_noise:
            shapes, numbers = group.shapes(axes=(1, 2)), group.plan.slab_numbers
            self._kept = displacements(
                self._family, group.sample_ids, shapes, group.key, group.dtype, numbers, group.source
            )
            for ordinal, noise in self._kept.items():
                self._count_norm(ordinal, 0, noise)

    def _count_norm(self, ordinal: int, start: int, noise: Tensor) -> None:
        """Add a slab to the squared norms, once, even if it is generated again for other inputs or a tied layer."""
        if not self._group.directions.has_fixed_norm and (ordinal, start) not in self._counted:
            self._counted.add((ordinal, start))
            self.squared_norms += noise.flatten(1).square().sum(1, dtype=torch.float64)

    def _displacement(self, ordinal: int | None, tensor: Tensor, units: slice, samples: slice) -> Tensor:
        assert ordinal is not None, "the tensor is displaced"
        if self._group.plan.keep_noise:
            return self._kept[ordinal][samples, units]
        slab = Slab(ordinal, tuple(tensor.shape), units.start, units.stop)
        group = self._group
        (noise,) = unit_slabs(self._family, group.sample_ids, [slab], group.key, tensor.dtype, group.source)
        self._count_norm(ordinal, units.start, noise)
        return noise[samples]

    def slabs(self, weight: Tensor) -> Iterator[slice]:
        """Yield one range of all units where the noise is kept, else ranges that fill a slab."""
        if self._group.plan.keep_noise:
            yield from super().slabs(weight)
        else:
            yield from self._slabs_of_all_samples(weight)

    def bias(self, ordinal: int, bias: Tensor, samples: slice) -> Tensor:
        """Return the unit displacements of a bias, [samples, H]."""
        return self._displacement(ordinal, bias, slice(0, len(bias)), samples)

    def product(self, q: Tensor, layer: Layer, units: slice, samples: slice) -> Tensor:
        """Multiply by E with one product for each displacement."""
        return torch.matmul(q, self._displacement(layer.weight_ordinal, layer.weight, units, samples).mT)

    def add_product(
        self, out: Tensor, q: Tensor, layer: Layer, units: slice, samples: slice, factor: float | Tensor
    ) -> None:
        """Add rho q E^T with one product for each displacement."""
        noise = self._displacement(layer.weight_ordinal, layer.weight, units, samples)
        _add_multiplied(out, q, noise.mT, factor)

    def displaced_product(self, h: Tensor, layer: Layer, units: slice, samples: slice, step: Tensor) -> Tensor:
        """Multiply by W + s E with one product for each displacement and member."""
        noise = self._displacement(layer.weight_ordinal, layer.weight, units, samples)
        return torch.matmul(h, torch.addcmul(layer.weight[units], noise[:, None], step).mT)


class StructuredNoise(Noise):
    """Base class of flipout and low rank, whose biases are displaced by independent random signs."""

    def __init__(self, group: DisplacementGroup) -> None:
        super().__init__(group)
        shapes, numbers = group.shapes(axes=(1,)), group.plan.slab_numbers
        self._biases = displacements(
            "rademacher", group.sample_ids, shapes, group.key, group.dtype, numbers, group.source
        )

    def bias(self, ordinal: int, bias: Tensor, samples: slice) -> Tensor:
        """Return the unit displacements of a bias, [samples, H]."""
        return self._biases[ordinal][samples]


class FlipoutNoise(StructuredNoise):
    r"""Displacements :math:`S \circ r s^T` with a shared base S: :math:`q E^T = ((q \circ s) S^T) \circ r`."""

    def __init__(self, group: DisplacementGroup) -> None:
        super().__init__(group)
        shapes, numbers = group.shapes(axes=(2,)), group.plan.slab_numbers
        self._signs = flipout_signs(group.sample_ids, shapes, group.key, group.dtype, numbers, group.source)
        self._base = group.sample_ids[:1] % group.directions.count
        self._kept: dict[int, Tensor] = {}
        if group.plan.keep_noise:
            self._kept = flipout_bases(self._base, shapes, group.key, group.dtype, numbers, group.source)

    def slabs(self, weight: Tensor) -> Iterator[slice]:
        """Yield one range of all units where the base is kept, else ranges that fill a slab."""
        if self._group.plan.keep_noise:
            yield from super().slabs(weight)
        else:
            yield from _split_units(weight, self._group.plan.slab_numbers)

    def product(self, q: Tensor, layer: Layer, units: slice, samples: slice) -> Tensor:
        """Multiply by E with one product with the base for all displacements, between multiplications by signs."""
        product, r = self._product_and_signs(q, layer, units, samples)
        return product.mul_(r)

    def add_product(
        self, out: Tensor, q: Tensor, layer: Layer, units: slice, samples: slice, factor: float | Tensor
    ) -> None:
        """Add rho q E^T; the signs r are multiplied by rho."""
        product, r = self._product_and_signs(q, layer, units, samples)
        out.addcmul_(product, r * factor)

    def _product_and_signs(self, q: Tensor, layer: Layer, units: slice, samples: slice) -> tuple[Tensor, Tensor]:
        """Return (q o s) S^T, [samples, n, units], and the signs r, [samples, 1, units]."""
        assert layer.weight_ordinal is not None, "the weight is displaced"
        r, s = (part[samples, None] for part in self._signs[layer.weight_ordinal])
        return torch.matmul(q * s, self._base_slab(layer.weight_ordinal, layer.weight, units).T), r[..., units]

    def _base_slab(self, ordinal: int, weight: Tensor, units: slice) -> Tensor:
        if self._group.plan.keep_noise:
            return self._kept[ordinal][0, units]
        slab = Slab(ordinal, tuple(weight.shape), units.start, units.stop, BASE)
        return self._group.source.signs(self._base, [slab], self._group.key, weight.dtype)[0][0]


class LowRankNoise(StructuredNoise):
    r"""Displacements :math:`c A^T B` by their factors: :math:`q E^T = (c\,q B^T) A`, where the bracket is rounded too.

    Products with so few factors are cheap, so the kernels multiply h and d by them separately and never write q. In low
    precision they form E for a layer of few units; this class does the same.
    """

    def __init__(self, group: DisplacementGroup) -> None:
        super().__init__(group)
        rank, shapes, numbers = group.directions.count, group.shapes(axes=(2,)), group.plan.slab_numbers
        self._factors = lowrank_factors(group.sample_ids, shapes, rank, group.key, group.dtype, numbers, group.source)

    def slabs(self, weight: Tensor) -> Iterator[slice]:
        """Yield ranges that fill a slab where E is formed, else one range of all units."""
        return self._slabs_of_all_samples(weight) if self._is_formed(weight) else super().slabs(weight)

    def _is_formed(self, weight: Tensor) -> bool:
        return self._group.precision != "fp32" and len(weight) <= FORMED_UNITS

    def _form(self, layer: Layer, units: slice, samples: slice) -> Tensor | None:
        """Form E as a rounded operand, [samples, units, K], for a layer of few units in low precision."""
        assert layer.weight_ordinal is not None, "the weight is displaced"
        if not self._is_formed(layer.weight):
            return None
        left, right, scale = (factor[samples] for factor in self._factors[layer.weight_ordinal])
        formed = torch.matmul(left[..., units].mT, right).mul_(scale[:, None, None])
        return self._group.round_operand(formed)

    def operand(self, h: Tensor, d: Tensor, signs: Tensor, powers: Tensor) -> Tensor:
        """Return the operand q = +-(h + sigma d), where h and d are rounded separately."""
        round_operand = self._group.round_operand
        return torch.addcmul(signs * round_operand(h), round_operand(d), powers * signs)

    def displaced_weights(self, layer: Layer, units: slice, samples: slice, step: Tensor) -> Tensor | None:
        """Form the operand W + s E for a layer of few units in low precision."""
        formed = self._form(layer, units, samples)
        return None if formed is None else self._rounded_sum(layer.weight[units], formed, step)

    def product(self, q: Tensor, layer: Layer, units: slice, samples: slice) -> Tensor:
        """Multiply by E with two products of rank R for each displacement, or with one where E is formed."""
        formed = self._form(layer, units, samples)
        if formed is not None:
            return torch.matmul(q, formed.mT)
        return torch.matmul(*self._inner_product(q, layer, units, samples))

    def add_product(
        self, out: Tensor, q: Tensor, layer: Layer, units: slice, samples: slice, factor: float | Tensor
    ) -> None:
        """Add rho q E^T with two products of rank R for each displacement."""
        assert not self._is_formed(layer.weight), "a layer whose E is formed multiplies by the displaced weights"
        inner, left = self._inner_product(q, layer, units, samples)
        if isinstance(factor, Tensor) and self._group.precision == "fp32":
            # The inner product is the smallest tensor; where it is rounded, it must not depend on the scale.
            inner, factor = inner.mul_(factor), 1.0
        _add_multiplied(out, inner, left, factor)

    def _inner_product(self, q: Tensor, layer: Layer, units: slice, samples: slice) -> tuple[Tensor, Tensor]:
        """Return the rounded operand c q B^T, [samples, n, R], and A, [samples, R, units]."""
        assert layer.weight_ordinal is not None, "the weight is displaced"
        left, right, scale = (part[samples] for part in self._factors[layer.weight_ordinal])
        inner = torch.matmul(q, right.mT) * scale[:, None, None]
        return self._group.round_operand(inner.to(q.dtype)), left[..., units]


NOISE: dict[str, type[Noise]] = {
    "gaussian": ExplicitNoise,
    "rademacher": ExplicitNoise,
    "flipout": FlipoutNoise,
    "lowrank": LowRankNoise,
}
"""Implementation of each family of displacements."""


def _add_multiplied(out: Tensor, left: Tensor, right: Tensor, factor: float | Tensor) -> None:
    """Add the product of two operands to ``out``, multiplied by one number or by a number for each displacement."""
    if isinstance(factor, float):
        out.baddbmm_(left, right, alpha=factor)
    else:
        out.addcmul_(torch.matmul(left, right), factor)


def _split_units(weight: Tensor, numbers: int) -> Iterator[slice]:
    return (slice(slab.start, slab.stop) for slab in slabs_of(0, tuple(weight.shape), numbers))
