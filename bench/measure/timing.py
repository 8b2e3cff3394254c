"""Timing: other inputs every time, cold caches, raw samples; on a GPU by its events, and never while it throttles."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from nntk.bench.measure.clocks import State, state

Case = Callable[[int], object]
"""Function to time. It receives the number of the round, and uses other inputs and displacements each time."""

_ATTEMPTS = 3
"""Largest ratio of taken samples to kept samples, where samples of a throttling card are discarded."""


@dataclass(frozen=True)
class Timing:
    """Durations of one case in seconds, one for each round.

    Attributes:
        samples: Durations.
        states: State of the GPU after each sample; empty where it reports none.
        discarded: Number of samples that were discarded, since the GPU throttled.
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
        """Return median, quartiles, every sample and the GPU's states, by the keys of a row of results."""
        low, high = self.quartiles
        row = {"median_s": self.median, "low_s": low, "high_s": high, "samples_s": list(self.samples)}
        if self.states:
            row |= {"sm_mhz": [s.sm_mhz for s in self.states], "celsius": [s.celsius for s in self.states]}
            row["throttled_samples"] = self.discarded
        return row

    def ratio_to(self, other: "Timing") -> float:
        """Return the median over rounds of the speed-up of this case over ``other`` in the same round."""
        return statistics.median(b / a for a, b in zip(self.samples, other.samples, strict=True))


def side_by_side(cases: Mapping[str, Case], rounds: int, device: torch.device) -> dict[str, Timing]:
    """Time the cases in turn after a warm-up of each, so that a drift of the machine's speed affects all of them.

    Args:
        cases: Cases by name.
        rounds: Number of counted rounds, >= 2. A round in which a GPU throttled is repeated, a limited number of
            times.
        device: Device of the cases; CUDA work is waited for.

    Returns:
        The durations by name.
    """
    for case in cases.values():
        case(0)
    kept: dict[str, list[_Sample]] = {name: [] for name in cases}
    discarded = 0
    for number in range(1, _ATTEMPTS * rounds + 1):
        samples = {name: _sample(case, number, device) for name, case in cases.items()}
        remaining = _ATTEMPTS * rounds - number
        if any(sample.throttled for sample in samples.values()) and remaining >= rounds - len(
            next(iter(kept.values()), [])
        ):
            discarded += 1
            continue
        for name, sample in samples.items():
            kept[name].append(sample)
        if number - discarded == rounds:
            break
    return {name: _timing(counted, discarded) for name, counted in kept.items()}


def every_round(call: Callable[[], object]) -> Case:
    """Return a case that makes the same call in every round."""
    return lambda number: call()


def repeat(case: Case, device: torch.device, max_runs: int = 30, duration: float = 2.0, spread: float = 0.02) -> Timing:
    """Time one case until its median is precise enough.

    Args:
        case: The case, which runs once before it is timed.
        device: Device of the case. On a GPU the second-level cache is overwritten before each run.
        max_runs: Largest number of runs.
        duration: Seconds of all runs together, after which timing ends; there are at least five runs.
        spread: Distance of the quartiles relative to the median at which timing ends, from ten runs on.

    Returns:
        The durations.
    """
    case(0)
    kept: list[_Sample] = []
    spent, discarded = 0.0, 0
    for number in range(_ATTEMPTS * max_runs):
        _overwrite_cache(device)
        sample = _sample(case, number, device)
        spent += sample.seconds
        if sample.throttled and _ATTEMPTS * max_runs - number > 5:
            discarded += 1
            continue
        kept.append(sample)
        if len(kept) >= max_runs or (len(kept) >= 5 and spent >= duration) or _settled(kept, spread):
            break
    return _timing(kept, discarded)


def captured(case: Case, count: int, device: torch.device) -> Case | None:
    """Record the work that a case submits to a GPU, so that the time of the host does not count.

    Args:
        case: The case.
        count: Number of different rounds; they are recorded one by one.
        device: A GPU.

    Returns:
        A case that replays the recordings in turn; None if the case waits for the GPU, so that it cannot be recorded.
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
        run: Function to time.
        device: Device of the run. On a GPU the time is that between two events of its stream, around all submitted
            work; on a CPU it is that of the monotonic clock.

    Returns:
        Duration in seconds.
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
