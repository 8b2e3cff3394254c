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
"""Inputs at which noise is an eighth of a layer's time, if so many fit the budget."""
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

    Noise and displaced weights of a slab take three quarters of the cache. Differences of a block of inputs take as
    much again or more: each additional input spreads the time for noise.

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
    hidden = max(widths[1:])
    layers = list(zip(widths[:-1], widths[1:], strict=True))
    slab = max(1, cached // 4)
    most_inputs = max(1, max_bytes // (16 * itemsize * members * hidden))
    block = _clamp(num_inputs, min(max(_FEWEST_INPUTS, cached // (members * hidden)), most_inputs))
    # What a displacement takes of the cache: its noise, and differences before and behind a layer.
    noise = max(min(k * h, slab) for k, h in layers)
    differences = members * block * hidden
    task = _clamp(math.ceil(num_samples / _FEWEST_TASKS), cached // differences)
    if not is_structured:
        task = _clamp(task, slab // noise)
    units = max(min(h, max(4, slab // k // 4 * 4)) for k, h in layers)
    tile = block if is_structured else _clamp(block, max(64, cached // (2 * (1 + members) * units * task)))
    operands = task * max(widths) * members * block
    lane = 3 * max(task * noise, slab) + 2 * task * differences + 2 * (1 + members) * task * units * tile + operands
    return LanePlan(block, tile, task, max(slab // task, 1), lane)


def _clamp(length: int, limit: int) -> int:
    return max(1, min(length, limit))
