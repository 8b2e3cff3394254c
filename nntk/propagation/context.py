"""The context of one evaluation: its displacements, their noise, and the results that all evaluations share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from nntk.kernels.cpu.elementwise import RowScales
from nntk.kernels.perturb.products import Products
from nntk.kernels.philox import displacements_by_ordinal, unit_displacements
from nntk.propagation.doubts import Doubts
from nntk.propagation.registry import NoRule

T = TypeVar("T")


@dataclass(eq=False)
class DisplacementGroup:
    """Displacements whose noise is generated together, where it is small enough to be held in memory.

    Attributes:
        sample_ids: Numbers of the displacements in the random stream, [G].
        seed: Seed of the random stream.
        directions: Name of the family of unit displacements.
        dtype: Dtype of the unit displacements.
        shapes: Shapes of the displaced parameters, by their index in the random stream.
        holds_noise: True if the unit displacements of all parameters are held in memory.
    """

    sample_ids: Tensor
    seed: int
    directions: str
    dtype: torch.dtype
    shapes: Mapping[int, tuple[int, ...]]
    holds_noise: bool

    def noise(self, param_index: int, shape: Sequence[int], chunk: slice) -> Tensor:
        """Return unit displacements of a parameter, [m, *shape], for one chunk of the group."""
        if self.holds_noise:
            return self._held_noise[param_index][chunk]
        return unit_displacements(self.sample_ids[chunk], param_index, shape, self.seed, self.directions, self.dtype)

    def forget_noise(self) -> None:
        """Free the noise that is held, which is generated again at its next use."""
        self.__dict__.pop("_held_noise", None)

    @cached_property
    def _held_noise(self) -> dict[int, Tensor]:
        return displacements_by_ordinal(self.sample_ids, self.shapes, self.seed, self.directions, self.dtype)


@dataclass(eq=False)
class PropagationContext:
    """One evaluation of the model: a chunk of displacements at an input block.

    Attributes:
        group: Displacements whose noise is generated together; the chunk is a part of them.
        chunk: Position of the chunk in the group.
        scales: Powers of two that differences are divided by, [M], in the dtype of the differences: the scale of a
            displacement is the product of this number and of ``mantissas``. Divided by a power of two, integers and
            their sums stay exact, and so a pre-activation that is displaced to a jump is found there.
        mantissas: What remains of the scales, [M], in [0.5, 1); only the noise is multiplied by it.
        members: Number of evaluations of a displacement: 1, or 2 for the members of an antithetic pair.
        max_bytes: Budget for the products with noise that is not held, in bytes.
        products: Products at the precision of the evaluation.
        cache: Results that do not depend on the displacements, each with its key, in the order of the calls of
            :meth:`cached`. All evaluations at the same input block share this list.
        cache_position: Number of calls of :meth:`cached` so far in this evaluation.
        tangent_sizes: Numbers of elements of the differences that were computed, in order.
        displaced_weights: Displaced parameters W + s E of layers, [M members, *shape], by their index in the random
            stream: small ones are kept for further calls.
        refusal: Exception that said that the model cannot be propagated; None as long as there was none.
        new_storages: Addresses of the memory of plain tensors that the model has made in this evaluation.
    """

    group: DisplacementGroup
    chunk: slice
    scales: Tensor
    mantissas: Tensor
    members: int
    max_bytes: int
    products: Products = Products()
    cache: list[tuple[Any, Any]] = field(default_factory=list)
    cache_position: int = 0
    tangent_sizes: list[int] = field(default_factory=list)
    displaced_weights: dict[int, Tensor] = field(default_factory=dict)
    refusal: NoRule | None = None
    new_storages: set[int] = field(default_factory=set)

    @property
    def sample_ids(self) -> Tensor:
        """Numbers of the chunk's displacements in the random stream, [M]."""
        return self.group.sample_ids[self.chunk]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the differences."""
        return self.scales.dtype

    @cached_property
    def leading_shape(self) -> tuple[int, int]:
        """Leading axes [M, members] of every difference: displacements, and members of an antithetic pair."""
        return len(self.scales), self.members

    @cached_property
    def noise_factors(self) -> Tensor:
        """Factors of the noise, [M, members]: the mantissa of the scale, and minus that for the minus member."""
        signs = self.mantissas.new_ones(self.members)
        signs[1:] = -1  # Filled on the device: a copy from the host would wait for a GPU once a pass.
        return self.mantissas[:, None] * signs

    @cached_property
    def row_scales(self) -> RowScales | None:
        """Scales of the members of all displacements, for compiled kernels; None on a GPU."""
        return RowScales.of(self.scales, self.members)

    @cached_property
    def doubts(self) -> Doubts:
        """What this evaluation cannot decide in the dtype of the differences."""
        return Doubts.none(len(self.scales), self.scales.device)

    def broadcast_factors(self, dims: int) -> Tensor:
        """Return the factors, [M, members, 1, ...], shaped for differences of a value that has ``dims`` axes."""
        return self.noise_factors.view(*self.leading_shape, *[1] * dims)

    def broadcast_scales(self, dims: int) -> Tensor:
        """Return the scales, [M, 1, 1, ...], shaped for differences of a value that has ``dims`` axes."""
        return self.scales.view(-1, *[1] * (dims + 1))

    def cached(self, compute: Callable[[], T], key: Any = None) -> T:
        """Return ``compute()``, which only the first evaluation at an input block calls.

        Later evaluations replay the results in order. They check that the model makes the same calls.

        Args:
            compute: Function of no arguments, whose result no displacement changes.
            key: Identity of the call for the check; None for the code of ``compute``.

        Returns:
            The result of the first evaluation.

        Raises:
            NoRule: If the model makes another call than in the first evaluation.
        """
        key = getattr(compute, "__code__", None) if key is None else key
        if self.cache_position == len(self.cache):
            self.cache.append((key, compute()))
        cached_key, result = self.cache[self.cache_position]
        if cached_key != key:
            raise NoRule(
                "model does not call the same functions at every evaluation, so that cached values do not fit."
            )
        self.cache_position += 1
        return cast(T, result)
