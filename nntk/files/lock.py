"""Lock of a file that is written for long: a second run on the same file is refused, whatever ended the first."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class RunLock:
    """Lock of one run, which one process or several hold; the system releases it when they end, however they end.

    The lock is ``flock`` of a file beside the one that is written. Systems without ``fcntl`` have no lock.

    Args:
        path: The file that is written, whose name with ``.lock`` appended is that of the lock.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock, self._descriptor = path, path.with_name(f"{path.name}.lock"), -1

    def acquire(self, shared: bool = False) -> None:
        """Take the lock, or change it where it is held.

        Args:
            shared: Hold it together with other processes of the same run.

        Raises:
            BlockingIOError: If another run holds it.
        """
        try:
            import fcntl
        except ImportError:
            return  # Windows has none.
        while True:
            if self._descriptor < 0:
                self._lock.parent.mkdir(parents=True, exist_ok=True)
                self._descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(self._descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except OSError as error:
                holder = os.pread(self._descriptor, 200, 0).decode(errors="replace").strip()
                self._close()
                raise BlockingIOError(
                    error.errno,
                    f"path must be written by one run at a time, and {holder or 'another process'} writes it now; wait "
                    "for its end, or write to another path",
                    str(self._path),
                ) from error
            # The holder before may have removed the file between the opening and the lock.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.stat(self._lock), os.fstat(self._descriptor)):
                    break
            self._close()
        if not shared:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def release(self) -> None:
        """Release the lock, and remove its file if no other process holds it."""
        if self._descriptor < 0:
            return
        import fcntl

        with suppress(OSError):
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._lock.unlink(missing_ok=True)
        self._close()

    def _close(self) -> None:
        os.close(self._descriptor)
        self._descriptor = -1


@contextmanager
def locked(path: Path) -> Iterator[RunLock]:
    """Hold the lock of a file while a block writes it.

    Args:
        path: The file.

    Yields:
        The lock.

    Raises:
        BlockingIOError: If another run writes the file.
    """
    lock = RunLock(path)
    lock.acquire()
    try:
        yield lock
    finally:
        lock.release()
