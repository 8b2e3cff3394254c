"""Timing: fresh inputs every time, cold caches, raw samples; on a GPU by its events, and never while it throttles."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from nntk.bench.measure.clocks import State, state

Case = Callable[[int], object]
"""Something to time. It is given the number of the round, to work on other inputs and displacements each time."""

_PATIENCE = 3
"""Times as many samples are taken, at most, as are wanted, where a throttling card makes some worthless."""


@dataclass(frozen=True)
class Timing:
    """Durations of one case, in seconds, a round each.

    Attributes:
        samples: The durations.
        states: What the GPU told of itself after each; empty where it tells nothing.
        discarded: Samples that were taken while it throttled, and left out.
    """

    samples: tuple[float, ...]
    states: tuple[State, ...] = ()
    discarded: int = 0

    @property
    def median(self) -> float:
        """Median duration."""
        return statistics.median(self.samples)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile."""
        low, _, high = statistics.quantiles(self.samples, n=4, method="inclusive")
        return low, high

    def row(self) -> dict[str, Any]:
        """Median, quartiles, every sample and the GPU's states, by the names that a row of results has for them."""
        low, high = self.quartiles
        row = {"median_s": self.median, "low_s": low, "high_s": high, "samples_s": list(self.samples)}
        if self.states:
            row |= {"sm_mhz": [one.sm_mhz for one in self.states], "celsius": [one.celsius for one in self.states]}
            row["throttled_samples"] = self.discarded
        return row

    def ratio_to(self, other: "Timing") -> float:
        """Median over rounds of how many times faster this is than ``other`` in the same round."""
        return statistics.median(theirs / ours for ours, theirs in zip(self.samples, other.samples, strict=True))


def side_by_side(cases: Mapping[str, Case], rounds: int, device: torch.device) -> dict[str, Timing]:
    """Time the cases in turn, so that a drift of the machine's speed meets them all, after a warm-up of each.

    Args:
        cases: What to time, by name.
        rounds: Number of counted rounds, >= 2. One in which a GPU throttled is taken again, for as long as that is of
            use.
        device: Where the cases run; CUDA work is waited for.

    Returns:
        The durations by name.
    """
    for case in cases.values():
        case(0)
    kept: dict[str, list[_Sample]] = {name: [] for name in cases}
    discarded = 0
    for number in range(1, _PATIENCE * rounds + 1):
        one = {name: _sample(case, number, device) for name, case in cases.items()}
        left = _PATIENCE * rounds - number
        if any(sample.throttled for sample in one.values()) and left >= rounds - len(next(iter(kept.values()), [])):
            discarded += 1
            continue
        for name, sample in one.items():
            kept[name].append(sample)
        if number - discarded == rounds:
            break
    return {name: _timing(samples, discarded) for name, samples in kept.items()}


def every_round(call: Callable[[], object]) -> Case:
    """A case that does the same in every round."""
    return lambda number: call()


def repeat(case: Case, device: torch.device, most: int = 30, duration: float = 2.0, spread: float = 0.02) -> Timing:
    """Time one case until it is known well enough.

    Args:
        case: What to time, after one run that is not counted.
        device: Where it runs. On a GPU what the last run left in the second-level cache is overwritten before each.
        most: Most runs.
        duration: Seconds that the runs may take together; there are five at least.
        spread: Quartiles that lie no further apart than so much of the median end it, from ten runs on.

    Returns:
        The durations.
    """
    case(0)
    kept: list[_Sample] = []
    spent, discarded = 0.0, 0
    for number in range(_PATIENCE * most):
        _overwrite_cache(device)
        sample = _sample(case, number, device)
        spent += sample.seconds
        if sample.throttled and _PATIENCE * most - number > 5:
            discarded += 1
            continue
        kept.append(sample)
        if len(kept) >= most or (len(kept) >= 5 and spent >= duration) or _settled(kept, spread):
            break
    return _timing(kept, discarded)


def captured(case: Case, count: int, device: torch.device) -> Case | None:
    """Record what a case submits to a GPU, so that the host has no part in its time.

    Args:
        case: What to time.
        count: How many rounds differ; they are recorded one by one.
        device: A GPU.

    Returns:
        A case that replays the recordings in turn; None where it cannot be recorded, since the host waits in it.
    """
    graphs = []
    try:
        with torch.cuda.device(device):
            for number in range(count):
                graphs.append(torch.cuda.CUDAGraph())
                with torch.cuda.graph(graphs[-1]):
                    case(number)
    except RuntimeError:
        return None
    return lambda number: graphs[number % count].replay()


@dataclass(frozen=True)
class _Sample:
    seconds: float
    state: State | None

    @property
    def throttled(self) -> bool:
        return self.state is not None and self.state.throttled


def _sample(case: Case, number: int, device: torch.device) -> _Sample:
    duration = seconds(partial(case, number), device)
    return _Sample(duration, state(device))


def _timing(kept: Sequence[_Sample], discarded: int) -> Timing:
    states = tuple(sample.state for sample in kept if sample.state is not None)
    return Timing(tuple(sample.seconds for sample in kept), states, discarded)


def _settled(kept: Sequence[_Sample], spread: float) -> bool:
    if len(kept) < 10:
        return False
    low, middle, high = statistics.quantiles([sample.seconds for sample in kept], n=4, method="inclusive")
    return high - low <= spread * middle


def _overwrite_cache(device: torch.device) -> None:
    if device.type == "cuda":
        size = torch.cuda.get_device_properties(device).L2_cache_size
        torch.empty(2 * size, dtype=torch.uint8, device=device).zero_()


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Time one run.

    Args:
        run: What to time.
        device: Where it works. On a GPU the time is that between two events of its stream, around all that was
            submitted; on a CPU that of the monotonic clock.

    Returns:
        Its duration in seconds.
    """
    if device.type != "cuda":
        begin = time.perf_counter()
        run()
        return time.perf_counter() - begin
    torch.cuda.synchronize(device)
    with torch.cuda.device(device):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        run()
        last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) / 1000
