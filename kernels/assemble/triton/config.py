"""Tiles of the rank update and the route to an inner product: pure functions of shapes and architecture."""

from dataclasses import dataclass

from nntk.kernels.target import Target
from nntk.kernels.tuning import Tunable


@dataclass(frozen=True)
class Tiles:
    """Sizes of a tile [block, block] of the kernel matrix.

    Attributes:
        block: Number of rows and of columns of a tile.
        block_k: Number of terms of the sums that are loaded together.
        num_warps: Number of warps of a program.
        num_stages: Depth of the software pipeline.
        parts: Number of parts in which a tile is stored.
    """

    block: int
    block_k: int
    num_warps: int
    num_stages: int
    parts: int


OPTIONS = {"enable_fp_fusion": True}
"""Options of the Triton compiler. Products and sums are fused, which rounds an exponent once instead of twice."""

LARGEST = 128
"""Most rows, columns or terms that a program handles together."""


def tiles(
    rows: int,
    columns: int,
    symmetric: bool,
    weighting: str,
    members: int,
    processors: int,
    arch: str,
    wide: bool = False,
) -> Tiles:
    """Choose tiles for a kernel matrix of ``rows`` by ``columns``.

    Where weights depend on the input, each value of an operand costs an exponential, computed once for each tile: a
    wider tile needs fewer. Tiles of 128 x 128 in float32, whose products are split into three on tensor cores, fit
    without a spill on newer architectures. Computing weights takes registers, which a shorter step gives back. Small
    kernels use quarter tiles, so that every processor has one, and so do older architectures, whose products read
    registers, and kernels whose offsets have 64 bits.

    Args:
        rows: Number of rows of the kernel matrix.
        columns: Number of columns of the kernel matrix.
        symmetric: True if only one triangle is computed.
        weighting: Kind of weights; ``"rows"`` if they do not depend on the input.
        members: 2 if plus and minus members of antithetic pairs are loaded, else 1.
        processors: Number of multiprocessors of the card.
        arch: Architecture, as ``Target`` names it.
        wide: True if offsets within a tile need 64 bits.

    Returns:
        Sizes of the tiles.

    Example:
        >>> [tiles(size, size, True, "rows", 1, 132, "sm_90").block for size in (4096, 1000)]
        [128, 64]
    """
    if arch == "interpreter":
        return Tiles(64, 64, num_warps=4, num_stages=1, parts=2)
    if not arch.startswith(("sm_9", "sm_10", "sm_11")):
        # Four warps share a tile without repeating products; given scores of pairs would leave them few registers.
        warps = 8 if arch.startswith("sm_") and weighting == "given" and members == 2 else 4
        return Tiles(64, 16, num_warps=warps, num_stages=1, parts=2)
    count = -(-rows // 128) * -(-columns // 128) // (2 if symmetric else 1)
    if wide or count < processors or (members == 2 and not arch.startswith("sm_9")):
        # Weights of pairs that depend on the input take the registers that loading ahead would need.
        stages = 1 if members == 2 and weighting != "rows" and not arch.startswith("sm_9") else 2
        return Tiles(64, 16, num_warps=8, num_stages=stages, parts=2)
    if arch.startswith("sm_9"):
        # Measured with rows: a product split into three waits for its parts, so loading ahead only costs. With weights
        # that depend on the input it costs registers as well, of which pairs have none left.
        return Tiles(
            128, 32 if weighting == "rows" else 16, num_warps=8, num_stages=1, parts=4 if weighting == "rows" else 8
        )
    return Tiles(128, 16, num_warps=8, num_stages=2, parts=4)


RANK_UPDATE = Tunable(
    "rank_update",
    Tiles,
    ("rows", "columns", "symmetric", "weighting", "members"),
    ("assemble/triton/kernel.py", "attention/triton/kernel.py", "philox/triton/kernel.py"),
)


def tiles_on(
    target: Target, rows: int, columns: int, symmetric: bool, weighting: str, members: int, wide: bool
) -> Tiles:
    """Return the tiles measured on a device, else those of ``tiles``; none are measured with offsets of 64 bits."""
    key = (rows, columns, symmetric, weighting, members)
    if wide:
        return tiles(*key, target.processors, target.arch, wide)
    return RANK_UPDATE.pick(target, key, lambda: tiles(*key, target.processors, target.arch))


def inner_product_route(num_samples: int, inputs: tuple[int, int], outputs: int, num_params: int, full: bool) -> str:
    r"""Choose the cheaper route to the sum over m, m' of a_m Q_mm' a_m': the Gram matrix Q or nonlocal gradients.

    Multiply-adds with N = N1 + N2 different inputs and d parameters, where a float32 product counts half:

        gram        M^2 d / 2 + M^2 N1 C + M N1 N2 C        memory for M^2 values
        gradients   M N C d + N1 N2 C d                     memory for a slab of parameters

    Args:
        num_samples: Number M of displacements.
        inputs: Numbers of inputs of the rows and of the columns, the second 0 for a symmetric kernel.
        outputs: Number C of outputs.
        num_params: Number d of displaced parameters.
        full: True if the kernel has every pair of outputs, which is C times as many entries.

    Returns:
        ``"gram"`` or ``"gradients"``.

    Example:
        >>> inner_product_route(4096, (8, 0), 1, 10**6, False), inner_product_route(256, (1000, 0), 1, 10**6, False)
        ('gradients', 'gram')
    """
    n1, n2 = inputs
    pairs = n1 * (n2 or n1) * outputs * (outputs if full else 1)
    gram = num_samples**2 * num_params / 2 + num_samples**2 * n1 * outputs + num_samples * pairs
    gradients = num_samples * (n1 + n2) * outputs * num_params + pairs * num_params
    return "gram" if gram <= gradients else "gradients"
