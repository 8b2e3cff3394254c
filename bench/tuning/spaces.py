"""Configurations worth measuring, and a model of their clocks: the instructions, products and loads of a kernel.

The model only orders candidates, so that a budget is spent on the likely ones first; the card decides. Its constants
are those of the kernels' READMEs, read from machine code.
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
from nntk.kernels.target import Target, family_of
from nntk.kernels.tuning import Key

PROCESSORS = {"sm_80": 108, "sm_90": 132, "sm_100": 148, "gfx942": 304}
"""Architectures of a plan, and numbers of multiprocessors of their large cards."""

_NOISE_INSTRUCTIONS = {"gaussian": 19.0, "rademacher": 4.4}
"""Instructions for each random number, where it is used."""
_OUTPUT_INSTRUCTIONS = 16.0
"""Instructions of an epilogue for each output."""
_TURN_INSTRUCTIONS = 80.0
"""Instructions of the loop itself for each turn and warp."""
_LATENCY = 800.0
"""Clocks until a load from the second-level cache arrives, approximately."""
_BARRIER = 60.0
"""Clocks that warps wait for each other in a turn, approximately."""
_CACHE_BYTES = 64.0
"""Bytes that a multiprocessor loads from the second-level cache in a clock, approximately."""
_OTHER_REGISTERS = 70
"""Registers of a thread besides accumulators and noise."""
_ROWS = 256
"""Displacements of a launch. Sums of a kernel are 16 times as long; a layer of the local NTK is 4 times as wide."""


@dataclass(frozen=True)
class _Program:
    """Cost of one program.

    Attributes:
        warps: Number of warps.
        values: Accumulators and noise values of a thread.
        shared: Bytes of shared memory.
        stages: Depth of the pipeline.
        turns: Turns of the loop.
        issue: Clocks to issue the instructions of a turn.
        multiply: Clocks of the products of a turn.
        load: Clocks of the loads of a turn.
        once: Clocks outside of the loop.
    """

    warps: int
    values: float
    shared: int
    stages: int
    turns: float
    issue: float
    multiply: float
    load: float
    once: float


def candidates(name: str, key: Key, target: Target) -> list[Any]:
    """Return configurations of a tunable that may be the fastest, the likeliest first.

    Args:
        name: Name of the tunable.
        key: Values that the choice depends on.
        target: The device.

    Returns:
        Configurations that fit registers and shared memory; the rule's is always among them.
    """
    fitting = [
        (clocks, config) for config in _space(name, key, target) if (clocks := predict(name, key, config, target))
    ]
    default = rule(name, key, target)
    if default not in (config for _, config in fitting):
        fitting.append((predict(name, key, default, target) or math.inf, default))
    # Among equals the deeper pipeline comes first.
    return [config for _, config in sorted(fitting, key=lambda pair: (pair[0], -getattr(pair[1], "num_stages", 0)))]


def rule(name: str, key: Key, target: Target) -> Any:
    """Return the configuration that the rule of the architecture chooses."""
    return _RULES[name](*key, target)


def predict(name: str, key: Key, config: Any, target: Target) -> float | None:
    """Predict the clocks of one launch of many displacements.

    Args:
        name: Name of the tunable.
        key: Values that the choice depends on.
        config: A configuration.
        target: The device.

    Returns:
        The clocks; None where the configuration does not fit.
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
        paths = ("step", "stationary", "staged") if arguments[5] else ("step", "stationary", "staged", "stacked")
        for path in paths:
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
    """Return True if a block is no longer than it needs to be."""
    return block <= max(least, 1 << max(0, length - 1).bit_length())


def _clocks(programs: int, program: _Program, target: Target) -> float | None:
    """Return the clocks of all programs, in waves that fill the multiprocessors; programs of a wave share the pipes."""
    machine = MACHINES[family_of(target.arch)]
    registers = program.values + _OTHER_REGISTERS
    # Registers must not spill: at most 255 a thread, and 65,536 in all threads of a multiprocessor.
    if registers > 255 or program.shared > machine.shared or program.warps * 32 * registers > 65_536:
        return None
    resident = min(
        64 // program.warps, int(65_536 // (program.warps * 32 * registers)), machine.shared // max(1, program.shared)
    )
    # One program generates its noise, then multiplies; products of another program may run meanwhile.
    busy = max(resident * max(program.issue, program.multiply, program.load), program.issue + program.multiply)
    turn = max(busy + _BARRIER, (_LATENCY + program.load) / program.stages)
    waves = math.ceil(programs / (target.processors * resident))
    return waves * (program.turns * turn + resident * program.once + _LATENCY)


def _issued(instructions: float) -> float:
    """Return the clocks to issue this number of instructions of single threads: four warps of 32 at a time."""
    return instructions / 128


def _multiplied(terms: int, precision: str, target: Target) -> float:
    rates = MACHINES[family_of(target.arch)].products
    if precision == "fp32" and "fp32" not in rates:
        return 3 * terms / rates["tf32"]
    return terms / rates[precision]


def _step_clocks(
    source: str, precision: str, width: int, height: int, columns: int, sizes: tiles.Tiles, target: Target
) -> float | None:
    generated, size = source in tiles.GENERATED, 2 if precision == "bf16" else 4
    area, terms = sizes.block_h * sizes.block_n, sizes.block_h * sizes.block_n * sizes.block_k
    noise, threads = sizes.block_h * sizes.block_k, 32 * sizes.num_warps
    # After layer 0 the weight is multiplied by the difference, and the noise by the values.
    bytes_read = size * sizes.block_k * (sizes.block_h + 2 * sizes.block_n + (0 if generated else sizes.block_h))
    program = _Program(
        warps=sizes.num_warps,
        values=(area + (noise if generated else 0) * size / 4) / threads,
        shared=sizes.num_stages * size * sizes.block_k * (sizes.block_h + sizes.block_n),
        stages=sizes.num_stages,
        turns=math.ceil(width / sizes.block_k),
        issue=_issued(noise * _NOISE_INSTRUCTIONS.get(source, 0.0) + 2 * _TURN_INSTRUCTIONS * threads),
        multiply=2 * _multiplied(terms, precision, target),
        load=bytes_read / _CACHE_BYTES,
        once=_issued(area * _OUTPUT_INSTRUCTIONS),
    )
    programs = math.ceil(height / sizes.block_h) * math.ceil(columns / sizes.block_n)
    return _clocks(_ROWS * programs, program, target)


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
    if chosen.path in ("staged", "stacked"):
        numbers = _ROWS * width * height
        noise_clocks = numbers * (_issued(_NOISE_INSTRUCTIONS[source]) + 2 / 32) / target.processors
        # Two steps of one loop count as one of each of two loops: the model has no waits between loops.
        step = _step_clocks(chosen.path, *problem, tiles.step_tiles(chosen.path, *problem, target.arch), target)
        return None if step is None else noise_clocks + step
    sizes = tiles.stationary_tiles(source, precision, width, target.arch)
    assert sizes is not None, "the path applies"
    terms, threads = sizes.block_h * sizes.block_n * sizes.block_k, 32 * sizes.num_warps
    noise, size = sizes.block_h * sizes.block_k, 2 if precision == "bf16" else 4
    program = _Program(
        warps=sizes.num_warps,
        values=(sizes.block_h * sizes.block_n + noise * size / 4) / threads,
        shared=sizes.num_stages * size * sizes.block_k * (sizes.block_h + 2 * sizes.block_n),
        stages=sizes.num_stages,
        turns=math.ceil(columns / sizes.block_n),
        issue=_issued(sizes.block_h * sizes.block_n * _OUTPUT_INSTRUCTIONS + 2 * _TURN_INSTRUCTIONS * threads),
        multiply=(1 if first else 2) * _multiplied(terms, precision, target),
        load=2 * size * sizes.block_n * sizes.block_k / _CACHE_BYTES,
        once=_issued(noise * _NOISE_INSTRUCTIONS[source]),
    )
    return _clocks(_ROWS * math.ceil(height / sizes.block_h), program, target)


def _rank_update_clocks(
    rows: int,
    columns: int,
    symmetric: bool,
    weighting: str,
    members: int,
    sizes: assemble.Tiles,
    target: Target,
) -> float | None:
    block, threads = sizes.block, 32 * sizes.num_warps
    loaded = 2 * block * sizes.block_k
    weighting_cost = {"rows": 8.0, "weights": 24.0}.get(weighting, 40.0) * members
    program = _Program(
        warps=sizes.num_warps,
        values=(block * block + loaded * members) / threads,
        shared=sizes.num_stages * 4 * loaded,
        stages=sizes.num_stages,
        turns=16 * _ROWS / sizes.block_k,
        # Each operand is loaded, weighted, split into three parts and stored.
        issue=_issued(loaded * (weighting_cost + 8) + _TURN_INSTRUCTIONS * threads),
        multiply=_multiplied(block * block * sizes.block_k, "fp32", target),
        load=4 * loaded * members / _CACHE_BYTES,
        once=_issued(block * block * 8) * (2 if symmetric else 1),
    )
    programs = math.ceil(rows / block) * math.ceil(columns / block)
    return _clocks((programs + 1) // 2 if symmetric else programs, program, target)


def _pair_clocks(
    rows: int,
    columns: int,
    copies: int,
    symmetric: bool,
    fused: bool,
    sizes: local_ntk.Tiles,
    target: Target,
) -> float | None:
    area, threads, products = sizes.block_i * sizes.block_j, 32 * sizes.num_warps, 2 if fused else 1
    loaded = sizes.block_k * (sizes.block_i + sizes.block_j)
    program = _Program(
        warps=sizes.num_warps,
        values=products * area / threads,
        shared=sizes.num_stages * 4 * loaded,
        stages=sizes.num_stages,
        turns=products * 4 * _ROWS / sizes.block_k,
        issue=_issued(loaded * 8 + _TURN_INSTRUCTIONS * threads),
        multiply=_multiplied(area * sizes.block_k, "fp32", target),
        load=4 * loaded / _CACHE_BYTES,
        once=_issued(area * 8) * (2 if symmetric else 1),
    )
    return _clocks(copies * sizes.programs(rows, columns, symmetric), program, target)


_RULES: dict[str, Callable[..., Any]] = {
    "layer_step": lambda *key: tiles.step_tiles(*key[:-1], key[-1].arch),
    "layer_path": lambda source, precision, width, height, columns, first, target: tiles.Path(
        tiles.choose_path(source, precision, width, columns, first, target.arch)
    ),
    "rank_update": lambda rows, columns, symmetric, weighting, members, target: assemble.tiles(
        rows, columns, symmetric, weighting, members, target.processors, target.arch
    ),
    "layer_pair": lambda rows, columns, copies, symmetric, fused, target: local_ntk.pick(
        rows, columns, copies, symmetric, fused, target.arch
    ),
}
_CLOCKS: dict[str, Callable[..., float | None]] = {
    "layer_step": _step_clocks,
    "layer_path": _path_clocks,
    "rank_update": _rank_update_clocks,
    "layer_pair": _pair_clocks,
}


def describe(config: Any) -> str:
    """Describe a configuration in a few words.

    Args:
        config: A configuration.

    Returns:
        The fields and their values.

    Example:
        >>> describe(tiles.Path("staged")), describe(tiles.Tiles(128, 256, 64, 8, 3, 8))
        ('path staged', 'block_h 128, block_n 256, block_k 64, num_warps 8, num_stages 3, parts 8')
    """
    return ", ".join(f"{name} {value}" for name, value in vars(config).items())


def likely(ordered: Sequence[Any], default: Any, count: int) -> list[Any]:
    """Choose configurations to measure, from candidates that the model orders but often cannot distinguish.

    Args:
        ordered: Candidates, the likeliest first.
        default: The rule's configuration, which is always chosen.
        count: Largest number of configurations, beside the rule's.

    Returns:
        The first candidates; at most two differ only in the depth of the pipeline and the parts of the epilogue.
    """
    kept: list[Any] = []
    alike: dict[Any, int] = {}
    for config in ordered:
        tile = tuple((name, value) for name, value in vars(config).items() if name not in ("num_stages", "parts"))
        if alike.get(tile, 0) < 2 and len(kept) < count:
            alike[tile] = alike.get(tile, 0) + 1
            kept.append(config)
    return kept if default in kept else [*kept, default]
