"""Which kernel evaluates a layer on a GPU, and with which tiles: pure functions of shapes, precision and architecture.

No device is asked and nothing is measured: the same problem takes the same path in every process. README.md has the
cost model and what compiling showed; every configuration here is compiled and judged by ``nntk-bench resources``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from nntk.kernels.target import Target
from nntk.kernels.tuning import Tunable

PATHS = ("step", "stationary", "staged", "fused")
"""Noise made for every tile; made once and held over all columns; written out and read; all layers in one launch."""

GENERATED = ("gaussian", "rademacher")
"""Families whose noise is made where it is used."""

FUSED_LAYERS = 4
"""Each layer is code of its own: four take some 8 s to compile, eight half a minute."""

_INSTRUCTIONS_A_NORMAL = 19.0
"""Issued for one, the loop around it included (``nntk-bench resources``, sm_90, bf16, layer 0)."""


@dataclass(frozen=True)
class Tiles:
    """Sizes of a tile [block_h, block_n] with steps of block_k; README.md draws it."""

    block_h: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    parts: int
    """Pieces of the columns that the epilogue takes one after another."""


@dataclass(frozen=True)
class Path:
    """Which of ``PATHS`` a layer takes."""

    path: str


_SOURCES = tuple(
    f"{op}/triton/{name}.py"
    for op, name in (("perturb", "kernel"), ("perturb", "activations"), ("perturb", "layers"), ("philox", "kernel"))
)
LAYER_STEP = Tunable("layer_step", Tiles, ("source", "precision", "width", "height", "columns"), _SOURCES)
LAYER_PATH = Tunable("layer_path", Path, ("source", "precision", "width", "height", "columns", "first"), _SOURCES)


@dataclass(frozen=True)
class Fused:
    """Tiles of the fused MLP: the largest padded width, the columns of a tile, and those of a part of its epilogue."""

    pad: int
    block_n: int
    part: int
    num_warps: int
    least_rows: int = 16
    """Fewest rows of a product."""

    def block_c(self, outputs: int) -> int:
        """Rows of the last layer's tile."""
        return power_of_two(outputs, self.least_rows, 128)


def power_of_two(number: int, least: int, most: int) -> int:
    """The smallest power of two that holds ``number``, within limits."""
    return min(most, max(least, 1 << (number - 1).bit_length()))


# Largest tiles without spills: [units, columns], warps, stages, and the step by family.
_LARGE = {
    ("sm_90", "bf16"): ((128, 256), 8, 3, {}),
    ("sm_90", "tf32"): ((128, 128), 8, 3, {}),
    ("sm_90", "fp32"): ((64, 64), 4, 2, {}),
    ("sm_100", "bf16"): ((128, 256), 8, 3, {}),
    ("sm_100", "tf32"): ((128, 128), 8, 3, {}),
    ("sm_100", "fp32"): ((64, 64), 8, 2, {}),
    ("sm_80", "bf16"): ((128, 128), 8, 3, {}),
    ("sm_80", "tf32"): ((64, 64), 8, 3, {}),
    ("sm_80", "fp32"): ((64, 32), 8, 2, {}),
    ("gfx942", "bf16"): ((128, 128), 8, 2, {"rademacher": 64}),
    ("gfx942", "tf32"): ((64, 64), 4, 2, {}),
    ("gfx942", "fp32"): ((64, 64), 4, 2, {}),
    ("interpreter", "bf16"): ((128, 64), 4, 1, {"gaussian": 128, "rademacher": 128}),
    ("interpreter", "tf32"): ((128, 64), 4, 1, {"gaussian": 128, "rademacher": 128}),
    ("interpreter", "fp32"): ((128, 64), 4, 1, {"gaussian": 128, "rademacher": 128}),
}
_FUSED = {
    ("sm_90", "bf16", "gaussian"): Fused(128, 64, 32, 8),
    ("sm_90", "bf16", "rademacher"): Fused(128, 64, 32, 8),
    ("sm_90", "tf32", "gaussian"): Fused(64, 32, 16, 8),
    ("sm_90", "tf32", "rademacher"): Fused(128, 32, 16, 8),
    ("sm_90", "fp32", "gaussian"): Fused(64, 32, 16, 4),
    ("sm_90", "fp32", "rademacher"): Fused(64, 32, 16, 4),
    ("sm_100", "bf16", "gaussian"): Fused(128, 64, 32, 8),
    ("sm_100", "bf16", "rademacher"): Fused(128, 64, 32, 8),
    ("sm_100", "tf32", "gaussian"): Fused(128, 64, 32, 8),
    ("sm_100", "tf32", "rademacher"): Fused(128, 64, 32, 8),
    ("sm_80", "bf16", "gaussian"): Fused(64, 32, 16, 8),
    ("sm_80", "bf16", "rademacher"): Fused(64, 64, 32, 8),
    ("gfx942", "bf16", "gaussian"): Fused(128, 32, 8, 4),
    ("gfx942", "bf16", "rademacher"): Fused(128, 64, 32, 8),
    ("gfx942", "tf32", "gaussian"): Fused(64, 32, 16, 4),
    ("gfx942", "tf32", "rademacher"): Fused(64, 32, 16, 4),
    ("interpreter", "bf16", "gaussian"): Fused(128, 32, 16, 4),
    ("interpreter", "bf16", "rademacher"): Fused(128, 32, 16, 4),
    ("interpreter", "tf32", "gaussian"): Fused(128, 32, 16, 4),
    ("interpreter", "tf32", "rademacher"): Fused(128, 32, 16, 4),
    ("interpreter", "fp32", "gaussian"): Fused(128, 32, 16, 4),
    ("interpreter", "fp32", "rademacher"): Fused(128, 32, 16, 4),
}


_FOUR_WARP_PRODUCTS = ("sm_90", "sm_100")
"""Where a product of four warps has 64 rows at least."""


def family_of(arch: str) -> str:
    """The architecture whose configurations serve ``arch``: its own, or the nearest that was compiled for."""
    if arch.startswith("gfx"):
        return "gfx942"
    if arch.startswith("sm_"):
        # Consumer cards (sm_86, sm_89, sm_120) have sm_80's products, and 99 KB of shared memory to its 163: of that
        # its configurations take 64 KB at most. On sm_120 three of the large tiles spill two to four registers.
        return {"sm_90": "sm_90", "sm_100": "sm_100", "sm_103": "sm_100"}.get(arch, "sm_80")
    return arch


def least_step(source: str, precision: str) -> int:
    """Fewest terms of a step: a line of flipout's signs, which are read by the bulk copy engine, has 128 bytes."""
    return 64 if source == "flipout" and precision == "bf16" else 32


@lru_cache(maxsize=256)
def step_tiles(source: str, precision: str, width: int, height: int, columns: int, arch: str) -> Tiles:
    """Tiles of the layer step for [columns, width] x [width, height].

    One generated tile serves ``block_n`` columns. A normal costs 19 instructions, so the widest tile whose accumulator
    fits (128 x 256: 128 registers a thread at 8 warps) is taken; a sign costs a third of that.

    Args:
        source: Family of the noise, ``"staged"``, or ``"none"``.
        precision: ``"bf16"``, ``"tf32"`` or ``"fp32"``.
        width: Inputs of the layer.
        height: Units of the layer.
        columns: Columns that share the noise.
        arch: Architecture, e.g. ``"sm_90"``.

    Returns:
        The tiles.
    """
    (block_h, block_n), warps, stages, steps = _LARGE[family_of(arch), precision]
    if family_of(arch) == "sm_90" and precision == "bf16" and source in ("staged", "lowrank", "none"):
        # Nothing is made for a column's sake: measured, narrower tiles go faster.
        block_n = 128
    block_k = steps.get(source, 64 if family_of(arch) in _FOUR_WARP_PRODUCTS and precision == "bf16" else 32)
    smaller_h = power_of_two(height, min(64, block_h), block_h)
    smaller_n = power_of_two(columns, min(64, block_n), block_n)
    if smaller_h * smaller_n < 128 * 128 and family_of(arch) not in ("sm_80", "sm_100"):
        warps = min(warps, 4)
    block_k = power_of_two(width, min(least_step(source, precision), block_k), block_k)
    # The interpreter has no registers to run out of, and takes a program's time for each part.
    parts = 1 if arch == "interpreter" else max(1, smaller_h * smaller_n // (warps * 32) // 16)
    return Tiles(smaller_h, smaller_n, block_k, warps, stages, parts)


def projection_warps(rank: int) -> int:
    """Warps of products with right factors, which go before a step of low rank; four would spill on sm_80 at 64."""
    return 4 if rank <= 16 else 8


@lru_cache(maxsize=256)
def stationary_tiles(source: str, precision: str, width: int, arch: str) -> Tiles | None:
    """Tiles of the weight-stationary step; None for signs, cheap to make again, and for noise beyond the registers."""
    if source != "gaussian":
        return None
    most = {"bf16": 256 if family_of(arch) in _FOUR_WARP_PRODUCTS else 64, "tf32": 64, "fp32": 0}[precision]
    if width > (256 if arch == "interpreter" else most):
        return None
    block_k = power_of_two(width, 32, 256)
    if arch == "interpreter":
        return Tiles(64, 64, block_k, 4, 1, 2)
    if family_of(arch) == "sm_100":
        return Tiles(128, 64, block_k, 8, 2 if width <= 128 else 1, 4)
    return Tiles(64, 64, block_k, 4, 2, 2)


def fused_width(source: str, precision: str, arch: str) -> int:
    """The widest layer that the fused MLP takes, 0 where there is none."""
    tiles = _FUSED.get((family_of(arch), precision, source))
    return tiles.pad if tiles else 0


def fused_tiles(
    source: str, precision: str, widths: Sequence[int], activations: Sequence[str], arch: str
) -> Fused | None:
    """Tiles of the fused MLP, None where it does not apply: too wide, too deep, or with an activation at its end."""
    tiles = _FUSED.get((family_of(arch), precision, source))
    if tiles is None or len(widths) < 3 or len(activations) > FUSED_LAYERS or activations[-1] != "identity":
        return None
    if max(widths) > tiles.pad:
        return None
    # A product of four warps has 64 rows at least; the next layer sums over as many.
    least = 64 if family_of(arch) in _FOUR_WARP_PRODUCTS else 32
    pad = power_of_two(max(widths[1:-1]), least, 128)
    return Fused(pad, tiles.block_n, tiles.part, tiles.num_warps, 64 if least == 64 else 16)


def staged_pays(source: str, precision: str, columns: int, first: bool, arch: str) -> bool:
    """Whether writing the noise once beats making it for every tile of columns.

    In clocks of one processor and one step of a full tile (128 x 256 x 64): in registers making and multiplying, which
    wait for each other, as an H200 showed; staged the multiplication, and making and writing once for all tiles.

    Args:
        source: Family of the noise.
        precision: Of the products.
        columns: Columns that share the noise.
        first: Whether the layer has one product instead of two.
        arch: Architecture.

    Returns:
        True where it pays: normals of 512 columns or more. Signs are cheap to make again.
    """
    if source != "gaussian" or precision != "bf16" or family_of(arch) == "gfx942":
        return False
    multiply_adds_a_clock = {"sm_80": 1024, "sm_100": 4096}.get(family_of(arch), 2048)
    numbers, products = 128 * 64, 1 if first else 2
    make = numbers * _INSTRUCTIONS_A_NORMAL / 128
    multiply = products * 128 * 256 * 64 / multiply_adds_a_clock
    write = numbers * 2 / 32
    tiles = max(1, columns // 256)
    return multiply + (make + write) / tiles < make + multiply


def input_precision(precision: str, arch: str) -> str:
    """What Triton calls the precision of a product; the operands of ``"tf32"`` were rounded to it where written."""
    if precision == "tf32":
        return "tf32"
    return "tf32x3" if precision == "fp32" and arch.startswith("sm_") else "ieee"


def applies(path: str, source: str, precision: str, width: int, arch: str) -> bool:
    """Whether a layer can take ``"step"``, ``"stationary"`` or ``"staged"``."""
    held = path != "stationary" or stationary_tiles(source, precision, width, arch) is not None
    return path == "step" or source in GENERATED and held


def step_tiles_on(target: Target, source: str, precision: str, width: int, height: int, columns: int) -> Tiles:
    """Tiles of the layer step on a device: those measured there, else ``step_tiles``."""
    key = (source, precision, width, height, columns)
    return LAYER_STEP.pick(target, key, lambda: step_tiles(*key, target.arch))


def choose_path_on(
    target: Target, source: str, precision: str, width: int, height: int, columns: int, first: bool
) -> str:
    """The path of one layer on a device: the one measured fastest there, else ``choose_path``."""
    key = (source, precision, width, height, columns, first)
    rule = (source, precision, width, columns, first, target.arch)
    chosen = LAYER_PATH.pick(target, key, lambda: Path(choose_path(*rule))).path
    # A measurement serves lengths up to its own; what holds its noise may not hold all of theirs.
    return chosen if applies(chosen, source, precision, width, target.arch) else choose_path(*rule)


def choose_path(source: str, precision: str, width: int, columns: int, first: bool, arch: str) -> str:
    """The path of one layer: ``"stationary"``, ``"staged"`` or ``"step"``; the last for noise not made there."""
    held = stationary_tiles(source, precision, width, arch)
    if held is not None and columns > held.block_n:
        return "stationary"
    return "staged" if staged_pays(source, precision, columns, first, arch) else "step"
