"""Configurations worth measuring, and the clocks that each should take: what a kernel issues, multiplies and loads.

The model only orders candidates, so that a budget goes to the likely ones first; the card decides. Its constants are
those of the kernels' READMEs, read from machine code.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from nntk.bench.machine_code.machines import MACHINES
from nntk.kernels.assemble.triton import config as assemble
from nntk.kernels.local_ntk.triton import config as local_ntk
from nntk.kernels.perturb.triton import config as tiles
from nntk.kernels.target import Target
from nntk.kernels.tuning import Key

PROCESSORS = {"sm_80": 108, "sm_90": 132, "sm_100": 148, "gfx942": 304}
"""Architectures of a plan, and multiprocessors of their large cards."""

_A_NUMBER = {"gaussian": 19.0, "rademacher": 4.4}
"""Instructions that a number of noise costs where it is used."""
_AN_OUTPUT = 16.0
"""Of an epilogue."""
_A_TURN = 80.0
"""Of a loop itself, by each warp."""
_LATENCY = 800.0
"""Clocks until a load from the second-level cache arrives, about."""
_BARRIER = 60.0
"""Clocks that warps wait for each other in a turn, about."""
_CACHE_BYTES = 64.0
"""Bytes a clock that a multiprocessor gets from there, about."""
_OTHER_REGISTERS = 70
_ROWS = 256
"""Displacements of a launch; a kernel's sums are sixteen times as long, a layer of the local NTK four times as wide."""


@dataclass(frozen=True)
class _Program:
    """What one program takes: clocks of a turn of its loop on each resource, and its footprint."""

    warps: int
    numbers: float
    """Of accumulators and noise, a thread."""
    shared: int
    stages: int
    turns: float
    issue: float
    multiply: float
    load: float
    once: float


def candidates(name: str, key: Key, target: Target) -> list[Any]:
    """Configurations of a tunable that may be the fastest, the likeliest first.

    Args:
        name: Name of the tunable.
        key: What the choice depends on.
        target: The device.

    Returns:
        Those that fit registers and shared memory; the rule's own is among them.
    """
    found = [(clocks, config) for config in _space(name, key, target) if (clocks := predict(name, key, config, target))]
    own = rule(name, key, target)
    if own not in (config for _, config in found):
        found.append((predict(name, key, own, target) or math.inf, own))
    # Of equals the deeper pipeline first.
    return [config for _, config in sorted(found, key=lambda pair: (pair[0], -getattr(pair[1], "num_stages", 0)))]


def rule(name: str, key: Key, target: Target) -> Any:
    """What the rule of the architecture says."""
    return _RULES[name](*key, target)


def predict(name: str, key: Key, config: Any, target: Target) -> float | None:
    """Clocks of one launch of many displacements.

    Args:
        name: Name of the tunable.
        key: What the choice depends on.
        config: A configuration.
        target: The device.

    Returns:
        The clocks, None where the configuration does not fit.
    """
    return _CLOCKS[name](*key, config, target)


def _space(name: str, key: Key, target: Target) -> Iterator[Any]:
    arguments: Any = key
    if name == "layer_step":
        source, precision, width, height, columns = arguments
        least = tiles.least_step(source, precision)
        sizes = itertools.product((32, 64, 128), (32, 64, 128, 256), (32, 64, 128), (4, 8), (1, 2, 3, 4))
        for block_h, block_n, block_k, warps, stages in sizes:
            fits = _covers(block_h, height, 32) and _covers(block_n, columns, 32) and _covers(block_k, width, least)
            # A product of four warps has 64 rows at least.
            if fits and block_k >= least and block_h >= (64 if target.wgmma else 32):
                parts = max(1, block_h * block_n // (warps * 32) // 16)
                yield tiles.Tiles(block_h, block_n, block_k, warps, stages, parts)
    elif name == "layer_path":
        source, precision, width = arguments[:3]
        for path in ("step", "stationary", "staged"):
            if tiles.applies(path, source, precision, width, target.arch):
                yield tiles.Path(path)
    elif name == "rank_update":
        for block, block_k, warps, stages, parts in itertools.product(
            (32, 64, 128), (16, 32, 64), (4, 8), (1, 2, 3), (2, 4, 8)
        ):
            if _covers(block, arguments[0], 32):
                yield assemble.Tiles(block, block_k, warps, stages, parts)
    else:
        for block_i, block_j, warps, stages in itertools.product((64, 128), (32, 64, 128), (4, 8), (1, 2, 3, 4)):
            if block_i % block_j == 0:
                yield local_ntk.Tiles(block_i, block_j, local_ntk.STEP, min(16, block_j), warps, stages)


def _covers(block: int, length: int, least: int) -> bool:
    """Whether a block is no longer than it needs to be."""
    return block <= max(least, 1 << max(0, length - 1).bit_length())


def _clocks(programs: int, one: _Program, target: Target) -> float | None:
    """Clocks of all programs: in waves of as many as the multiprocessors hold, which share each other's pipes."""
    machine = MACHINES[tiles.family_of(target.arch)]
    registers = one.numbers + _OTHER_REGISTERS
    # Nothing may spill: 255 registers a thread, and all of them in the file of 65,536.
    if registers > 255 or one.shared > machine.shared or one.warps * 32 * registers > 65_536:
        return None
    resident = min(64 // one.warps, int(65_536 // (one.warps * 32 * registers)), machine.shared // max(1, one.shared))
    # One program makes its noise, then multiplies; another one's products may run meanwhile.
    busy = max(resident * max(one.issue, one.multiply, one.load), one.issue + one.multiply)
    turn = max(busy + _BARRIER, (_LATENCY + one.load) / one.stages)
    waves = math.ceil(programs / (target.processors * resident))
    return waves * (one.turns * turn + resident * one.once + _LATENCY)


def _issued(instructions: float) -> float:
    """Clocks to issue so many instructions of single threads: four warps of 32 at a time."""
    return instructions / 128


def _multiplied(terms: int, precision: str, target: Target) -> float:
    rates = MACHINES[tiles.family_of(target.arch)].products
    if precision == "fp32" and "fp32" not in rates:
        return 3 * terms / rates["tf32"]
    return terms / rates[precision]


def _step_clocks(
    source: str, precision: str, width: int, height: int, columns: int, cut: tiles.Tiles, target: Target
) -> float | None:
    generated, size = source in tiles.GENERATED, 2 if precision == "bf16" else 4
    area, terms = cut.block_h * cut.block_n, cut.block_h * cut.block_n * cut.block_k
    noise, threads = cut.block_h * cut.block_k, 32 * cut.num_warps
    # Behind layer 0: the weight by d, and the noise by q.
    read = size * cut.block_k * (cut.block_h + 2 * cut.block_n + (0 if generated else cut.block_h))
    one = _Program(
        warps=cut.num_warps,
        numbers=(area + (noise if generated else 0) * size / 4) / threads,
        shared=cut.num_stages * size * cut.block_k * (cut.block_h + cut.block_n),
        stages=cut.num_stages,
        turns=math.ceil(width / cut.block_k),
        issue=_issued(noise * _A_NUMBER.get(source, 0.0) + 2 * _A_TURN * threads),
        multiply=2 * _multiplied(terms, precision, target),
        load=read / _CACHE_BYTES,
        once=_issued(area * _AN_OUTPUT),
    )
    programs = math.ceil(height / cut.block_h) * math.ceil(columns / cut.block_n)
    return _clocks(_ROWS * programs, one, target)


def _path_clocks(
    source: str,
    precision: str,
    width: int,
    height: int,
    columns: int,
    first: bool,
    chosen: tiles.Path,
    target: Target,
) -> float | None:
    problem = (precision, width, height, columns)
    if chosen.path == "step":
        return _step_clocks(source, *problem, tiles.step_tiles(source, *problem, target.arch), target)
    if chosen.path == "staged":
        numbers = _ROWS * width * height
        written = numbers * (_issued(_A_NUMBER[source]) + 2 / 32) / target.processors
        step = _step_clocks("staged", *problem, tiles.step_tiles("staged", *problem, target.arch), target)
        return None if step is None else written + step
    cut = tiles.stationary_tiles(source, precision, width, target.arch)
    assert cut is not None, "the path applies"
    terms, threads = cut.block_h * cut.block_n * cut.block_k, 32 * cut.num_warps
    noise, size = cut.block_h * cut.block_k, 2 if precision == "bf16" else 4
    one = _Program(
        warps=cut.num_warps,
        numbers=(cut.block_h * cut.block_n + noise * size / 4) / threads,
        shared=cut.num_stages * size * cut.block_k * (cut.block_h + 2 * cut.block_n),
        stages=cut.num_stages,
        turns=math.ceil(columns / cut.block_n),
        issue=_issued(cut.block_h * cut.block_n * _AN_OUTPUT + 2 * _A_TURN * threads),
        multiply=(1 if first else 2) * _multiplied(terms, precision, target),
        load=2 * size * cut.block_n * cut.block_k / _CACHE_BYTES,
        once=_issued(noise * _A_NUMBER[source]),
    )
    return _clocks(_ROWS * math.ceil(height / cut.block_h), one, target)


def _rank_update_clocks(
    lines1: int,
    lines2: int,
    symmetric: bool,
    weighting: str,
    halves: int,
    cut: assemble.Tiles,
    target: Target,
) -> float | None:
    block, threads = cut.block, 32 * cut.num_warps
    loaded = 2 * block * cut.block_k
    made = {"rows": 8.0, "weights": 24.0}.get(weighting, 40.0) * halves
    one = _Program(
        warps=cut.num_warps,
        numbers=(block * block + loaded * halves) / threads,
        shared=cut.num_stages * 4 * loaded,
        stages=cut.num_stages,
        turns=16 * _ROWS / cut.block_k,
        # Split into three, each operand is loaded, weighted, split and stored.
        issue=_issued(loaded * (made + 8) + _A_TURN * threads),
        multiply=_multiplied(block * block * cut.block_k, "fp32", target),
        load=4 * loaded * halves / _CACHE_BYTES,
        once=_issued(block * block * 8) * (2 if symmetric else 1),
    )
    programs = math.ceil(lines1 / block) * math.ceil(lines2 / block)
    return _clocks((programs + 1) // 2 if symmetric else programs, one, target)


def _pair_clocks(
    lines: int,
    entries: int,
    copies: int,
    symmetric: bool,
    fused: bool,
    cut: local_ntk.Tiles,
    target: Target,
) -> float | None:
    area, threads, products = cut.block_i * cut.block_j, 32 * cut.num_warps, 2 if fused else 1
    loaded = cut.block_k * (cut.block_i + cut.block_j)
    one = _Program(
        warps=cut.num_warps,
        numbers=products * area / threads,
        shared=cut.num_stages * 4 * loaded,
        stages=cut.num_stages,
        turns=products * 4 * _ROWS / cut.block_k,
        issue=_issued(loaded * 8 + _A_TURN * threads),
        multiply=_multiplied(area * cut.block_k, "fp32", target),
        load=4 * loaded / _CACHE_BYTES,
        once=_issued(area * 8) * (2 if symmetric else 1),
    )
    return _clocks(copies * cut.programs(lines, entries, symmetric), one, target)


_RULES: dict[str, Callable[..., Any]] = {
    "layer_step": lambda *key: tiles.step_tiles(*key[:-1], key[-1].arch),
    "layer_path": lambda source, precision, width, height, columns, first, target: tiles.Path(
        tiles.choose_path(source, precision, width, columns, first, target.arch)
    ),
    "rank_update": lambda lines1, lines2, symmetric, weighting, halves, target: assemble.tiles(
        lines1, lines2, symmetric, weighting, halves, target.processors, target.arch
    ),
    "layer_pair": lambda lines, entries, copies, symmetric, fused, target: local_ntk.pick(
        lines, entries, copies, symmetric, fused, target.arch
    ),
}
_CLOCKS: dict[str, Callable[..., float | None]] = {
    "layer_step": _step_clocks,
    "layer_path": _path_clocks,
    "rank_update": _rank_update_clocks,
    "layer_pair": _pair_clocks,
}


def described(config: Any) -> str:
    """Describe a configuration in a few words.

    Args:
        config: A configuration.

    Returns:
        Its fields and their values.

    Example:
        >>> described(tiles.Path("staged")), described(tiles.Tiles(128, 256, 64, 8, 3, 8))
        ('path staged', 'block_h 128, block_n 256, block_k 64, num_warps 8, num_stages 3, parts 8')
    """
    return ", ".join(f"{name} {value}" for name, value in vars(config).items())


def likely(found: Sequence[Any], own: Any, most: int) -> list[Any]:
    """Choose what to measure of candidates that the model orders but often cannot tell apart.

    Args:
        found: Candidates, the likeliest first.
        own: The rule's own, which is always among them.
        most: How many at most, beside the rule's own.

    Returns:
        The first ones, two at most that differ in the depth of the pipeline and the pieces of the epilogue alone.
    """
    kept: list[Any] = []
    alike: dict[Any, int] = {}
    for config in found:
        tile = tuple((name, value) for name, value in vars(config).items() if name not in ("num_stages", "parts"))
        if alike.get(tile, 0) < 2 and len(kept) < most:
            alike[tile] = alike.get(tile, 0) + 1
            kept.append(config)
    return kept if own in kept else [*kept, own]
