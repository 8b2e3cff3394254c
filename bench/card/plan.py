"""Plan of a card: its steps in order, and the units of each, which are measured and repeated by themselves."""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import nntk
from nntk.bench.card.journal import Content, Key
from nntk.bench.results.schema import Row

_LONGEST_REHEARSAL = 600.0


class LeftOutError(Exception):
    """Error of a unit that cannot be measured here; the message says what is missing."""


@dataclass(frozen=True)
class Context:
    """What a unit knows while it is measured.

    Attributes:
        device: Device that is measured; a CPU in a dry run.
        folder: Folder of the card.
        seed: Seed of data, networks and displacements.
        is_dry_run: True for a rehearsal without a card, at small sizes.
        deadline: Time (``time.monotonic``) at which the minutes are over.
        journal: What was recorded before the unit.
        remaining: Seconds that the unit may take, where it can use any number of them.
    """

    device: torch.device
    folder: Path
    seed: int = 0
    is_dry_run: bool = False
    deadline: float = float("inf")
    journal: Content = field(default_factory=lambda: Content(Path()))
    remaining: float = float("inf")

    @property
    def on_card(self) -> bool:
        """True if the device is a card."""
        return self.device.type == "cuda"


Rows = Iterator[Row]
"""Rows as they are measured; each has its ``case``."""
Predict = Callable[[Context], Sequence[Row]]
"""Function that returns what is expected: rows with ``case``, ``predicted`` and ``because``."""


@dataclass(frozen=True)
class Unit:
    """What is measured together, and repeated as a whole if it was interrupted.

    Attributes:
        name: Name, unique in its step.
        run: Function that measures.
        estimate: Seconds that it is expected to take on a card.
        rehearsal: The same in a dry run on two cores.
        predict: Function that states what is expected before anything is measured, and raises ``LeftOutError`` where
            the unit is not possible; None where nothing is expected.
        fills_time: True for a unit that uses all the time that later units leave.
    """

    name: str
    run: Callable[[Context], Rows]
    estimate: float
    rehearsal: float = 1.0
    predict: Predict | None = None
    fills_time: bool = False

    def seconds(self, is_dry_run: bool) -> float:
        """Return the seconds that the unit is expected to take."""
        return self.rehearsal if is_dry_run else self.estimate

    def limit(self, is_dry_run: bool) -> float:
        """Return the seconds after which the unit is ended: something hangs. A rehearsal's machine may be busy."""
        return _LONGEST_REHEARSAL if is_dry_run else 3 * self.estimate + 30


@dataclass(frozen=True)
class Step:
    """Step of the plan.

    Attributes:
        name: Name of the step.
        about: What it measures, in one line.
        units: Its units, in order.
        is_optional: True if units that fill the time leave none for this step.
    """

    name: str
    about: str
    units: tuple[Unit, ...]
    is_optional: bool = False


def reserved(steps: Sequence[Step], after: Key, is_dry_run: bool) -> float:
    """Return the seconds that units behind one are expected to take, those of optional steps excluded.

    Args:
        steps: The plan.
        after: Step and unit.
        is_dry_run: True for the seconds of a rehearsal.

    Returns:
        The seconds.
    """
    keys = [(step.name, unit.name) for step in steps for unit in step.units]
    units = [(step, unit) for step in steps for unit in step.units]
    later = units[keys.index(after) + 1 :]
    return sum(unit.seconds(is_dry_run) for step, unit in later if not step.is_optional)


def die_with_parent() -> None:
    """Let this process end when its parent does, however that ends. Linux only; elsewhere nothing is done."""
    try:
        import ctypes

        ctypes.CDLL(None).prctl(1, 9)
    except (OSError, AttributeError):
        return


def bound(command: Sequence[str]) -> list[str]:
    """Return a command that ends with this process, however that ends, where the system has ``setpriv``."""
    tool = shutil.which("setpriv")
    return [tool, "--pdeathsig", "KILL", "--", *command] if tool else list(command)


def python_environment() -> dict[str, str]:
    """Return the environment of a Python process that imports the same ``nntk`` from any folder."""
    root = str(Path(nntk.__file__).resolve().parents[1])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "PYTHONUNBUFFERED": "1"}


def since(begin: float) -> float:
    """Return the seconds since a time of ``time.monotonic``."""
    return round(time.monotonic() - begin, 3)


def left_out(case: str, why: str) -> dict[str, Any]:
    """Return the row of something that was not measured, and why."""
    return {"case": case, "left_out": why}
