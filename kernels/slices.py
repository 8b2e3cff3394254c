"""Slices of a length: how chunks of displacements and blocks of inputs are cut."""

from collections.abc import Iterator


def slices(stop: int, size: int, start: int = 0) -> Iterator[slice]:
    """Return consecutive slices of a size that cover a range; the last one may be shorter.

    Args:
        stop: End of the range.
        size: Length of a slice, at least 1.
        start: Begin of the range.

    Returns:
        The slices, in order.

    Example:
        >>> list(slices(5, 2))
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    return (slice(first, min(first + size, stop)) for first in range(start, stop, size))


def count(stop: int, size: int) -> int:
    """Return the number of slices of a size that cover a length, such as the programs that cover a row.

    Example:
        >>> count(5, 2)
        3
    """
    return -(-stop // size)
