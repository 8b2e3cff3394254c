"""Tiles of the compiled CPU evaluation: pure functions of shapes, the budget and the size of the second-level cache."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from nntk.kernels.philox.slabs import alignment

DEFAULT_CACHE = 2**20
"""Bytes of the second-level cache where the system does not tell."""

_FEWEST_INPUTS = 256
"""Inputs at which noise is an eighth of a layer's time, if so many fit the budget; they share a product, too."""
_FEWEST_TASKS = 16
"""Tasks that a call has if it has as many displacements, so that cores do not stay idle."""


@cache
def second_level_cache() -> int:
    """Return the bytes of a core's second-level cache, as Linux tells them in KiB; elsewhere ``DEFAULT_CACHE``."""
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index2/size").read_text().strip()
        return max(int(text.removesuffix("K")) * 2**10, 2**18)
    except (OSError, ValueError):
        return DEFAULT_CACHE


@dataclass(frozen=True)
class LanePlan:
    """Tiles of one evaluation, and the memory of a lane. README.md beside the op draws the loops."""

    block_inputs: int
    """Inputs of a block, whose differences of one layer are held; noise is generated once for all of them."""
    tile_inputs: int
    """Inputs whose products are formed together."""
    task_samples: int
    """Displacements of a task."""
    slab_numbers: int
    """Largest number of random numbers that are held of a displacement."""
    lane_numbers: int
    """Numbers that a lane holds."""

    def units(self, height: int, width: int) -> int:
        """Return how many units of a weight [height, width] are evaluated together."""
        step = alignment((height, width))
        return min(height, max(step, self.slab_numbers // width // step * step))


def plan_lanes(
    num_inputs: int,
    num_samples: int,
    widths: Sequence[int],
    members: int,
    is_structured: bool,
    itemsize: int,
    max_bytes: int,
    cache_bytes: int,
) -> LanePlan:
    """Choose tiles such that the arrays between two products stay in the second-level cache.

    Noise of a slab takes half of the cache, and its displaced weights more than that: a product of more displacements
    at more inputs was faster than one whose operands all stay in the cache. Each additional input of a block spreads
    the time for noise.

    Args:
        num_inputs: Number N of inputs.
        num_samples: Number M of displacements.
        widths: Widths of the network, inputs and outputs included.
        members: Evaluations of a displacement: 2 for an antithetic pair, else 1.
        is_structured: True for flipout and low rank, whose products are those of all displacements of a task together:
            the inputs of a block are then not divided.
        itemsize: Bytes of a number.
        max_bytes: Budget of temporary memory; a lane takes half of it at most, or what one input needs.
        cache_bytes: Bytes of the second-level cache.

    Returns:
        The plan. It does not depend on the number of threads, and so neither do the bits of the result.
    """
    cached = min(cache_bytes // itemsize, max_bytes // (16 * itemsize))
    slab, hidden = max(1, cached // 2), max(widths[1:])
    layers = list(zip(widths[:-1], widths[1:], strict=True))
    # The unperturbed pass of a block has up to four numbers a unit.
    held = max(1, max_bytes // (16 * itemsize * sum(widths)))
    block = _clamp(num_inputs, min(held, max(_FEWEST_INPUTS, cached // (members * hidden))))
    task = _clamp(math.ceil(num_samples / _FEWEST_TASKS), cached // (members * block * hidden))
    if not is_structured:
        task = _clamp(task, slab // max(min(k * h, slab) for k, h in layers))
    while True:
        plan = _plan(layers, block, task, members, is_structured, slab, cached)
        if plan.lane_numbers * itemsize <= max_bytes // 2 or block == task == 1:
            return plan
        block, task = (block, task // 2) if task > 1 else (max(1, block // 2), task)


def _plan(
    layers: Sequence[tuple[int, int]],
    block: int,
    task: int,
    members: int,
    is_structured: bool,
    slab: int,
    cached: int,
) -> LanePlan:
    """Return the plan for blocks and tasks of given sizes, with the numbers that a lane then holds."""
    plan = LanePlan(block, block, task, max(1, slab // task), 0)
    shapes = [(plan.units(h, k), k) for k, h in layers]
    units = max(u for u, _ in shapes)
    tile = block if is_structured else _clamp(block, max(_FEWEST_INPUTS, cached // (2 * (1 + members) * units * task)))
    rows = task * members * block
    differences = 2 * rows * max(h for _, h in layers)
    if is_structured:
        # One slab of a base or the factors, operands q, and three products of a slab.
        noise = max(u * k for u, k in shapes) + rows * max(k for _, k in shapes) + 3 * rows * units
    else:
        # E and W + s E of a slab, and the products of a tile.
        noise = (1 + members) * task * (max(u * k for u, k in shapes) + tile * units)
    return LanePlan(block, tile, task, plan.slab_numbers, differences + noise)


def _clamp(length: int, limit: int) -> int:
    return max(1, min(length, limit))
