"""Predicted time of launches on a card, from the machine code of their kernels. Nothing here is measured.

A program keeps each pipe of its multiprocessor busy during the turns of its main loops and the code outside of them.
If a multiprocessor holds several programs, one runs while another waits, and the pipe that is busy longest determines
the time. If it holds one program, the parts run one after another, and each takes as long as its busiest pipe. All
multiprocessors are assumed to be always busy, and a launch takes at least the time to transfer its bytes. The model
ignores latency, bank conflicts, the last wave and the launches: predictions are optimistic. An H200 took 1.45 to 1.54
times as long for perturbed evaluations, and 3.2 times for the assembly.

A second figure adds the second-level cache: a launch then takes at least the time to fetch its operands through it. The
rate is not in a data sheet. One rate, 6.8 TB/s, explains the whole excess of two different kernels that an H200 timed
(staged normals and low rank), and none of a third one's (signs in registers). It is a hypothesis until a profiler's
counters decide, so both figures are shown.
"""

import math
from dataclasses import dataclass, replace

from nntk.bench.machine_code.machines import MACHINES
from nntk.bench.machine_code.measure import Measured

_REGISTERS = 65_536
"""Registers of a multiprocessor."""
_RESERVED = 1024
"""Bytes of shared memory that the system reserves for each program, beyond the limit of one program."""


@dataclass(frozen=True)
class Card:
    """Rates of a card, measured or from its data sheet, that predictions use and are compared with.

    Attributes:
        name: Name of the card.
        arch: Architecture.
        processors: Number of multiprocessors.
        bf16: FLOP/s of long dense products in bfloat16; in TF32 it is half.
        fp32: FLOP/s of float32 without tensor cores.
        bandwidth: Bytes a second of a copy.
        source: Source of the rates.
        cache: Bytes a second that all multiprocessors together fetch through the second-level cache.
        forwards: Seconds that as many plain bf16 forwards as the design's evaluations were measured to take; None if
            no such card was measured.
    """

    name: str
    arch: str
    processors: int
    bf16: float
    fp32: float
    bandwidth: float
    source: str
    cache: float = math.inf
    forwards: float | None = None

    @property
    def clock(self) -> float:
        """Clocks a second at which dense products reach ``bf16``: the clock under full load, below the boost clock."""
        return self.bf16 / (2 * MACHINES[self.arch].products["bf16"] * self.processors)


CACHE_BYTES_A_CLOCK = 35.0
"""Bytes that a multiprocessor fetches through the second-level cache in a clock: 6.8 TB/s over the 132 multiprocessors
of an H200 at 1.46 GHz. For other cards it is an assumption."""


def _by_data_sheet(name: str, arch: str, processors: int, bf16: float, fp32: float, bandwidth: float) -> Card:
    """Describe a card by the peaks of its data sheet, and a cache as fast in a clock as an H200's seems to be."""
    card = Card(name, arch, processors, bf16, fp32, bandwidth, "the data sheet: peaks, which no program reaches")
    return with_cache(card)


def with_cache(card: Card) -> Card:
    """Return a card whose second-level cache is assumed to be as fast in a clock as an H200's seems to be."""
    return replace(card, cache=CACHE_BYTES_A_CLOCK * card.processors * card.clock)


CARDS = {
    # The forwards: kernels/perturb/HISTORY.md, at commit 9edd8dd.
    "h200": Card(
        "NVIDIA H200", "sm_90", 132, 790e12, 67e12, 4.3e12,
        "bf16 and copy by others' measurements, fp32 by the data sheet", 6.8e12, 18.7e-3,
    ),
    # "NVIDIA H100 Tensor Core GPU" data sheet, SXM5: 1,979 TFLOPS bf16 with sparsity, 67 fp32, 3.35 TB/s.
    "h100": _by_data_sheet("NVIDIA H100 SXM", "sm_90", 132, 989.4e12, 67e12, 3.35e12),
    # "NVIDIA Blackwell" data sheet, HGX B200, each GPU: 4.5 PFLOPS bf16 with sparsity, 80 fp32, 8 TB/s.
    "b200": _by_data_sheet("NVIDIA B200", "sm_100", 148, 2250e12, 80e12, 8e12),
    # "NVIDIA A100 Tensor Core GPU" data sheet, SXM4 with 80 GB: 312 TFLOPS bf16, 19.5 fp32, 2,039 GB/s.
    "a100": _by_data_sheet("NVIDIA A100 SXM 80GB", "sm_80", 108, 312e12, 19.5e12, 2.039e12),
    # "NVIDIA Ada GPU architecture" white paper, GeForce RTX 4090: 165.2 TFLOPS bf16 with sums in float32, 82.6 fp32,
    # 1,008 GB/s.
    "rtx4090": _by_data_sheet("NVIDIA GeForce RTX 4090", "sm_89", 128, 165.2e12, 82.6e12, 1.008e12),
}  # fmt: skip
"""Cards by the name that the command takes; the first is the one that the design's targets are for."""


PROCESSORS = {card.arch: card.processors for card in CARDS.values()}
"""Multiprocessors of the card of an architecture."""


@dataclass(frozen=True)
class Launch:
    """One kernel of a workload.

    Attributes:
        case: Name of the kernel in its configuration.
        programs: Number of programs.
        turns: Turns of the main loops of each program.
        bytes: Least bytes that all programs together read from memory and write to it.
        fetched: Bytes that all programs together read through the second-level cache.
        flops: Operations that the workload requires, without padding, weighted by their time relative to bfloat16: a
            product in three products of TF32 counts six times.
    """

    case: str
    programs: int
    turns: float
    bytes: float
    fetched: float = 0.0
    flops: float = 0.0


@dataclass(frozen=True)
class Time:
    """Predicted time of launches in seconds, by resource, and its lower bound.

    Attributes:
        products: Time of the matrix pipe in main loops.
        issue: Time that other pipes add in main loops: noise, splitting of operands.
        once: Time that the code outside of the loops adds: epilogues.
        memory: Time that the memory's bandwidth adds to all of that.
        roof: Lower bound by the card's rate of products and of copies.
        fetched: Bytes read through the second-level cache.
        cache: Time that the second-level cache would add to the parts; not among them, since its rate is a hypothesis.
    """

    products: float = 0.0
    issue: float = 0.0
    once: float = 0.0
    memory: float = 0.0
    roof: float = 0.0
    fetched: float = 0.0
    cache: float = 0.0

    @property
    def parts(self) -> dict[str, float]:
        """Time of each resource in seconds, by resource."""
        return {name: getattr(self, name) for name in ("products", "issue", "once", "memory")}

    @property
    def total(self) -> float:
        """Total time in seconds, without the second-level cache."""
        return sum(self.parts.values())

    @property
    def with_cache(self) -> float:
        """Total time in seconds, with the second-level cache."""
        return self.total + self.cache

    def __add__(self, other: "Time") -> "Time":
        return Time(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def shares(self) -> str:
        """Text with each part as a share of the total, the largest first."""
        parts = sorted(self.parts.items(), key=lambda part: -part[1])
        return ", ".join(f"{name} {value / self.total:.0%}" for name, value in parts if value >= 0.005 * self.total)


def resident(measured: Measured, arch: str) -> int:
    """Return the number of programs that a multiprocessor holds at a time.

    Args:
        measured: Resources of the kernel.
        arch: Architecture of the kernel.

    Returns:
        The largest number for which registers, shared memory, tensor memory and warps suffice, at least 1.
    """
    machine = MACHINES[arch]
    # Registers are allocated in steps of eight for each thread of a warp.
    registers = 32 * measured.num_warps * max(8, -(-measured.registers // 8) * 8)
    shared = (machine.shared + _RESERVED) // (measured.shared + _RESERVED)
    columns = machine.tensor_memory // measured.tensor_memory if measured.tensor_memory else shared
    return max(1, min(_REGISTERS // registers, shared, columns, machine.warps // measured.num_warps))


def time_of(launch: Launch, measured: Measured, card: Card) -> Time:
    """Predict the time of a launch.

    Args:
        launch: Launch of a kernel.
        measured: Resources of the kernel.
        card: Card that would run it.

    Returns:
        The time, by resource.
    """
    seconds_per_clock = launch.programs / (card.processors * card.clock)
    loop = {pipe: launch.turns * clocks for pipe, clocks in measured.cycles.items()} if measured.loops else {}
    once = measured.once.cycles
    products, loop_clocks = loop.get("tensor", 0.0), max(loop.values(), default=0.0)
    if resident(measured, card.arch) > 1:
        busy = max(loop.get(pipe, 0.0) + clocks for pipe, clocks in once.items())
    else:
        busy = loop_clocks + max(once.values())
    memory = max(0.0, launch.bytes / card.bandwidth - busy * seconds_per_clock)
    roof = max(launch.flops / card.bf16, launch.bytes / card.bandwidth)
    return Time(
        products * seconds_per_clock,
        (loop_clocks - products) * seconds_per_clock,
        (busy - loop_clocks) * seconds_per_clock,
        memory,
        roof,
        launch.fetched,
        max(0.0, launch.fetched / card.cache - busy * seconds_per_clock - memory),
    )
