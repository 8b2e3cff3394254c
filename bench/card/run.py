"""The command's side of a card: starts workers, watches their time, shows what they record, and ends with a summary."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from nntk.bench.card import journal, summary
from nntk.bench.card.journal import Journal
from nntk.bench.card.plan import python_environment
from nntk.bench.card.worker import SPOILT
from nntk.bench.measure import environment
from nntk.bench.results.schema import DRY_RUN

GRACE = 20.0
"""Seconds after the minutes are over in which a unit may still end."""
_LOOK = 0.1
"""Seconds between two looks at the journal."""
_MOST_FAILED_STARTS = 2
_LONGEST_START = 180.0
"""Seconds that a worker may take from its start, or from one unit, to the next."""


class CardError(RuntimeError):
    """Error of a card that cannot be measured at all; the message says why."""


class _Watch:
    """What the command knows of its worker: the unit at work, its begin, and how much of the journal it has read."""

    def __init__(self, path: Path, offset: int, attempt: int) -> None:
        self.path, self.offset, self.attempt = path, offset, attempt
        self.unit: dict[str, Any] | None = None
        self.begin = time.monotonic()

    def read(self) -> list[dict[str, Any]]:
        """Return the new lines of the journal."""
        found = list(journal.follow(self.path, self.offset))
        if found:
            self.offset = found[-1][0]
        lines = [line for _, line in found]
        for line in lines:
            if line["kind"] == "begin":
                self.unit, self.begin = line, time.monotonic()
            elif line["kind"] == "end":
                self.unit, self.begin = None, time.monotonic()
        return lines


def run(
    folder: Path, device: torch.device, seed: int, minutes: float, is_dry_run: bool, only: Sequence[str],
    console: Console,
) -> int:  # fmt: skip
    """Measure a card, or go on where an earlier run of the same folder was stopped.

    Args:
        folder: Folder of the card; it gets the journal, the log and the table of ``tune``.
        device: The card; a CPU in a dry run.
        seed: Seed of data, networks and displacements.
        minutes: Minutes that this run may take.
        is_dry_run: True for the rehearsal without a card.
        only: Names of the steps; empty for all.
        console: Console that shows rows, progress and the summary.

    Returns:
        The exit status: 0, 1 if something failed, 130 if it was interrupted.

    Raises:
        ResultsError: If the journal of the folder cannot be continued.
        CardError: If no worker can be started.
        OSError: If the folder cannot be written.
    """
    deadline = time.monotonic() + 60 * minutes
    facts = environment.describe(device)
    facts = {**facts, "device": {**facts["device"], "selected": str(device)}, "seed": seed}
    record = Journal.start(folder, facts, is_dry_run)
    status = "failed"
    try:
        content = journal.read(folder)
        _introduce(content, minutes, console)
        watch = _Watch(record.path, record.path.stat().st_size, content.attempts)
        told = {"folder": str(folder), "device": str(device), "seed": seed, "is_dry_run": is_dry_run,
                "only": list(only), "parent": os.getpid()}  # fmt: skip
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[clock]}"))
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            _supervise(record, watch, told, deadline, 60 * minutes, progress)
        status = "complete"
    except KeyboardInterrupt:
        status = "interrupted"
    finally:
        record.append("stop", status=status)
        record.close()
    content = journal.read(folder)
    for line in summary.lines(content):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if status == "interrupted":
        return 130
    return int(summary.has_failures(content))


def _introduce(content: journal.Content, minutes: float, console: Console) -> None:
    device = content.facts["device"]["name"]
    kind = f"{DRY_RUN}: nothing is measured, on " if content.is_dry_run else ""
    done = sum(end["status"] in ("finished", "failed") for end in content.ends.values())
    again = f", {done} units were finished before" if content.attempts > 1 else ""
    console.print(
        f"{kind}{device}, commit {(content.facts['commit'] or 'unknown')[:10]}, {minutes:g} minutes{again}; "
        f"{content.path}", highlight=False, soft_wrap=True,
    )  # fmt: skip


def _supervise(
    record: Journal, watch: _Watch, told: Mapping[str, Any], deadline: float, budget: float, progress: Progress
) -> None:
    """Start workers until one has gone through the whole plan."""
    bar, failed_starts = progress.add_task("", total=budget, clock=""), 0
    while True:
        process, watch.begin, ended_by = _start(record, told, deadline), time.monotonic(), ""
        try:
            while process.poll() is None:
                _show(watch, progress)
                ended_by = _time_is_over(watch, deadline)
                if ended_by:
                    break
                spent = budget - (deadline - time.monotonic())
                at = "" if watch.unit is None else f"{watch.unit['step']}: {watch.unit['unit']}"
                progress.update(bar, completed=spent, description=at, clock=f"{spent:.0f} of {budget:.0f} s")
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_LOOK)
        except KeyboardInterrupt:
            _end_group(process)
            watch.read()
            if watch.unit is not None:  # Nothing is wrong with it: the next attempt measures it.
                _close_unit(record, watch, "left out", "interrupted")
            raise
        finally:
            _end_group(process)
        _show(watch, progress)
        if watch.unit is None and process.returncode == 0:
            return
        if watch.unit is None and process.returncode != SPOILT:
            failed_starts += 1
            if failed_starts >= _MOST_FAILED_STARTS:
                raise CardError(f"the worker ended with status {process.returncode}; see {_log(record)}")
        if watch.unit is not None:
            over = time.monotonic() > deadline
            status = "left out" if over else "failed"
            _close_unit(record, watch, status, ended_by or _ending(process.returncode), **_for_time(over))
            _show(watch, progress)


def _start(record: Journal, told: Mapping[str, Any], deadline: float) -> "subprocess.Popen[bytes]":
    work = json.dumps({**told, "seconds": deadline - time.monotonic()})
    changes = {}
    if told["is_dry_run"]:
        # The rehearsal sees no card, and keeps no roofs for later runs.
        changes = {"CUDA_VISIBLE_DEVICES": "", "XDG_CACHE_HOME": str(record.path.parent / "cache")}
    descriptors = () if record.lock is None else (record.lock,)
    with open(_log(record), "ab") as log:
        # The lock stays with the worker: should this process be killed, no other command writes beside it.
        return subprocess.Popen(
            [sys.executable, "-m", "nntk.bench.card.worker", "--work", work], stdin=subprocess.DEVNULL, stdout=log,
            stderr=log, env=python_environment() | changes, pass_fds=descriptors, start_new_session=True,
        )  # fmt: skip


def _log(record: Journal) -> Path:
    return record.path.with_suffix(".log")


def _end_group(process: "subprocess.Popen[bytes]") -> None:
    """End a worker and the processes that it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _time_is_over(watch: _Watch, deadline: float) -> str:
    """Return why a worker must be ended, or nothing."""
    now = time.monotonic()
    if watch.unit is not None and now - watch.begin > watch.unit["limit_s"]:
        return f"it took longer than {watch.unit['limit_s']:.0f} s"
    if watch.unit is not None and now > deadline + GRACE:
        return "it was not finished when the minutes were over"
    if watch.unit is None and now - watch.begin > _LONGEST_START:
        return f"no unit began within {_LONGEST_START:.0f} s"
    return ""


def _ending(status: int) -> str:
    if status < 0:
        return f"the process was ended by {signal.Signals(-status).name}"
    return f"the process ended with status {status}"


def _for_time(over: bool) -> dict[str, bool]:
    return {"for_time": True} if over else {}


def _close_unit(record: Journal, watch: _Watch, status: str, why: str, **entries: Any) -> None:
    assert watch.unit is not None, "a unit was begun"
    record.append(
        "end", step=watch.unit["step"], unit=watch.unit["unit"], status=status, attempt=watch.attempt, why=why,
        seconds=round(time.monotonic() - watch.begin, 3), **entries,
    )  # fmt: skip


def _show(watch: _Watch, progress: Progress) -> None:
    for line in watch.read():
        if text := summary.line_of(line):
            progress.console.print(text, highlight=False, markup=False, soft_wrap=True)
