"""Commands under torchrun: the file of one process, one voice, and one message where a rank fails."""

import os
import subprocess
import sys

import numpy as np
import pytest
from processes import run

from nntk.bench.cli import app
from nntk.bench.report import content, plots
from nntk.bench.results import store

pytestmark = [pytest.mark.distributed, pytest.mark.xdist_group("distributed")]
SOURCE = """
import torch
from torch import nn


def build(width=8):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))


def other():
    return build(9)
"""
WORDS = ["net.py:build", "x.npy", "--samples", "16", "--tile", "4"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Folder with a model, its inputs, and the kernel of one process, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    (tmp_path / "net.py").write_text(SOURCE)
    np.save("x.npy", np.random.default_rng(0).normal(size=(11, 4)))
    assert app.main(["kernel", *WORDS, "--output", "whole.npy"]) == 0
    return tmp_path


def test_ranks_write_the_file_of_one_process_and_rank_0_alone_prints(folder):
    """A second call finds everything finished, and --plan computes nothing."""
    words = [[*WORDS, "--output", "k.npy"], [*WORDS, "--output", "k.npy"], [*WORDS, "--plan"]]
    first, second = (
        rank["kernel_command"]
        for rank in run("commands", ["kernel_command"], 2, folder=str(folder), words_of_ranks=words)
    )
    assert second == [(0, "", "")] * 3 and [(status, errors) for status, _, errors in first] == [(0, "")] * 3, second
    assert "in 6 tiles of 4 x 4, by 2 ranks" in first[0][1] and "k.npy: 11 x 11" in first[0][1]
    assert np.array_equal(np.load("k.npy"), np.load("whole.npy"))


def test_an_error_of_one_rank_ends_all_with_one_message(folder):
    """A missing file, another model, and what has no shared form; afterwards the ranks can go on."""
    output = ["--output", "k.npy"]
    words = [
        [[*WORDS, *output], [WORDS[0], "absent.npy", *WORDS[2:], *output]],
        [[*WORDS, *output], ["net.py:other", *WORDS[1:], *output]],
        ["net.py:build", "x.npy", "--samples", "0", *output],
        [*WORDS, *output],
    ]
    first, second = (
        rank["kernel_command"]
        for rank in run("commands", ["kernel_command"], 2, folder=str(folder), words_of_ranks=words)
    )
    assert [status for status, _, _ in first] == [status for status, _, _ in second] == [2, 2, 2, 0]
    assert [errors for _, _, errors in second] == [""] * 4
    messages = [errors for _, _, errors in first]
    assert all(message.count("\n") == 1 for message in messages[:3]), messages
    assert messages[0].startswith("nntk-bench kernel: error: Rank 1 failed while loading the model and the data:")
    assert "absent.npy is not a file" in messages[0] and "Rank 1 has another" in messages[1]
    assert messages[2].startswith("nntk-bench kernel: error: argument --samples: must be at least 1, got 0")


def test_the_local_kernel_is_refused_under_torchrun(folder, monkeypatch, capsys):
    """One process computes it."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert app.main(["kernel", *WORDS[:2], "--local", "--output", "k.npy"]) == 2
    assert "argument --local: must not be given under torchrun" in capsys.readouterr().err


def test_torchrun_starts_the_command(folder):
    """By torchrun itself, with two processes."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "nntk.bench", "kernel", *WORDS, "--output", "k.npy"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("k.npy: 11 x 11") == 1 and np.array_equal(np.load("k.npy"), np.load("whole.npy"))


def test_the_suite_writes_one_file_by_rank_0(tmp_path):
    """Each kernel is that of one process, the bytes sent are those of the model, and the report draws efficiencies."""
    first, *others = (
        rank["distributed_suite"]
        for rank in run("commands", ["distributed_suite"], 3, folder=str(tmp_path), tolerance=1e-6)
    )
    assert first[0] == 0 and others == [(0, "")] * 2, (first, others)
    (path,) = tmp_path.rglob("*.json")
    rows = store.read(path).rows
    assert [(row["ranks"], row["scaling"]) for row in rows] == [
        (ranks, f"{kind}, {axis}") for ranks in (2, 3) for kind in ("strong", "weak") for axis in "MN"
    ]
    for row in rows:
        assert row["difference"] <= 1e-6 and 0 < row["communication_share"] <= 1 and row["exchange_alone_s"] > 0
        # Beside the numbers of the model: statistics of weights, three for each displacement or input.
        assert 0 < row["model_bytes"] <= row["bytes"] < row["model_bytes"] + 4000
        ideal = row["ranks"] if row["scaling"].startswith("strong") else 1
        assert row["efficiency"] == row["ratio"] / ideal
    assert [plot.title for plot in plots.plots(content.read(path))] == ["Efficiency of ranks against one process"]


def test_a_wrong_kernel_shows_no_speed_and_fails_the_run(tmp_path):
    """Where no error is small enough, no row has a time, and the ranks end together."""
    first, second = (
        rank["distributed_suite"]
        for rank in run("commands", ["distributed_suite"], 2, folder=str(tmp_path), tolerance=-1.0)
    )
    assert first[0] == 1 and second == (0, "")
    (path,) = tmp_path.rglob("*.json")
    assert all("against one process" in row["failure"] and "median_s" not in row for row in store.read(path).rows)


def test_the_suite_needs_torchrun(monkeypatch, capsys, tmp_path):
    """The message is the line to use."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert app.main(["run", "--suite", "distributed", "--output", str(tmp_path)]) == 2
    assert "torchrun --nproc-per-node 2 -m nntk.bench run --suite distributed" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
