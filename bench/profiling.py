"""Where the time of one op goes: PyTorch's profiler and Triton's, beside the least work of a call and its roof."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.autograd.profiler_util import FunctionEventAvg
from torch.profiler import ProfilerActivity, profile, record_function

from nntk.bench.measure import environment, roofline
from nntk.bench.results import tables
from nntk.bench.results.files import write_json
from nntk.bench.results.schema import Row
from nntk.bench.results.tables import Column
from nntk.bench.suites import ops
from nntk.kernels.cost import Cost
from nntk.kernels.dispatch import cost_of
from nntk.kernels.target import slug

CALLS = 5
_LONGEST = 12
"""Operators that the table shows."""

COLUMNS = (
    Column("operator", "case"),
    Column("self time", "self_s", "seconds"),
    Column("of all", "share", "percent"),
    Column("a call", "calls", ".3g"),
)


def cases(op: str, shape: str, device: torch.device) -> list[ops.OpCase]:
    """The suite's cases of one op.

    Args:
        op: Name of the op.
        shape: Text that the shape must contain; empty for any.
        device: Where it runs.

    Returns:
        The cases, in the suite's order.

    Raises:
        ValueError: If there is no such op or shape; the message lists what there is.
    """
    every = ops.cases(device)
    found = [case for case in every if case.op == op]
    if not found:
        raise ValueError(f"OP must be one of {', '.join(sorted({case.op for case in every}))}; got {op!r}")
    wanted = [case for case in found if shape in case.shape]
    if not wanted:
        raise ValueError(f"--shape must be part of one of {'; '.join(case.shape for case in found)}; got {shape!r}")
    return wanted


def run(
    wanted: Sequence[ops.OpCase], device: torch.device, output: Path, console: Console, table: Path | None = None
) -> int:
    """Profile cases, draw a table each, and write their traces.

    Args:
        wanted: What to profile.
        device: Where it runs.
        output: Folder of the traces, which chrome://tracing and ui.perfetto.dev open.
        console: Where the tables go.
        table: Where the tables go as JSON, if anywhere.

    Returns:
        The exit status, 0.

    Raises:
        OSError: If a trace cannot be written.
    """
    output.mkdir(parents=True, exist_ok=True)
    roofs, found = roofline.roofs(device), []
    for case in wanted:
        arguments = case.arguments(1)
        cost = cost_of(case.op, arguments)
        least, roof = roofline.least_seconds(cost, ops.precision_of(case), roofs)
        name = slug(f"{case.op} {case.shape} {environment.slug(device)}")
        if device.type == "cuda":
            _by_proton(case, arguments, cost, output / name, device, console)
        profiled = _profile(case, arguments, device)
        path = output / f"{name}.json"
        profiled.export_chrome_trace(str(path))
        about = f"least time by the roof {roof}: {least * 1e3:.3g} ms"
        rows = _draw(case, profiled.key_averages(), about, device, console)
        found.append({"op": case.op, "shape": case.shape, "roof": roof, "least_s": least, "trace": str(path)})
        found[-1] |= {"flops": cost.flops, "bytes": cost.bytes, "operators": rows}
        console.print(f"trace in {path}", highlight=False, soft_wrap=True)
    if table:
        write_json(table, {**environment.describe(device), "profiles": found})
    return 0


def _by_proton(
    case: ops.OpCase, arguments: tuple[Any, ...], cost: Cost, path: Path, device: torch.device, console: Console
) -> None:
    """A profile by Triton's own profiler, which knows the kernels by name and the least work of the call."""
    try:
        from triton import profiler

        case(*arguments)
        session = profiler.start(str(path), hook="triton")
        for _ in range(CALLS):
            with profiler.scope(f"nntk {case.op}", {"flops": cost.flops, "bytes": cost.bytes}):
                case(*arguments)
        torch.cuda.synchronize(device)
        profiler.finalize(session)
    except Exception as wrong:  # It may be missing, or the counters another profiler's: the other profile needs it not.
        console.print(f"no profile by proton: {wrong}", highlight=False, soft_wrap=True)
    else:
        console.print(f"proton-viewer -m time/ms,flop/s {path}.hatchet", highlight=False, soft_wrap=True)


def _profile(case: ops.OpCase, arguments: tuple[Any, ...], device: torch.device) -> profile:
    """Calls after one that is not counted, each a range that external profilers see too."""
    case(*arguments)
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    profiled = profile(activities=activities, record_shapes=True)
    with profiled:
        for _ in range(CALLS):
            if on_gpu:
                torch.cuda.nvtx.range_push(f"nntk {case.op}")
            with record_function(f"nntk {case.op} (the whole call)"):
                case(*arguments)
            if on_gpu:
                torch.cuda.nvtx.range_pop()
        if on_gpu:
            torch.cuda.synchronize(device)
    return profiled


def _draw(
    case: ops.OpCase, averages: Sequence[FunctionEventAvg], about: str, device: torch.device, console: Console
) -> list[Row]:
    kind = "device" if device.type == "cuda" else "cpu"
    spent = {event.key: getattr(event, f"self_{kind}_time_total") * 1e-6 for event in averages}
    counts = {event.key: event.count for event in averages}
    total = sum(spent.values())
    rows: list[Row] = []
    caption = f"{CALLS} calls, {1e3 * total / CALLS:.3g} ms each on the {kind}; {about}."
    with tables.growing(console, f"{case.op} {case.shape}", caption, COLUMNS) as show:
        for name in sorted(spent, key=lambda key: -spent[key])[:_LONGEST]:
            share = spent[name] / total if total else 0.0
            rows.append({"case": name, "self_s": spent[name] / CALLS, "share": share, "calls": counts[name] / CALLS})
            show(rows[-1], "")
    return rows
