"""Measurement of one choice: candidates are checked against the rule's configuration, then timed, the best in turn."""

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
"""Largest number of configurations that are measured for one choice, beside the rule's."""
_FINALISTS = 3
_ROUNDS = 15
GAIN = 1.02
"""Speed-up from which a configuration replaces the rule's."""


class UnusedChoiceError(RuntimeError):
    """Error of a task whose timed call does not use the choice: it would measure nothing."""


def measure(task: Task, target: Target, device: torch.device, candidates: int = CANDIDATES) -> dict[str, Any]:
    """Measure one choice.

    Args:
        task: The choice and the call in which it is timed.
        target: The device, as the rules know it.
        device: The device that measures.
        candidates: Largest number of configurations, beside the rule's.

    Returns:
        An entry of the device's table, as kernels/tuned/README.md describes it.

    Raises:
        RuntimeError: If the rule's configuration fails, or the timed call does not use the choice.
    """
    default = spaces.rule(task.tunable.name, task.key, target)
    likely = spaces.likely(spaces.candidates(task.tunable.name, task.key, target), default, candidates)
    rotated = [task.case.arguments(seed) for seed in (1, 2)]
    with _in_use(task, default):
        expected = _tensors(task.case(*rotated[0]))
    if not all(bool(tensor.isfinite().all()) for tensor in expected):
        raise RuntimeError(f"{task.name}: the rule's own configuration gives numbers that are not finite")
    outcomes = {
        config: _check_and_time(task, config, rotated, expected, device) for config in dict.fromkeys([default, *likely])
    }
    if isinstance(outcomes[default], str):
        raise RuntimeError(f"{task.name}: the rule's own configuration fails: {outcomes[default]}")
    timings = {config: outcome for config, outcome in outcomes.items() if isinstance(outcome, Timing)}
    fastest = sorted((config for config in timings if config != default), key=lambda config: timings[config].median)
    finalists = [default, *fastest[:_FINALISTS]]
    rounds = _side_by_side(task, finalists, rotated, device)
    speed_ups = {config: rounds[config].ratio_to(rounds[default]) for config in finalists}
    best = max(finalists, key=lambda config: speed_ups[config])
    chosen = best if speed_ups[best] > GAIN else default
    return {
        "key": dict(zip(task.tunable.axes, task.key, strict=True)),
        "config": asdict(chosen),
        "rule": asdict(default),
        "speed_up": speed_ups[chosen],
        "case": f"{task.case.op} {task.case.shape}",
        "measured": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "triton": package_version("triton"),
        "timings": [
            _timing_row(task, config, outcome, rounds.get(config), target) for config, outcome in outcomes.items()
        ],
    }


@contextmanager
def _in_use(task: Task, config: Any) -> Iterator[None]:
    """Force a configuration, and check that the block used it."""
    with ExitStack() as stack:
        for force in task.forced:
            stack.enter_context(force())
        keys = stack.enter_context(task.tunable.forced(task.key, config))
        yield
    if not keys:
        raise UnusedChoiceError(f"{task.name}: no launch of {task.case.op} {task.case.shape} asks for this choice")


def _check_and_time(
    task: Task, config: Any, rotated: Sequence[tuple[Any, ...]], expected: Sequence[Tensor], device: torch.device
) -> Timing | str:
    """Return a first timing, or the reason why there is none: it does not compile, does not fit, or is wrong."""
    try:
        with _in_use(task, config):
            results = _tensors(task.case(*rotated[0]))
            pairs = zip(results, expected, strict=True)
            error = max(reference.relative_error(result, reference_result) for result, reference_result in pairs)
            if not error <= ROUNDING[task.case.precision]:
                return f"differs from the rule's own by {error:.1e}"
            return repeat(lambda number: task.case(*rotated[number % 2]), device, max_runs=20, duration=0.2)
    except UnusedChoiceError:
        raise
    except Exception as failure:
        message = str(failure).strip()
        return f"{type(failure).__name__}: {message.splitlines()[0] if message else ''}"


def _side_by_side(
    task: Task, configs: Sequence[Any], rotated: Sequence[tuple[Any, ...]], device: torch.device
) -> dict[Any, Timing]:
    def run(config: Any, number: int) -> None:
        with _in_use(task, config):
            task.case(*rotated[number % 2])

    cases = {str(index): partial(run, config) for index, config in enumerate(configs)}
    timings = side_by_side(cases, _ROUNDS, device)
    return {config: timings[str(index)] for index, config in enumerate(configs)}


def _timing_row(
    task: Task, config: Any, outcome: Timing | str, rounds: Timing | None, target: Target
) -> dict[str, Any]:
    row = {
        "config": asdict(config),
        "predicted_clocks": spaces.predict(task.tunable.name, task.key, config, target),
    }
    if isinstance(outcome, str):
        return {**row, "failure": outcome}
    return {**row, "samples_s": list(outcome.samples), **({"rounds_s": list(rounds.samples)} if rounds else {})}


def _tensors(results: Any) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else list(results)
