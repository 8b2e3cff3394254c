"""Checks of a compiled kernel: each is a function that returns a message if the kernel fails, and None otherwise."""

from collections.abc import Callable

from nntk.bench.machine_code.machines import MACHINES
from nntk.bench.machine_code.measure import Measured
from nntk.kernels.ahead_of_time import Case

Check = Callable[[Case, str, Measured], str | None]


def stack(case: Case, arch: str, measured: Measured) -> str | None:
    """Reject a stack: it lies in global memory."""
    return f"{measured.stack} bytes of stack a thread" if measured.stack else None


def spills(case: Case, arch: str, measured: Measured) -> str | None:
    """Reject spilled registers."""
    return f"registers are spilled ({measured.spills})" if measured.spills else None


def shared_memory(case: Case, arch: str, measured: Measured) -> str | None:
    """Reject more shared memory than the architecture has: Triton compiles such kernels without an error."""
    limit = MACHINES[arch].shared
    return f"{measured.shared:,} bytes of shared memory, {limit:,} are there" if measured.shared > limit else None


def tensor_memory(case: Case, arch: str, measured: Measured) -> str | None:
    """Reject more tensor memory than the architecture has: Triton compiles such kernels to a trap."""
    limit = MACHINES[arch].tensor_memory
    columns = measured.tensor_memory
    return f"{columns} columns of tensor memory, {limit} are there" if columns > limit else None


def trap(case: Case, arch: str, measured: Measured) -> str | None:
    """Reject code that is only a trap."""
    return "compiled to a trap" if measured.traps else None


def main_loops(case: Case, arch: str, measured: Measured) -> str | None:
    """Require as many main loops as the case states: the other checks and figures depend on them."""
    stated = len(case.loops)
    # The remaining turns of an unrolled loop are a loop too, and a loop without matrix instructions may do other work.
    may_exceed = any(part.unrolled > 1 or not part.matrix for part in measured.loops)
    if measured.found < stated or (measured.found > stated and not may_exceed):
        return f"{measured.found} main loops in the code, the case states {stated}"
    return "a main loop holds a loop, whose turns are not known" if measured.nested else None


def matrix_instructions(case: Case, arch: str, measured: Measured) -> str | None:
    """Require that matrix instructions compute every stated product of tensor cores completely."""
    for part in (*measured.loops, measured.once):
        stated = sum(p.m * p.n * p.k for p in part.work.products if p.operand != "fp32")
        done = sum(part.multiply_adds.values())
        if done < stated:
            return f"matrix instructions do {done:,.0f} of {stated:,} multiply-adds"
    return None


def wgmma(case: Case, arch: str, measured: Measured) -> str | None:
    """Require wgmma for products on sm_90, which float64 does not have: mma.sync reaches about 60 % of its rate."""
    opcodes = {opcode for part in (*measured.loops, measured.once) for opcode in part.matrix}
    slow = {opcode for opcode in opcodes if "GMMA" not in opcode and not opcode.startswith("DMMA")}
    return f"no wgmma but {', '.join(sorted(slow))}" if arch == "sm_90" and slow else None


def normal_budget(case: Case, arch: str, measured: Measured) -> str | None:
    """Require that a normal costs no more instructions than stated, on sm_90."""
    return _over(case.normal_budget, measured.issued_per("normals", 32), "instructions a normal", arch)


def sign_budget(case: Case, arch: str, measured: Measured) -> str | None:
    """Require that a sign costs no more instructions than stated, on sm_90."""
    return _over(case.sign_budget, measured.issued_per("signs", 32), "instructions a sign", arch)


def register_budget(case: Case, arch: str, measured: Measured) -> str | None:
    """Require that a thread has no more registers than stated, on sm_90."""
    return _over(case.register_budget, measured.registers, "registers a thread", arch)


def tensor_bound(case: Case, arch: str, measured: Measured) -> str | None:
    """Require that issuing takes no longer than products on sm_90 if the case states that products are the limit."""
    if arch != "sm_90" or not case.tensor_bound:
        return None
    issue, tensor = measured.cycles["issue"], measured.cycles["tensor"]
    return f"issues for {issue:,.0f} cycles, products take {tensor:,.0f}" if issue > tensor else None


def _over(budget: float | None, value: float | None, unit: str, arch: str) -> str | None:
    if arch != "sm_90" or budget is None:
        return None
    if value is None:
        return f"the case limits {unit} and states none"
    return f"{value:.4g} {unit}, {budget:g} are allowed" if value > budget else None


CHECKS: tuple[Check, ...] = (
    stack,
    spills,
    shared_memory,
    tensor_memory,
    trap,
    main_loops,
    matrix_instructions,
    wgmma,
    normal_budget,
    sign_budget,
    register_budget,
    tensor_bound,
)


def failures(case: Case, arch: str, measured: Measured) -> dict[str, str]:
    """Return the messages of the checks that fail, by check."""
    messages = {check.__name__: check(case, arch, measured) for check in CHECKS}
    return {name: message for name, message in messages.items() if message}
