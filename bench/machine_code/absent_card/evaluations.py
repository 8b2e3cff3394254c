"""What evaluations of MLPs ask of the host, on a card that is not there. It runs in a process of its own.

    python -m nntk.bench.machine_code.absent_card.evaluations sm_90 132 141000000000

prints a JSON list with one object for each workload and family, of what :func:`measure` returns.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch

from nntk.bench.machine_code.absent_card.card import AbsentCard
from nntk.bench.machine_code.absent_card.operators import Replay
from nntk.kernels.activations import Activation, Relu, encode
from nntk.kernels.gpu.rows import LaunchRow
from nntk.kernels.perturb.config import gpu_bytes
from nntk.kernels.perturb.triton import chunks, launch

FAMILIES = ("gaussian", "rademacher", "flipout(8)", "lowrank(1)")
"""Families of displacements."""
_CALLS = 60


@dataclass(frozen=True)
class Workload:
    """Differences of a relu network in bfloat16, at antithetic displacements.

    Attributes:
        widths: Widths of the network, inputs and outputs included.
        inputs: Number N of inputs.
        samples: Number M of displacements.
    """

    widths: tuple[int, ...]
    inputs: int
    samples: int

    @property
    def name(self) -> str:
        """Name for readers."""
        return f"{'-'.join(map(str, self.widths))}, N = {self.inputs}, M = {self.samples}"


WORKLOADS = (Workload((784, 1024, 1024, 10), 1024, 1024), Workload((64, 256, 256, 10), 256, 4096))
"""The network of the design's targets, and a small one."""


def call_of(workload: Workload, directions: str, max_bytes: int, device: str = "meta") -> Callable[[], object]:
    """Return the call of the op for CUDA tensors, with tensors that have no numbers."""
    shapes = list(zip(workload.widths[:-1], workload.widths[1:], strict=True))

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(*shape, dtype=dtype, device=device)

    arguments: Any = (
        empty(workload.inputs, workload.widths[0]),
        [empty(height, width) for width, height in shapes],
        [empty(height) for _, height in shapes],
        *encode([Relu()] * (len(shapes) - 1) + [Activation()]),
        [2 * layer for layer in range(len(shapes))],
        [2 * layer + 1 for layer in range(len(shapes))],
        empty(workload.samples, dtype=torch.int64),
        empty(workload.samples),
        *(1, 2, directions, "odd", "difference", "bf16", max_bytes),
    )
    return lambda: launch.mlp_differences(*arguments)


def measure(card: AbsentCard, workload: Workload, directions: str, max_bytes: int) -> dict[str, Any]:
    """Count and time what an evaluation asks of the host.

    Args:
        card: The card.
        workload: Network and sizes.
        directions: Family of the displacements.
        max_bytes: Budget of temporary memory.

    Returns:
        Counts, which are the same everywhere, and processor time of the calling thread in seconds, the least of several
        calls: of the call without operators of PyTorch, once where all tensors are at other addresses than in the call
        before, and of such an operator without its launch.

    Raises:
        RuntimeError: If the call reads numbers of the card, for which the host would wait.
    """
    call = call_of(workload, directions, max_bytes)
    plans: list[chunks.ChunkPlan] = []

    def keep(*sizes: Any) -> chunks.ChunkPlan:
        plans.append(chunks.plan_chunks(*sizes))
        return plans[-1]

    with patch.object(launch, "plan_chunks", keep):
        call()  # Kernels are compiled.
    call()  # The call is recorded, and repeated from now on.
    replay = Replay(call)
    with replay.fast_operators():
        replay.run()
        before = card.counts
        replay.run()
        counts = card.counts - before
        call_s, stand_ins_s = _least_seconds(replay.run), _least_seconds(replay.run_operators)
        with patch.object(LaunchRow, "run", _run_moved):
            moved_s = _least_seconds(replay.run)
    (plan,) = plans
    blocks = math.ceil(workload.inputs / plan.block_inputs)
    return {
        "case": f"{directions}: {workload.name}",
        "chunks": blocks * math.ceil(workload.samples / plan.chunk_samples),
        "launches": counts.launches,
        "maps": counts.maps,
        "operators": replay.operators,
        "copies": replay.copies,
        "call_s": call_s - stand_ins_s,
        "moved_call_s": moved_s - stand_ins_s,
        "operator_s": _operator_seconds(),
    }


def _run_moved(row: LaunchRow, slots: list[Any], stream: int, run: Callable[..., None] = LaunchRow.run) -> None:
    """Run a row as if its tensors were elsewhere in the call before."""
    row.forget()
    run(row, slots, stream)


def _least_seconds(function: Callable[[], object]) -> float:
    """Return the least processor time of a function, of many calls: another process can only add to it."""
    seconds = []
    for _ in range(_CALLS):
        start = time.thread_time()
        function()
        seconds.append(time.thread_time() - start)
    return min(seconds)


def _operator_seconds() -> float:
    """Return what an operator of PyTorch takes beside its work: it adds two numbers on the CPU."""
    number, count = torch.ones(1), 100
    return _least_seconds(lambda: [torch.add(number, number) for _ in range(count)]) / count


def main() -> None:
    """Measure all workloads and families, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("arch", help="architecture of NVIDIA, e.g. sm_90")
    parser.add_argument("processors", type=int, help="number of multiprocessors")
    parser.add_argument("memory", type=int, help="bytes of the card's memory, of which the default budget is a share")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    card = AbsentCard(arguments.arch, arguments.processors, arguments.memory)
    budget = gpu_bytes(arguments.memory)
    json.dump([measure(card, one, family, budget) for one in WORKLOADS for family in FAMILIES], sys.stdout)


if __name__ == "__main__":
    main()
