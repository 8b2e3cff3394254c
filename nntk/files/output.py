"""Writing to what a user named: only a file is ever replaced, see ``paths``, and nothing computed is lost."""

import glob
import json
import os
import secrets
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from nntk.files.paths import STREAMS, OutputPathError, descriptor_named, file_to_replace, kind_of, obstacle

STANDARD_OUTPUT = "-"
"""Path that stands for standard output."""
_TOKEN = "[0-9a-f]" * 8
"""Part of the name of a file that replaces another one, as a pattern."""


@contextmanager
def replacing(path: str | Path, argument: str = "the output") -> Iterator[Path]:
    """Replace a regular file, or create one, by a file that the block writes; missing folders are made.

    Args:
        path: The file, or a symbolic link to it.
        argument: Name of the argument, for the message.

    Yields:
        An empty file in the same folder. After the block it is put on disk, gets the mode of the replaced file, its
        owner and group as far as the system permits, and then its name. If the block raises an error, it is removed,
        and the file is as it was.

    Raises:
        OutputPathError: If the path is neither a regular file nor new, or its folder cannot be written.
        OSError: If the file cannot be written, for example on a full disk.
    """
    target = file_to_replace(path, argument)
    target.parent.mkdir(parents=True, exist_ok=True)
    old = target.stat() if target.exists() else None
    partial = target.with_name(f"{_stem(target)}.{secrets.token_hex(4)}.tmp")
    # The new file is never open to more readers than the old one.
    begin = stat.S_IMODE(old.st_mode) & 0o777 | stat.S_IRUSR | stat.S_IWUSR if old else 0o666
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, begin))
    mode = stat.S_IMODE((old or partial.stat()).st_mode)
    try:
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        if old:
            for owner in ((-1, old.st_gid), (old.st_uid, -1)):
                with suppress(PermissionError):
                    os.chown(partial, *owner)
        partial.chmod(mode)  # Libraries that write the file may have made it anew.
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    synchronise_folder(target)


def synchronise_folder(path: Path) -> None:
    """Write the names of the files in a file's folder to disk, where the system can do that for a folder.

    Args:
        path: The file.
    """
    try:
        folder = os.open(path.parent, os.O_RDONLY)
    except OSError:
        return  # Windows opens no folders.
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def remove_partial_files(path: Path) -> None:
    """Remove what a process that was killed while it replaced a file left beside it.

    Args:
        path: The file, which no process writes now.
    """
    for partial in path.parent.glob(f"{glob.escape(_stem(path))}.{_TOKEN}.tmp"):
        partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Replace a file by a text, see ``replacing``."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def json_text(content: Mapping[str, Any]) -> str:
    """Return content as JSON; numbers that are not finite are an error, since JSON does not have them."""
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


@contextmanager
def keeping(text: str, path: str | Path) -> Iterator[None]:
    """Write a text that took long to compute: if the block cannot, the text is kept in another place.

    Args:
        text: The text that the block writes.
        path: Where the block writes it, for the message.

    Yields:
        Nothing.

    Raises:
        OutputPathError: If the block raises an ``OSError``; the message says where the text is.
        BrokenPipeError: If the reader of a pipe has closed it, who wants no text.
        KeyboardInterrupt: If the block is interrupted, for example while it waits for the reader of a pipe.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise OutputPathError(f"{os.fspath(path)!r} could not be written ({reason}); {_keep(text)}") from error
    except KeyboardInterrupt:
        print(f"{os.fspath(path)!r} was not written; {_keep(text)}", file=sys.stderr)
        raise


@dataclass(frozen=True)
class Output:
    """Place for one text that a user named: a file, a pipe, a terminal, or standard output.

    Attributes:
        path: The path as it was named; ``STANDARD_OUTPUT`` is standard output.
        descriptor: Open descriptor of this process that the path names; None if the path is to be opened.
        stream: Standard output where it is no descriptor, as in a notebook; else None.
        is_standard: True for standard output, where nothing else may be printed.
    """

    path: str
    descriptor: int | None = None
    stream: TextIO | None = None
    is_standard: bool = False

    @classmethod
    def at(cls, path: str | Path, argument: str = "the output") -> "Output":
        """Check a path before the work; nothing is opened or written.

        Args:
            path: What the user named.
            argument: Name of the argument, for the message.

        Returns:
            The output. A path that leads to what standard output is already open for is standard output.

        Raises:
            OutputPathError: If nothing can be written there.
        """
        name = os.fspath(path)
        standard = None if sys.stdout is None else _descriptor_of(sys.stdout)
        if name == STANDARD_OUTPUT:
            if sys.stdout is None:
                raise OutputPathError(f"{argument} must be a path, since standard output is closed; got {name!r}")
            return cls(name, standard, sys.stdout if standard is None else None, is_standard=True)
        descriptor = descriptor_named(name)
        if descriptor is None and standard is not None and _is_open_as(name, standard):
            descriptor = standard
        found = obstacle(name, streams=True) if descriptor is None else _obstacle_of(descriptor)
        if found:
            allowed = f"a file, a new path, a pipe, a terminal, or {STANDARD_OUTPUT} for standard output"
            raise OutputPathError(f"{argument} must be {allowed}; got {name!r}, {found}".lstrip())
        return cls(name, descriptor, is_standard=descriptor is not None and descriptor == standard)

    def write(self, text: str) -> None:
        """Write the text, after the work.

        Args:
            text: The whole text; a file is replaced by it.

        Raises:
            BrokenPipeError: If the reader of the pipe has closed it.
            OutputPathError: If the text cannot be written; the message says where it is kept.
        """
        with keeping(text, self.path):
            if self.stream is not None:
                self.stream.write(text)
                self.stream.flush()
            elif self.descriptor is not None:
                _write_all(self.descriptor, text)
            elif kind_of(self.path) in STREAMS:
                # The reader of a pipe may come later. The flags neither create nor cut what has the name by then.
                descriptor = os.open(self.path, os.O_WRONLY | os.O_NOCTTY)
                try:
                    _write_all(descriptor, text)
                finally:
                    os.close(descriptor)
            else:
                write_text(self.path, text)

    def write_json(self, content: Mapping[str, Any]) -> None:
        """Write content as JSON, see ``write``."""
        self.write(json_text(content))


def _descriptor_of(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError):
        return None


def _is_open_as(path: str, descriptor: int) -> bool:
    """Return True if a file or a pipe is what a descriptor is open for; a terminal may be opened once more."""
    try:
        there = os.stat(path)
        return not stat.S_ISCHR(there.st_mode) and os.path.samestat(there, os.fstat(descriptor))
    except OSError:
        return False


def _obstacle_of(descriptor: int) -> str:
    """Say why a descriptor cannot be written; empty if it can. Nothing is written: a pipe would block."""
    import fcntl  # which not every system has

    try:
        is_open_to_writing = fcntl.fcntl(descriptor, fcntl.F_GETFL) & (os.O_WRONLY | os.O_RDWR)
    except OSError as error:
        return f"which cannot be used: {error.strerror}"
    return "" if is_open_to_writing else "which is open for reading only"


def _write_all(descriptor: int, text: str) -> None:
    remaining = memoryview(text.encode())
    while remaining:
        remaining = remaining[os.write(descriptor, remaining) :]


def _stem(path: Path) -> str:
    """Return the beginning of a file's name, short enough for a longer name."""
    return os.fsdecode(os.fsencode(path.name)[:200])


def _keep(text: str) -> str:
    """Keep a text in the folder for temporary files, else on the error stream; return a clause that says where."""
    try:
        descriptor, path = tempfile.mkstemp(prefix="nntk-", suffix=".json")
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
        except OSError:
            os.unlink(path)
            raise
    except OSError:
        print(text, file=sys.stderr)
        return "what was computed is printed above"
    return f"what was computed is kept in {path}"
