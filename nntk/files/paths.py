"""Output paths, checked before the work, by one rule for every writer.

* A regular file, or a new path, is replaced as a whole in its own folder.
* A symbolic link stays. The file that it leads to is replaced, or created in a folder that exists.
* A pipe, a terminal, another character device and an open descriptor such as ``/dev/stdout`` are written to, never
  replaced. What needs a real file refuses them.
* A folder, a block device, a socket, and a link into a folder that does not exist are errors.
"""

import os
import re
import stat
from pathlib import Path

STREAMS = (stat.S_IFIFO, stat.S_IFCHR)
"""Kinds that are opened and written to."""
_KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a terminal or another character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFSOCK: "a socket",
}
_LINKS = 40
"""Longest chain of symbolic links, as Linux has it."""


class OutputPathError(OSError):
    """Error of a path that cannot be written; the message names the argument, the path, and what is allowed."""


def file_to_replace(path: str | Path, argument: str = "the output", reason: str = "") -> Path:
    """Check that a path is a regular file that can be replaced, or new; nothing is written.

    Args:
        path: What the user named.
        argument: Name of the argument, for the message.
        reason: Why nothing else is allowed, as a clause that begins with "since".

    Returns:
        The file: the path, or where it leads to if it is a symbolic link.

    Raises:
        OutputPathError: If it is anything else, or its folder cannot be written.
    """
    if found := obstacle(path, streams=False):
        allowed = ", ".join(filter(None, ("a regular file or a new path", reason)))
        raise OutputPathError(f"{argument} must be {allowed}; got {os.fspath(path)!r}, {found}".lstrip())
    return Path(os.path.realpath(path)) if os.path.islink(path) else Path(path)


def folder_to_write(path: str | Path, argument: str = "the output") -> Path:
    """Check that a path is a folder in which files can be written, or that one can be made there; nothing is made.

    Args:
        path: What the user named.
        argument: Name of the argument, for the message.

    Returns:
        The path.

    Raises:
        OutputPathError: If it is anything else.
    """
    if found := _obstacle_in_folder(os.fspath(path)):
        allowed = "a folder that can be written, or a path where one can be made"
        raise OutputPathError(f"{argument} must be {allowed}; got {os.fspath(path)!r}, {found}".lstrip())
    return Path(path)


def obstacle(path: str | Path, streams: bool) -> str:
    """Say why a path cannot be written.

    Args:
        path: What the user named.
        streams: True where a pipe or a terminal will do.

    Returns:
        The reason as a clause, for the end of a message; empty if the path can be written.
    """
    name = os.fspath(path)
    if not streams and descriptor_named(name) is not None:
        return "which is an open stream"
    folder = os.path.dirname(name)
    try:
        kind = kind_of(name)
    except OSError as error:
        return _obstacle_in_folder(folder, "whose folder") or f"which cannot be used: {error.strerror}"
    if os.path.islink(name):
        folder = os.path.dirname(os.path.realpath(name))
        if kind is None and not os.path.isdir(folder):
            return f"which is a link into {folder!r}, a folder that does not exist"
    if kind is None and not os.path.basename(name):
        return "which names no file"
    if kind in STREAMS and streams:
        return "" if os.access(name, os.W_OK) else "which this user may not write"
    if kind not in (None, stat.S_IFREG):
        return f"which is {_KINDS.get(kind, 'no file')}"
    if kind is not None and not os.access(name, os.W_OK):
        return "which is read-only"
    return _obstacle_in_folder(folder, "whose folder")


def _obstacle_in_folder(folder: str, subject: str = "which") -> str:
    """Say why files cannot be written in a folder, which may have to be made; empty if they can."""
    place = folder
    while True:
        try:
            kind = kind_of(place or ".")
        except OSError as error:
            return f"{_named(subject, folder)} cannot be used: {error.strerror}"
        if kind is not None:
            break
        if os.path.islink(place):
            return f"where {place!r} is a link to a folder that does not exist"
        if not place:
            return "where the working folder does not exist"
        place = os.path.dirname(place)
    begin = _named(subject if place == folder else "where", place)
    if kind != stat.S_IFDIR:
        return f"{begin} is {_KINDS.get(kind, 'no folder')}"
    return "" if os.access(place or ".", os.W_OK | os.X_OK) else f"{begin} is read-only"


def _named(subject: str, folder: str) -> str:
    return subject if subject == "which" else f"{subject} {folder or '.'!r}"


def kind_of(path: str) -> int | None:
    """Return the kind of what a path leads to.

    Args:
        path: The path.

    Returns:
        The kind, as ``stat.S_IFMT`` codes it; None if there is nothing.

    Raises:
        OSError: If that cannot be known, for example of a link to itself.
    """
    try:
        return stat.S_IFMT(os.stat(path).st_mode)
    except FileNotFoundError:
        return None


def descriptor_named(path: str) -> int | None:
    """Return the open descriptor of this process that a path such as ``/dev/stdout`` or ``/dev/fd/3`` leads to.

    Args:
        path: The path, or a symbolic link to it.

    Returns:
        The descriptor; None for any other path.
    """
    for _ in range(_LINKS):
        folder, name = os.path.realpath(os.path.dirname(path)), os.path.basename(path)
        is_own = folder == "/dev/fd" or re.fullmatch(rf"/proc/{os.getpid()}(/task/[0-9]+)?/fd", folder)
        if is_own and name.isdecimal():
            return int(name)
        try:
            path = os.path.join(folder, os.readlink(os.path.join(folder, name)))
        except OSError:
            return None
    return None
