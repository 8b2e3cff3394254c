"""Tiles of the rank update, and the way to an inner product: pure functions of shapes and numbers."""

from dataclasses import dataclass

from nntk.kernels.target import Target
from nntk.kernels.tuning import Tunable


@dataclass(frozen=True)
class Tiles:
    """A tile [block, block] of the kernel, and how many terms of its sums are loaded at a time."""

    block: int
    block_k: int
    num_warps: int
    num_stages: int
    parts: int
    """Pieces in which a tile is stored."""


def tiles(lines1: int, lines2: int, symmetric: bool, weighting: str, halves: int, processors: int, arch: str) -> Tiles:
    """Choose tiles for a kernel of ``lines1`` lines by ``lines2``.

    An operand costs an exponential a number where weights depend on the input, and each is made once a tile: the wider
    the tile, the fewer. 128 x 128 in float32, whose products are split into three on tensor cores, is what fits without
    a spill on the newer ones; making weights takes registers, which a shorter step gives back. Small kernels take
    quarter tiles, so that every processor has one, and so do the older architectures, whose products read registers.

    Args:
        lines1: Lines of the kernel.
        lines2: Entries of a line.
        symmetric: Whether only one triangle is computed.
        weighting: How weights are found; ``"rows"`` if they do not depend on the input.
        halves: 2 where both halves of antithetic pairs are loaded.
        processors: Multiprocessors of the card.
        arch: Architecture, as ``Target`` names it.

    Returns:
        The tiles.

    Example:
        >>> [tiles(lines, lines, True, "rows", 1, 132, "sm_90").block for lines in (4096, 1000)]
        [128, 64]
    """
    if arch == "interpreter":
        return Tiles(64, 64, num_warps=4, num_stages=1, parts=2)
    if not arch.startswith(("sm_9", "sm_10", "sm_11")):
        return Tiles(64, 16, num_warps=8 if arch.startswith("sm_") else 4, num_stages=1, parts=2)
    count = -(-lines1 // 128) * -(-lines2 // 128) // (2 if symmetric else 1)
    if count < processors or (halves == 2 and not arch.startswith("sm_9")):
        return Tiles(64, 16, num_warps=8, num_stages=2, parts=2)
    hopper = arch.startswith("sm_9")
    long = hopper and weighting == "rows"
    if long:
        # Measured: split into three, a product waits for its parts, and what was loaded ahead only costs.
        return Tiles(128, 32, num_warps=8, num_stages=1, parts=4)
    return Tiles(128, 16, num_warps=8, num_stages=2, parts=8 if hopper else 4)


RANK_UPDATE = Tunable(
    "rank_update",
    Tiles,
    ("lines1", "lines2", "symmetric", "weighting", "halves"),
    ("assemble/triton/kernel.py", "attention/triton/kernel.py"),
)


def tiles_on(target: Target, lines1: int, lines2: int, symmetric: bool, weighting: str, halves: int) -> Tiles:
    """Tiles on a device: those measured there, else ``tiles``."""
    key = (lines1, lines2, symmetric, weighting, halves)
    return RANK_UPDATE.pick(target, key, lambda: tiles(*key, target.processors, target.arch))


def inner_product_route(num_rows: int, inputs: tuple[int, int], outputs: int, num_params: int, full: bool) -> str:
    r"""How to form sum over m, m' of a_m Q_mm' a_m': from the Gram matrix Q, or from the nonlocal gradients.

    Multiply-adds with N = N1 + N2 different inputs and d parameters, those of a float32 product at half price:

        gram        M^2 d / 2 + M^2 N1 C + M N1 N2 C        M^2 numbers held
        gradients   M N C d + N1 N2 C d                     a slab of parameters held

    Args:
        num_rows: Number M of displacements.
        inputs: Numbers of inputs of the lines and of the entries, the second 0 for a symmetric kernel.
        outputs: Number C of outputs.
        num_params: Number d of displaced parameters.
        full: Whether every pair of outputs is wanted, C times as many entries.

    Returns:
        ``"gram"`` or ``"gradients"``.

    Example:
        >>> inner_product_route(4096, (8, 0), 1, 10**6, False), inner_product_route(256, (1000, 0), 1, 10**6, False)
        ('gradients', 'gram')
    """
    n1, n2 = inputs
    pairs = n1 * (n2 or n1) * outputs * (outputs if full else 1)
    gram = num_rows**2 * num_params / 2 + num_rows**2 * n1 * outputs + num_rows * pairs
    gradients = num_rows * (n1 + n2) * outputs * num_params + pairs * num_params
    return "gram" if gram <= gradients else "gradients"
