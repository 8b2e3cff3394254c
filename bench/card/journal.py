"""Journal of a card: JSON lines that are only ever appended, so that nothing finished is lost when a process is killed.

Two processes append: the command, and the worker that measures. A line is one ``write`` to a file that is opened for
appending, and on disk before the next begins. A line that was cut by a crash is the last one, and is dropped. The file
is locked as long as one of the two processes lives.
"""

import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

from nntk.bench.results.schema import DRY_RUN, FACTS, ResultsError, Row, differences
from nntk.files.paths import folder_to_write

SCHEMA = 1
"""Version of the layout that results/README.md documents."""
NAME = "card.jsonl"
"""Name of the journal in its folder."""
KINDS = ("start", "prediction", "begin", "row", "end", "stop")
"""Kinds of lines: start of an attempt with its facts, a prediction, begin of a unit, a row, end of a unit, end of an
attempt."""
MOST_ATTEMPTS = 2
"""Attempts at a unit that all ended without its end, after which it is not tried again: it may stop the machine."""

Key = tuple[str, str]
"""Step and unit."""


@dataclass
class Content:
    """What a journal holds.

    Attributes:
        path: File of the journal.
        facts: Facts that all figures depend on, see ``nntk.bench.results.schema.FACTS``.
        is_dry_run: True if nothing was measured on a card.
        lines: Lines in order.
    """

    path: Path
    facts: dict[str, Any] = field(default_factory=dict)
    is_dry_run: bool = False
    lines: list[dict[str, Any]] = field(default_factory=list)

    @property
    def attempts(self) -> int:
        """Number of attempts so far."""
        return sum(line["kind"] == "start" for line in self.lines)

    @property
    def ends(self) -> dict[Key, dict[str, Any]]:
        """Last end of each unit, by step and unit."""
        return {_key(line): line for line in self.lines if line["kind"] == "end"}

    @property
    def predictions(self) -> dict[tuple[str, str, str], dict[str, Any]]:
        """Predictions by step, unit and case; the first stays, since it was made before anything was measured."""
        found: dict[tuple[str, str, str], dict[str, Any]] = {}
        for line in self.lines:
            if line["kind"] == "prediction":
                found.setdefault((*_key(line), line["case"]), line)
        return found

    def is_finished(self, key: Key) -> bool:
        """Return True for a unit that is not to be measured again: it was finished, or it failed."""
        end = self.ends.get(key)
        return end is not None and end["status"] in ("finished", "failed")

    def broken_attempts(self, key: Key) -> int:
        """Return how many attempts at a unit have no end: something ended the process, or the machine."""
        kinds = [line["kind"] for line in self.lines if line["kind"] in ("begin", "end") and _key(line) == key]
        return sum(kind == "begin" and after != "end" for kind, after in pairwise([*kinds, ""]))

    def rows(self, step: str | None = None) -> list[Row]:
        """Return the rows in order, of one step or of all; a row that was measured again replaces the earlier one."""
        found: dict[tuple[str, str, str], Row] = {}
        for line in self.lines:
            if line["kind"] == "row" and step in (None, line["step"]):
                found[(*_key(line), line["case"])] = line
        return list(found.values())


def _key(line: Mapping[str, Any]) -> Key:
    return line["step"], line["unit"]


def path_in(folder: Path) -> Path:
    """Return the path of the journal in a folder."""
    return folder / NAME


def read(folder: Path) -> Content:
    """Read the journal of a folder; it may be in use.

    Args:
        folder: Folder of the card.

    Returns:
        Its content. A last line that was cut is left out.

    Raises:
        ResultsError: If there is no journal, or it has another layout.
    """
    path = path_in(folder)
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ResultsError(f"{path}: {error.strerror}; nntk-bench card --output {folder} writes it") from None
    content = Content(path)
    for number, line in enumerate(_complete(text), 1):
        content.lines.append(_parsed(path, number, line))
    if not content.lines or content.lines[0]["kind"] != "start":
        raise ResultsError(f"{path}: line 1: must be the start of a run, got {content.lines[:1]}")
    first = content.lines[0]
    if first.get("schema") != SCHEMA:
        raise ResultsError(f"{path}: schema: got {first.get('schema')!r}, must be {SCHEMA}, which this version knows")
    if missing := [name for name in FACTS if name not in first]:
        raise ResultsError(f"{path}: line 1: {missing[0]} is missing")
    content.facts = {name: first[name] for name in FACTS}
    content.is_dry_run = any(DRY_RUN in line for line in content.lines)
    return content


def _complete(text: bytes) -> Sequence[bytes]:
    """Return the lines that end with a newline."""
    return text[: text.rfind(b"\n") + 1].splitlines()


def _parsed(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise ResultsError(f"{path}: line {number}: not JSON: {error}") from None
    if not isinstance(entry, dict) or entry.get("kind") not in KINDS:
        raise ResultsError(f"{path}: line {number}: kind must be one of {', '.join(KINDS)}, got {line[:60]!r}")
    needed = {"prediction": ("step", "unit", "case"), "row": ("step", "unit", "case"), "begin": ("step", "unit"),
              "end": ("step", "unit", "status")}.get(entry["kind"], ())  # fmt: skip
    if absent := [name for name in needed if not isinstance(entry.get(name), str)]:
        raise ResultsError(f"{path}: line {number}: {absent[0]}: must be text, got {entry.get(absent[0])!r}")
    return entry


class Journal:
    """Journal that is written; ``start`` begins or continues it, ``join`` is for the worker."""

    def __init__(self, path: Path, is_dry_run: bool, lock: int | None) -> None:
        self.path = path
        self.is_dry_run = is_dry_run
        self.lock = lock
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    @classmethod
    def start(cls, folder: Path, facts: Mapping[str, Any], is_dry_run: bool) -> "Journal":
        """Begin the journal of a folder, or continue it.

        Args:
            folder: Folder of the card; made if missing.
            facts: Facts that the figures depend on.
            is_dry_run: True to mark every line as that of a rehearsal.

        Returns:
            The journal, with the start of this attempt on disk.

        Raises:
            ResultsError: If another process writes it, or if its figures and new ones would not belong together.
            OutputPathError: If the folder cannot be written.
        """
        folder_to_write(folder, "argument --output:").mkdir(parents=True, exist_ok=True)
        path = path_in(folder)
        lock = os.open(folder / f"{NAME}.lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise ResultsError(f"{path}: still running: another process writes it") from None
        except OSError:
            pass  # The file system has no locks.
        try:
            if path.exists():
                _continue(path, facts, is_dry_run)
            journal = cls(path, is_dry_run, lock)
            now = datetime.now(timezone.utc).isoformat(timespec="seconds")
            journal.append("start", schema=SCHEMA, started=now, **facts)
        except BaseException:
            os.close(lock)
            raise
        return journal

    @classmethod
    def join(cls, folder: Path, is_dry_run: bool) -> "Journal":
        """Append to a journal that another process holds."""
        return cls(path_in(folder), is_dry_run, None)

    def append(self, kind: str, **entries: Any) -> None:
        """Append one line, and return when it is on disk; figures that are not finite become null."""
        line = {"kind": kind, **({DRY_RUN: True} if self.is_dry_run else {}), **_plain(entries)}
        text = (json.dumps(line, allow_nan=False) + "\n").encode()
        written = os.write(self._file, text)
        if written < len(text):  # A full disk: the rest would be a line of its own.
            raise OSError(28, "no space is left on the device", str(self.path))
        os.fsync(self._file)

    def close(self) -> None:
        """Close the file, and free it for other processes."""
        os.close(self._file)
        if self.lock is not None:
            os.close(self.lock)


def _continue(path: Path, facts: Mapping[str, Any], is_dry_run: bool) -> None:
    """Check that new figures belong to those of a journal, and cut what a crash left of its last line."""
    text = path.read_bytes()
    whole = text.rfind(b"\n") + 1
    if whole < len(text):
        os.truncate(path, whole)
    if not whole:
        return
    content = read(path.parent)
    if content.is_dry_run != is_dry_run:
        kinds = ("measurements of a card", "a dry run")
        raise ResultsError(
            f"{path}: holds {kinds[content.is_dry_run]}, and this is {kinds[is_dry_run]}: choose another --output"
        )
    before, now = ({name: side[name] for name in FACTS} for side in (content.facts, facts))
    changed = [f"{name} was {old!r}, is {new!r}" for name, old, new in differences(before, now)]
    if changed:
        raise ResultsError(
            f"{path}: its figures would not belong together: {'; '.join(changed)}; choose another --output"
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def follow(path: Path, offset: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the complete lines of a journal after an offset, each with the offset behind it."""
    with open(path, "rb") as file:
        file.seek(offset)
        for line in _complete(file.read()):
            offset += len(line) + 1
            yield offset, json.loads(line)
