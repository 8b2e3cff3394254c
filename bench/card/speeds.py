"""Measurements of speed: roofs, predictions by them, targets of the design, single kernels, the time of the host."""

import csv
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

import nntk
from nntk.bench.card import trace
from nntk.bench.card.checks import tool_path
from nntk.bench.card.plan import Context, LeftOutError, Rows, Step, Unit, bound, python_environment
from nntk.bench.machine_code.machines import MACHINES
from nntk.bench.measure import data, roofline, timing
from nntk.bench.suites import ops, targets
from nntk.bench.suites.op_arguments import ArgumentMakers
from nntk.bench.suites.section import Setting
from nntk.kernels.perturb.config import default_bytes
from nntk.kernels.target import target_of

FAMILIES = ("gaussian", "rademacher", "flipout(8)", "lowrank(1)")
"""Families of displacements, as the design's evaluations have them."""
_GAMMA = 1e-2


def workload(context: Context) -> tuple[nn.Module, Tensor, int]:
    """Return the network, the inputs and the number of displacements of the design's evaluations; tiny without a card.

    Args:
        context: The context.

    Returns:
        Relu 784-1024-1024-10, 1024 inputs, 1024 displacements.
    """
    widths, inputs, samples = ((784, 1024, 1024, 10), 1024, 1024) if context.on_card else ((16, 24, 24, 3), 16, 16)
    model = data.he_network(widths, nn.ReLU, context.seed, context.device, biases=0.1)
    generator = torch.Generator(context.device).manual_seed(context.seed)
    return model, torch.randn(inputs, widths[0], device=context.device, generator=generator), samples


def differences(
    context: Context, directions: str, max_memory: int | None = None, network: nn.Module | None = None
) -> Callable[[int], Tensor]:
    """Return the design's evaluations as a function of the seed of their displacements.

    Args:
        context: The context.
        directions: Family of the displacements.
        max_memory: Budget of temporary memory; None for the default.
        network: Another network of the same shape; None for relu.

    Returns:
        The function.
    """
    model, x, samples = workload(context)
    precision = "bf16" if context.on_card else "fp32"

    def call(number: int) -> Tensor:
        kernel = nntk.NonlocalNTK(
            network or model, gamma=_GAMMA, samples=samples, directions=directions, precision=precision,
            propagation="difference", seed=context.seed + number, max_memory=max_memory,
        )  # fmt: skip
        return kernel.differences(x)

    return call


def _roofs(context: Context) -> Rows:
    if context.is_dry_run:
        measured = list(roofline.measure(context.device, duration=0.01, scale=16))
    else:
        measured = roofline.remeasure(context.device)
    for roof in measured:
        yield {"case": roof.name, "units": roof.unit, "per_second": roof.per_second, "samples_s": list(roof.samples_s)}


def measured_roofs(context: Context) -> dict[str, float]:
    """Return the roofs that the journal holds, by name."""
    return {row["case"]: row["per_second"] for row in context.journal.rows("roofs") if "per_second" in row}


def _predictions(context: Context) -> Rows:
    """Yield the predicted time of every launch of the design's evaluations, by the roofs that were just measured."""
    from nntk.bench.machine_code.prediction import compilation, workloads  # their kernels need Triton
    from nntk.bench.machine_code.prediction.model import CARDS, Card, time_of, with_cache

    rates = measured_roofs(context)
    if context.on_card:
        target = target_of(context.device)
        if target.arch not in MACHINES:
            raise LeftOutError(f"the model knows {', '.join(MACHINES)}; the card is {target.arch}")
        if missing := [name for name in ("bf16", "fp32", "copy") if name not in rates]:
            raise LeftOutError(f"the roof {missing[0]} was not measured")
        name = torch.cuda.get_device_name(context.device)
        card = with_cache(
            Card(name, target.arch, target.processors, rates["bf16"], rates["fp32"], rates["copy"], "measured before")
        )
    else:
        card = next(iter(CARDS.values()))
    launched = workloads.evaluations(card.arch)
    if context.is_dry_run:
        launched = {"lowrank(1)": launched["lowrank(1)"]}
    names = [case.name for launches in launched.values() for case, _ in launches]
    resources = compilation.compiled(card.arch, names)
    for family, launches in launched.items():
        for number, (case, launch) in enumerate(launches):
            predicted = time_of(launch, resources[case.name], card)
            yield {
                "case": f"{family}, launch {number}: {case.name}", "family": family, "kernel": case.kernel.__name__,
                "launch": number, "predicted_s": predicted.total, "predicted_with_cache_s": predicted.with_cache,
                "goes_to": predicted.shares,
            }  # fmt: skip


def _targets(part: str, context: Context) -> Rows:
    for row in targets.PARTS[part](Setting(context.device, context.seed)):
        if not isinstance(row, str):
            yield row


def _kernels(family: str, context: Context) -> Rows:
    """Yield every launch of a family's evaluations beside its prediction, and the share of time without a kernel."""
    call = differences(context, family)
    spans = trace.spans_of(lambda: call(1), context.device)
    if not spans:
        raise LeftOutError("the profiler saw no kernel: the system may not permit it")
    predicted = [row for row in context.journal.rows("predictions") if row.get("family") == family]
    measured = trace.by_launch(spans, [row["kernel"] for row in predicted]) if predicted else None
    if context.is_dry_run:  # Its spans are operators, which stand for the launches.
        measured = [span.duration for span in spans]
    for row, seconds in zip(predicted, measured or (), strict=False):
        yield {
            "case": row["case"], "predicted_s": row["predicted_s"], "time_s": seconds,
            "predicted_with_cache_s": row["predicted_with_cache_s"], "ratio": seconds / row["predicted_s"],
            "ratio_with_cache": seconds / row["predicted_with_cache_s"],
        }  # fmt: skip
    totals: dict[str, float] = {}
    for span in spans:
        totals[span.name] = totals.get(span.name, 0.0) + span.duration
    largest = dict(sorted(totals.items(), key=lambda item: -item[1])[:12])
    yield {"case": f"{family}: all kernels", "time_s": sum(totals.values()), "launches": len(spans), "kernels": largest}
    yield {"case": f"{family}: share of the time without a kernel", "idle_share": trace.idle_share(spans)}


def _single_ops(context: Context) -> Rows:
    """Yield ops that are one or two kernels, beside their roof."""
    names = ("radial_weights", "attention_statistics", "attention_weights", "energy", "structured_ntk")
    for case in ops.cases(context.device):
        if case.op in names:
            if context.is_dry_run and case.op != "radial_weights":
                continue
            row = ops.measure(case, context.device, context.seed)
            yield row if "failure" in row else row | {"time_s": row["median_s"], "ratio": 1 / row["roof_share"]}


_COUNTERS = {
    "lts__t_bytes.sum.per_second": "second-level cache, bytes a second",
    "sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active": "tensor pipe, percent",
    "dram__bytes.sum.per_second": "memory, bytes a second",
}
"""Counters of the hidden layer step that decide whether the second-level cache is the limit."""


def _counters(context: Context) -> Rows:
    """Yield counters of the staged hidden step by Nsight Compute."""
    tool = tool_path("ncu")
    if tool is None or not context.on_card:
        raise LeftOutError("ncu (Nsight Compute) is not installed" if context.on_card else "counters need a card")
    command = [
        tool, "--csv", "--page", "raw", "--kernel-name", "layer_step", "--launch-skip", "4", "--launch-count", "1",
        "--metrics", ",".join(_COUNTERS), sys.executable, "-m", "nntk.bench.card.worker", "--evaluate", "gaussian",
        str(context.device),
    ]  # fmt: skip
    done = subprocess.run(bound(command), capture_output=True, text=True, env=python_environment(), timeout=120)
    yield from counter_rows(done.stdout, done.returncode)


def counter_rows(text: str, status: int) -> Rows:
    """Yield the counters of a page of Nsight Compute in CSV: a line of names, one of units, one for each kernel."""
    table = list(csv.reader(line for line in text.splitlines() if line.startswith('"')))
    if len(table) < 3:
        message = next((line for line in text.splitlines() if "ERR" in line), "no counters")
        yield {"case": "counters", "failure": f"ncu ended with status {status}: {message.strip('= ')[:200]}"}
        return
    # The fifth step of all is that of the hidden layer in the second chunk.
    for values in table[2:]:
        named, units = dict(zip(table[0], values, strict=False)), dict(zip(table[0], table[1], strict=False))
        for metric, about in _COUNTERS.items():
            if metric in named:
                yield {"case": f"hidden step: {about}", "text": f"{named[metric]} {units[metric]}"}


def _host(context: Context) -> Rows:
    """Yield how long the host needs to submit the evaluations, beside how long the card needs to do them."""
    make, budget = ArgumentMakers(context.device), default_bytes(context.device)
    widths, inputs, samples = ((784, 1024, 1024, 10), 1024, 1024) if context.on_card else ((16, 24, 3), 16, 16)
    precision = "bf16" if context.on_card else "fp32"
    for family in FAMILIES:
        # The op alone waits for nothing, so its return ends the work of the host.
        case = ops.OpCase(
            "mlp_differences", family, make.network(widths, inputs, samples, family, precision, max_bytes=budget)
        )
        arguments = [case.arguments(seed) for seed in (1, 2)]

        def call(number: int, case: ops.OpCase = case, arguments: list[tuple[object, ...]] = arguments) -> object:
            return case(*arguments[number % 2])

        call(0)
        times = []
        for number in range(1, 6):
            if context.on_card:
                torch.cuda.synchronize(context.device)
            begin = time.thread_time()
            call(number)
            times.append(time.thread_time() - begin)
        spent = timing.repeat(call, context.device, max_runs=5, duration=1.0)
        host = statistics.median(times)
        yield {"case": family, "host_s": host, "time_s": spent.median, "host_share": host / spent.median}


def roofs_and_targets() -> tuple[Step, ...]:
    """Return the steps of roofs, predictions, targets and single kernels."""
    return (
        Step("roofs", "the highest rates of the card", (Unit("roofs", _roofs, 10, 2),)),
        Step("predictions", "time of every launch, from machine code and roofs",
             (Unit("evaluations", _predictions, 40, 15),)),
        Step("targets", "the targets of the design",
             (Unit("evaluations", partial(_targets, "evaluations"), 40, 5),
              Unit("kernel", partial(_targets, "kernel"), 25, 2),
              Unit("operations", partial(_targets, "operations"), 40, 5))),
        Step("kernels", "single kernels beside their prediction",
             (*(Unit(family, partial(_kernels, family), 6, 1) for family in FAMILIES),
              Unit("operations", _single_ops, 30, 3),
              Unit("counters", _counters, 30, 1))),
    )  # fmt: skip


def host() -> Step:
    """Return the step of the host's time."""
    return Step("host", "time of the host for the evaluations", (Unit("evaluations", _host, 10, 1),))
