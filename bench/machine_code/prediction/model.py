"""Predicted time of launches on a card, from the machine code of their kernels. Nothing here is measured.

A program keeps each pipe of its multiprocessor busy for the turns of its main loops and for what is outside of them.
Where a multiprocessor holds several programs, one fills the gaps of another, and the busiest pipe of all decides; a
program that has it to itself goes through its parts one after another, each as long as that part's busiest pipe.
Multiprocessors are busy all the time, and a launch takes no less than the bytes that it moves. Latency, bank conflicts,
the second-level cache, the last wave and launches themselves are not seen: predictions are optimistic. An H200 took
1.45 to 1.54 times as long for perturbed evaluations, and 3.2 times for the assembly.
"""

from dataclasses import dataclass

from nntk.bench.machine_code.machines import MACHINES
from nntk.bench.machine_code.measure import Measured

_REGISTERS, _WARPS = 65_536, 64
"""Registers and warps of a multiprocessor."""
_RESERVED = 1024
"""Bytes of shared memory that the system takes of each program, and that are there beyond what one may have."""


@dataclass(frozen=True)
class Card:
    """A card's rates, measured or of its data sheet: what predictions are held against.

    Attributes:
        name: What it is.
        arch: Its architecture.
        processors: Multiprocessors.
        bf16: FLOP/s of long dense products in bfloat16; in TF32 it is half.
        fp32: FLOP/s of float32 without tensor cores.
        bandwidth: Bytes a second of a copy.
        source: Where the rates are from.
    """

    name: str
    arch: str
    processors: int
    bf16: float
    fp32: float
    bandwidth: float
    source: str

    @property
    def clock(self) -> float:
        """Clocks a second at which products come to ``bf16``: that of full load, below the boost clock."""
        return self.bf16 / (2 * MACHINES[self.arch].products["bf16"] * self.processors)


CARDS = {
    "h200": Card(
        "NVIDIA H200", "sm_90", 132, 790e12, 67e12, 4.3e12,
        "bf16 and copy by others' measurements, fp32 by the data sheet",
    ),
    "b200": Card("NVIDIA B200", "sm_100", 148, 2250e12, 80e12, 8e12, "the data sheet: peaks, which no program reaches"),
}  # fmt: skip
"""Cards by the name that the command takes; the first is the one that the design's targets are for."""


PROCESSORS = {card.arch: card.processors for card in CARDS.values()}
"""Multiprocessors of the card of an architecture."""


@dataclass(frozen=True)
class Launch:
    """One kernel of a workload.

    Attributes:
        case: Name of the kernel in its configuration.
        programs: How many.
        turns: Turns of the main loops of each.
        bytes: What all of them read and write of memory at least.
        fetched: What all of them read through the second-level cache.
        flops: What the workload asks of them, padding apart, in bfloat16's worth: three products in TF32 count sixfold.
    """

    case: str
    programs: int
    turns: float
    bytes: float
    fetched: float = 0.0
    flops: float = 0.0


@dataclass(frozen=True)
class Time:
    """Seconds of launches, by what they go to, and what they could be.

    Attributes:
        products: On the matrix pipe in main loops.
        issue: What other pipes take in these beyond it: noise, splitting of operands.
        once: Outside of the loops beyond all that: epilogues.
        memory: What bytes take beyond all of that.
        roof: What the card's rates of products or of copies would leave of it.
        fetched: Bytes read through the second-level cache.
    """

    products: float = 0.0
    issue: float = 0.0
    once: float = 0.0
    memory: float = 0.0
    roof: float = 0.0
    fetched: float = 0.0

    @property
    def parts(self) -> dict[str, float]:
        """Time of each resource in seconds, by resource."""
        return {name: getattr(self, name) for name in ("products", "issue", "once", "memory")}

    @property
    def total(self) -> float:
        """Total time in seconds."""
        return sum(self.parts.values())

    def __add__(self, other: "Time") -> "Time":
        return Time(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def shares(self) -> str:
        """Each part as a share of the whole, the largest first."""
        parts = sorted(self.parts.items(), key=lambda part: -part[1])
        return ", ".join(f"{name} {value / self.total:.0%}" for name, value in parts if value >= 0.005 * self.total)


def resident(measured: Measured, arch: str) -> int:
    """Programs that a multiprocessor holds at a time.

    Args:
        measured: A kernel's resources.
        arch: Its architecture.

    Returns:
        How many registers, shared and tensor memory and warps leave room for.
    """
    machine = MACHINES[arch]
    # A warp's registers are given out eight a thread at a time.
    registers = 32 * measured.num_warps * max(8, -(-measured.registers // 8) * 8)
    shared = (machine.shared + _RESERVED) // (measured.shared + _RESERVED)
    columns = machine.tensor_memory // measured.tensor_memory if measured.tensor_memory else shared
    return max(1, min(_REGISTERS // registers, shared, columns, _WARPS // measured.num_warps))


def time_of(launch: Launch, measured: Measured, card: Card) -> Time:
    """Predict a launch.

    Args:
        launch: The launch.
        measured: Its kernel's resources.
        card: The card.

    Returns:
        Its time.
    """
    a_clock = launch.programs / (card.processors * card.clock)
    loop = {pipe: launch.turns * clocks for pipe, clocks in measured.cycles.items()} if measured.loops else {}
    once = measured.once.cycles
    products, turning = loop.get("tensor", 0.0), max(loop.values(), default=0.0)
    if resident(measured, card.arch) > 1:
        busy = max(loop.get(pipe, 0.0) + clocks for pipe, clocks in once.items())
    else:
        busy = turning + max(once.values())
    memory = max(0.0, launch.bytes / card.bandwidth - busy * a_clock)
    roof = max(launch.flops / card.bf16, launch.bytes / card.bandwidth)
    return Time(
        products * a_clock, (turning - products) * a_clock, (busy - turning) * a_clock, memory, roof, launch.fetched
    )
