"""Profiles of one op by PyTorch's profiler and Triton's, beside the least work of a call and its roof."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.autograd.profiler_util import FunctionEventAvg
from torch.profiler import ProfilerActivity, profile, record_function

from nntk.bench.measure import environment, roofline
from nntk.bench.results import tables
from nntk.bench.results.schema import Row
from nntk.bench.results.tables import Column
from nntk.bench.suites import ops
from nntk.files.output import Output, replacing
from nntk.files.paths import file_to_replace
from nntk.kernels.cost import Cost
from nntk.kernels.dispatch import cost_of
from nntk.kernels.target import slug

CALLS = 5
"""Number of profiled calls."""
_TABLE_ROWS = 12
"""Number of operators that the table shows."""

COLUMNS = (
    Column("operator", "case"),
    Column("self time", "self_s", "seconds"),
    Column("of all", "share", "percent"),
    Column("a call", "calls", ".3g"),
)


def cases(op: str, shape: str, device: torch.device) -> list[ops.OpCase]:
    """Return the cases of one op in the suite ops.

    Args:
        op: Name of the op.
        shape: Text that the shape must contain; empty for any.
        device: Device of the op.

    Returns:
        The cases, in the suite's order.

    Raises:
        ValueError: If there is no such op or shape; the message lists the known ones.
    """
    suite = ops.cases(device)
    op_cases = [case for case in suite if case.op == op]
    if not op_cases:
        raise ValueError(f"OP must be one of {', '.join(sorted({case.op for case in suite}))}; got {op!r}")
    selected = [case for case in op_cases if shape in case.shape]
    if not selected:
        raise ValueError(f"--shape must be part of one of {'; '.join(case.shape for case in op_cases)}; got {shape!r}")
    return selected


def run(
    selected: Sequence[ops.OpCase], device: torch.device, output: Path, console: Console, table: Output | None = None
) -> int:
    """Profile cases, draw a table for each, and write their traces.

    Args:
        selected: Cases to profile.
        device: Device of the cases.
        output: Folder of the traces, which chrome://tracing and ui.perfetto.dev open.
        console: Console that shows the tables.
        table: Where the tables go as JSON; None for nowhere.

    Returns:
        The exit status, 0.

    Raises:
        OSError: If a file cannot be written. What was profiled so far is in the tables all the same.
    """
    paths = [output / f"{slug(f'{case.op} {case.shape} {environment.slug(device)}')}.json" for case in selected]
    for path in paths:
        file_to_replace(path, "argument --output:")
    roofs = roofline.roofs(device)
    profiles: list[dict[str, Any]] = []
    try:
        for case, path in zip(selected, paths, strict=True):
            arguments = case.arguments(1)
            cost = cost_of(case.op, arguments)
            least, roof = roofline.least_seconds(cost, ops.precision_of(case), roofs)
            if device.type == "cuda":
                _by_proton(case, arguments, cost, path.with_suffix(".hatchet"), device, console)
            profiled = _profile(case, arguments, device)
            about = f"least time by the roof {roof}: {least * 1e3:.3g} ms"
            rows = _draw(case, profiled.key_averages(), about, device, console)
            profiles.append({"op": case.op, "shape": case.shape, "roof": roof, "least_s": least, "trace": str(path)})
            profiles[-1] |= {"flops": cost.flops, "bytes": cost.bytes, "operators": rows}
            with replacing(path) as partial:
                profiled.export_chrome_trace(str(partial))
            console.print(f"trace in {path}", highlight=False, soft_wrap=True)
    finally:
        if table and profiles:
            table.write_json({**environment.describe(device), "profiles": profiles})
    return 0


def _by_proton(
    case: ops.OpCase, arguments: tuple[Any, ...], cost: Cost, path: Path, device: torch.device, console: Console
) -> None:
    """Write a profile by Triton's profiler, which has the kernels' names and the least work of the call."""
    try:
        from triton import profiler

        case(*arguments)
        with replacing(path) as partial:
            session = profiler.start(str(partial), hook="triton")
            for _ in range(CALLS):
                with profiler.scope(f"nntk {case.op}", {"flops": cost.flops, "bytes": cost.bytes}):
                    case(*arguments)
            torch.cuda.synchronize(device)
            profiler.finalize(session)
            # The profiler appends the ending of its format.
            next(partial.parent.glob(f"{partial.name}.*")).replace(partial)
    except Exception as error:  # Proton may be missing, or another profiler may use the counters.
        console.print(f"no profile by proton: {error}", highlight=False, soft_wrap=True)
    else:
        console.print(f"proton-viewer -m time/ms,flop/s {path}", highlight=False, soft_wrap=True)


def _profile(case: ops.OpCase, arguments: tuple[Any, ...], device: torch.device) -> profile:
    """Profile calls after one warm-up call; each call is a range that external profilers show too."""
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
        for name in sorted(spent, key=lambda key: -spent[key])[:_TABLE_ROWS]:
            share = spent[name] / total if total else 0.0
            rows.append({"case": name, "self_s": spent[name] / CALLS, "share": share, "calls": counts[name] / CALLS})
            show(rows[-1], "")
    return rows
