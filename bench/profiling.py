"""Where the time of one op goes: PyTorch's profiler over a few calls, beside the least work of a call and its roof."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.autograd.profiler_util import FunctionEventAvg
from torch.profiler import ProfilerActivity, profile, record_function

from nntk.bench import environment, roofline, tables
from nntk.bench.suites import ops
from nntk.bench.tables import Column
from nntk.kernels.dispatch import cost_of

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


def run(wanted: Sequence[ops.OpCase], device: torch.device, output: Path, console: Console) -> int:
    """Profile cases, draw a table each, and write their traces.

    Args:
        wanted: What to profile.
        device: Where it runs.
        output: Folder of the traces, which chrome://tracing and ui.perfetto.dev open.
        console: Where the tables go.

    Returns:
        The exit status, 0.

    Raises:
        OSError: If a trace cannot be written.
    """
    output.mkdir(parents=True, exist_ok=True)
    roofs = roofline.roofs(device)
    for case in wanted:
        arguments = case.arguments(1)
        least, roof = roofline.least_seconds(cost_of(case.op, arguments), ops.precision_of(case), roofs)
        profiled = _profile(case, arguments, device)
        name = "".join(letter if letter.isalnum() else "-" for letter in f"{case.op} {case.shape}").strip("-").lower()
        path = output / f"{name}-{environment.slug(device)}.json"
        profiled.export_chrome_trace(str(path))
        _draw(case, profiled.key_averages(), f"least time by the roof {roof}: {least * 1e3:.3g} ms", device, console)
        console.print(f"trace in {path}", highlight=False, soft_wrap=True)
    return 0


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
) -> None:
    kind = "device" if device.type == "cuda" else "cpu"
    spent = {event.key: getattr(event, f"self_{kind}_time_total") * 1e-6 for event in averages}
    counts = {event.key: event.count for event in averages}
    total = sum(spent.values())
    caption = f"{CALLS} calls, {1e3 * total / CALLS:.3g} ms each on the {kind}; {about}."
    with tables.growing(console, f"{case.op} {case.shape}", caption, COLUMNS) as show:
        for name in sorted(spent, key=lambda key: -spent[key])[:_LONGEST]:
            share = spent[name] / total if total else 0.0
            show({"case": name, "self_s": spent[name] / CALLS, "share": share, "calls": counts[name] / CALLS}, "")
