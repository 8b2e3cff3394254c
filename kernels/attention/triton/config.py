"""Tiles of the attention kernels: pure functions of shapes and numbers."""

from dataclasses import dataclass

TILE = (16, 128)
"""Rows and inputs that a program of four warps holds at a time: sixteen numbers a thread, whole lines of memory."""
SCORES_NUMBERS = 2048
"""Differences that a program of the scores kernel holds at a time."""
PROJECT_TILE = (64, 64, 64)
"""Displacements, projections and columns: as much is made as is multiplied, so that larger tiles gain nothing."""
_PROGRAMS_A_PROCESSOR = 8
"""Programs that keep a processor's memory pipe full."""


@dataclass(frozen=True)
class Splits:
    """How the rows are divided among programs that each see some inputs."""

    count: int
    rows: int


def splits(num_rows: int, num_inputs: int, processors: int) -> Splits:
    """Divide rows so that the card is full, in pieces of whole tiles: each split costs three numbers an input.

    Args:
        num_rows: Number M of displacements.
        num_inputs: Number N of inputs.
        processors: Multiprocessors of the card.

    Returns:
        The number of splits and the rows of each.

    Example:
        >>> splits(1000, 128, 4)
        Splits(count=32, rows=32)
    """
    block_m, block_n = TILE
    columns = -(-num_inputs // block_n)
    tiles = -(-num_rows // block_m)
    wanted = max(1, min(tiles, _PROGRAMS_A_PROCESSOR * processors // max(1, columns)))
    tiles_a_split = -(-tiles // wanted)
    return Splits(-(-tiles // tiles_a_split), tiles_a_split * block_m)


def scores_tile(outputs: int) -> tuple[int, int]:
    """Lines and outputs that a program of the scores kernel holds at a time.

    Args:
        outputs: Number C of outputs.

    Returns:
        Both, powers of two.

    Example:
        >>> scores_tile(10), scores_tile(5000)
        ((128, 16), (2, 1024))
    """
    width = min(1024, 1 << max(0, outputs - 1).bit_length())
    return SCORES_NUMBERS // width, width


def project_splits(pieces: int, num_rows: int, dim: int, processors: int) -> int:
    """Programs that share the columns of a matrix, so that the card is full.

    Args:
        pieces: Pieces of columns there are.
        num_rows: Number M of displacements.
        dim: Number of projections.
        processors: Multiprocessors of the card.

    Returns:
        Their number.

    Example:
        >>> project_splits(16384, 1024, 16, 132)
        17
    """
    tiles = -(-num_rows // PROJECT_TILE[0]) * -(-dim // PROJECT_TILE[1])
    return max(1, min(pieces, -(-2 * processors // tiles)))
