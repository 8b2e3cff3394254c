"""Sizes of the chunks of displacements and of the input blocks, from trial evaluations and a budget."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from nntk.kernels.perturb.config import CACHE
from nntk.kernels.perturb.products import Products
from nntk.kernels.philox.slabs import TILE
from nntk.kernels.slices import slices
from nntk.models.data.inputs import Batch
from nntk.models.isolation.findings import input_kind
from nntk.models.observe import HeldBytes
from nntk.propagation.batch import DisplacementBatch
from nntk.propagation.context import DisplacementGroup, PropagationContext
from nntk.propagation.forward import DisplacedForward

_MIN_PRODUCT_BYTES = 2**20

Trials = dict[Any, Any]
"""Sizes that trials at a kind of input showed."""


@dataclass(frozen=True)
class ChunkPlan:
    """Sizes in which differences are computed.

    Attributes:
        block_inputs: Number of inputs in an input block.
        chunk_samples: Number of displacements in a chunk.
        group_samples: Number of displacements whose noise is generated together.
        holds_noise: True if the noise of a group is held in memory.
    """

    block_inputs: int
    chunk_samples: int
    group_samples: int
    holds_noise: bool

    @classmethod
    def from_trials(cls, model: DisplacedForward, x: Batch, batch: DisplacementBatch, trials: Trials) -> "ChunkPlan":
        """Fit fixed and per-input memory from trials with one and with two inputs at one displacement.

        Args:
            model: The model.
            x: Inputs.
            batch: The displacements, and the budget.
            trials: Trials of earlier calls, to which these are added.

        Returns:
            The plan.
        """
        key = (input_kind(x), len(x) > 1, batch.members, batch.directions, batch.scales.dtype, batch.precision)
        if key not in trials:
            trials[key] = tuple(_TrialSizes.measure(model, x[:n], batch) for n in (1, 2))
        # Differences of weights are no larger for two inputs, so they are the fixed part.
        one, two = trials[key]
        if len(x) < 2 or len(one.tangent_sizes) != len(two.tangent_sizes):
            two = _TrialSizes([2 * size for size in one.tangent_sizes], 2 * one.cached_bytes, 2 * one.held_bytes)
        held_per_input = max(1, two.held_bytes - one.held_bytes)
        held = max(0, one.held_bytes - held_per_input)
        per_input = [max(0, b - a) for a, b in zip(one.tangent_sizes, two.tangent_sizes, strict=True)]
        fixed = [max(0, a - slope) for a, slope in zip(one.tangent_sizes, per_input, strict=True)]
        # A quarter of the budget is for cached values, a quarter for noise, a quarter for what an evaluation holds at a
        # time, and one is a margin for what operators need.
        budget, itemsize = batch.max_bytes, batch.scales.itemsize
        cache_size, most_held = _efficient_sizes(batch)
        cached_per_input = max(1, two.cached_bytes - one.cached_bytes)
        block_inputs = min(
            len(x),
            (budget // 4 - 2 * one.cached_bytes + two.cached_bytes) // cached_per_input,
            (budget // 4 - held) // held_per_input,
            cache_size // max(1, sum(per_input) // max(1, len(per_input))),
        )
        block_inputs = _even(len(x), block_inputs)
        sizes = [block_inputs * slope + offset for slope, offset in zip(per_input, fixed, strict=True)]
        group_samples = min(most_held, budget // 4 // itemsize) // model.num_params
        evaluated = budget // 4
        if batch.scales.device.type == "cpu":
            # What cached values and noise leave of their quarters serves an evaluation: few passes take less of Python.
            noise = min(len(batch.sample_ids), group_samples) * model.num_params * itemsize
            cached = one.cached_bytes + (block_inputs - 1) * cached_per_input
            evaluated = max(evaluated, 3 * budget // 4 - noise - cached)
        chunk_samples = min(
            cache_size // max(1, sum(sizes) // max(1, len(sizes))),
            evaluated // max(1, block_inputs * held_per_input + held),
        )
        if batch.scales.device.type == "cpu" and group_samples:
            # Held noise saves one product in four, since both members of a pair then share one.
            chunk_samples = min(chunk_samples, group_samples)
        chunk_samples = _even(len(batch.sample_ids), chunk_samples)
        return cls(
            block_inputs,
            chunk_samples,
            max(chunk_samples, group_samples // chunk_samples * chunk_samples),
            group_samples >= chunk_samples,
        )

    def groups(self, batch: DisplacementBatch) -> list[slice]:
        """Return the positions of the groups in the batch."""
        return list(slices(len(batch.sample_ids), self.group_samples))


def _even(total: int, most: int) -> int:
    """Return the size of parts of a total that are as large as allowed but equal, so that no small one is left."""
    parts = -(-total // max(1, most))
    return max(1, -(-total // max(1, parts)))


def _efficient_sizes(batch: DisplacementBatch) -> tuple[int, int]:
    """Return how many numbers most differences of a chunk may have at most, and the held noise of a group.

    On a CPU, differences should stay in the cache, and noise is generated efficiently a few million numbers at a time.
    On a GPU the host makes the launches of a pass one by one, whatever their size, so the budget alone limits a pass.
    """
    if batch.scales.device.type == "cpu":
        return 4 * CACHE * batch.members, 16 * TILE
    return batch.max_bytes, batch.max_bytes


@dataclass(frozen=True)
class _TrialSizes:
    """Sizes that an evaluation of one displacement shows.

    Attributes:
        tangent_sizes: Number of elements of each difference, in order.
        cached_bytes: Bytes of the cached values.
        held_bytes: Largest bytes of other tensors that are held at a time.
    """

    tangent_sizes: list[int]
    cached_bytes: int
    held_bytes: int

    @classmethod
    def measure(cls, model: DisplacedForward, x: Batch, batch: DisplacementBatch) -> "_TrialSizes":
        """Evaluate one displacement at some inputs, and return the sizes."""
        first = slice(0, 1)
        group, cache = make_group(model, batch, first, holds_noise=False), list[tuple[object, object]]()
        ctx = make_context(batch, group, 0, first, cache)
        model.unit_differences(x, ctx)
        # A sparse matrix is small beside the values that it multiplies.
        dense = (leaf for leaf in tree_leaves(cache) if isinstance(leaf, Tensor) and leaf.layout == torch.strided)
        cached_bytes = sum(leaf.nbytes for leaf in dense)
        # The second evaluation finds the cached values, and makes what every evaluation makes.
        with HeldBytes() as held:
            model.unit_differences(x, make_context(batch, group, 0, first, cache))
        return cls(ctx.tangent_sizes, cached_bytes, held.largest)


def make_group(
    model: DisplacedForward, batch: DisplacementBatch, samples: slice, holds_noise: bool
) -> DisplacementGroup:
    """Return the group of the displacements at some positions of the batch."""
    return DisplacementGroup(
        batch.sample_ids[samples], batch.seed, batch.directions, batch.scales.dtype, model.param_shapes, holds_noise
    )


def make_context(
    batch: DisplacementBatch,
    group: DisplacementGroup,
    group_start: int,
    chunk: slice,
    cache: list[tuple[object, object]],
) -> PropagationContext:
    """Return the context of one chunk.

    Args:
        batch: All displacements.
        group: The group that the chunk is a part of.
        group_start: Position of the group in the batch.
        chunk: Position of the chunk in the group.
        cache: Results that all evaluations at the same input block share.

    Returns:
        The context.
    """
    mantissas, exponents = torch.frexp(batch.scales[group_start + chunk.start : group_start + chunk.stop])
    powers = torch.ldexp(torch.ones_like(mantissas), exponents)
    max_bytes = max(_MIN_PRODUCT_BYTES, batch.max_bytes // 4)
    products = Products(batch.precision)
    return PropagationContext(group, chunk, powers, mantissas, batch.members, max_bytes, products, cache)
