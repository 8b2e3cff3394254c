"""Places of buffers in one piece of memory: those that are used at different times may share theirs."""

from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 512
"""Bytes to whose multiples places are aligned, as PyTorch's allocator on a GPU does for tensors."""


@dataclass(frozen=True)
class Buffer:
    """A buffer that needs memory for a while.

    Attributes:
        size: Its bytes.
        first: Number of the step that uses it first.
        last: Number of the step that uses it last.
    """

    size: int
    first: int
    last: int


def placed(buffers: Sequence[Buffer]) -> tuple[list[int], int]:
    """Place buffers such that no two overlap that are needed at the same time.

    The largest is placed first, and each at the lowest place that is free for as long as the buffer is needed.

    Returns:
        The place of each buffer in bytes, and the bytes of all.
    """
    places, taken = [0] * len(buffers), list[tuple[int, int, Buffer]]()
    for number in sorted(range(len(buffers)), key=lambda number: -buffers[number].size):
        buffer, place = buffers[number], 0
        size = -(-buffer.size // ALIGNMENT) * ALIGNMENT
        for start, stop, other in taken:  # In the order of their places.
            is_needed_then = other.first <= buffer.last and buffer.first <= other.last
            if is_needed_then and start < place + size:
                place = max(place, stop)
        places[number] = place
        taken.append((place, place + size, buffer))
        taken.sort(key=lambda one: one[:2])
    return places, max((stop for _, stop, _ in taken), default=0)
