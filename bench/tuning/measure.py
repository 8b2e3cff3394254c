"""Measuring one choice: candidates are checked against the rule's own, then timed, the best of them side by side."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import datetime, timezone
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nntk.bench.measure import reference
from nntk.bench.measure.environment import package_version
from nntk.bench.measure.timing import Timing, repeat, side_by_side
from nntk.bench.suites.ops import ROUNDING
from nntk.bench.tuning import spaces
from nntk.bench.tuning.tasks import Task
from nntk.kernels.target import Target

CANDIDATES = 12
"""Configurations that are measured for one choice, beside the rule's own."""
_FINALISTS = 3
_ROUNDS = 15
GAIN = 1.02
"""A configuration takes the rule's place if it is faster by more than this."""


def measure(task: Task, target: Target, device: torch.device, candidates: int = CANDIDATES) -> dict[str, Any]:
    """Measure one choice.

    Args:
        task: What is chosen.
        target: The device, as the rules know it.
        device: Where it is measured.
        candidates: How many configurations at most, beside the rule's own.

    Returns:
        An entry of the device's table, as kernels/tuned/README.md describes it.

    Raises:
        RuntimeError: If the rule's own fails, or the timed call does not ask for the choice.
    """
    own = spaces.rule(task.tunable.name, task.key, target)
    likely = spaces.likely(spaces.candidates(task.tunable.name, task.key, target), own, candidates)
    rotated = [task.case.arguments(number) for number in (1, 2)]
    with _taken(task, own):
        expected = _tensors(task.case(*rotated[0]))
    if not all(bool(tensor.isfinite().all()) for tensor in expected):
        raise RuntimeError(f"{task.name}: the rule's own configuration gives numbers that are not finite")
    first = {config: _first(task, config, rotated, expected, device) for config in dict.fromkeys([own, *likely])}
    if isinstance(first[own], str):
        raise RuntimeError(f"{task.name}: the rule's own configuration fails: {first[own]}")
    timed = {config: timing for config, timing in first.items() if isinstance(timing, Timing)}
    finalists = [own, *sorted((one for one in timed if one != own), key=lambda one: timed[one].median)[:_FINALISTS]]
    rounds = _side_by_side(task, finalists, rotated, device)
    speed_ups = {config: rounds[config].ratio_to(rounds[own]) for config in finalists}
    best = max(finalists, key=lambda config: speed_ups[config])
    chosen = best if speed_ups[best] > GAIN else own
    return {
        "key": dict(zip(task.tunable.axes, task.key, strict=True)),
        "config": asdict(chosen),
        "rule": asdict(own),
        "speed_up": speed_ups[chosen],
        "case": f"{task.case.op} {task.case.shape}",
        "measured": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "triton": package_version("triton"),
        "timings": [_timing_row(task, config, found, rounds.get(config), target) for config, found in first.items()],
    }


@contextmanager
def _taken(task: Task, config: Any) -> Iterator[None]:
    """Force a configuration, and see that it is asked for."""
    with ExitStack() as stack:
        for given in task.given:
            stack.enter_context(given())
        taken = stack.enter_context(task.tunable.forced(task.key, config))
        yield
    if not taken:
        raise RuntimeError(f"{task.name}: no launch of {task.case.op} {task.case.shape} asks for this choice")


def _first(
    task: Task, config: Any, rotated: Sequence[tuple[Any, ...]], expected: Sequence[Tensor], device: torch.device
) -> Timing | str:
    """A first timing, or why there is none: what does not compile, does not fit, or is wrong."""
    try:
        with _taken(task, config):
            made = _tensors(task.case(*rotated[0]))
            error = max(reference.relative_error(one, other) for one, other in zip(made, expected, strict=True))
            if not error <= ROUNDING[task.case.precision]:
                return f"differs from the rule's own by {error:.1e}"
            return repeat(lambda number: task.case(*rotated[number % 2]), device, most=20, duration=0.2)
    except Exception as wrong:
        if "asks for this choice" in str(wrong):
            raise
        return f"{type(wrong).__name__}: {str(wrong).strip().splitlines()[0] if str(wrong).strip() else ''}"


def _side_by_side(
    task: Task, configs: Sequence[Any], rotated: Sequence[tuple[Any, ...]], device: torch.device
) -> dict[Any, Timing]:
    def run(config: Any, number: int) -> None:
        with _taken(task, config):
            task.case(*rotated[number % 2])

    cases = {str(place): partial(run, config) for place, config in enumerate(configs)}
    timings = side_by_side(cases, _ROUNDS, device)
    return {config: timings[str(place)] for place, config in enumerate(configs)}


def _timing_row(task: Task, config: Any, found: Timing | str, rounds: Timing | None, target: Target) -> dict[str, Any]:
    row = {
        "config": asdict(config),
        "predicted_clocks": spaces.predict(task.tunable.name, task.key, config, target),
    }
    if isinstance(found, str):
        return {**row, "failure": found}
    return {**row, "samples_s": list(found.samples), **({"rounds_s": list(rounds.samples)} if rounds else {})}


def _tensors(results: Any) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else list(results)
