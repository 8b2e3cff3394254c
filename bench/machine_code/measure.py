"""Resources of one case on one architecture: its memory, and its main loops by pipe."""

import re
import subprocess
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from nntk.bench.machine_code.flow import Flow, Loop
from nntk.bench.machine_code.listing import Listing, amd, sass
from nntk.bench.machine_code.machines import MACHINES, classify, matrix_shape
from nntk.kernels.ahead_of_time import Case, Compiled, Work


@dataclass(frozen=True)
class Part:
    """Main loop, or everything outside the main loops.

    Attributes:
        work: Work that the case states for this part.
        instructions: Instructions that a warp issues in one turn of the loop as compiled, by class.
        matrix: Matrix instructions in it, by opcode.
        multiply_adds: Multiply-adds of the matrix instructions of all warps together, by operand.
        unrolled: Number of turns of the source's loop in one turn of the compiled loop, derived from the products.
        cycles: Clocks that one turn of the source's loop keeps each pipe of a multiprocessor busy.
    """

    work: Work
    instructions: Mapping[str, float]
    matrix: Mapping[str, int]
    multiply_adds: Mapping[str, float]
    unrolled: float
    cycles: Mapping[str, float]

    @property
    def issued(self) -> float:
        """Instructions that a warp issues in one turn of the source's loop."""
        return sum(self.instructions.values()) / self.unrolled


@dataclass(frozen=True)
class Measured:
    """Resources of a compiled case.

    Attributes:
        registers: Registers of a thread.
        stack: Bytes of stack a thread.
        spills: Loads and stores of spilled registers (NVIDIA), spilled vector registers (AMD).
        shared: Bytes of shared memory of a program.
        tensor_memory: Columns of tensor memory of a program.
        num_warps: Warps of a program.
        traps: True if the program is only a trap.
        found: Number of loops that look like main loops.
        nested: True if a main loop holds a loop, whose number of turns is not known.
        loops: Main loops, at most one for each that the case states.
        once: Everything outside the main loops.
    """

    registers: int
    stack: int
    spills: int
    shared: int
    tensor_memory: int
    num_warps: int
    traps: bool
    found: int
    nested: bool
    loops: tuple[Part, ...]
    once: Part

    @property
    def parts(self) -> tuple[Part, ...]:
        """Parts that bound the kernel: its main loops, or the whole kernel if it has none."""
        return self.loops or (self.once,)

    @property
    def cycles(self) -> dict[str, float]:
        """Clocks that one turn of all main loops keeps each pipe of a multiprocessor busy."""
        return {pipe: sum(part.work.turns * part.cycles[pipe] for part in self.parts) for pipe in self.once.cycles}

    @property
    def limit(self) -> str:
        """Pipe that is busy longest and therefore bounds the speed."""
        return max(self.cycles, key=lambda pipe: self.cycles[pipe])

    def issued_per(self, numbers: str, warp_size: int) -> float | None:
        """Return the instructions that a thread issues for each random number, products included.

        Args:
            numbers: ``normals`` or ``signs``.
            warp_size: Threads of a warp.

        Returns:
            The mean over the main loops if they generate the numbers, else over the code outside of them; None if the
            kernel generates no such numbers.
        """
        for parts in (self.loops, (self.once,)):
            generated: float = sum(part.work.turns * getattr(part.work, numbers) for part in parts)
            if generated:
                issued = sum(part.work.turns * part.issued for part in parts)
                return issued * self.num_warps * warp_size / generated
        return None


def measure(case: Case, compiled: Compiled, arch: str) -> Measured:
    """Read the resources of a compiled case from its machine code.

    Args:
        case: Case that was compiled.
        compiled: Machine code of the case.
        arch: Architecture of the machine code.

    Returns:
        Its memory, and its instructions by pipe.
    """
    listing, registers, stack, spills = _amd(compiled) if not compiled.cubin else _nvidia(compiled)
    flow = Flow(listing)
    candidates = _main_loops(flow, any(p.operand != "fp32" for work in case.loops for p in work.products))
    # The compiler puts the remaining turns of an unrolled loop into a second, smaller loop. If there is no second loop,
    # multiply-adds beyond the stated ones are not further turns but padding, or warps that repeat the same work.
    unrolled = len(candidates) > len(case.loops)
    largest = sorted(candidates, key=lambda loop: sum(len(flow.blocks[b].instructions) for b in loop.members))
    loops = [loop for loop in candidates if loop in largest[len(largest) - len(case.loops) :]]
    code = [instruction for block in flow.order for instruction in flow.blocks[block].instructions]
    return Measured(
        registers,
        stack,
        spills,
        compiled.shared,
        compiled.tensor_memory,
        compiled.num_warps,
        traps=len(code) < 64 and any(instruction.opcode.startswith("BPT.TRAP") for instruction in code),
        found=len(candidates),
        nested=any(inner.members < loop.members for loop in loops for inner in flow.loops),
        loops=tuple(
            _part(flow, flow.turn(loop), work, compiled.num_warps, arch, unrolled)
            for loop, work in zip(loops, case.loops, strict=False)
        ),
        once=_part(flow, flow.outside(candidates), case.once, compiled.num_warps, arch, unrolled=False),
    )


def _nvidia(compiled: Compiled) -> tuple[Listing, int, int, int]:
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.cubin)
        file.flush()
        usage = _output(knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name)
        listing = sass(_output(knobs.nvidia.nvdisasm.path, "-c", file.name))
    ((registers, stack),) = re.findall(rf"Function {re.escape(compiled.name)}:\s+REG:(\d+) STACK:(\d+)", usage)
    spills = sum(instruction.opcode.startswith(("LDL", "STL")) for instruction in listing.instructions)
    return listing, int(registers), int(stack), spills


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _amd(compiled: Compiled) -> tuple[Listing, int, int, int]:
    metadata = dict(re.findall(r"^\s+\.(\w+):\s+(\d+)$", compiled.text, re.MULTILINE))
    registers, stack, spills = (
        int(metadata[key]) for key in ("vgpr_count", "private_segment_fixed_size", "vgpr_spill_count")
    )
    return amd(compiled.text), registers, stack, spills


def _main_loops(flow: Flow, tensor: bool) -> list[Loop]:
    """Return the innermost loops; only those with matrix instructions if ``tensor`` is True and there are any."""

    def multiplies(loop: Loop) -> bool:
        code = (instruction for block in loop.members for instruction in flow.blocks[block].instructions)
        return any(classify(instruction.opcode) == "tensor" for instruction in code)

    loops = [loop for loop in flow.loops if tensor and multiplies(loop)] or flow.loops
    return [loop for loop in loops if not any(other.members < loop.members for other in loops)]


def _turns(work: Work, multiply_adds: float, fused: float) -> float:
    """Return the turns of the source's loop in one turn of the compiled loop, by the stated multiply-adds."""
    stated = sum(product.m * product.n * product.k for product in work.products)
    if not stated:
        return 1.0
    # Without matrix instructions the products are a part of the fused multiply-adds, so the quotient is rounded down.
    return max(1.0, multiply_adds / stated if multiply_adds else fused // stated)


def _part(flow: Flow, weights: Mapping[int, float], work: Work, num_warps: int, arch: str, unrolled: bool) -> Part:
    machine = MACHINES[arch]
    instructions: defaultdict[str, float] = defaultdict(float)
    matrix: Counter[str] = Counter()
    for block, weight in weights.items():
        for instruction in flow.blocks[block].instructions:
            name = classify(instruction.opcode)
            instructions[name] += weight
            # Counted in full even where a condition selects the one thread that issues them (tcgen05).
            if name == "tensor":
                matrix[instruction.opcode] += 1
    multiply_adds: defaultdict[str, float] = defaultdict(float)
    for opcode, count in matrix.items():
        shape = matrix_shape(opcode, num_warps)
        multiply_adds[shape.operand] += count * shape.multiply_adds * num_warps / shape.warps
    fused = instructions.get("fma", 0.0) * machine.warp_size * num_warps
    turns = _turns(work, sum(multiply_adds.values()), fused) if unrolled else 1.0
    cycles = {
        pipe: num_warps * sum(count * clocks.get(name, clocks.get("*", 0)) for name, count in instructions.items())
        for pipe, clocks in machine.pipes.items()
    }
    cycles["tensor"] = sum(count / machine.products[operand] for operand, count in multiply_adds.items() if count)
    cycles = {pipe: clocks / turns for pipe, clocks in cycles.items()}
    return Part(work, dict(instructions), dict(matrix), dict(multiply_adds), turns, cycles)
