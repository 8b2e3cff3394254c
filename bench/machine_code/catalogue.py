"""Catalogue of the kernels: the modules that list them, and functions that compile and check one by its name."""

import contextlib
import importlib
import io
from dataclasses import asdict, dataclass
from typing import Any

from nntk.bench.machine_code import checks
from nntk.bench.machine_code.machines import MACHINES
from nntk.bench.machine_code.measure import Measured, measure
from nntk.kernels import ahead_of_time
from nntk.kernels.ahead_of_time import Case

MODULES = tuple(
    f"nntk.bench.machine_code.cases.{op}"
    for op in ("philox", "perturb", "fixed_weights", "attention", "assemble", "local_ntk")
)
"""Every module with kernels; each has ``cases(arch)``."""


@dataclass(frozen=True)
class Task:
    """Kernel in one configuration on one architecture, by names, which can be sent to other processes."""

    module: str
    arch: str
    case: str


@dataclass(frozen=True)
class Report:
    """Result of a task.

    Attributes:
        task: Task that was compiled.
        case: Statements of the case; empty if they could not be read.
        measured: Resources of the kernel; None if it did not compile.
        failures: Messages of the checks that failed, by check.
    """

    task: Task
    case: dict[str, Any]
    measured: Measured | None
    failures: dict[str, str]

    def row(self) -> dict[str, Any]:
        """Return the whole result as plain data for JSON."""
        row: dict[str, Any] = {**asdict(self.task), "stated": self.case, "failures": self.failures}
        if self.measured:
            warp_size = MACHINES[self.task.arch].warp_size
            row |= asdict(self.measured) | {
                "instructions_per_normal": self.measured.issued_per("normals", warp_size),
                "instructions_per_sign": self.measured.issued_per("signs", warp_size),
                "cycles": self.measured.cycles,
                "limit": self.measured.limit,
            }
        return row


def tasks(module: str, arch: str) -> list[Task]:
    """List the cases of a module.

    Args:
        module: Dotted name of the module.
        arch: Architecture of the cases.

    Returns:
        One task for each case.

    Raises:
        ValueError: If two cases have the same name.
    """
    names = [case.name for case in importlib.import_module(module).cases(arch)]
    if len(set(names)) < len(names):
        raise ValueError(f"{module} has two cases of the same name on {arch}: {sorted(names)}")
    return [Task(module, arch, name) for name in names]


def report(task: Task) -> Report:
    """Compile, measure and check the kernel of a task, in a process without Triton's interpreter."""
    cases = importlib.import_module(task.module).cases(task.arch)
    case = next(case for case in cases if case.name == task.case)
    try:
        # Triton prints all of the PTX that ptxas rejects; its message is enough.
        with contextlib.redirect_stdout(io.StringIO()):
            compiled = ahead_of_time.compile(case, task.arch)
    except Exception as error:  # Any error of a compiler is a result of the task.
        return Report(task, _stated(case), None, {"compiles": f"{type(error).__name__}: {error}"})
    measured = measure(case, compiled, task.arch)
    return Report(task, _stated(case), measured, checks.failures(case, task.arch, measured))


def _stated(case: Case) -> dict[str, Any]:
    """Return the statements of a case as plain data."""
    return {
        "kernel": case.kernel.__name__,
        "signature": dict(case.signature),
        "constants": {name: _plain(value) for name, value in case.constants.items()},
        "num_warps": case.num_warps,
        "num_stages": case.num_stages,
        "options": dict(case.options),
        "normal_budget": case.normal_budget,
        "sign_budget": case.sign_budget,
        "register_budget": case.register_budget,
        "tensor_bound": case.tensor_bound,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return value if isinstance(value, bool | int | float | str | None) else getattr(value, "__name__", str(value))
