"""How weights are cut into programs."""

from dataclasses import dataclass

PROGRAMS = 512
"""At most, a power of two: about four for each multiprocessor of an H200. Not a function of the device, so that sums,
which the number of programs orders, have the same bits on all of them."""


OPTIONS = {"enable_fp_fusion": False}
"""For Triton. Log weights of equal laws cancel to zero only where their difference is not fused with a product."""


@dataclass(frozen=True)
class WeightsConfig:
    """Sizes of the two passes.

    Attributes:
        block: Displacements that a program takes at once.
        programs: Programs of either pass, at most PROGRAMS; each takes every programs-th block.
        num_warps: Warps of a program.
    """

    block: int
    programs: int
    num_warps: int = 4


def pick(count: int) -> WeightsConfig:
    """Choose the sizes for M displacements: eight a thread, whose loads hide the latency of one another.

    Args:
        count: Number M of displacements, at least 1.

    Returns:
        The sizes.

    Example:
        >>> pick(5000)
        WeightsConfig(block=1024, programs=5, num_warps=4)
    """
    block = 1024
    return WeightsConfig(block, programs=min(PROGRAMS, -(-count // block)))
