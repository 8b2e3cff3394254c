"""Choice of the kernel and of the tiles of a layer on a GPU: pure functions of shapes, precision and architecture.

First file to read. The functions read no device and measure nothing, so the same problem takes the same path in every
process. README.md has the cost model, HISTORY.md the compiled resources. ``nntk-bench resources`` compiles and judges
every configuration.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from nntk.kernels.target import Target, family_of
from nntk.kernels.tuning import Tunable

PATHS = ("step", "stationary", "staged", "stacked", "fused")
"""Paths of a layer: noise is generated for every tile; generated once and held over all columns; written to memory and
read; the same in one loop over both products, behind the first layer; and all layers are in one launch."""

OPTIONS = {"enable_fp_fusion": True}
"""Options of the Triton compiler. Products and sums are fused, which rounds once instead of twice. Where a number is
compared with a jump, the product is by sigma, a power of two, and exact: fusing changes no comparison."""

GENERATED = ("gaussian", "rademacher")
"""Families whose noise the kernels can generate in registers."""

FUSED_LAYERS = 4
"""Most layers of the fused path. Each layer is separate code: four compile in about 8 s, eight in half a minute."""

_INSTRUCTIONS_A_NORMAL = 19.0
"""Instructions issued for a normal, those of the loop around it included (``nntk-bench resources``, sm_90, bf16,
layer 0)."""


@dataclass(frozen=True)
class Tiles:
    """Sizes of a tile [block_h, block_n] whose products sum block_k terms a step; README.md draws it."""

    block_h: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    parts: int
    """Number of parts into which the epilogue splits the columns."""


@dataclass(frozen=True)
class Path:
    """Path of a layer, one of ``PATHS``."""

    path: str


_SOURCES = tuple(
    f"{op}/triton/{name}.py"
    for op, name in (("perturb", "kernel"), ("perturb", "activations"), ("perturb", "layers"), ("philox", "kernel"))
)
LAYER_STEP = Tunable("layer_step", Tiles, ("source", "precision", "width", "height", "columns"), _SOURCES)
LAYER_PATH = Tunable("layer_path", Path, ("source", "precision", "width", "height", "columns", "first"), _SOURCES)


@dataclass(frozen=True)
class FusedTiles:
    """Tiles of the fused MLP."""

    padded_width: int
    """Width to which all hidden layers are padded; in a table, the largest."""
    block_n: int
    """Columns of a tile."""
    part_columns: int
    """Columns of a part of the epilogue."""
    num_warps: int
    min_rows: int = 16
    """Fewest rows of a product."""

    def block_c(self, outputs: int) -> int:
        """Return the number of rows of the last layer's tile."""
        return power_of_two(outputs, self.min_rows, 128)


def power_of_two(number: int, minimum: int, maximum: int) -> int:
    """Return the smallest power of two that is at least ``number``, within the limits ``minimum`` and ``maximum``."""
    return min(maximum, max(minimum, 1 << (number - 1).bit_length()))


# Largest tiles without spills: [units, columns], warps, stages, and block_k by family where it is not the default.
_LARGE = {
    ("sm_90", "bf16"): ((128, 256), 8, 3, {}),
    ("sm_90", "tf32"): ((128, 128), 8, 3, {}),
    ("sm_90", "fp32"): ((64, 64), 4, 2, {}),
    ("sm_100", "bf16"): ((128, 256), 8, 3, {}),
    ("sm_100", "tf32"): ((128, 128), 8, 3, {}),
    ("sm_100", "fp32"): ((64, 64), 8, 2, {}),
    ("sm_80", "bf16"): ((128, 128), 8, 3, {}),
    ("sm_80", "tf32"): ((64, 64), 8, 3, {}),
    ("sm_80", "fp32"): ((64, 32), 8, 2, {"lowrank": 16}),
    ("sm_120", "bf16"): ((128, 128), 8, 3, {}),
    ("sm_120", "tf32"): ((64, 64), 8, 3, {}),
    ("sm_120", "fp32"): ((64, 32), 4, 2, {}),
    ("gfx942", "bf16"): ((128, 128), 8, 2, {"rademacher": 64}),
    ("gfx942", "tf32"): ((64, 64), 4, 2, {}),
    ("gfx942", "fp32"): ((64, 64), 4, 2, {}),
    ("interpreter", "bf16"): ((128, 64), 4, 1, {"gaussian": 128, "rademacher": 128}),
    ("interpreter", "tf32"): ((128, 64), 4, 1, {"gaussian": 128, "rademacher": 128}),
    ("interpreter", "fp32"): ((128, 64), 4, 1, {"gaussian": 128, "rademacher": 128}),
}
_FUSED = {
    ("sm_90", "bf16", "gaussian"): FusedTiles(128, 64, 32, 8),
    ("sm_90", "bf16", "rademacher"): FusedTiles(128, 64, 32, 8),
    ("sm_90", "tf32", "gaussian"): FusedTiles(64, 32, 16, 8),
    ("sm_90", "tf32", "rademacher"): FusedTiles(128, 32, 16, 8),
    ("sm_90", "fp32", "gaussian"): FusedTiles(64, 32, 16, 4),
    ("sm_90", "fp32", "rademacher"): FusedTiles(64, 32, 16, 4),
    ("sm_100", "bf16", "gaussian"): FusedTiles(128, 64, 32, 8),
    ("sm_100", "bf16", "rademacher"): FusedTiles(128, 64, 32, 8),
    ("sm_100", "tf32", "gaussian"): FusedTiles(128, 64, 32, 8),
    ("sm_100", "tf32", "rademacher"): FusedTiles(128, 64, 32, 8),
    ("sm_80", "bf16", "gaussian"): FusedTiles(64, 32, 16, 8),
    ("sm_80", "bf16", "rademacher"): FusedTiles(64, 64, 32, 8),
    ("sm_120", "bf16", "gaussian"): FusedTiles(64, 32, 16, 8),
    ("sm_120", "bf16", "rademacher"): FusedTiles(64, 64, 32, 8),
    ("gfx942", "bf16", "gaussian"): FusedTiles(128, 32, 8, 4),
    ("gfx942", "bf16", "rademacher"): FusedTiles(128, 64, 32, 8),
    ("gfx942", "tf32", "gaussian"): FusedTiles(64, 32, 16, 4),
    ("gfx942", "tf32", "rademacher"): FusedTiles(64, 32, 16, 4),
    ("interpreter", "bf16", "gaussian"): FusedTiles(128, 32, 16, 4),
    ("interpreter", "bf16", "rademacher"): FusedTiles(128, 32, 16, 4),
    ("interpreter", "tf32", "gaussian"): FusedTiles(128, 32, 16, 4),
    ("interpreter", "tf32", "rademacher"): FusedTiles(128, 32, 16, 4),
    ("interpreter", "fp32", "gaussian"): FusedTiles(128, 32, 16, 4),
    ("interpreter", "fp32", "rademacher"): FusedTiles(128, 32, 16, 4),
}


_FOUR_WARP_PRODUCTS = ("sm_90", "sm_100")
"""Architectures on which a product of four warps has at least 64 rows."""


def least_step(source: str, precision: str) -> int:
    """Return the fewest terms of a step; for flipout in bf16, the copy engine reads signs in rows of 128 bytes."""
    return 64 if source == "flipout" and precision == "bf16" else 32


@lru_cache(maxsize=256)
def step_tiles(source: str, precision: str, width: int, height: int, columns: int, arch: str) -> Tiles:
    """Choose tiles of the layer step for [columns, width] x [width, height].

    One generated tile of noise serves ``block_n`` columns. A normal costs 19 instructions, so the rule chooses the
    widest tile whose accumulator fits the registers (128 x 256: 128 registers a thread at 8 warps). A sign costs a
    third of that.

    Args:
        source: Family of the noise; ``"staged"`` where it is read from memory, ``"stacked"`` where it also is one
            operand with the weight, ``"none"`` without displacement.
        precision: ``"bf16"``, ``"tf32"`` or ``"fp32"``.
        width: Inputs of the layer.
        height: Units of the layer.
        columns: Columns that share the noise.
        arch: Architecture, e.g. ``"sm_90"``.

    Returns:
        The tiles.
    """
    (block_h, block_n), warps, stages, steps = _LARGE[family_of(arch), precision]
    if family_of(arch) == "sm_90" and precision == "bf16" and source in ("staged", "stacked", "lowrank", "none"):
        # No noise is generated, so a wide tile saves nothing; narrower tiles were measured to be faster.
        block_n = 128
    block_k = steps.get(source, 64 if family_of(arch) in _FOUR_WARP_PRODUCTS and precision == "bf16" else 32)
    if family_of(arch) == "sm_80" and precision == "tf32" and source == "none":
        # With eight warps the compiler aims at 128 registers a thread, and three do not fit.
        warps = 4
    smaller_h = power_of_two(height, min(64, block_h), block_h)
    smaller_n = power_of_two(columns, min(64, block_n), block_n)
    if smaller_h * smaller_n < 128 * 128 and family_of(arch) not in ("sm_80", "sm_100", "sm_120"):
        warps = min(warps, 4)
    block_k = power_of_two(width, min(least_step(source, precision), block_k), block_k)
    # The interpreter has no limit of registers, and each part costs it time.
    parts = 1 if arch == "interpreter" else max(1, smaller_h * smaller_n // (warps * 32) // 16)
    return Tiles(smaller_h, smaller_n, block_k, warps, stages, parts)


def projection_warps(rank: int) -> int:
    """Return the warps of the projection by the right factors of low rank; on sm_80 four would spill at rank 64."""
    return 4 if rank <= 16 else 8


@lru_cache(maxsize=256)
def stationary_tiles(source: str, precision: str, width: int, arch: str) -> Tiles | None:
    """Choose tiles of the weight-stationary step.

    Args:
        source: Family of the noise.
        precision: ``"bf16"``, ``"tf32"`` or ``"fp32"``.
        width: Inputs of the layer.
        arch: Architecture, e.g. ``"sm_90"``.

    Returns:
        The tiles; None for signs, which are cheap to generate again, and for noise that the registers cannot hold.
    """
    if source != "gaussian":
        return None
    widest = {"bf16": 256 if family_of(arch) in _FOUR_WARP_PRODUCTS else 64, "tf32": 64, "fp32": 0}[precision]
    if width > (256 if arch == "interpreter" else widest):
        return None
    block_k = power_of_two(width, 32, 256)
    if arch == "interpreter":
        return Tiles(64, 64, block_k, 4, 1, 2)
    if family_of(arch) == "sm_100":
        return Tiles(128, 64, block_k, 8, 2 if width <= 128 else 1, 4)
    # Beside noise and weights that are held in registers, sums of 64 columns leave these products no room.
    return Tiles(64, 64 if family_of(arch) in _FOUR_WARP_PRODUCTS else 32, block_k, 4, 2, 2)


def fused_width(source: str, precision: str, arch: str) -> int:
    """Return the largest width of the fused MLP; 0 where the path does not exist."""
    tiles = _FUSED.get((family_of(arch), precision, source))
    return tiles.padded_width if tiles else 0


def fused_tiles(
    source: str, precision: str, widths: Sequence[int], activations: Sequence[str], arch: str
) -> FusedTiles | None:
    """Choose tiles of the fused MLP.

    Args:
        source: Family of the noise.
        precision: ``"bf16"``, ``"tf32"`` or ``"fp32"``.
        widths: Widths of the network, inputs and outputs included.
        activations: Names of the activations, one a layer.
        arch: Architecture, e.g. ``"sm_90"``.

    Returns:
        The tiles; None where the network is too wide or too deep, or has an activation at its end.
    """
    tiles = _FUSED.get((family_of(arch), precision, source))
    if tiles is None or len(widths) < 3 or len(activations) > FUSED_LAYERS or activations[-1] != "identity":
        return None
    if max(widths) > tiles.padded_width:
        return None
    # A product of four warps has at least 64 rows, and the next layer sums over as many terms.
    least = 64 if family_of(arch) in _FOUR_WARP_PRODUCTS else 32
    padded_width = power_of_two(max(widths[1:-1]), least, 128)
    return FusedTiles(padded_width, tiles.block_n, tiles.part_columns, tiles.num_warps, 64 if least == 64 else 16)


def staged_pays(source: str, precision: str, columns: int, first: bool, arch: str) -> bool:
    """Predict whether writing the noise to memory once is faster than generating it for every tile of columns.

    The comparison is in clocks of one multiprocessor for one step of a full tile (128 x 256 x 64). With noise in
    registers the tile costs generation plus multiplication, which wait for each other, as an H200 showed. Staged, it
    costs the multiplication, and generation and writing are divided by the number of tiles of columns.

    Args:
        source: Family of the noise.
        precision: Precision of the products.
        columns: Columns that share the noise.
        first: True for layer 0, which has one product instead of two.
        arch: Architecture.

    Returns:
        True for normals with 512 columns or more. Signs are never staged, since they are cheap to generate again.
    """
    if source != "gaussian" or precision != "bf16" or family_of(arch) == "gfx942":
        return False
    multiply_adds_a_clock = {"sm_80": 1024, "sm_100": 4096, "sm_120": 256}.get(family_of(arch), 2048)
    numbers, products = 128 * 64, 1 if first else 2
    generate = numbers * _INSTRUCTIONS_A_NORMAL / 128
    multiply = products * 128 * 256 * 64 / multiply_adds_a_clock
    write = numbers * 2 / 32
    tiles = max(1, columns // 256)
    return multiply + (generate + write) / tiles < generate + multiply


def applies(path: str, source: str, precision: str, width: int, arch: str) -> bool:
    """Return whether a layer can take the path ``"step"``, ``"stationary"``, ``"staged"`` or ``"stacked"``.

    Layer 0 has one product. There ``"stacked"`` is ``"staged"``.
    """
    fits = path != "stationary" or stationary_tiles(source, precision, width, arch) is not None
    return path == "step" or source in GENERATED and fits


def step_tiles_on(target: Target, source: str, precision: str, width: int, height: int, columns: int) -> Tiles:
    """Return the tiles of the layer step that were measured fastest on a device, else those of ``step_tiles``."""
    key = (source, precision, width, height, columns)
    return LAYER_STEP.pick(target, key, lambda: step_tiles(*key, target.arch))


def choose_path_on(
    target: Target, source: str, precision: str, width: int, height: int, columns: int, first: bool
) -> str:
    """Return the path of one layer that was measured fastest on a device, else that of ``choose_path``."""
    key = (source, precision, width, height, columns, first)
    rule = (source, precision, width, columns, first, target.arch)
    path = LAYER_PATH.pick(target, key, lambda: Path(choose_path(*rule))).path
    # A measurement also serves shorter lengths, for which its path need not apply.
    return path if applies(path, source, precision, width, target.arch) else choose_path(*rule)


def choose_path(source: str, precision: str, width: int, columns: int, first: bool, arch: str) -> str:
    """Return the path of one layer by the cost model: ``"stationary"``, ``"staged"`` or ``"step"``.

    ``"stacked"`` differs from ``"staged"`` by what the model does not count, the waits between two loops. So only a
    measurement chooses it.
    """
    stationary = stationary_tiles(source, precision, width, arch)
    if stationary is not None and columns > stationary.block_n:
        return "stationary"
    return "staged" if staged_pays(source, precision, columns, first, arch) else "step"
