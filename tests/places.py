"""Places of every kind where output can go, in temporary folders alone: what they are, and what they must stay."""

import os
import socket
import stat
import threading

REPLACED = ("new", "new in a new folder", "regular", "link", "chain of links", "link to nowhere")
"""Kinds of places that get a new file."""
REFUSED = (
    "folder",
    "socket",
    "block device",
    "read-only folder",
    "read-only file",
    "file for a folder",
    "link into no folder",
    "under a link to no folder",
    "link to itself",
)
"""Kinds of places that no writer accepts."""
PIPE = "pipe"
"""A named pipe, which gets what is written."""

OLD = '{"old": true}'


class Place:
    """Place of one kind.

    Attributes:
        path: What a user names.
        target: Where the text is to be.
        kind: Its kind.
        folder: Folder with all that belongs to it.
    """

    def __init__(self, kind, folder, monkeypatch):
        folder = folder / "place"
        folder.mkdir()
        self.kind, self.folder, self.path, self._reader, self._received = kind, folder, folder / "out.json", None, []
        self.target = self.path
        if kind in ("regular", "read-only file", "block device"):
            self.path.write_text(OLD)
        if kind in ("link", "chain of links", "link to nowhere"):
            self.target = folder / "elsewhere" / "target.json"
            self.target.parent.mkdir()
            step = folder / "step" if kind == "chain of links" else self.path
            step.symlink_to("elsewhere/target.json")
            if kind == "chain of links":
                self.path.symlink_to(step)
            if kind != "link to nowhere":
                self.target.write_text(OLD)
        if kind == "new in a new folder":
            self.path = self.target = folder / "a" / "b" / "out.json"
        if kind == "folder":
            self.path.mkdir()
        if kind == "socket":
            # Its address may be too long for the system where it is absolute.
            before = os.getcwd()
            os.chdir(folder)
            with socket.socket(socket.AF_UNIX) as server:
                server.bind("out.json")
            os.chdir(before)
        if kind == "file for a folder":
            (folder / "file").write_text(OLD)
            self.path = folder / "file" / "out.json"
        if kind == "link into no folder":
            self.path.symlink_to("absent/target.json")
        if kind == "under a link to no folder":
            (folder / "link").symlink_to("absent")
            self.path = folder / "link" / "out.json"
        if kind == "link to itself":
            self.path.symlink_to("out.json")
        if kind == PIPE:
            os.mkfifo(self.path)
        if kind in ("read-only folder", "read-only file"):
            forbid_writing(monkeypatch, folder if kind == "read-only folder" else self.path)
        if kind == "block device":
            pretend(monkeypatch, self.path, stat.S_IFBLK)
        self._before = snapshot(folder)

    def read(self):
        """Let a reader wait at the pipe, so that who opens it for writing goes on."""
        self._reader = threading.Thread(target=lambda: self._received.append(self.path.read_text()), daemon=True)
        self._reader.start()

    def text(self):
        """Text that was written, after checking that nothing else changed: no kind of file, no link, no other file."""
        if self.kind == PIPE:
            self._reader.join(60)
            assert snapshot(self.folder) == self._before
            return self._received[0]
        after, name = snapshot(self.folder), str(self.target.relative_to(self.folder))
        made = {
            name,
            *(str(parent.relative_to(self.folder)) for parent in self.target.parents if self.is_inside(parent)),
        }
        assert {key: value for key, value in after.items() if key not in made} == {
            key: value for key, value in self._before.items() if key not in made
        }
        assert after[name][0] == stat.S_IFREG
        return self.target.read_text()

    def is_inside(self, path):
        """Whether a path is in the folder of this place."""
        return self.folder in path.parents

    def is_unchanged(self):
        """Whether all is as it was."""
        return snapshot(self.folder) == self._before


def snapshot(folder):
    """Kind and content of every file in a folder, by its name; links are not followed."""
    return {str(path.relative_to(folder)): _described(path) for path in sorted(folder.rglob("*"))}


def _described(path):
    kind = stat.S_IFMT(path.lstat().st_mode)
    if kind == stat.S_IFLNK:
        return kind, os.readlink(path)
    return kind, path.read_bytes() if kind == stat.S_IFREG else b""


def forbid_writing(monkeypatch, path):
    """Have the system say that a file or a folder may not be written, also to root, who may write everything."""
    access, forbidden = os.access, os.fspath(path)
    monkeypatch.setattr(
        os, "access", lambda name, mode: not (mode & os.W_OK and os.fspath(name) == forbidden) and access(name, mode)
    )


def pretend(monkeypatch, path, kind):
    """Have the system say that a file is of another kind: no test needs a device."""
    status, pretended = os.stat, os.fspath(path)

    def stat_of(name, *arguments, **options):
        result = status(name, *arguments, **options)
        if isinstance(name, str | os.PathLike) and os.fspath(name) == pretended:
            result = os.stat_result([kind | stat.S_IMODE(result.st_mode), *result[1:]])
        return result

    monkeypatch.setattr(os, "stat", stat_of)
