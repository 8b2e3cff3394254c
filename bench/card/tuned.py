"""Tuning within what time is left: the table of the card is in the folder of the card, choice by choice."""

import io
import time
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from nntk.bench import tuning
from nntk.bench.card.plan import Context, Rows, Step, Unit
from nntk.bench.measure.environment import package_version
from nntk.bench.results.schema import DRY_RUN
from nntk.bench.tuning import measure, spaces
from nntk.bench.tuning.tasks import Task
from nntk.kernels.target import Target, target_of

_REHEARSED = 3
"""Choices of a dry run."""
_DRY_TARGET = Target("sm_90", 132, "dry-run")


def table_in(folder: Path, device: str) -> Path:
    """Return the path of a device's table in the folder of the card."""
    return folder / "tuned" / f"{device}.json"


def _rehearse(task: Task, target: Target, device: torch.device) -> dict[str, Any]:
    """Return the entry of a choice that was not measured: the rule's own configuration."""
    config = asdict(spaces.rule(task.tunable.name, task.key, target))
    return {
        "key": dict(zip(task.tunable.axes, task.key, strict=True)), "config": config, "rule": config, "speed_up": 1.0,
        "case": DRY_RUN, "measured": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "triton": package_version("triton"), "timings": [], DRY_RUN: True,
    }  # fmt: skip


def _tune(context: Context) -> Rows:
    begin, target = time.monotonic(), target_of(context.device) if context.on_card else _DRY_TARGET
    measure_one = measure.measure if context.on_card else _rehearse
    selected = tuning.select_tasks([], "", context.device)
    if context.is_dry_run:
        selected = selected[:_REHEARSED]
    for number, task in enumerate(selected):
        if number and time.monotonic() - begin > context.remaining:
            yield {"case": "choices left", "value": len(selected) - number}
            return
        outcome: dict[str, Any] = {}

        def measured(task: Task, target: Target, device: torch.device, outcome: dict[str, Any] = outcome) -> Any:
            try:
                entry = measure_one(task, target, device)
            except RuntimeError as error:
                outcome["failure"] = str(error)
                raise
            outcome["speed_up"], outcome["config"] = entry["speed_up"], entry["config"]
            return entry

        tuning.run(
            [task], target, context.device, 1e9, False, table_in(context.folder, target.device),
            Console(file=io.StringIO()), measured,
        )  # fmt: skip
        if outcome:
            yield {"case": task.name, **outcome}
    yield {"case": "choices left", "value": 0}


def step() -> Step:
    """Return the step of tuning."""
    return Step("tune", "the fastest configurations", (Unit("choices", _tune, 20, 2, fills_time=True),))
