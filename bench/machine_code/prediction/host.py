"""The host's time for evaluations on a card that is not there, beside the predicted time of the card.

Counts are exact. The time is measured on the machine that predicts, as processor time of one thread, with a driver that
launches nothing (:mod:`nntk.bench.machine_code.absent_card`). What PyTorch takes for an operator on a CPU, and a real
driver to launch a kernel, are added.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nntk.bench.machine_code.absent_card.evaluations import FAMILIES, WORKLOADS
from nntk.bench.machine_code.measure import Measured
from nntk.bench.machine_code.prediction import workloads
from nntk.bench.machine_code.prediction.model import Card, Time, time_of
from nntk.bench.report.markdown import lines
from nntk.bench.results import tables
from nntk.bench.results.schema import Row
from nntk.bench.results.tables import Column
from nntk.kernels.ahead_of_time import Case

DRIVER_S = 3e-6
"""Seconds that the driver of a card takes for a launch, about; nothing was measured here."""
TARGET = 0.1
"""Largest share of the card's time that the host may take."""
_MEMORY = {"h100": 80, "h200": 141, "b200": 180, "a100": 80, "rtx4090": 24}
"""Gigabytes of cards, of which the default budget of temporary memory is a share."""
CAPTION = (
    "Host: processor time of one thread to launch an evaluation at the default budget, that of PyTorch's operators on "
    "a CPU, and 3 us of a real driver for each launch and operator; share: of the card's predicted time. The call is "
    "repeated in a loop, where its tensors have the addresses of the call before; elsewhere: all of them have others. "
    "Launches are Triton's, operators PyTorch's; waits are copies from the host. A busy machine shows longer times."
)
COLUMNS = (
    Column("evaluation", "case"),
    Column("host", "host_s", "seconds"),
    Column("share", "share", "percent"),
    Column("elsewhere", "moved_s", "seconds"),
    Column("card", "card_s", "seconds"),
    Column("chunks", "chunks"),
    Column("launches", "launches"),
    Column("operators", "operators"),
    Column("tensor maps", "maps"),
    Column("waits", "copies"),
)


def cases(arch: str) -> list[Case]:
    """List the kernels of the evaluations."""
    compiled = [
        case
        for workload in WORKLOADS
        for family in FAMILIES
        for case, _ in workloads.evaluation(arch, family, workload.widths, workload.inputs, workload.samples)
    ]
    return list({case.name: case for case in compiled}.values())


def markdown(rows: Sequence[Row]) -> str:
    """Return the table in Markdown, as the READMEs show it."""
    cells = [[tables.cell(column, row) for column in COLUMNS] for row in rows]
    return lines([column.header for column in COLUMNS], cells, [column.key != "case" for column in COLUMNS])


class HostError(RuntimeError):
    """The host's time could not be measured."""


def rows(name: str, card: Card, measured: Mapping[str, Measured]) -> Iterator[Row]:
    """Measure the host, and yield a row for each workload and family.

    Args:
        name: Name of the card.
        card: The card, of NVIDIA.
        measured: Resources of the kernels by name.

    Yields:
        The rows.

    Raises:
        HostError: If the measurement fails, with its reason.
    """
    results = iter(_measure(card, _MEMORY.get(name, 80) * 10**9))
    for workload in WORKLOADS:
        for family in FAMILIES:
            launches = workloads.evaluation(card.arch, family, workload.widths, workload.inputs, workload.samples)
            time = sum((time_of(launch, measured[launch.case], card) for _, launch in launches), Time())
            result = next(results)
            operators = result["operators"] * result["operator_s"]
            submitted = operators + DRIVER_S * (result["launches"] + result["operators"])
            host, moved = (result[key] + submitted for key in ("call_s", "moved_call_s"))
            yield {**result, "host_s": host, "moved_s": moved, "card_s": time.total, "share": host / time.total}


def _measure(card: Card, memory: int) -> list[dict[str, Any]]:
    """Measure in a process of its own: a process has one driver, and its kernels may not be interpreted."""
    module = "nntk.bench.machine_code.absent_card.evaluations"
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", module, card.arch, str(card.processors), str(memory)]
    done = subprocess.run(command, env=environment | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True)
    if done.returncode:
        raise HostError(f"the host's time was not measured: {done.stderr.strip().splitlines()[-1]}")
    results: list[dict[str, Any]] = json.loads(done.stdout)
    return results
