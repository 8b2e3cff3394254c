"""One run at a time writes a file."""

import os
import signal
import subprocess
import sys

import pytest
from conftest import inputs, mlp

import nntk
from nntk.files.lock import RunLock

HOLD = """
import os, signal, sys
from pathlib import Path
from nntk.files.lock import RunLock
RunLock(Path(sys.argv[1])).acquire()
print("held", flush=True)
signal.pause()
"""


def test_a_second_run_is_refused_while_the_first_one_lives(tmp_path):
    """The message names the process; after its end, even by SIGKILL, the next run goes on."""
    path, kernel, x = tmp_path / "k.npy", nntk.NonlocalNTK(mlp(3, 8, 1), samples=16), inputs(5, 3)
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(BlockingIOError, match=f"one run at a time, and process {holder.pid} on .* writes it now"):
            nntk.write_kernel(path, kernel, x)
        assert not path.exists()
        os.kill(holder.pid, signal.SIGKILL)
    assert nntk.write_kernel(path, kernel, x).shape == (5, 5)
    assert {file.name for file in tmp_path.iterdir()} == {"k.npy", "k.npy.progress"}


def test_a_shared_lock_keeps_other_runs_out_until_its_last_holder_ends(tmp_path):
    """Several ranks of one run hold it, and the last one removes its file."""
    first, second, other = (RunLock(tmp_path / "k.npy") for _ in range(3))
    first.acquire()
    first.acquire(shared=True)
    second.acquire(shared=True)
    for _ in range(2):
        with pytest.raises(BlockingIOError):
            other.acquire()
        first.release()
    second.release()
    assert not list(tmp_path.iterdir())
    other.acquire()
    other.release()
