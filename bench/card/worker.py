"""Worker of a card: measures the units of the plan one after another, and appends each row to the journal at once.

A process of its own, since an illegal access spoils a card's context for good: the command starts another worker, which
goes on with the next unit. It ends with the command, however that ends.
"""

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from nntk.bench.card import checks, experiments, journal, speeds, tuned
from nntk.bench.card.journal import MOST_ATTEMPTS, Content, Journal, Key
from nntk.bench.card.plan import Context, LeftOutError, Step, Unit, die_with_parent, reserved, since

SPOILT = 70
"""Exit status of a worker whose card can no longer be used by it."""


def steps(is_dry_run: bool, only: Sequence[str] = ()) -> tuple[Step, ...]:
    """Return the plan of a card.

    Args:
        is_dry_run: True for the rehearsal.
        only: Names of the steps; empty for all.

    Returns:
        The steps, in the order in which they are made.
    """
    planned = (
        *checks.steps(is_dry_run),
        *speeds.roofs_and_targets(),
        experiments.step(),
        tuned.step(),
        speeds.host(),
        checks.remaining_tests(),
    )
    return tuple(step for step in planned if not only or step.name in only)


STEPS = {step.name: step.about for step in steps(True)}
"""What each step measures, by its name."""


def work(context: Context, only: Sequence[str]) -> int:
    """Measure the units that are not finished, and record each; the status is 0, or ``SPOILT``."""
    planned = steps(context.is_dry_run, only)
    record = Journal.join(context.folder, context.is_dry_run)
    for step in planned:
        for unit in step.units:
            key, content = (step.name, unit.name), journal.read(context.folder)
            why = _reason_to_skip(key, unit, content, context)
            if why is None:
                continue
            left = context.deadline - time.monotonic()
            remaining = left - reserved(planned, key, context.is_dry_run) if unit.fills_time else left
            needed = unit.seconds(context.is_dry_run)
            if why:
                _end(record, key, content, "failed", why)
            elif needed > remaining:
                why = f"left out for time: it needs about {needed:.0f} s, and {max(0.0, remaining):.0f} s are left"
                _end(record, key, content, "left out", why, for_time=True)
            elif not _measure(unit, key, replace(context, journal=content, remaining=remaining), record):
                return SPOILT
    return 0


def _reason_to_skip(key: Key, unit: Unit, content: Content, context: Context) -> str | None:
    """Return None for a unit that is done with, a reason for one that must not be tried again, else nothing."""
    end = content.ends.get(key)
    if content.is_finished(key) or (end and end["attempt"] == content.attempts):
        return None
    if content.broken_attempts(key) >= MOST_ATTEMPTS:
        return f"the process ended during {MOST_ATTEMPTS} attempts at it"
    return ""


def _measure(unit: Unit, key: Key, context: Context, record: Journal) -> bool:
    """Measure one unit; return False if the card can no longer be used by this process."""
    begin, names = time.monotonic(), {"step": key[0], "unit": key[1]}
    record.append("begin", **names, limit_s=unit.limit(context.is_dry_run) + max(0.0, _filled(unit, context)))
    status, why = "finished", ""
    try:
        predicted = context.journal.predictions
        for row in unit.predict(context) if unit.predict else ():
            if (*key, row["case"]) not in predicted:
                record.append("prediction", **names, **row)
        for row in unit.run(context):
            record.append("row", **names, attempt=context.journal.attempts, **row)
    except LeftOutError as error:
        status, why = "left out", str(error)
    except Exception as error:  # Whatever one unit does wrong, the others are measured.
        traceback.print_exc()
        status, why = "failed", f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
    usable = _usable(context.device)
    if not usable:
        why = why or "the card can no longer be used"
        status = "failed"
    _end(record, key, context.journal, status, why, seconds=since(begin))
    return usable


def _filled(unit: Unit, context: Context) -> float:
    return context.remaining if unit.fills_time else 0.0


def _usable(device: torch.device) -> bool:
    """Return False if an illegal access has spoilt this process's context of a card."""
    if device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True


def _end(record: Journal, key: Key, content: Content, status: str, why: str, **entries: object) -> None:
    reason = {"why": why} if why else {}
    record.append("end", step=key[0], unit=key[1], status=status, attempt=content.attempts, **reason, **entries)


def main(arguments: Sequence[str]) -> int:
    """Run a worker, or the calls that a tool of CUDA watches.

    Args:
        arguments: Words of the command line, which the command writes.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--small-calls", metavar="DEVICE")
    parser.add_argument("--evaluate", nargs=2, metavar=("FAMILY", "DEVICE"))
    parser.add_argument("--work", metavar="JSON")
    options = parser.parse_args(arguments)
    die_with_parent()
    if options.small_calls:
        checks.print_small_calls(torch.device(options.small_calls))
        return 0
    if options.evaluate:
        family, device = options.evaluate
        speeds.differences(Context(torch.device(device), Path()), family)(0)
        return 0
    told = json.loads(options.work)
    if os.getppid() != told["parent"]:  # It ended before this process asked to end with it.
        return 1
    context = Context(
        torch.device(told["device"]), Path(told["folder"]), told["seed"], told["is_dry_run"],
        time.monotonic() + told["seconds"],
    )  # fmt: skip
    return work(context, told["only"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
