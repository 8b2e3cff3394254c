"""One JSON a run, rewritten atomically after every row: whatever stops a run, the finished rows are on disk."""

import fcntl
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from nntk.bench.results import schema
from nntk.bench.results.schema import DRY_RUN, FACTS, SCHEMA, ResultsError, Row, differences, key, shown
from nntk.files.output import json_text, keeping, remove_partial_files, replacing
from nntk.files.paths import OutputPathError, file_to_replace, folder_to_write


@dataclass(frozen=True)
class Run:
    """Run as its file describes it.

    Attributes:
        path: File of the run.
        schema: Version of the layout. A run of schema 1 has been given the keys and sections of schema 2.
        suite: Name of the suite.
        status: One of ``schema.STATUSES``.
        facts: Facts that the figures depend on, by the names in ``FACTS``.
        sections: Sections in order: ``name``, ``finished`` and, since schema 2, title, caption and columns.
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
        path: JSON file of ``nntk-bench run``, of schema 1 or 2.

    Returns:
        The run.

    Raises:
        ResultsError: If the file cannot be read, or holds content that the schema does not allow.
    """
    content = schema.load(path)
    schema.check(path, content)
    facts = {name: content[name] for name in FACTS}
    return Run(
        path, content["schema"], content["suite"], content["status"], facts, content["sections"], content["rows"]
    )


RESUMED = "since a run is resumed from the rows in its file"
"""Why a run has a real file, for messages."""


class Record:
    """Results of one run while it measures; made by ``start`` or ``resume``.

    The file is locked while the record is open, so that no second process writes it.
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
            facts: Facts that the figures depend on, see ``FACTS``.
            sections: Sections to measure: name, title, caption and columns of each.

        Returns:
            A record without rows, on disk.

        Raises:
            OSError: If the folder cannot be made or written.
        """
        now = datetime.now(timezone.utc)
        folder_to_write(folder, "the folder of a run")
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
        """Continue a run that was interrupted, killed, or broken by an error.

        Sections that finished are kept. The rows of the others stay until ``add`` replaces them.

        Args:
            path: File of the run, or a symbolic link to it, which stays.
            facts: Present facts that the figures depend on.
            sections: Present sections of the suite.

        Returns:
            The record, marked as running.

        Raises:
            ResultsError: If the file cannot be used, another process writes it, all sections are finished, or the
                facts or the sections have changed.
            OSError: If the file cannot be written.
        """
        path = file_to_replace(path, "the file of a run", RESUMED)
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
            before_sections = {part["name"]: {**part, "finished": None} for part in run.sections}
            present_sections = {part["name"]: {**part, "finished": None} for part in sections}
            changed = [
                f"{name} was {shown(before)}, is {shown(after)}"
                for name, before, after in differences(
                    {**run.facts, "sections": before_sections}, {**facts, "sections": present_sections}
                )
            ]
            if changed:
                raise ResultsError(f"{path}: its figures would not belong together: {'; '.join(changed)}")
            remove_partial_files(path)
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
        """Finished rows."""
        rows: list[Row] = self._content["rows"]
        return rows

    def finished(self, section: str) -> bool:
        """Return True if all rows of a section are measured."""
        return bool(self._section(section)["finished"])

    def add(self, section: str, row: Row) -> None:
        """Append a finished row to a section, and write the file; figures that are not finite are written as null.

        Args:
            section: Name of the section.
            row: ``case``, the settings (see ``schema.SETTINGS``) that distinguish the row, and figures. It replaces the
                row of an earlier attempt at the run.

        Raises:
            ValueError: If the section has such a row already, or the row is one of a rehearsal.
            OutputPathError: If the file cannot be written. The row stays in the record, and ``close`` tries again.
        """
        self._section(section)
        if DRY_RUN in row:
            raise ValueError(
                f"{row['case']!r} is a {DRY_RUN}: nothing was measured, and no file of results may hold it"
            )
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
        index = next((index for index, old in enumerate(self.rows) if old["key"] == kept["key"]), len(self.rows))
        if index < len(self.rows) and self.rows[index]["attempt"] == self._attempt:
            raise ValueError(f"two rows are {kept['key']!r}; another case, or one of SETTINGS, must set them apart")
        self.rows[index : index + 1] = [kept]
        self._write_rows()

    def finish(self, section: str) -> None:
        """Mark a section as finished, drop its rows of earlier attempts, and write the file."""
        if not self.finished(section):
            self.rows[:] = [row for row in self.rows if row["section"] != section or row["attempt"] == self._attempt]
            self._section(section)["finished"] = True
            self._write_rows()

    def close(self, status: str) -> None:
        """Write the end of the run: ``complete``, ``interrupted`` or ``failed``.

        Args:
            status: The end.

        Raises:
            OutputPathError: If the file cannot be written. The message says where the rows are kept, from where the run
                can be resumed.
        """
        self._content["status"] = status
        self._content["elapsed_s"] = self._elapsed()
        try:
            with keeping(json_text(self._content), self.path):
                self._write()
        finally:
            self._unlock()

    def _section(self, name: str) -> dict[str, Any]:
        section: dict[str, Any] = next(part for part in self._content["sections"] if part["name"] == name)
        return section

    def _elapsed(self) -> float:
        return round(time.monotonic() - self._began, 3)

    def _write_rows(self) -> None:
        try:
            self._write()
        except OSError as error:
            raise OutputPathError(f"{str(self.path)!r} could not be written ({error.strerror or error})") from error

    def _write(self) -> None:
        """Replace the file by a new one, which is complete, on disk and locked before it gets the name."""
        lock = None
        try:
            with replacing(self.path) as partial:
                lock = os.open(partial, os.O_WRONLY)
                with open(lock, "w", encoding="utf-8", closefd=False) as file:
                    file.write(json_text(self._content))
                _locked(lock)
        except BaseException:
            if lock is not None:
                os.close(lock)
            raise
        self._unlock()
        self._lock = lock

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _locked(descriptor: int) -> bool:
    """Lock a file until the descriptor is closed; return False if another process holds the lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # The file system has no locks.
        return True
    return True
