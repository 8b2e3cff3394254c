"""Tiles of the structured NTK's kernel: pure functions of shapes and architecture.

No device is asked and nothing is measured; every configuration is compiled and judged by ``nntk-bench resources``.
README.md has the figures.
"""

from dataclasses import dataclass

from nntk.kernels.perturb.triton.config import family_of
from nntk.kernels.target import Target
from nntk.kernels.tuning import Tunable

STEP = 32
"""Length that rows are padded to: one step of a product, 128 bytes of each row."""


@dataclass(frozen=True)
class Tiles:
    """Sizes of a tile [block_i, block_j]; block_i is a multiple of block_j."""

    block_i: int
    block_j: int
    block_k: int
    part: int
    """Entries that the epilogue takes at once."""
    num_warps: int
    num_stages: int

    def programs(self, lines: int, entries: int, symmetric: bool) -> int:
        """How many tiles a kernel of so many lines and entries has; below the diagonal if it is symmetric."""
        rows, columns = -(-lines // self.block_i), -(-entries // self.block_i)
        squares = rows * (rows + 1) // 2 if symmetric else rows * columns
        return squares * (self.block_i // self.block_j)


# By architecture: the number of its processors, tiles for two accumulators, for one, and for few lines.
_TILES = {
    "sm_80": (108, Tiles(128, 32, STEP, 16, 8, 3), Tiles(128, 64, STEP, 16, 8, 3), Tiles(64, 32, STEP, 16, 4, 3)),
    "sm_90": (132, Tiles(128, 64, STEP, 16, 8, 3), Tiles(128, 128, STEP, 8, 8, 3), Tiles(64, 64, STEP, 16, 4, 3)),
    "sm_100": (148, Tiles(128, 128, STEP, 8, 8, 3), Tiles(128, 128, STEP, 8, 8, 3), Tiles(64, 64, STEP, 16, 4, 3)),
    "gfx942": (304, Tiles(128, 128, STEP, 32, 8, 2), Tiles(128, 128, STEP, 32, 8, 2), Tiles(64, 64, STEP, 32, 4, 2)),
    "interpreter": (4, Tiles(128, 64, STEP, 32, 4, 1), Tiles(128, 64, STEP, 32, 4, 1), Tiles(32, 32, STEP, 16, 4, 1)),
}


def pick(lines: int, entries: int, copies: int, symmetric: bool, fused: bool, arch: str) -> Tiles:
    """Choose tiles for ``copies`` kernels of ``lines`` x ``entries``: the largest without spills that fill the card.

    A split product of float32 reads 4 bytes for three multiply-adds on tensor cores, so a small tile waits for the
    second-level cache (README.md counts the bytes). Two accumulators are twice the registers, and want a smaller tile
    on sm_80 and sm_90. Where the large tiles are fewer than processors, small ones share the work.

    Args:
        lines: Lines of the kernel: N1, in mode ``full`` N1 C.
        entries: Entries of a line: N2, in mode ``full`` N2 C.
        copies: Kernels made at once: C in mode ``diagonal``, else 1.
        symmetric: Whether one triangle is enough.
        fused: Whether both products of a layer are made in one launch, with an accumulator each.
        arch: Architecture, e.g. ``"sm_90"``.

    Returns:
        The tiles. The lengths of the sums do not matter: a step of 32 is right for any.
    """
    processors, two, one, small = _TILES[family_of(arch)]
    large = two if fused else one
    return large if copies * large.programs(lines, entries, symmetric) >= processors else small


LAYER_PAIR = Tunable(
    "layer_pair",
    Tiles,
    ("lines", "entries", "copies", "symmetric", "fused"),
    ("local_ntk/triton/kernel.py", "assemble/triton/kernel.py"),
)


def pick_on(target: Target, lines: int, entries: int, copies: int, symmetric: bool, fused: bool) -> Tiles:
    """Tiles on a device: those measured there, else ``pick``."""
    key = (lines, entries, copies, symmetric, fused)
    return LAYER_PAIR.pick(target, key, lambda: pick(*key, target.arch))


def is_fused(num_outputs: int, outputs: str) -> bool:
    """Whether a layer is one launch: not where products of its inputs would be made again for every output."""
    return outputs in ("trace", "mean") or num_outputs == 1
