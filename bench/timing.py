"""Timing side by side: every case once a round, so that a drift of the machine's speed meets them all."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

Case = Callable[[int], object]
"""Something to time. It is given the number of the round, to work on other inputs and displacements each time."""


@dataclass(frozen=True)
class Timing:
    """Durations of one case, in seconds, a round each."""

    samples: tuple[float, ...]

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
        """Median, quartiles and every sample, by the names that a row of results has for them."""
        low, high = self.quartiles
        return {"median_s": self.median, "low_s": low, "high_s": high, "samples_s": list(self.samples)}

    def ratio_to(self, other: "Timing") -> float:
        """Median over rounds of how many times faster this is than ``other`` in the same round."""
        return statistics.median(theirs / ours for ours, theirs in zip(self.samples, other.samples, strict=True))


def side_by_side(cases: Mapping[str, Case], rounds: int, device: torch.device) -> dict[str, Timing]:
    """Time the cases in turn, after a warm-up of each.

    Args:
        cases: What to time, by name.
        rounds: Number of counted rounds, >= 2.
        device: Where the cases run; CUDA work is waited for.

    Returns:
        The durations by name.
    """
    for case in cases.values():
        case(0)
    samples: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(1, rounds + 1):
        for name, case in cases.items():
            samples[name].append(seconds(partial(case, number), device))
    return {name: Timing(tuple(durations)) for name, durations in samples.items()}


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
    samples: list[float] = []
    while len(samples) < most and (len(samples) < 5 or sum(samples) < duration):
        _overwrite_cache(device)
        samples.append(seconds(partial(case, len(samples)), device))
        if len(samples) >= 10:
            low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
            if high - low <= spread * middle:
                break
    return Timing(tuple(samples))


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
