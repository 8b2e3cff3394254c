"""What a compiled kernel is specialised on: tiles, families and modes; not numbers that change from call to call."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import torch
import triton
from conftest import inputs, mlp
from launch_on_absent_card import AbsentCard
from triton.runtime import driver
from triton.runtime.jit import JITFunction
from triton_device import kernel_differences

from nntk.kernels.activations import encode
from nntk.kernels.assemble.triton import launch as assemble
from nntk.kernels.attention.triton import launch as attention
from nntk.kernels.fixed_weights.triton import launch as fixed_weights
from nntk.kernels.local_ntk.triton import launch as local_ntk
from nntk.kernels.perturb.triton import launch as perturb
from nntk.kernels.philox.triton import launch as philox
from nntk.kernels.target import Target
from nntk.models.recognise import recognise

driver.set_active(AbsentCard())
for module in (perturb, philox, assemble, attention, local_ntk):
    module.target_of = lambda device: Target("sm_90")
run, keys = JITFunction.run, set()


def remember(key, fn, **_):
    keys.add((fn.name, str(key)))
    return True  # Nothing is compiled.


triton.knobs.runtime.jit_cache_hook = remember
JITFunction.run = lambda self, *arguments, grid, warmup, **options: run(
    self, *arguments, grid=grid, warmup=True, **options
)


def differences(n, m, gamma, first, widths, family, path):
    ids = first + torch.arange(m)
    kernel_differences(
        mlp(*widths), inputs(n, widths[0]), ids, torch.full((m,), gamma), family, precision="bf16", path=path
    )


def other_ops(n, m, gamma, first, widths):
    ids, c = first + torch.arange(m), widths[-1]
    shapes = [torch.empty(h, k) for k, h in zip(widths, widths[1:])]
    philox.squared_norms([*shapes, torch.empty(widths[1])], [0, 2, 1], ids, first + 5, 2, "gaussian")
    d, norms = torch.empty(m, n, c), torch.ones(m).double()
    for outputs in ("trace", "diagonal"):
        assemble.energy(d, None, norms, "rows", *[None] * 8, outputs)
        assemble.energy(d, torch.empty(m, n + 3, c), norms, "rows", *[None] * 8, outputs)
    fixed_weights.radial_weights(norms, "cauchy", [gamma, 1.0], "gaussian", [2 * gamma, 1.0])
    attention.attention_scores(d, torch.empty(n, c), "dot")
    attention.project_displacements([torch.empty(widths[1], widths[0])], [0], ids, 1, 2, "gaussian", 16)
    layers = recognise(mlp(*widths)).layers
    tensors = [layer.weight for layer in layers], [layer.bias for layer in layers]
    for x2 in (None, inputs(n + 1, widths[0])):
        call = inputs(n, widths[0]), x2, *tensors, *encode([layer.activation for layer in layers]), [0, 2], [1, 3]
        local_ntk.structured_ntk(*call, "trace")


def count(call, widths, others, *route):
    # Print the kernels of a first call, and those that other numbers add to them.
    keys.clear()
    call(256, 128, 0.1, 0, widths, *route)
    first = set(keys)
    for n, m, gamma, seed in ((256, 128, 0.01, 7), (250, 100, 0.1, 0), (241, 113, 0.1, 1), (200, 97, 0.3, 2)):
        call(n, m, gamma, seed, others, *route)
    print(*sorted({name.rpartition(".")[-1] for name, _ in first}), "|", *sorted(name for name, _ in keys - first))


for family, path in (("gaussian", "staged"), ("gaussian", "stationary"), ("rademacher", "step"), ("flipout(3)", None),
                     ("lowrank(1)", None), ("lowrank(2)", None)):  # fmt: skip
    count(differences, (80, 96, 10), (79, 95, 9), family, path)
count(differences, (20, 20, 10), (20, 20, 10), "rademacher", "fused")
count(other_ops, (80, 95, 10), (80, 95, 10))
"""


def test_numbers_that_change_from_call_to_call_compile_nothing():
    """Neither do inputs, displacements, length scales, seeds, nor, but for networks in one launch, widths."""
    tests = Path(__file__).parents[1]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(tests.parent), str(tests), environment.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    launched, further = zip(*(line.split("|") for line in done.stdout.splitlines()), strict=True)
    assert [names.strip() for names in further] == [""] * 8
    routes = (("layer_step", "write_noise"), ("stationary_step",), ("layer_step",), ("layer_step", "write_noise"),
              ("layer_step", "project", "write_rank_one"), ("form", "layer_step", "project", "write_noise"),
              ("small_mlp",))  # fmt: skip
    others = ("layer_pair", "project", "rank_update", "reduce_weights", "scores", "sum_squares", "write_weights")
    for names, expected in zip(launched, (*routes, others), strict=True):
        assert set(expected) <= set(names.split())
