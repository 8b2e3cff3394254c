"""Kernels of the workloads, compiled for whoever predicts their time."""

from collections.abc import Sequence

from nntk.bench.machine_code.catalogue import Task
from nntk.bench.machine_code.measure import Measured
from nntk.bench.machine_code.prediction import workloads
from nntk.bench.machine_code.resources import reports


def compiled(arch: str, names: Sequence[str]) -> dict[str, Measured]:
    """Compile kernels of the workloads.

    Args:
        arch: Architecture.
        names: Names of the kernels.

    Returns:
        Resources of the kernels by name.

    Raises:
        RuntimeError: If a kernel does not compile; the message names it and says why.
    """
    measured: dict[str, Measured] = {}
    for result in reports([Task(workloads.__name__, arch, name) for name in dict.fromkeys(names)]):
        if result.measured is None:
            raise RuntimeError(f"{result.task.case}: {result.failures}")
        measured[result.task.case] = result.measured
    return measured
