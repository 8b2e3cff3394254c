"""One JSON a run, rewritten atomically after every row: whatever stops a run, the finished rows are on disk."""

import fcntl
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NoReturn

SCHEMA = 2
"""Version of the layout that results/README.md documents."""

STATUSES = ("running", "complete", "interrupted", "failed")

SETTINGS = (
    "network",
    "directions",
    "propagation",
    "precision",
    "estimator",
    "method",
    "gamma",
    "samples",
    "inputs",
    "outputs",
    "parameters",
    "seed",
    "seeds",
    "training",
    "held_out",
    "ridge",
)
"""What a row may say about *what* was measured; it is part of the row's key. Another list is another SCHEMA."""

FACTS = ("device", "versions", "commit", "uncommitted_changes", "stream_version", "seed")
"""What all figures of a run depend on."""

Row = dict[str, Any]


class ResultsError(ValueError):
    """A file of results that cannot be used: which, where in it, what is there, what may be."""


def key(section: str, row: Mapping[str, Any]) -> str:
    """The name of a row, the same in every run: ``section / case / gamma=0.1, samples=32``."""
    settings = ", ".join(f"{name}={row[name]}" for name in SETTINGS if row.get(name) is not None)
    return " / ".join(part for part in (section, row["case"], settings) if part)


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Where two sets of facts differ.

    Args:
        before: Facts of one run, nested or not.
        after: Those of another.

    Yields:
        A fact's dotted name, and its value in each; None where there is none.
    """
    for name in [*before, *(name for name in after if name not in before)]:
        one, other = before.get(name), after.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from ((f"{name}.{inner}", *values) for inner, *values in differences(one, other))
        elif one != other:
            yield name, one, other


@dataclass(frozen=True)
class Run:
    """A run as its file tells it.

    Attributes:
        path: The file.
        schema: Version of its layout; a run of schema 1 is given the keys and sections it would have today.
        suite: What was run.
        status: One of ``STATUSES``.
        facts: What the figures depend on, by the names in ``FACTS``.
        sections: Sections in order: name, whether finished and, since schema 2, title, caption and columns.
        rows: Finished rows, each with its ``key``.
    """

    path: Path
    schema: int
    suite: str
    status: str
    facts: Mapping[str, Any]
    sections: Sequence[Mapping[str, Any]]
    rows: Sequence[Row]


def read(path: Path) -> Run:
    """Read and check the file of a run.

    Args:
        path: A JSON that ``nntk-bench run`` wrote, by any schema so far.

    Returns:
        The run.

    Raises:
        ResultsError: If it cannot be read, is no such file, or holds what the schema does not allow.
    """
    content = _load(path)
    schema = content.get("schema")
    if schema not in (1, SCHEMA):
        _reject(path, "schema", content, f"1 or {SCHEMA}, the layouts this version knows")
    _check(path, "", content, _RUN if schema == 1 else _RUN | _RUN_2)
    for number, row in enumerate(content["rows"]):
        _check(path, f"rows[{number}].", row, _ROW if schema == 1 else _ROW | _ROW_2)
        if schema == 1:
            row["key"] = key(row["section"], row)
    if schema == 1:
        names = dict.fromkeys(row["section"] for row in content["rows"])
        content["sections"] = [{"name": name, "finished": content["status"] == "complete"} for name in names]
    for number, section in enumerate(content["sections"]):
        _check(path, f"sections[{number}].", section, _SECTION)
    _check_names(path, content)
    facts = {name: content[name] for name in FACTS}
    return Run(path, schema, content["suite"], content["status"], facts, content["sections"], content["rows"])


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_finite, parse_float=_finite)
    except OSError as wrong:
        raise ResultsError(f"{path}: {wrong.strerror}") from None
    except (ValueError, RecursionError) as wrong:
        raise ResultsError(f"{path}: not JSON: {wrong}") from None
    if not isinstance(content, dict):
        raise ResultsError(f"{path}: must hold one object, the record of a run; got {_shown(content)}")
    return content


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not finite")
    return value


_Layout = dict[str, tuple[Callable[[Any], bool], str]]
"""By dotted key: what a value must satisfy, and that in words."""


def _name(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _whole(least: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least


def _durations(value: Any) -> bool:
    return value is _MISSING or (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(one, int | float) and 1e-12 <= one <= 1e9 for one in value)
    )


_MISSING = object()
_NAME = (_name, "text")
_POSITIVE = (_whole(1), "an integer from 1")
_RUN: _Layout = {
    "suite": _NAME,
    "started": _NAME,
    "status": (lambda value: value in STATUSES, f"one of {', '.join(STATUSES)}"),
    "seed": (_whole(0), "an integer from 0"),
    "stream_version": _POSITIVE,
    "device": (lambda value: isinstance(value, dict), "an object"),
    "device.kind": _NAME,
    "device.name": _NAME,
    "device.threads": _POSITIVE,
    "device.processors": _POSITIVE,
    "versions": (lambda value: isinstance(value, dict), "an object of versions by package"),
    "commit": (lambda value: value is None or _name(value), "text or null"),
    "uncommitted_changes": (lambda value: value is None or isinstance(value, bool), "true, false or null"),
    "rows": (lambda value: isinstance(value, list), "a list of rows"),
}
_RUN_2: _Layout = {
    "device.selected": _NAME,
    "resumed": (lambda value: isinstance(value, list), "a list of times"),
    "sections": (lambda value: isinstance(value, list), "a list of sections"),
}
_ROW: _Layout = {
    "section": _NAME,
    "case": _NAME,
    "samples_s": (_durations, "a list of seconds, from 1e-12 to 1e9"),
    "failure": (lambda value: value is _MISSING or _name(value), "text"),
}
_ROW_2: _Layout = {
    "key": _NAME,
    "attempt": _POSITIVE,
    "elapsed_s": (lambda value: isinstance(value, int | float), "seconds"),
}
_SECTION: _Layout = {"name": _NAME, "finished": (lambda value: isinstance(value, bool), "true or false")}


def _check(path: Path, where: str, content: object, layout: _Layout) -> None:
    if not isinstance(content, dict):
        raise ResultsError(f"{path}: {where.rstrip('.')}: must be an object, got {_shown(content)}")
    for name, (allows, allowed) in layout.items():
        if not allows(_value(content, name)):
            _reject(path, where + name, content, allowed)


def _check_names(path: Path, content: Mapping[str, Any]) -> None:
    """Keys are unique, and every row's section is there."""
    sections, keys = {section["name"] for section in content["sections"]}, set()
    for number, row in enumerate(content["rows"]):
        if row["key"] in keys:
            raise ResultsError(f"{path}: rows[{number}].key: must be unique, got {row['key']!r} again")
        keys.add(row["key"])
        if row["section"] not in sections:
            _reject(path, f"rows[{number}].section", row, f"one of {', '.join(sorted(sections))}")


def _value(content: object, name: str) -> Any:
    for part in name.split("."):
        content = content.get(part, _MISSING) if isinstance(content, dict) else _MISSING
    return content


def _reject(path: Path, where: str, content: object, allowed: str) -> NoReturn:
    found = _value(content, where.rpartition("].")[2])
    state = "is missing, must be" if found is _MISSING else f"got {_shown(found)}, must be"
    raise ResultsError(f"{path}: {where}: {state} {allowed}")


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class Record:
    """The results of one run, as they grow; made by ``start`` or ``resume``.

    While the record is open its file is locked, so that no second process writes it.
    """

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path = path
        self._content = content
        self._attempt = len(content["resumed"]) + 1
        self._began = time.monotonic() - max((row["elapsed_s"] for row in self.rows), default=0.0)
        self._lock: int | None = None
        self._write()

    @classmethod
    def start(
        cls, folder: Path, suite: str, facts: Mapping[str, Any], sections: Sequence[Mapping[str, Any]]
    ) -> "Record":
        """Begin a run.

        Args:
            folder: Folder of the device's results; made if missing.
            suite: Name of the suite.
            facts: What the figures depend on, see ``FACTS``.
            sections: What is going to be measured: name, title, caption and columns of each.

        Returns:
            A record without rows, on disk.

        Raises:
            OSError: If the folder cannot be made or written.
        """
        now = datetime.now(timezone.utc)
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "schema": SCHEMA,
            "suite": suite,
            "started": now.isoformat(timespec="seconds"),
            "resumed": [],
            "status": "running",
            **facts,
            "sections": [{**section, "finished": False} for section in sections],
            "rows": [],
        }
        return cls(folder / f"{suite}-{now:%Y%m%d-%H%M%S-%f}.json", content)

    @classmethod
    def resume(cls, path: Path, facts: Mapping[str, Any], sections: Sequence[Mapping[str, Any]]) -> "Record":
        """Go on with a run that was interrupted, killed, or broken by an error.

        Sections that finished are kept. The rows of the others stay until ``add`` replaces them.

        Args:
            path: The file of the run.
            facts: What the figures depend on now.
            sections: The sections of the suite now.

        Returns:
            The record, marked as running.

        Raises:
            ResultsError: If the file cannot be used, another process writes it, nothing is left to do, or the figures
                would not belong together.
            OSError: If the file cannot be written.
        """
        run = read(path)
        if run.schema != SCHEMA:
            raise ResultsError(f"{path}: schema {run.schema} does not say which sections finished; run it anew")
        lock = os.open(path, os.O_RDWR)
        try:
            if not (_locked(lock) and os.path.samestat(os.fstat(lock), path.stat())):
                raise ResultsError(f"{path}: still running: another process writes it")
            run, content = read(path), _load(path)
            if all(section["finished"] for section in run.sections):
                raise ResultsError(f"{path}: nothing to resume: all {len(run.sections)} sections are finished")
            planned = {one["name"]: {**one, "finished": None} for one in run.sections}
            now = {one["name"]: {**one, "finished": None} for one in sections}
            changed = [
                f"{name} was {_shown(before)}, is {_shown(after)}"
                for name, before, after in differences({**run.facts, "sections": planned}, {**facts, "sections": now})
            ]
            if changed:
                raise ResultsError(f"{path}: its figures would not belong together: {'; '.join(changed)}")
            for partial in path.parent.glob(f"{path.stem}.*.tmp"):
                partial.unlink()
            content["resumed"].append(datetime.now(timezone.utc).isoformat(timespec="seconds"))
            content["status"] = "running"
            content.pop("elapsed_s", None)
            return cls(path, content)
        finally:
            os.close(lock)

    @property
    def suite(self) -> str:
        """Name of the suite."""
        return str(self._content["suite"])

    @property
    def rows(self) -> list[Row]:
        """The finished rows."""
        rows: list[Row] = self._content["rows"]
        return rows

    def finished(self, section: str) -> bool:
        """Whether all rows of a section are there."""
        return bool(self._section(section)["finished"])

    def add(self, section: str, row: Row) -> None:
        """Append a finished row to a section, and write; figures that are not finite are written as null.

        Args:
            section: Name of the section.
            row: Its ``case``, what of ``SETTINGS`` sets it apart, and its figures. It replaces the row that an earlier
                attempt at the run left.

        Raises:
            ValueError: If the section has such a row already.
        """
        self._section(section)
        kept = {
            "key": key(section, row),
            "section": section,
            "attempt": self._attempt,
            "elapsed_s": self._elapsed(),
            **{
                name: None if isinstance(value, float) and not math.isfinite(value) else value
                for name, value in row.items()
            },
        }
        place = next((place for place, old in enumerate(self.rows) if old["key"] == kept["key"]), len(self.rows))
        if place < len(self.rows) and self.rows[place]["attempt"] == self._attempt:
            raise ValueError(f"two rows are {kept['key']!r}; another case, or one of SETTINGS, must set them apart")
        self.rows[place : place + 1] = [kept]
        self._write()

    def finish(self, section: str) -> None:
        """Mark a section as finished, and write; rows of it that an earlier attempt left are dropped."""
        if not self.finished(section):
            self.rows[:] = [row for row in self.rows if row["section"] != section or row["attempt"] == self._attempt]
            self._section(section)["finished"] = True
            self._write()

    def close(self, status: str) -> None:
        """Write how the run ended: ``complete``, ``interrupted`` or ``failed``."""
        self._content["status"] = status
        self._content["elapsed_s"] = self._elapsed()
        self._write()
        self._unlock()

    def _section(self, name: str) -> dict[str, Any]:
        section: dict[str, Any] = next(one for one in self._content["sections"] if one["name"] == name)
        return section

    def _elapsed(self) -> float:
        return round(time.monotonic() - self._began, 3)

    def _write(self) -> None:
        """Replace the file by a new one, which is whole, on disk and locked before it has the name."""
        text = json.dumps(self._content, indent=1, allow_nan=False) + "\n"
        partial = self.path.with_suffix(f".{os.getpid()}.tmp")
        lock = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            with open(lock, "w", encoding="utf-8", closefd=False) as file:
                file.write(text)
            os.fsync(lock)
            _locked(lock)
            partial.replace(self.path)
        except BaseException:
            os.close(lock)
            partial.unlink(missing_ok=True)
            raise
        self._unlock()
        self._lock = lock

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _locked(descriptor: int) -> bool:
    """Lock a file until the descriptor is closed; whether no other process has. Not every file system has locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
