"""Checks of a compiled kernel: each is a function that returns a message if the kernel fails, and None otherwise."""

from collections.abc import Callable

from nntk.bench.machine_code.machines import MACHINES
from nntk.bench.machine_code.measure import Measured
from nntk.kernels.ahead_of_time import Case

Check = Callable[[Case, str, Measured], str | None]


def stack(case: Case, arch: str, measured: Measured) -> str | None:
    """No thread may have a stack: it lies in global memory."""
    return f"{measured.stack} bytes of stack a thread" if measured.stack else None


def spills(case: Case, arch: str, measured: Measured) -> str | None:
    """No register may be spilled."""
    return f"registers are spilled ({measured.spills})" if measured.spills else None


def shared_memory(case: Case, arch: str, measured: Measured) -> str | None:
    """Shared memory must fit: Triton compiles beyond it without a word."""
    limit = MACHINES[arch].shared
    return f"{measured.shared:,} bytes of shared memory, {limit:,} are there" if measured.shared > limit else None


def tensor_memory(case: Case, arch: str, measured: Measured) -> str | None:
    """Tensor memory must fit: Triton compiles to a trap beyond it."""
    limit = MACHINES[arch].tensor_memory
    columns = measured.tensor_memory
    return f"{columns} columns of tensor memory, {limit} are there" if columns > limit else None


def trap(case: Case, arch: str, measured: Measured) -> str | None:
    """The code must be more than a trap."""
    return "compiled to a trap" if measured.traps else None


def main_loops(case: Case, arch: str, measured: Measured) -> str | None:
    """The loops in the code must be those that the case states: without them nothing below means anything."""
    stated = len(case.loops)
    # An unrolled loop leaves one behind for the rest of its turns; loops without matrix instructions may be anything.
    more = any(part.unrolled > 1 or not part.matrix for part in measured.loops)
    if measured.found < stated or (measured.found > stated and not more):
        return f"{measured.found} main loops in the code, the case states {stated}"
    return "a main loop holds a loop, whose turns are not known" if measured.nested else None


def matrix_instructions(case: Case, arch: str, measured: Measured) -> str | None:
    """Matrix instructions must do the whole of every stated product that is for tensor cores."""
    for part in (*measured.loops, measured.once):
        stated = sum(p.m * p.n * p.k for p in part.work.products if p.operand != "fp32")
        done = sum(part.multiply_adds.values())
        if done < stated:
            return f"matrix instructions do {done:,.0f} of {stated:,} multiply-adds"
    return None


def wgmma(case: Case, arch: str, measured: Measured) -> str | None:
    """On sm_90 products must use wgmma: mma.sync reaches about 60 % of its rate."""
    slow = {opcode for part in (*measured.loops, measured.once) for opcode in part.matrix if "GMMA" not in opcode}
    return f"no wgmma but {', '.join(sorted(slow))}" if arch == "sm_90" and slow else None


def normal_budget(case: Case, arch: str, measured: Measured) -> str | None:
    """Normals must cost no more instructions than stated, on sm_90."""
    return _over(case.normal_budget, measured.issued_per("normals", 32), "instructions a normal", arch)


def sign_budget(case: Case, arch: str, measured: Measured) -> str | None:
    """Signs must cost no more instructions than stated, on sm_90."""
    return _over(case.sign_budget, measured.issued_per("signs", 32), "instructions a sign", arch)


def register_budget(case: Case, arch: str, measured: Measured) -> str | None:
    """Threads must have no more registers than stated, on sm_90."""
    return _over(case.register_budget, measured.registers, "registers a thread", arch)


def tensor_bound(case: Case, arch: str, measured: Measured) -> str | None:
    """Issuing must not take longer than the products on sm_90 if the case states that products are the limit."""
    if arch != "sm_90" or not case.tensor_bound:
        return None
    issue, tensor = measured.cycles["issue"], measured.cycles["tensor"]
    return f"issues for {issue:,.0f} cycles, products take {tensor:,.0f}" if issue > tensor else None


def _over(budget: float | None, value: float | None, what: str, arch: str) -> str | None:
    if arch != "sm_90" or budget is None:
        return None
    if value is None:
        return f"the case limits {what} and states none"
    return f"{value:.4g} {what}, {budget:g} are allowed" if value > budget else None


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
