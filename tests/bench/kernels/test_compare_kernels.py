"""``nntk-bench compare-kernels``: the numbers of ``nntk.compare`` for matrices in files, and their picture."""

import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
from conftest import inputs, mlp

import nntk
from nntk.bench.cli import app as cli
from nntk.bench.report import plots


@pytest.fixture
def files(tmp_path):
    """Return the paths of two kernels in files, of float64 and of float32."""
    paths = tmp_path / "a.npy", tmp_path / "b.npy"
    for seed, (path, dtype) in enumerate(zip(paths, (np.float64, np.float32), strict=True)):
        a = inputs(8, 4, torch.float64, seed=seed).numpy()
        np.save(path, (a @ a.T).astype(dtype))
    return paths


def test_it_prints_and_writes_the_comparison(files, tmp_path, capsys):
    """Text, JSON and an SVG with both names, the same bytes each time."""
    words = ["compare-kernels", *map(str, files), "--top", "3"]
    drawn, written = tmp_path / "pair.svg", tmp_path / "pair.json"
    assert cli.main([*words, "--plot", str(drawn), "--json", str(written)]) == 0
    expected = nntk.compare(*(torch.from_numpy(np.load(path)).double() for path in files), top=3)
    assert str(expected) in capsys.readouterr().out
    content = json.loads(written.read_text())
    assert content["alignment"]["value"] == float(expected.alignment.value) and content["errors"] == ["exact"] * 2
    assert content["eigenvalues"][1]["value"] == expected.eigenvalues[1].value.tolist()
    before = drawn.read_bytes()
    assert b"a.npy, effective rank" in before and ElementTree.fromstring(before).tag.endswith("svg")
    assert cli.main([*words, "--plot", str(drawn)]) == 0 and drawn.read_bytes() == before


def test_the_picture_has_the_errors_of_estimates():
    """Of kernels that are drawn, in both panels; those of rank below the number of eigenvalues have a picture too."""
    model, x = mlp(4, 8, 1), inputs(6, 4)
    estimate = nntk.NonlocalNTK(model, samples=64).estimate(x, rtol=1e-6, max_samples=64)
    plot = plots.comparison_plot(nntk.compare(estimate, torch.ones(6, 6), top=2), ("nonlocal", "constant"))
    assert "±" in plot.svg and "constant, effective rank 1" in plot.svg and "two standard errors" in plot.caption


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.eye(3)[:2], "argument A: must have shape [N, N], got (2, 3)"),
        (np.array(["a"]), "must hold one matrix of real numbers"),
        (np.eye(3) * 1j, "must hold one matrix of real numbers"),
        (np.eye(2), "argument B: must have shape (2, 2) like A, got (8, 8)"),
    ],
)
def test_files_that_cannot_be_compared_are_one_line(content, message, files, tmp_path, capsys):
    """On standard error, with status 2, and nothing is written."""
    np.save(files[0], content)
    drawn = tmp_path / "pair.svg"
    assert cli.main(["compare-kernels", *map(str, files), "--top", "2", "--plot", str(drawn)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not drawn.exists()


def test_a_file_that_is_no_matrix_is_named(files, tmp_path, capsys):
    """One that does not exist, is empty, or is of another format."""
    (tmp_path / "text.npy").write_text("K")
    (tmp_path / "empty.npy").touch()
    for name in ("missing.npy", "text.npy", "empty.npy"):
        assert cli.main(["compare-kernels", str(tmp_path / name), str(files[1])]) == 2
        assert name in capsys.readouterr().err
