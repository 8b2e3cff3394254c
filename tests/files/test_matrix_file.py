"""Kernel matrices in files: written tile by tile, and resumed to the same bits."""

import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import inputs, mlp, relative_error

import nntk

ARGUMENTS = """
import sys; sys.path.insert(0, {folder!r})
import os, signal, torch, nntk
from conftest import inputs, mlp
kernel = nntk.NonlocalNTK(mlp(3, 8, 1), samples=16)
stop = lambda finished, total: os.kill(os.getpid(), signal.SIGKILL) if finished == {number} else None
nntk.write_kernel({path!r}, kernel, inputs(23, 3), tile=5, progress=stop)
"""


def make_kernel(**settings):
    """Build a kernel of the same model, whatever its settings."""
    return nntk.NonlocalNTK(mlp(3, 8, 1), **{"samples": 16, **settings})


@pytest.mark.parametrize("columns", [None, 9])
def test_tiles_make_the_kernel(tmp_path, columns):
    """The matrix in the file is the kernel, symmetric to the last bit or between other inputs; it is not loaded."""
    x, other = inputs(23, 3), None if columns is None else inputs(columns, 3, seed=4)
    counts = []
    matrix = nntk.write_kernel(
        tmp_path / "k.npy", make_kernel(), x, other, tile=5, progress=lambda *pair: counts.append(pair)
    )
    number = 15 if other is None else 10
    assert isinstance(matrix, np.memmap) and counts == [(index + 1, number) for index in range(number)]
    assert relative_error(torch.tensor(np.array(matrix)), make_kernel()(x, other)) < 1e-6
    assert other is not None or np.array_equal(matrix, matrix.T)


@pytest.mark.parametrize("number", [1, 11])
def test_a_killed_call_resumes_to_the_same_bits(tmp_path, number):
    """SIGKILL ends it after some tiles; finished tiles are not computed again."""
    script = ARGUMENTS.format(folder=str(Path(__file__).parents[1]), number=number, path=str(tmp_path / "k.npy"))
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == -signal.SIGKILL
    counts, x = [], inputs(23, 3)
    matrix = nntk.write_kernel(tmp_path / "k.npy", make_kernel(), x, tile=5, progress=lambda *pair: counts.append(pair))
    assert counts[0] == (number + 1, 15) and len(counts) == 15 - number
    whole = nntk.write_kernel(tmp_path / "whole.npy", make_kernel(), x, tile=5)
    assert np.array_equal(matrix, whole)


def test_another_call_is_refused(tmp_path):
    """The file belongs to another kernel, other inputs or tiles, or was not written by write_kernel."""
    x = inputs(8, 3)
    nntk.write_kernel(tmp_path / "k.npy", make_kernel(), x, tile=5)
    for kernel, other, tile, name in (
        (make_kernel(gamma=0.2), x, 5, "gamma"),
        (make_kernel(), inputs(8, 3, seed=9), 5, "inputs"),
        (make_kernel(), x, 4, "tile"),
    ):
        with pytest.raises(nntk.files.storage.MismatchError, match=f"was begun with another {name}"):
            nntk.write_kernel(tmp_path / "k.npy", kernel, other, tile=tile)
    (tmp_path / "mine.npy").write_bytes(b"")
    with pytest.raises(nntk.files.storage.MismatchError, match="no call of write_kernel began it"):
        nntk.write_kernel(tmp_path / "mine.npy", make_kernel(), x)


@pytest.mark.parametrize(
    ("settings", "arguments", "error", "message"),
    [
        ({"outputs": "full"}, {}, ValueError, "outputs must be 'trace' or 'mean' for a matrix, got 'full'"),
        ({}, {"tile": 0}, ValueError, "tile must be at least 1, got 0"),
        ({}, {"tile": 2.5}, TypeError, "tile must be an integer, got 2.5"),
        ({}, {"x1": [[1.0] * 3]}, TypeError, "x1 must be a torch.Tensor, got list"),
        ({}, {"x1": inputs(8, 2)}, ValueError, r"x1 must have shape \[N, 3\].* got \(8, 2\)"),
        ({}, {"x2": torch.full((2, 3), torch.nan)}, ValueError, "x2 must be finite, got 6 NaN"),
        ({}, {"x2": inputs(8, 3).double()}, TypeError, "x2 must be torch.float32 .* got torch.float64"),
    ],
)
def test_arguments_without_a_matrix_leave_no_file(tmp_path, settings, arguments, error, message):
    """The error comes before a file is created."""
    with pytest.raises(error, match=message):
        nntk.write_kernel(tmp_path / "k.npy", make_kernel(**settings), **{"x1": inputs(8, 3), **arguments})
    assert not list(tmp_path.iterdir())


def test_a_path_that_cannot_be_is_an_error(tmp_path):
    """A file stands in the place of a folder."""
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        nntk.write_kernel(tmp_path / "file" / "k.npy", make_kernel(), inputs(8, 3))


def test_a_model_without_outputs_is_an_error(tmp_path):
    """The error is that of a call of the kernel."""
    kernel = nntk.NonlocalNTK(lambda p, x: p["a"], parameters={"a": torch.ones(3)}, samples=4)
    with pytest.raises(TypeError, match="model must return a tensor with a row for each of 1 inputs, got shape"):
        nntk.write_kernel(tmp_path / "rows.npy", kernel, inputs(8, 3))
    kernel = make_kernel()
    with torch.no_grad():
        kernel.model[2].weight.fill_(3e38)
    with pytest.raises(ValueError, match="the kernel, from the model's outputs .* must be finite, got"):
        nntk.write_kernel(tmp_path / "infinite.npy", kernel, inputs(8, 3))


def test_a_matrix_larger_than_the_disk_is_refused(tmp_path, monkeypatch):
    """The error comes before any work: a mapped file would not report a full disk."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=2**10))
    with pytest.raises(OSError, match="a kernel of 2.07 KiB does not fit in 1 KiB of disk"):
        nntk.write_kernel(tmp_path / "k.npy", make_kernel(), inputs(23, 3))
    assert not list(tmp_path.iterdir())
