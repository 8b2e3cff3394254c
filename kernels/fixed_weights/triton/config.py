"""Sizes of the programs that compute weights: a pure function of the number of displacements."""

from dataclasses import dataclass

PROGRAMS = 512
"""Maximum number of programs, a power of two: about four for each multiprocessor of an H200. It does not depend on the
device, so that sums, whose order follows from the number of programs, have the same bits on every device."""

OPTIONS = {"enable_fp_fusion": False}
"""Options of the Triton compiler. Log weights of equal distributions cancel to zero only if their difference is not
fused with a product."""


@dataclass(frozen=True)
class WeightsConfig:
    """Sizes of the programs of both passes.

    Attributes:
        block: Number of displacements that a program handles together.
        programs: Number of programs of either pass, at most PROGRAMS; each handles every programs-th block.
        num_warps: Number of warps of a program.
    """

    block: int
    programs: int
    num_warps: int = 4


def pick(count: int) -> WeightsConfig:
    """Choose the sizes for M displacements: eight for each thread, whose loads hide the latency of one another.

    Args:
        count: Number M of displacements, at least 1.

    Returns:
        Sizes of the programs.

    Example:
        >>> pick(5000)
        WeightsConfig(block=1024, programs=5, num_warps=4)
    """
    block = 1024
    return WeightsConfig(block, programs=min(PROGRAMS, -(-count // block)))
