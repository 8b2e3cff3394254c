"""``nntk-bench predict``: what the design's workloads should take on a card that is not at hand, by machine code.

Nothing here is measured. A program takes the turns of its main loops and then what is outside of them, each as long as
its busiest pipe, and has a multiprocessor to itself, as the large tiles have; multiprocessors are busy all the time; a
launch takes no less than the bytes that it moves. Latency, bank conflicts, the last wave and launches are not seen:
predictions are optimistic, and are held against measured rates of the card.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from nntk.bench import tables
from nntk.bench.files import write_json
from nntk.bench.report.markdown import lines
from nntk.bench.resources.catalogue import Task
from nntk.bench.resources.measure import Measured
from nntk.bench.resources.run import reports
from nntk.bench.results import Row
from nntk.bench.tables import Column
from nntk.kernels.ahead_of_time import Case
from nntk.kernels.assemble import cases as assemble
from nntk.kernels.perturb import cases as perturb
from nntk.kernels.perturb import tiles

SCHEMA = 1
"""Version of the JSON's layout."""

ARCH = "sm_90"

TITLE = "Predicted for an NVIDIA H200, from machine code: nothing ran"
CAPTION = (
    "Evaluations: differences of relu 784-1024-1024-10, N = M = 1024, antithetic, bf16, beside as many dense forwards; "
    "fp32 forwards are the least that torch.func.vmap does.\nKernel: 256-832-832-1, N = 4096, M = 1024, beside the "
    "contraction of Jacobians alone. Assembly: the energy form of the same. Optimistic: latency and launches are not "
    "seen."
)
COLUMNS = (
    Column("workload", "case"),
    Column("target", "target", "times"),
    Column("predicted", "predicted", "times"),
    Column("verdict", "verdict"),
    Column("time", "time_s", "seconds"),
    Column("goes to", "goes_to"),
)


@dataclass(frozen=True)
class Card:
    """A card's rates, measured or of its data sheet: what predictions are held against.

    Attributes:
        name: What it is.
        processors: Multiprocessors.
        products: Multiply-adds in bfloat16 a clock and multiprocessor.
        bf16: FLOP/s of long dense products in bfloat16, measured; in TF32 it is half.
        fp32: FLOP/s of float32 without tensor cores, of the data sheet.
        bandwidth: Bytes a second of a copy, measured.
    """

    name: str = "NVIDIA H200"
    processors: int = 132
    products: int = 2048
    bf16: float = 790e12
    fp32: float = 67e12
    bandwidth: float = 4.3e12

    @property
    def clock(self) -> float:
        """Clocks a second at which products come to ``bf16``: that of full load, below the boost clock."""
        return self.bf16 / (2 * self.products * self.processors)


CARD = Card()
_FAMILIES = {"lowrank": 1.0, "rademacher": 0.60, "flipout": 0.55, "gaussian": 0.45}
"""Families of displacements, and the target of each against unperturbed forwards."""
_WIDTHS, _INPUTS, _ROWS = (784, 1024, 1024, 10), 1024, 1024
_KERNEL_WIDTHS, _KERNEL_INPUTS = (256, 832, 832, 1), 4096
"""Of the kernel against Jacobian contraction: 0.9 million parameters."""


@dataclass(frozen=True)
class Launch:
    """One kernel of a workload.

    Attributes:
        case: Name of the kernel in its configuration.
        programs: How many.
        turns: Turns of the main loops of each.
        bytes: What all of them read and write at least.
    """

    case: str
    programs: int
    turns: int
    bytes: float


@dataclass(frozen=True)
class Time:
    """Seconds of launches, by what they go to.

    Attributes:
        products: On the matrix pipe in main loops.
        issue: What other pipes take in these beyond it: noise, splitting of operands.
        once: Outside of the loops: epilogues.
        memory: What bytes take beyond all of that.
    """

    products: float = 0.0
    issue: float = 0.0
    once: float = 0.0
    memory: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.products + self.issue + self.once + self.memory

    def __add__(self, other: "Time") -> "Time":
        return Time(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def shares(self) -> str:
        """Each as a share of the whole, the largest first."""
        parts = sorted(vars(self).items(), key=lambda part: -part[1])
        return ", ".join(f"{name} {value / self.total:.0%}" for name, value in parts if value >= 0.005 * self.total)


def time_of(launch: Launch, measured: Measured, card: Card = CARD) -> Time:
    """Predict a launch.

    Args:
        launch: The launch.
        measured: Its kernel's resources.
        card: The card.

    Returns:
        Its time.
    """
    a_clock = launch.programs / (card.processors * card.clock)
    loop = measured.cycles if measured.loops else {"tensor": 0.0}
    products = launch.turns * loop["tensor"] * a_clock
    issue = launch.turns * max(loop.values()) * a_clock - products
    once = max(measured.once.cycles.values()) * a_clock
    return Time(products, issue, once, max(0.0, launch.bytes / card.bandwidth - products - issue - once))


def cases(arch: str) -> list[Case]:
    """The kernels that the workloads take, for ``nntk-bench resources`` to compile."""
    found = {case.name: case for case, _ in _launches(arch)}
    found |= {case.name: case for case in (_assembly(arch, one) for one in (False, True))}
    return list(found.values())


def _launches(arch: str) -> Iterator[tuple[Case, Launch]]:
    for family in _FAMILIES:
        yield from _evaluation(arch, family, _WIDTHS, _INPUTS)
    yield from _evaluation(arch, "gaussian", _KERNEL_WIDTHS, _KERNEL_INPUTS)


def _evaluation(arch: str, family: str, widths: Sequence[int], inputs: int) -> Iterator[tuple[Case, Launch]]:
    """The launches of differences of a relu network at antithetic displacements, in bfloat16."""
    pairs = list(zip(widths, widths[1:], strict=False))
    for number, (width, height) in enumerate(pairs):
        first, last = number == 0, number + 1 == len(pairs)
        columns = inputs * (1 if first else 2)
        case = perturb.layer_step(arch, family, "bf16", first, "identity" if last else "relu", (width, height, columns))
        cut = tiles.step_tiles(family, "bf16", width, height, columns, arch)
        # Behind layer 0, d and q of the layer before, two bytes each (low rank: d, and q by the other kernel).
        read = 0.0 if first else 4.0 * _ROWS * columns * width
        written = _ROWS * 2 * inputs * (4 * 16 if last else 4 * height)
        programs = _ROWS * math.ceil(columns / cut.block_n)
        turns = math.ceil(width / cut.block_k)
        if family == "lowrank":
            project = perturb.projection(arch, "bf16", 16)
            yield project, Launch(project.name, programs, turns, read / 2 + 32 * _ROWS * columns)
            read = read / 2 + 32 * _ROWS * columns
        blocks = programs * math.ceil(height / cut.block_h)
        yield case, Launch(case.name, blocks, turns, read + written)


def _assembly(arch: str, one_output: bool) -> Case:
    return assemble.rank_update(arch, "rows", 1, "trace", True, _KERNEL_INPUTS, one_output=one_output)


def _rank_update(outputs: int) -> Launch:
    """The energy form of 4096 inputs from 1024 displacements."""
    case = _assembly(ARCH, outputs == 1)
    block, step = case.constants["BI"], case.constants["BK"]
    blocks = math.ceil(_KERNEL_INPUTS / block)
    moved = 4 * (_ROWS * _KERNEL_INPUTS * outputs + _KERNEL_INPUTS**2)
    return Launch(case.name, blocks * (blocks + 1) // 2, math.ceil(_ROWS * outputs / step), moved)


def workloads(of: Mapping[str, Measured]) -> Iterator[Row]:
    """Every workload of the design: its target, and what is predicted.

    Args:
        of: The kernels' resources by name.

    Yields:
        Rows.
    """

    def evaluated(family: str, widths: Sequence[int], inputs: int) -> Time:
        made = (time_of(launch, of[launch.case]) for _, launch in _evaluation(ARCH, family, widths, inputs))
        return sum(made, Time())

    flops = 2 * _INPUTS * _ROWS * _flops(_WIDTHS)
    for family, target in _FAMILIES.items():
        found = evaluated(family, _WIDTHS, _INPUTS)
        yield _row(f"{family}: evaluations, of bf16 forwards", target, flops / CARD.bf16 / found.total, found)
    for family, target in (("gaussian", 10.0), ("rademacher", 15.0)):
        found = evaluated(family, _WIDTHS, _INPUTS)
        yield _row(f"{family}: against forwards in fp32", target, flops / CARD.fp32 / found.total, found)
    weights = _flops(_KERNEL_WIDTHS) / 2
    found = evaluated("gaussian", _KERNEL_WIDTHS, _KERNEL_INPUTS) + time_of(_rank_update(1), of[_rank_update(1).case])
    for precision, rate in (("fp32", CARD.fp32), ("tf32", CARD.bf16 / 2)):
        contraction = 2 * _KERNEL_INPUTS**2 * weights / rate
        yield _row(f"kernel: against contraction in {precision}", 5.0, contraction / found.total, found)
    for outputs in (1, 10):
        found = time_of(_rank_update(outputs), of[_rank_update(outputs).case])
        gemm = 2 * _ROWS * outputs * _KERNEL_INPUTS**2
        name = f"assembly, C = {outputs}: against GEMM in"
        yield _row(f"{name} fp32", 3.0, gemm / CARD.fp32 / found.total, found)
        yield _row(f"{name} three of tf32", 1.5, 3 * gemm / (CARD.bf16 / 2) / found.total, found)


def _flops(widths: Sequence[int]) -> float:
    """Of a forward pass of one input."""
    return 2 * sum(a * b for a, b in zip(widths, widths[1:], strict=False))


def _row(case: str, target: float, predicted: float, time: Time) -> Row:
    return {
        "case": case,
        "target": target,
        "predicted": predicted,
        "verdict": "in reach" if predicted >= target else "short",
        "time_s": time.total,
        "goes_to": time.shares,
        **{f"{name}_s": value for name, value in vars(time).items()},
    }


def markdown(rows: Sequence[Row]) -> str:
    """The table in Markdown, as README.md has it."""
    columns = [column for column in COLUMNS if column.key != "verdict"]
    cells = [[tables.cell(column, row) for column in columns] for row in rows]
    return lines([column.header for column in columns], cells, [column.form != "" for column in columns])


def run(path: Path | None, facts: Mapping[str, Any], console: Console, in_markdown: bool = False) -> int:
    """Compile the kernels of the workloads, predict, draw the table; JSON to a file.

    Args:
        path: Where the JSON goes, if anywhere.
        facts: What predictions depend on: versions, commit.
        console: Where the table goes.
        in_markdown: Whether to print it in Markdown too.

    Returns:
        0, or 1 if a kernel did not compile.

    Raises:
        OSError: If the file cannot be written.
    """
    names = [case.name for case in cases(ARCH)]
    of: dict[str, Measured] = {}
    with tables.growing(console, TITLE, CAPTION, COLUMNS) as show:
        show(None, f"compiling 1 of {len(names)}")
        for number, found in enumerate(reports([Task(__name__, ARCH, name) for name in names]), 2):
            if found.measured is None:
                console.print(f"{found.task.case}: {found.failures}", style="red", highlight=False, markup=False)
                return 1
            of[found.task.case] = found.measured
            show(None, f"compiling {number} of {len(names)}" if number <= len(names) else "")
        rows = list(workloads(of))
        for row in rows:
            show(row, "")
    if in_markdown:
        print(markdown(rows))
    if path:
        write_json(path, {"schema": SCHEMA, **facts, "arch": ARCH, "card": asdict(CARD), "rows": rows})
    return 0
