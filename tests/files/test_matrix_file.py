"""Kernel matrices in files: written tile by tile, and resumed to the same bits."""

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import inputs, mlp, relative_error
from torch import nn

import nntk
from nntk.files.storage import MismatchError

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
        with pytest.raises(MismatchError, match=f"was begun with another {name}"):
            nntk.write_kernel(tmp_path / "k.npy", kernel, other, tile=tile)
    (tmp_path / "mine.npy").write_bytes(b"")
    with pytest.raises(MismatchError, match="no call of write_kernel began it"):
        nntk.write_kernel(tmp_path / "mine.npy", make_kernel(), x)


class Stopped(Exception):
    """Interruption of a call."""


def begin(path, tiles=3, x=None, kernel=None):
    """Begin a matrix of 15 tiles, and stop after some."""

    def stop(finished, total):
        if finished == tiles:
            raise Stopped

    with pytest.raises(Stopped):
        nntk.write_kernel(path, kernel or make_kernel(), inputs(23, 3) if x is None else x, tile=5, progress=stop)
    return path


def write_array(path, array):
    """Replace a matrix by another array."""
    with open(path, "wb") as file:
        np.lib.format.write_array(file, array)


DAMAGE = {
    "cut in half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "cut by a byte": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"0"),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no matrix"),
    "another shape": lambda path: write_array(path, np.zeros((24, 23), "f")),
    "flattened": lambda path: write_array(path, np.zeros(23 * 23, "f")),
    "another dtype": lambda path: write_array(path, np.zeros((23, 23))),
    "integers": lambda path: write_array(path, np.zeros((23, 23), "i4")),
    "another order of bytes": lambda path: write_array(path, np.zeros((23, 23), ">f4")),
    "by columns": lambda path: write_array(path, np.asfortranarray(np.ones((23, 23), "f"))),
    "another matrix": lambda path: write_array(path, np.ones((23, 23), "f")),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("tiles", [3, 15], ids=["begun", "finished"])
def test_a_matrix_that_was_changed_is_refused(tmp_path, damage, tiles):
    """The message names the file and what to do; the file stays as it is."""
    path = begin(tmp_path / "k.npy", tiles)
    damage(path)
    before = path.read_bytes()
    with pytest.raises(
        MismatchError, match=r"k.npy must hold the .* write_kernel .*; remove it and k.npy.progress, or"
    ):
        nntk.write_kernel(path, make_kernel(), inputs(23, 3), tile=5)
    assert path.read_bytes() == before


@pytest.mark.parametrize("place", [(0, 0), (6, 1), (1, 6), (4, 4)])
def test_a_damaged_tile_is_computed_again(tmp_path, place, caplog):
    """One number of one finished tile, or of its mirror image, is wrong."""
    path = begin(tmp_path / "k.npy")
    matrix = np.load(path, mmap_mode="r+")
    matrix[place] += 1e-3
    matrix.flush()
    counts = []
    result = nntk.write_kernel(path, make_kernel(), inputs(23, 3), tile=5, progress=lambda *pair: counts.append(pair))
    assert counts[0] == (3, 15) and counts[-1] == (15, 15)
    assert "1 of 3 finished tiles are damaged and computed again" in caplog.text
    assert np.array_equal(result, nntk.write_kernel(tmp_path / "whole.npy", make_kernel(), inputs(23, 3), tile=5))


@pytest.mark.parametrize(
    "text",
    ["", "{", '{"about"', "{}", "[]", "3", "null", '{"about": 1}', "\ufffd", "[" * 5000, '{"finished": 3}'],
    ids=repr,
)
def test_a_broken_journal_is_refused(tmp_path, text):
    """The message names the journal, what is wrong, and what to do; the files stay as they are."""
    path = begin(tmp_path / "k.npy")
    journal, before = tmp_path / "k.npy.progress", path.read_bytes()
    journal.write_text(text)
    with pytest.raises(MismatchError, match=r"k.npy.progress must be the journal .*; remove it and k.npy, or write"):
        nntk.write_kernel(path, make_kernel(), inputs(23, 3), tile=5)
    journal.write_bytes(b"\xff\xfe")
    with pytest.raises(MismatchError, match=r"k.npy.progress must be the journal .*; remove it and k.npy, or write"):
        nntk.write_kernel(path, make_kernel(), inputs(23, 3), tile=5)
    assert path.read_bytes() == before


@pytest.mark.parametrize("tiles", [None, 3, [], ["0" * 16] * 14, [1] * 15], ids=repr)
def test_a_journal_of_other_tiles_is_refused(tmp_path, tiles):
    """Its list of checksums has another length, or other entries."""
    path, journal = begin(tmp_path / "k.npy"), tmp_path / "k.npy.progress"
    journal.write_text(json.dumps({**json.loads(journal.read_text()), "tiles": tiles}))
    with pytest.raises(MismatchError, match="lists no checksums of 15 tiles; remove it and k.npy"):
        nntk.write_kernel(path, make_kernel(), inputs(23, 3), tile=5)


@pytest.mark.parametrize(("schema", "kind"), [(2, "an earlier"), (99, "another"), (None, "another")])
def test_the_journal_of_another_version_is_refused(tmp_path, schema, kind):
    """An earlier version did not tell models apart."""
    path, journal = begin(tmp_path / "k.npy"), tmp_path / "k.npy.progress"
    about = json.loads(journal.read_text())["about"]
    journal.write_text(json.dumps({"about": {**about, "schema": schema}, "finished": 3}))
    with pytest.raises(MismatchError, match=f"k.npy was written by {kind} version of nntk.* Remove it and k.npy.prog"):
        nntk.write_kernel(path, make_kernel(), inputs(23, 3), tile=5)


def test_another_model_does_not_go_on(tmp_path):
    """Another architecture with the same parameters, other parameters, or another buffer."""
    first = mlp(3, 8, 1)
    path = begin(tmp_path / "k.npy", kernel=nntk.NonlocalNTK(first, samples=16))
    relu, other = nn.Sequential(first[0], nn.ReLU(), first[2]), mlp(3, 8, 1, seed=5)
    for model, name in ((relu, "architecture"), (other, "model")):
        with pytest.raises(MismatchError, match=f"was begun with another {name}; remove it"):
            nntk.write_kernel(path, nntk.NonlocalNTK(model, samples=16), inputs(23, 3), tile=5)


def test_a_crash_between_any_two_writes_loses_no_tile(tmp_path, monkeypatch):
    """Every file operation fails once; the next call goes on to the same bits, and no foreign file is in its way."""
    x, kernel = inputs(11, 3), make_kernel()
    whole = np.array(nntk.write_kernel(tmp_path / "whole.npy", kernel, x, tile=6))
    names, calls = {"fsync": os, "replace": Path, "flush": np.memmap}, []
    originals = {name: getattr(owner, name) for name, owner in names.items()}

    def failing(name, limit):
        def call(*arguments):
            calls.append(name)
            if len(calls) == limit:
                raise Stopped
            return originals[name](*arguments)

        return call

    for limit in itertools.count(1):
        path, finished = tmp_path / f"{limit}.npy", []
        calls.clear()
        with monkeypatch.context() as patch:
            for name, owner in names.items():
                patch.setattr(owner, name, failing(name, limit))
            try:
                nntk.write_kernel(path, kernel, x, tile=6, progress=lambda *pair: finished.append(pair))  # noqa: B023
            except Stopped:
                pass
            else:
                break
        resumed = []
        matrix = nntk.write_kernel(path, kernel, x, tile=6, progress=lambda *pair: resumed.append(pair))  # noqa: B023
        assert np.array_equal(matrix, whole) and len(finished) + len(resumed) <= 3
        assert not list(tmp_path.glob("*.tmp"))
    assert limit > 12


def test_matrices_without_rows_and_tokens_have_files(tmp_path):
    """No tile is computed for no inputs; the matrix of tokens has the dtype of the parameters."""
    for other in (None, inputs(0, 3)):
        path = tmp_path / f"{other is None}.npy"
        for _ in range(2):
            matrix = nntk.write_kernel(path, make_kernel(), inputs(0, 3), other)
            assert matrix.shape == (0, 0)
    model = nn.Sequential(nn.Embedding(5, 2), nn.Flatten(), nn.Linear(6, 1)).double()
    kernel, tokens = nntk.NonlocalNTK(model, samples=4), torch.arange(12).reshape(4, 3) % 5
    matrix = nntk.write_kernel(tmp_path / "tokens.npy", kernel, tokens, tile=3)
    assert matrix.dtype == np.float64 and relative_error(torch.tensor(np.array(matrix)), kernel(tokens)) < 1e-12


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
    with pytest.raises(TypeError, match="model must return a tensor with a row for each of 4 inputs, got shape"):
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
