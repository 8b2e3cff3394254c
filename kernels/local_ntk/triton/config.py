"""Tiles of the kernel of the structured NTK: pure functions of shapes and architecture.

They query no device and measure nothing. ``nntk-bench resources`` compiles and checks every configuration; HISTORY.md
has the figures.
"""

from dataclasses import dataclass

from nntk.kernels.target import Target, family_of
from nntk.kernels.tuning import Tunable

OPTIONS = {"enable_fp_fusion": True}
"""Options of the Triton compiler. Products and sums are fused, which rounds an entry once instead of twice."""

STEP = 32
"""Multiple that the length of rows is padded to: one step of a product, 128 bytes of each row."""


@dataclass(frozen=True)
class Tiles:
    """Sizes of a tile [block_i, block_j] of the kernel matrix.

    Attributes:
        block_i: Number of rows of a tile, a multiple of ``block_j``.
        block_j: Number of columns of a tile.
        block_k: Number of terms of a step of the sums.
        part: Number of columns that the epilogue handles together.
        num_warps: Number of warps of a program.
        num_stages: Depth of the software pipeline.
    """

    block_i: int
    block_j: int
    block_k: int
    part: int
    num_warps: int
    num_stages: int

    def programs(self, rows: int, columns: int, symmetric: bool) -> int:
        """Return the number of tiles of a kernel matrix; only those on and below the diagonal if it is symmetric."""
        squares_i, squares_j = -(-rows // self.block_i), -(-columns // self.block_i)
        squares = squares_i * (squares_i + 1) // 2 if symmetric else squares_i * squares_j
        return squares * (self.block_i // self.block_j)


# By architecture: number of processors, tiles for two accumulators, for one accumulator, and for small matrices.
_TILES = {
    "sm_80": (108, Tiles(128, 32, STEP, 16, 8, 3), Tiles(128, 64, STEP, 16, 8, 3), Tiles(64, 32, STEP, 16, 4, 3)),
    "sm_90": (132, Tiles(128, 64, STEP, 16, 8, 3), Tiles(128, 128, STEP, 8, 8, 3), Tiles(64, 64, STEP, 16, 4, 3)),
    "sm_120": (170, Tiles(128, 32, STEP, 16, 8, 3), Tiles(128, 64, STEP, 16, 8, 3), Tiles(64, 32, STEP, 16, 4, 3)),
    "sm_100": (148, Tiles(128, 128, STEP, 8, 8, 3), Tiles(128, 128, STEP, 8, 8, 3), Tiles(64, 64, STEP, 16, 4, 3)),
    "gfx942": (304, Tiles(128, 128, STEP, 32, 8, 2), Tiles(128, 128, STEP, 32, 8, 2), Tiles(64, 64, STEP, 32, 4, 2)),
    "interpreter": (4, Tiles(128, 64, STEP, 32, 4, 1), Tiles(128, 64, STEP, 32, 4, 1), Tiles(32, 32, STEP, 16, 4, 1)),
}


def pick(rows: int, columns: int, copies: int, symmetric: bool, fused: bool, arch: str, wide: bool = False) -> Tiles:
    """Choose tiles for ``copies`` matrices of ``rows`` x ``columns``: the largest without spills that fill the card.

    A split product of float32 reads 4 bytes for three multiply-adds on tensor cores, so a small tile waits for the
    second-level cache (README.md counts the bytes). Two accumulators take twice the registers and need a smaller tile
    on sm_80 and sm_90, and so do offsets of 64 bits. If there are fewer large tiles than processors, small tiles share
    the work.

    Args:
        rows: Number of rows of a matrix: N1, in mode ``full`` N1 C.
        columns: Number of columns of a matrix: N2, in mode ``full`` N2 C.
        copies: Number of matrices computed together: C in mode ``diagonal``, else 1.
        symmetric: True if only one triangle is computed.
        fused: True if one launch computes both products of a layer, with an accumulator each.
        arch: Architecture, e.g. ``"sm_90"``.
        wide: True if offsets within a tile need 64 bits.

    Returns:
        Sizes of the tiles. They do not depend on the lengths of the sums: a step of 32 is right for any length.
    """
    processors, two_accumulators, one_accumulator, small = _TILES[family_of(arch)]
    large = two_accumulators if fused else one_accumulator
    fits = not wide or arch == "interpreter"  # The interpreter has no limit of registers.
    return large if fits and copies * large.programs(rows, columns, symmetric) >= processors else small


LAYER_PAIR = Tunable(
    "layer_pair",
    Tiles,
    ("rows", "columns", "copies", "symmetric", "fused"),
    ("local_ntk/triton/kernel.py", "assemble/triton/kernel.py"),
)


def pick_on(target: Target, rows: int, columns: int, copies: int, symmetric: bool, fused: bool, wide: bool) -> Tiles:
    """Return the tiles measured on a device, else those of ``pick``; none are measured with offsets of 64 bits."""
    key = (rows, columns, copies, symmetric, fused)
    if wide:
        return pick(*key, target.arch, wide)
    return LAYER_PAIR.pick(target, key, lambda: pick(*key, target.arch))


def is_fused(num_outputs: int, outputs: str) -> bool:
    """Return True if a layer is one launch; False if that would repeat the products of its inputs for every output."""
    return outputs in ("trace", "mean") or num_outputs == 1
