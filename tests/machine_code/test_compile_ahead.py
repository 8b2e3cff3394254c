"""Kernels of a call are compiled ahead, all of them and none twice, and nothing is launched."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import torch
from conftest import inputs, mlp
from launch_on_absent_card import AbsentCard
from triton.runtime import driver
from triton.runtime.jit import JITFunction
from triton_device import kernel_differences

from nntk.kernels.ahead_of_time import compile_ahead
from nntk.kernels.perturb.triton import launch as perturb
from nntk.kernels.philox.triton import launch as philox
from nntk.kernels.target import Target

driver.set_active(AbsentCard())
for module in (perturb, philox):
    module.target_of = lambda device: Target("sm_90")
run, x, seen = JITFunction.run, inputs(20, 20), []


def call():
    scales = torch.full((3,), 0.1)
    kernel_differences(mlp(20, 20, 3), x, torch.arange(3), scales, "gaussian", precision="bf16", path="step")


def fail():
    call()
    raise ValueError("as intended")


try:
    compile_ahead(fail, threads=2)
except ValueError as error:
    print(error)
print(compile_ahead(call))
further = lambda: perturb.displacement_products(x, 20, 0, torch.arange(3), 1, 2, "flipout(3)", 2**27)
count = compile_ahead(lambda: (call(), further()), progress=lambda *numbers: seen.append(numbers))
print(count > 0 and seen == [(number, count) for number in range(1, count + 1)], JITFunction.run is run)
"""


@pytest.mark.machine_code
def test_kernels_are_compiled_ahead(tmp_path):
    """What a failed call reached is compiled; further kernels are counted and reported; launches are as before."""
    tests = Path(__file__).parents[1]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)])}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == ["as intended", "0", "True True"]
