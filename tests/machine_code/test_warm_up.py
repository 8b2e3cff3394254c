"""``nntk-bench warm-up``: what a program's calls need is compiled before it runs, and wrong programs are named."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import nntk
from nntk.bench.cli import app as cli

PROGRAM = """
import torch
import nntk

def kernel_and_inputs():
    model = torch.nn.Sequential(torch.nn.Linear(3, 20), torch.nn.ReLU(), torch.nn.Linear(20, 2))
    return nntk.NonlocalNTK(model, samples=3, precision="bf16"), torch.arange(6.0).view(2, 3)

def no_kernel():
    return 1, torch.zeros(2, 3)

def no_inputs():
    return kernel_and_inputs()[0], torch.zeros(0, 3)

def broken():
    raise ValueError("as intended")
"""

ON_A_CARD = """
import sys
import warnings
import torch
from launch_on_absent_card import AbsentCard
from triton.runtime import driver

from nntk import preparation
from nntk.bench.cli import app
from nntk.kernels import target
from nntk.kernels.assemble.triton import launch as assemble
from nntk.kernels.perturb.triton import launch as perturb
from nntk.kernels.philox.triton import launch as philox

driver.set_active(AbsentCard())
for module in (perturb, philox, assemble):
    module.target_of = lambda device: target.Target("sm_90")
preparation.serves = lambda device: True
torch.cuda.get_device_name = lambda device: "a card"
# Tensors of the CPU stand for those of the card.
library = torch.library.Library("nntk", "IMPL")
with warnings.catch_warnings(action="ignore"):
    for module, name in ((perturb, "mlp_differences"), (philox, "squared_norms"), (assemble, "energy")):
        library.impl(name, getattr(module, name), "CPU", allow_override=True)
for _ in range(2):
    assert app.main(sys.argv[1:]) == 0
"""


@pytest.fixture
def program(tmp_path):
    """Return the file of a program."""
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


def test_the_kernels_of_each_number_of_inputs_are_compiled(program, monkeypatch, capsys):
    """The rows are repeated; how many kernels there were is printed."""
    calls = []

    def warm_up(kernel, x, threads, progress):
        """Stand for the compilers."""
        calls.append((x, kernel.samples, threads))
        progress(1, 2)
        return len(x)

    monkeypatch.setattr(nntk, "warm_up", warm_up)
    words = ["warm-up", f"{program}:kernel_and_inputs", "--inputs", "1", "--inputs", "5", "--threads", "3"]
    assert cli.main(words) == 0
    assert [(len(x), samples, threads) for x, samples, threads in calls] == [(1, 3, 3), (5, 3, 3)]
    assert torch.equal(calls[1][0][:, 0], torch.tensor([0.0, 3.0, 0.0, 3.0, 0.0]))
    printed = capsys.readouterr().out
    assert "1 inputs: 1 Triton kernels compiled" in printed and "5 inputs: 5 Triton kernels compiled" in printed


def test_on_a_cpu_no_kernel_of_a_gpu_is_compiled(program, capsys):
    """With the inputs that the function returns."""
    assert cli.main(["warm-up", f"{program}:kernel_and_inputs"]) == 0
    assert "2 inputs: 0 Triton kernels needed on a CPU" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("{}", [], "must be FILE.py:FUNCTION, got"),
        ("{}:1", [], "must be FILE.py:FUNCTION, got"),
        ("{}.py:f", [], "is no file"),
        ("{}:absent", [], "program.py has no 'absent'; it has "),
        ("{}:broken", [], "failed: ValueError: as intended"),
        ("{}:no_kernel", [], "must return a NonlocalNTK and at least one input of it, got int, Tensor"),
        ("{}:no_inputs", [], "must return a NonlocalNTK and at least one input of it, got NonlocalNTK, Tensor"),
        ("{}:broken", ["--inputs", "0"], "argument --inputs: must be an integer from 1 on, got '0'"),
    ],
)
def test_wrong_programs_are_one_line_and_exit_2(program, source, options, message, capsys):
    """The line says what the function must return."""
    assert cli.main(["warm-up", source.format(program), *options]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and message in printed.err


@pytest.mark.machine_code
def test_a_card_that_is_absent_compiles_once(program, tmp_path):
    """The second command finds everything compiled, and so does another number of inputs with the same tiles."""
    tests = Path(__file__).parents[1]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path / "cache")}
    environment["PYTHONPATH"] = os.pathsep.join([str(tests.parent), str(tests), environment.get("PYTHONPATH", "")])
    words = ["warm-up", f"{program}:kernel_and_inputs", "--inputs", "20", "--inputs", "25"]
    command = [sys.executable, "-c", ON_A_CARD, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    compiled = [int(line.split()[2]) for line in done.stdout.splitlines()]
    assert compiled[0] > 2 and compiled[1:] == [0, 0, 0]
