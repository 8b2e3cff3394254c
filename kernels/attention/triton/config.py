"""Tiles of the attention kernels: pure functions of shapes and numbers."""

from dataclasses import dataclass

OPTIONS = {"enable_fp_fusion": True}
"""Options of the Triton compiler. Products and sums are fused, which rounds an exponent once instead of twice."""
TILE = (16, 128)
"""Displacements and inputs that a program of four warps handles together: sixteen values a thread, whole lines of
memory."""
SCORES_DIFFERENCES = 2048
"""Number of differences that a program of the scores kernel handles together; on sm_86 and sm_89 half of them, since
two registers would spill."""
PROJECT_TILE = (64, 64, 64)
"""Displacements, projections and columns of a tile: generating the operands costs as much as multiplying them, so
larger tiles gain nothing."""
_PROGRAMS_PER_PROCESSOR = 8
"""Number of programs that keep the memory pipe of a processor full."""


@dataclass(frozen=True)
class Splits:
    """Division of the displacements among programs that read the same inputs.

    Attributes:
        count: Number of splits.
        samples: Number of displacements of a split, a multiple of a tile.
    """

    count: int
    samples: int


def splits(num_samples: int, num_inputs: int, processors: int) -> Splits:
    """Divide displacements into splits of whole tiles so that the card is full; a split costs three values an input.

    Args:
        num_samples: Number M of displacements.
        num_inputs: Number N of inputs.
        processors: Number of multiprocessors of the card.

    Returns:
        Number of splits and displacements of each.

    Example:
        >>> splits(1000, 128, 4)
        Splits(count=32, samples=32)
    """
    block_m, block_n = TILE
    columns = -(-num_inputs // block_n)
    tiles = -(-num_samples // block_m)
    target = max(1, min(tiles, _PROGRAMS_PER_PROCESSOR * processors // max(1, columns)))
    tiles_per_split = -(-tiles // target)
    return Splits(-(-tiles // tiles_per_split), tiles_per_split * block_m)


def scores_tile(outputs: int, arch: str) -> tuple[int, int]:
    """Return the scores and outputs that a program of the scores kernel handles together.

    Args:
        outputs: Number C of outputs.
        arch: Architecture, e.g. ``"sm_90"``.

    Returns:
        Number of scores and number of outputs, powers of two.

    Example:
        >>> scores_tile(10, "sm_90"), scores_tile(5000, "sm_90")
        ((128, 16), (2, 1024))
    """
    width = min(1024, 1 << max(0, outputs - 1).bit_length())
    return SCORES_DIFFERENCES // (2 if arch in ("sm_86", "sm_89") else 1) // width, width


def project_splits(segments: int, num_samples: int, dim: int, processors: int) -> int:
    """Return the number of programs that share the columns of a matrix, so that the card is full.

    Args:
        segments: Number of segments of columns.
        num_samples: Number M of displacements.
        dim: Number of projections.
        processors: Number of multiprocessors of the card.

    Returns:
        Number of programs.

    Example:
        >>> project_splits(16384, 1024, 16, 132)
        17
    """
    tiles = -(-num_samples // PROJECT_TILE[0]) * -(-dim // PROJECT_TILE[1])
    return max(1, min(segments, -(-2 * processors // tiles)))
