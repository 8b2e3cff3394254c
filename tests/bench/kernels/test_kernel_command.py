"""nntk-bench kernel: the matrix of a model and data in files equals that of the library, or the mistake is named."""

import os
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nntk import LocalNTK, NonlocalNTK
from nntk.bench.cli import app

SOURCE = """
import numpy as np
import torch
from torch import nn

import nntk


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))


def function():
    return lambda p, x: (x @ p["w"]).tanh(), {"w": torch.ones(4, 3)}


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, images, mask):
        return {"scores": self.layer(images * mask), "mask": mask}


def masked():
    torch.manual_seed(0)
    return Masked()


box = nntk.BlackBox(lambda theta, x: x @ theta, np.ones(4))
number = 3


def fails():
    raise RuntimeError("no weights")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Folder with a model and its inputs in three kinds of files, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(SOURCE)
    x = np.random.default_rng(0).normal(size=(11, 4))
    np.save("x.npy", x)
    np.savez("x.npz", images=x, labels=np.arange(11))
    save_file({"images": torch.from_numpy(x).float()}, "x.safetensors")
    return tmp_path


def model():
    """Return the module that the file builds."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2)).eval()


X = torch.from_numpy(np.random.default_rng(0).normal(size=(11, 4)))


@pytest.mark.parametrize(
    "data", [["x.npy"], ["x.npz", "--key", "images"], ["x.safetensors"]], ids=lambda words: words[0]
)
def test_the_matrix_is_that_of_the_library(folder, data, capsys):
    """For every kind of file, in tiles; the plan is printed first."""
    options = ["--samples", "16", "--gamma", "0.05", "--mean", "--parameters", "3.*", "--seed", "7", "--tile", "4"]
    assert app.main(["kernel", "net.py:build", *data, "--output", "k.npy", *options]) == 0
    kernel = NonlocalNTK(model(), samples=16, gamma=0.05, outputs="mean", parameters=["3.*"], seed=7)
    torch.testing.assert_close(torch.from_numpy(np.load("k.npy")), kernel(X.float()), rtol=1e-5, atol=1e-6)
    out = capsys.readouterr().out
    assert "Matrix: 11 x 11" in out and "in 6 tiles of 4 x 4" in out and "by layers" in out


def test_columns_and_the_local_kernel(folder):
    """--columns gives the rectangular kernel, --local the ordinary one."""
    np.save("few.npy", X[:3].numpy())
    assert app.main(["kernel", "net.py:build", "x.npy", "--columns", "few.npy", "--local", "--output", "k.npy"]) == 0
    expected = LocalNTK(model())(X.float(), X[:3].float())
    torch.testing.assert_close(torch.from_numpy(np.load("k.npy")), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["function", "box"])
def test_functions_and_black_boxes_are_models_too(folder, name):
    """A function comes with its tensors; a black box holds them."""
    assert app.main(["kernel", f"net.py:{name}", "x.npy", "--output", "k.npy", "--samples", "8"]) == 0
    matrix = np.load("k.npy")
    assert matrix.shape == (11, 11) and matrix.dtype == (np.float32 if name == "function" else np.float64)
    assert np.array_equal(matrix, matrix.T) and np.linalg.eigvalsh(matrix.astype(float)).min() > -1e-5


@pytest.mark.parametrize("options", [["--samples", "8"], ["--local"]], ids=["nonlocal", "local"])
def test_several_arrays_are_arguments_by_name(folder, options):
    """--key names each of them, and --output-key the output that counts; masks of ones leave the first array alone."""
    np.savez("texts.npz", images=X.numpy(), mask=np.ones((11, 4), dtype=np.int64), short=np.ones((3, 4)))
    words = ["kernel", "net.py:masked", "texts.npz", "--key", "images", "--key", "mask", "--output-key", "scores"]
    assert app.main([*words, "--output", "k.npy", "--tile", "4", *options]) == 0
    torch.manual_seed(0)
    layer = nn.Linear(4, 2)
    kernel = LocalNTK(layer) if options == ["--local"] else NonlocalNTK(layer, samples=8)
    torch.testing.assert_close(torch.from_numpy(np.load("k.npy")), kernel(X.float()), rtol=1e-4, atol=1e-5)


def test_arrays_of_other_lengths_are_named(folder, capsys):
    """The message says which array has how many rows."""
    np.savez("texts.npz", images=X.numpy(), mask=np.ones((3, 4)))
    assert app.main(["kernel", "net.py:masked", "texts.npz", "--key", "images", "--key", "mask", "--plan"]) == 2
    assert "argument DATA: inputs['mask'] has 3 rows, but inputs['images'] has 11" in capsys.readouterr().err


def test_a_plan_computes_nothing(folder, capsys):
    """It needs no output, and writes none."""
    assert app.main(["kernel", "net.py:build", "x.npy", "--plan", "--max-memory", "2MiB"]) == 0
    assert "max_memory=2097152" in capsys.readouterr().out and not list(folder.glob("*.progress"))


def test_after_a_stop_the_same_command_goes_on(folder, monkeypatch, capsys):
    """Ctrl-C leaves the finished tiles and says how many they are; the file is then that of one run."""
    words = ["kernel", "net.py:build", "x.npy", "--samples", "16", "--tile", "4", "--output"]
    assert app.main([*words, "whole.npy"]) == 0
    compute, tiles = NonlocalNTK.__call__, []

    def interrupted(*arguments):
        tiles.append(arguments)
        if len(tiles) == 3:
            raise KeyboardInterrupt
        return compute(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(NonlocalNTK, "__call__", interrupted)
        assert app.main([*words, "k.npy"]) == 130
        assert "k.npy: 2 of 6 tiles are finished; the same command goes on." in capsys.readouterr().out
        assert app.main([*words, "k.npy"]) == 0
    assert len(tiles) == 3 + 4 and np.array_equal(np.load("k.npy"), np.load("whole.npy"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["net.py", "x.npy", "--plan"], "argument MODEL: must be FILE.py:NAME, got 'net.py'"),
        (["other.py:build", "x.npy", "--plan"], "argument MODEL: other.py is not a file"),
        (["net.py:other", "x.npy", "--plan"], "net.py has no 'other'; it has Masked, build, fails, function, masked"),
        (["net.py:number", "x.npy", "--plan"], "net.py:number must give a module, .* got int"),
        (["net.py:fails", "x.npy", "--plan"], "net.py:fails fails: RuntimeError: no weights"),
        (["net.py:build", "x.csv", "--plan"], "argument DATA: must be a file .npy, .npz, .safetensors; got 'x.csv'"),
        (["net.py:build", "y.npy", "--plan"], "argument DATA: y.npy is not a file"),
        (["net.py:build", "x.npz", "--plan"], "x.npz holds images, labels; --key must name one of them"),
        (["net.py:build", "x.npz", "--key", "y", "--plan"], "--key must be one of them, got 'y'"),
        (["net.py:build", "broken.npy", "--plan"], "argument DATA: broken.npy cannot be read"),
        (["net.py:build", "x.npy"], "argument --output: is required, or --plan"),
        (["net.py:build", "x.npy", "--plan", "--output", "k.npy"], "argument --output: must not be given with --plan"),
        (["net.py:build", "x.npy", "--plan", "--local", "--gamma", "1"], "argument --gamma: must not be given with"),
        (["net.py:build", "x.npy", "--plan", "--samples", "0"], "argument --samples: must be at least 1, got 0"),
        (
            ["net.py:build", "x.npy", "--plan", "--parameters", "q"],
            "--parameters: must fit names of .* got 'q'",
        ),
        (["net.py:build", "x.npy", "--plan", "--max-memory", "3x"], "argument --max-memory: must be a number of bytes"),
        (["net.py:build", "wide.npy", "--plan"], r"argument DATA: must have shape \[N, 4\], .* got \(3, 5\)$"),
        (["net.py:build", "x.npy", "--columns", "wide.npy", "--plan"], r"argument --columns: must have shape \[N, 4\]"),
        (["net.py:build", "whole.npy", "--plan"], r"argument DATA: must be torch.float32 .* got torch.int64$"),
        (["net.py:build", "x.npy", "--output", "."], "argument --output: must be a regular file"),
    ],
)
def test_mistakes_are_named_in_one_line(folder, words, message, capsys):
    """Status 2, one line that names the argument, and no file."""
    np.save("wide.npy", np.ones((3, 5)))
    np.save("whole.npy", np.ones((3, 4), dtype=np.int64))
    (folder / "broken.npy").write_bytes(b"\x93NUMPY")
    assert app.main(["kernel", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error and re.search(message, error), error
    assert not os.path.exists("k.npy")


def test_another_kernels_file_is_not_overwritten(folder, capsys):
    """The message says what differs."""
    words = ["kernel", "net.py:build", "x.npy", "--output", "k.npy", "--samples"]
    assert app.main([*words, "8"]) == 0
    assert app.main([*words, "9"]) == 2
    assert "k.npy was begun with another samples" in capsys.readouterr().err
