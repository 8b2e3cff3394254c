"""Kernels of a call, by PyTorch's profiler: how long each took, and for how long the card had nothing to do."""

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

_KERNELS = ("kernel", "gpu_memcpy", "gpu_memset")
"""Categories of a trace that keep a card busy."""


@dataclass(frozen=True)
class Span:
    """One kernel in a trace: its name, its begin and its duration in seconds."""

    name: str
    begin: float
    duration: float


def spans_of(call: Callable[[], object], device: torch.device) -> list[Span]:
    """Profile one call, after one that is not profiled, and return its kernels in order.

    Args:
        call: The call.
        device: Device of the call. On a CPU the operators of PyTorch stand for kernels.

    Returns:
        The kernels; none where the system permits no profiler.
    """
    on_card = device.type == "cuda"
    call()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_card else [])]) as profiled:
        call()
        if on_card:
            torch.cuda.synchronize(device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(path))
        return parsed(json.loads(path.read_text()), _KERNELS if on_card else ("cpu_op",))


def parsed(trace: Mapping[str, Any], categories: Sequence[str] = _KERNELS) -> list[Span]:
    """Return the kernels of a trace in the format of Chrome, whose times are microseconds, in order."""
    found = [
        Span(event["name"], event["ts"] * 1e-6, event["dur"] * 1e-6)
        for event in trace["traceEvents"]
        if event.get("ph") == "X" and event.get("cat") in categories
    ]
    return sorted(found, key=lambda span: span.begin)


def idle_share(spans: Iterable[Span]) -> float:
    """Return the share of the time from the first kernel to the end of the last in which none ran.

    Args:
        spans: Kernels, in order; they may overlap.

    Returns:
        The share, between 0 and 1; 0 without kernels.

    Example:
        >>> idle_share([Span("a", 0.0, 1.0), Span("b", 0.5, 1.0), Span("c", 3.0, 1.0)])
        0.375
    """
    first, last, busy = float("inf"), float("-inf"), 0.0
    for span in spans:
        first, end = min(first, span.begin), span.begin + span.duration
        busy += max(0.0, end - max(last, span.begin))
        last = max(last, end)
    return 1 - busy / (last - first) if last > first else 0.0


def by_launch(spans: Sequence[Span], names: Sequence[str]) -> list[float] | None:
    """Return the time of each launch of a sequence that a call repeats for every chunk of displacements.

    Args:
        spans: Kernels of the call, in order.
        names: Functions of the launches of one chunk, in order. A function that is launched several times in a chunk
            is told apart by its turn.

    Returns:
        Seconds of each launch over all chunks; None if the kernels are not whole repetitions of the sequence.

    Example:
        >>> spans = [Span(name, number, 1.0 + number) for number, name in enumerate(["write", "step", "step"] * 2)]
        >>> by_launch(spans, ["write", "step", "step"])
        [5.0, 7.0, 9.0]
    """
    totals = [0.0] * len(names)
    for name in dict.fromkeys(names):
        places = [index for index, other in enumerate(names) if other == name]
        durations = [span.duration for span in spans if span.name == name]
        if not durations or len(durations) % len(places):
            return None
        for turn, duration in enumerate(durations):
            totals[places[turn % len(places)]] += duration
    return totals
