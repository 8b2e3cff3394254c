"""One JSON a run, rewritten atomically after every row: whatever stops a run, the finished rows are on disk."""

import fcntl
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from nntk.bench.results import schema
from nntk.bench.results.schema import FACTS, SCHEMA, ResultsError, Row, differences, key, shown


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
    content = schema.load(path)
    schema.check(path, content)
    facts = {name: content[name] for name in FACTS}
    return Run(
        path, content["schema"], content["suite"], content["status"], facts, content["sections"], content["rows"]
    )


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
            run, content = read(path), schema.load(path)
            if all(section["finished"] for section in run.sections):
                raise ResultsError(f"{path}: nothing to resume: all {len(run.sections)} sections are finished")
            planned = {one["name"]: {**one, "finished": None} for one in run.sections}
            now = {one["name"]: {**one, "finished": None} for one in sections}
            changed = [
                f"{name} was {shown(before)}, is {shown(after)}"
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
