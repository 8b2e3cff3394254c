"""Tables of tuned configurations, measured choice by choice: each is on disk before the next begins."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from nntk.bench.measure import environment
from nntk.bench.results import tables
from nntk.bench.results.tables import Column
from nntk.bench.tuning import measure, spaces
from nntk.bench.tuning.tasks import Task
from nntk.files.output import Output, json_text, keeping, write_text
from nntk.files.paths import file_to_replace
from nntk.kernels import tuning
from nntk.kernels.target import Target

_PLAN = (
    Column("choice", "case"),
    Column("candidates", "candidates"),
    Column("rule of the architecture", "rule"),
    Column("predicted fastest", "predicted"),
    Column("by", "predicted_speed_up", "times"),
)
_MEASURED = (
    Column("choice", "case"),
    Column("measured", "measured"),
    Column("failed", "failed"),
    Column("fastest", "config"),
    Column("speed-up", "speed_up", "times"),
)

Measure = Callable[[Task, Target, torch.device], dict[str, Any]]


def plan(selected: Sequence[Task], target: Target, output: Output | None, console: Console) -> int:
    """Show what would be measured, by the model alone. No card is needed.

    Args:
        selected: The choices.
        target: The architecture.
        output: Where the plan goes as JSON; None for nowhere.
        console: Console that shows the table.

    Returns:
        The exit status, 0.

    Raises:
        OSError: If the JSON cannot be written.
    """
    title = f"{len(selected)} choices on {target.arch}, {target.processors} multiprocessors"
    caption = "Candidates fit registers and shared memory. Clocks are a model's, which orders them: the card decides."
    rows = []
    with tables.growing(console, title, caption, _PLAN) as show:
        for task in selected:
            rows.append(_planned(task, target))
            show(rows[-1], task.name)
    if output:
        output.write_json({"schema": tuning.SCHEMA, "arch": target.arch, "choices": rows})
    return 0


def _planned(task: Task, target: Target) -> dict[str, Any]:
    name, key = task.tunable.name, task.key
    candidates, default = spaces.candidates(name, key, target), spaces.rule(name, key, target)
    fastest_clocks, default_clocks = (spaces.predict(name, key, config, target) for config in (candidates[0], default))
    return {
        "case": task.name,
        "candidates": len(spaces.likely(candidates, default, measure.CANDIDATES)),
        "rule": spaces.describe(default),
        "predicted": spaces.describe(candidates[0]),
        "predicted_speed_up": default_clocks / fastest_clocks if default_clocks and fastest_clocks else None,
    }


def run(
    selected: Sequence[Task],
    target: Target,
    device: torch.device,
    budget: float,
    again: bool,
    path: Path,
    console: Console,
    measure_one: Measure = measure.measure,
) -> int:
    """Measure choices until all are measured or the budget is spent, and write each to the device's table.

    Args:
        selected: The choices. Those that the table has from these sources and this Triton are left out.
        target: The device, as the rules know it.
        device: The device that measures.
        budget: Seconds. A choice that is being measured when they are over is finished.
        again: True to measure the choices that the table has, too.
        path: Path of the table.
        console: Console that shows the progress.
        measure_one: Function that measures one choice.

    Returns:
        The exit status: 0 when all are measured, 1 when a choice could not be, 3 when the budget was spent before.

    Raises:
        OSError: If the table cannot be written. This is found before anything is measured; where it fails later, the
            message says where the table is kept.
        TableError: If the table is broken.
    """
    path = file_to_replace(path, "argument --output:", "since the table is read and written choice by choice")
    content = {**tuning.read(path), **environment.describe(device)}
    for name in tuning.stale(content):
        dropped = content["kernels"].pop(name)["entries"]
        console.print(f"{name} changed since it was measured: {len(dropped)} entries are dropped.")
    write_text(path, json_text(content))
    remaining = [task for task in selected if again or not _is_measured(content, task)]
    console.print(
        f"{len(selected) - len(remaining)} of {len(selected)} choices were measured before; {budget / 60:.3g} minutes."
    )
    begin, failed, status = time.monotonic(), 0, 0
    with tables.growing(console, f"Tuning {target.device}", f"Written to {path}.", _MEASURED) as show:
        for index, task in enumerate(remaining):
            if time.monotonic() - begin > budget:
                status = 3
                break
            show(None, f"{index + 1} of {len(remaining)}: {task.name}")
            try:
                entry = measure_one(task, target, device)
            except RuntimeError as error:
                failed += 1
                show({"case": task.name, "failure": str(error), "config": str(error)}, "")
                continue
            _keep(content, task, entry)
            with keeping(text := json_text(content), path):
                write_text(path, text)
            tuning.forget()
            show(_row(task, entry), "")
        else:
            index = len(remaining)
    if status:
        console.print(
            f"The budget is spent: {len(remaining) - index} choices are left; the same command continues with them."
        )
    return status or int(failed > 0)


def _is_measured(content: dict[str, Any], task: Task) -> bool:
    """Return True if the table has a choice that the installed Triton measured."""
    entries = content["kernels"].get(task.tunable.name, {}).get("entries", ())
    key, triton = _key(task), environment.package_version("triton")
    return any(entry["key"] == key and entry.get("triton") == triton for entry in entries)


def _key(task: Task) -> dict[str, Any]:
    return dict(zip(task.tunable.axes, task.key, strict=True))


def _keep(content: dict[str, Any], task: Task, entry: dict[str, Any]) -> None:
    kernel = content["kernels"].setdefault(task.tunable.name, {"sources": task.tunable.digest(), "entries": []})
    kernel["entries"] = [*(old for old in kernel["entries"] if old["key"] != entry["key"]), entry]


def _row(task: Task, entry: dict[str, Any]) -> dict[str, Any]:
    failed = sum("failure" in timing for timing in entry["timings"])
    chosen = ", ".join(f"{name} {value}" for name, value in entry["config"].items())
    return {
        "case": task.name,
        "measured": len(entry["timings"]) - failed,
        "failed": failed or None,
        "config": "the rule's own" if entry["config"] == entry["rule"] else chosen,
        "speed_up": entry["speed_up"],
    }
