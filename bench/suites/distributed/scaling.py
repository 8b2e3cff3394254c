"""Strong and weak scaling of a kernel over ranks, beside one process that the same run measures on rank 0 alone."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nntk import NonlocalNTK
from nntk.bench.measure import data, reference
from nntk.bench.measure.timing import Timing
from nntk.bench.results.schema import Row
from nntk.bench.results.tables import Column
from nntk.bench.suites.section import Section, Setting
from nntk.distributed import Sharded
from nntk.distributed.ranks.agreement import Agreement
from nntk.estimators.rank_plan import bytes_over_displacements, bytes_over_inputs

ROUNDS = 5
"""Number of rounds. A round times one process and then the ranks, so that a slower machine affects both."""
TOLERANCE = 1e-6
"""Largest relative error of the ranks' kernel, in float32, against that of one process."""
TARGETS = {("strong, M", 2): 1.7}
"""Least speed-up over one process, on a CPU with one thread for each process, by scaling and number of ranks."""
_TIMEOUT = timedelta(hours=1)


@dataclass(frozen=True)
class Problem:
    """Problem whose growth with the number of ranks is measured.

    Attributes:
        scaling: ``"strong"`` (the whole problem stays) or ``"weak"`` (the share of a rank stays).
        axis: ``"M"`` (ranks have other displacements) or ``"N"`` (ranks have other inputs).
        samples: Displacements of one process.
        inputs: Inputs of one process.
    """

    scaling: str
    axis: str
    samples: int
    inputs: int

    def size(self, ranks: int) -> tuple[int, int]:
        """Return the numbers M and N of the problem for a number of ranks."""
        factor = 1 if self.scaling == "strong" else ranks
        return (self.samples * factor, self.inputs) if self.axis == "M" else (self.samples, self.inputs * factor)


def problems(device: torch.device) -> tuple[tuple[int, ...], list[Problem]]:
    """Return the widths of the network, and the problems; on a GPU they are larger, to fill it."""
    if device.type == "cuda":
        widths, samples, inputs = (784, 1024, 1024, 1), 8192, 8192
    else:
        widths, samples, inputs = (64, 128, 128, 1), 512, 2000
    return widths, [
        Problem("strong", "M", samples, inputs),
        Problem("strong", "N", samples, inputs),
        Problem("weak", "M", samples // 2, inputs),
        Problem("weak", "N", samples, inputs // 2),
    ]


def numbers_of_ranks(size: int) -> list[int]:
    """Return the powers of two below a number of ranks, and this number.

    Args:
        size: Number of all ranks.

    Returns:
        Numbers from 2.

    Example:
        >>> numbers_of_ranks(6)
        [2, 4, 6]
    """
    return [*(2**power for power in range(1, size.bit_length()) if 2**power < size), size]


def _rows(setting: Setting) -> Iterator[Row | str]:
    whole = dist.group.WORLD
    assert whole is not None, "the process group was initialised"
    world = Agreement(whole, _TIMEOUT)
    widths, all_problems = problems(setting.device)
    for ranks in numbers_of_ranks(world.size):
        group = whole if ranks == world.size else dist.new_group(list(range(ranks)), timeout=_TIMEOUT)
        member = isinstance(group, dist.ProcessGroup) and world.rank < ranks
        for problem in all_problems:
            name = f"{problem.scaling} scaling in {problem.axis}, {ranks} ranks"
            yield f"{name}, {ROUNDS} rounds"
            samples, inputs = problem.size(ranks)
            row: Row = {"case": name, "scaling": f"{problem.scaling}, {problem.axis}", "ranks": ranks}
            row |= {"samples": samples, "inputs": inputs}
            measurement = Measurement(world, group if member else None, ranks, problem, widths, setting)
            yield row | measurement.figures()


class Measurement:
    """Measurement of one problem on some of the ranks, the first ones. Every rank of the run calls its methods.

    Args:
        world: Agreement of all ranks of the run.
        group: Group of the measured ranks; None on a rank that is none of them.
        ranks: Number of the measured ranks.
        problem: The problem.
        widths: Widths of the network.
        setting: Device and seed.
    """

    def __init__(
        self,
        world: Agreement,
        group: dist.ProcessGroup | None,
        ranks: int,
        problem: Problem,
        widths: tuple[int, ...],
        setting: Setting,
    ) -> None:
        self._world, self._group, self._ranks, self._problem = world, group, ranks, problem
        self._widths, self._setting = widths, setting
        samples, self._inputs = problem.size(ranks)
        with world.together("preparing a measurement"):
            model = data.he_network(widths, nn.ReLU, setting.seed, setting.device, biases=0.1)
            self._kernel = NonlocalNTK(model, gamma=0.01, samples=samples, seed=setting.seed)
            self._one = NonlocalNTK(model, gamma=0.01, samples=problem.samples, seed=setting.seed)
        over = "displacements" if problem.axis == "M" else "inputs"
        self._sharded = None if group is None else Sharded(self._kernel, over, group=group, timeout=_TIMEOUT)

    def figures(self) -> Row:
        """Check the kernel of the ranks against one process, then time both; every rank gets the same figures."""
        error = self._error()
        if not error <= TOLERANCE:
            return {"difference": error, "failure": f"error {error:.1e} > {TOLERANCE:.0e} against one process"}
        one, together, spent = [], [], []
        for number in range(1, ROUNDS + 1):
            with self._world.together("timing one process"):
                if self._world.rank == 0:
                    one.append(self._seconds(lambda x: self._one(x[: self._problem.inputs]), number))
            spent.append(self._round(number))
            together.append(max(of_rank["seconds"] for of_rank in spent[-1]))
        seconds = self._world.exchange(value=one)[0]
        times, baseline = Timing(tuple(together)), Timing(tuple(seconds))
        ratio = times.ratio_to(baseline)
        row: Row = {
            "difference": error,
            **times.row(),
            "one_s": baseline.median,
            "one_samples_s": seconds,
            "ratio": ratio,
        }
        row["efficiency"] = ratio / self._ranks if self._problem.scaling == "strong" else ratio
        row |= self._communication(spent)
        target = TARGETS.get((f"{self._problem.scaling}, {self._problem.axis}", self._ranks))
        if target is not None and self._setting.device.type == "cpu":
            row["target"] = target
        return row

    def _error(self) -> float:
        """Return the relative error of the ranks' kernel against that of rank 0 alone."""
        error = None
        whole = None if self._sharded is None else self._sharded.gather(self._sharded(self._own(self._x(0))))
        with self._world.together("computing the kernel by one process"):
            if self._world.rank == 0:
                assert whole is not None, "rank 0 is measured"
                error = reference.relative_error(whole, self._kernel(self._x(0)))
        return float(self._world.exchange(value=error)[0])

    def _round(self, number: int) -> list[dict[str, float]]:
        """Time the ranks once; return time, time of agreement, time and bytes of exchange, of each measured rank."""
        spent = None
        if self._sharded is not None:
            mesh = self._sharded.mesh
            before = (mesh.agreement.seconds, mesh.traffic.seconds, mesh.traffic.bytes)
            seconds = self._seconds(lambda x: self._call(self._own(x)), number)
            after = (mesh.agreement.seconds, mesh.traffic.seconds, mesh.traffic.bytes)
            names = ("agreement", "exchange", "bytes")
            spent = {name: b - a for name, a, b in zip(names, before, after, strict=True)}
            spent["seconds"] = seconds
        return [of_rank for of_rank in self._world.exchange(value=spent) if of_rank is not None]

    def _communication(self, spent: list[list[dict[str, float]]]) -> Row:
        """Return shares of time, and bytes beside their model.

        The rank that waits least is the slowest one, so that its time in agreement and exchange is communication; the
        others wait for it as well. On a GPU an exchange returns before it is done, and that timed alone counts.
        """
        alone = self._exchange_alone()
        on_gpu = self._setting.device.type == "cuda"
        shares, waits = [], []
        for of_round in spent:
            parts = [
                (rank["agreement"] + (alone if on_gpu else rank["exchange"])) / rank["seconds"] for rank in of_round
            ]
            shares.append(min(parts))
            waits.append(max(parts) - min(parts))
        sent = statistics.mean(rank["bytes"] for rank in spent[-1])
        return {
            "communication_share": statistics.median(shares), "waiting_share": statistics.median(waits),
            "exchange_alone_s": alone, "bytes": sent, "model_bytes": self._model_bytes(),
        }  # fmt: skip

    def _exchange_alone(self) -> float:
        """Return the median time of an all-reduce by which each rank sends the bytes of the model, alone."""
        count = max(1, round(self._model_bytes() * self._ranks / (2 * (self._ranks - 1) * 8)))
        numbers = torch.ones(count, dtype=torch.float64, device=self._setting.device)
        seconds: list[float] = []
        for _ in range(ROUNDS):
            self._world.exchange()
            duration = None
            if self._group is not None:
                duration = self._seconds(lambda _: dist.all_reduce(numbers, group=self._group), 0)
            seconds.append(max(value for value in self._world.exchange(value=duration) if value is not None))
        return statistics.median(seconds)

    def _model_bytes(self) -> float:
        if self._problem.axis == "M":
            return bytes_over_displacements(self._ranks, self._inputs**2)
        samples, _ = self._problem.size(self._ranks)
        return bytes_over_inputs(self._ranks, self._inputs, 4 * samples * self._widths[-1], self._inputs**2)

    def _seconds(self, work: Callable[[Tensor], Any], number: int) -> float:
        """Return the time of work with the inputs of a round."""
        x, on_gpu = self._x(number), self._setting.device.type == "cuda"
        if on_gpu:
            torch.cuda.synchronize()
        start = time.perf_counter()
        work(x)
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def _call(self, own: Tensor) -> Tensor:
        assert self._sharded is not None, "this rank is measured"
        return self._sharded(own)

    def _x(self, number: int) -> Tensor:
        """Return all inputs of a round, the same on every rank and other ones in every round."""
        generator = torch.Generator().manual_seed(self._setting.seed + number)
        return torch.randn(self._inputs, self._widths[0], generator=generator).to(self._setting.device)

    def _own(self, x: Tensor) -> Tensor:
        """Return the inputs of this rank."""
        assert self._sharded is not None, "this rank is measured"
        part = self._sharded.mesh.inputs.part(len(x))
        return x[part.start : part.stop]


DISTRIBUTED = Section(
    name="distributed",
    title="A kernel over ranks, beside one process of the same run",
    caption="Strong scaling keeps the problem, weak scaling keeps the displacements M or the inputs N of a rank. Over "
    "M, ranks have other displacements and add their kernels; over N, they have other inputs and pass features on. "
    "'over one' is the time of one process over that of the ranks, for weak scaling with the share of one rank; the "
    "products of N inputs with N grow as N^2 in weak scaling too. Communication is the share of time in agreement and "
    "exchange of the rank that waits least; 'waiting' is by how much the share of the rank that waits most is larger. "
    "'sent' is by a rank, 'model' what the formulas of the mesh say. Every kernel is first compared with that of one "
    "process.",
    columns=(
        Column("case", "case"),
        Column("M", "samples"),
        Column("N", "inputs"),
        Column("time", "median_s", "seconds"),
        Column("one process", "one_s", "seconds"),
        Column("over one", "ratio", "times"),
        Column("target", "target", "times"),
        Column("efficiency", "efficiency", "percent"),
        Column("communication", "communication_share", "percent"),
        Column("waiting", "waiting_share", "percent"),
        Column("exchange alone", "exchange_alone_s", "seconds"),
        Column("sent", "bytes", "bytes"),
        Column("model", "model_bytes", "bytes"),
        Column("difference", "difference", ".1e"),
    ),
    rows=_rows,
)
