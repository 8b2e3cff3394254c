"""Commands under torchrun: the file of one process, one voice, and one message where a rank fails."""

import os
import subprocess
import sys

import numpy as np
import pytest
from processes import run

from nntk.bench.cli import app

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
    assert messages[2].startswith("nntk-bench kernel: error: samples must be")


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
