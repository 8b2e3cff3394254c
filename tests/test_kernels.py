"""The perturbation kernels against float64 on the same displacements, in every family, path, activation and precision.

Without a GPU they run in Triton's interpreter, a program at a time, where float16 stands for bfloat16.
"""

import copy
import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import JUMPS, inputs, mlp, relative_error
from triton_device import DEVICE, SEED, kernel_differences

from nntk.functional import call
from nntk.kernels.perturb import launch, mlp_differences, tiles
from nntk.kernels.perturb.activations import ACTIVATIONS
from nntk.kernels.philox import unit_displacements
from nntk.models import recognise

ROUTES = [
    *((family, path) for family in ("gaussian", "rademacher") for path in tiles.PATHS),
    *((family, "step") for family in ("flipout(2)", "lowrank(2)")),
]
MODELS = ("relu", "tanh", "gelu", "sign", "quantise")
# Widths, inputs, displacements: ones, odd numbers, more than a tile, one output and ten.
SHAPES = (((130, 17, 3, 10), 17, 2), ((3, 130, 1), 1, 3), ((1, 3, 17), 130, 1))
SCALE = 0.05

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.fixture(scope="module")
def poisoned_memory():
    """Every new tensor is full of NaN until it is written."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]


def rows(number):
    """Row numbers with both ends of their range."""
    return torch.tensor([3, 2**32 - 1, 0, 2**31, 7])[:number]


@functools.cache
def float64_case(widths, number, samples, activation, directions):
    """A model, its inputs, and its odd unit differences in float64 by plain evaluation at the displaced parameters."""
    model, x = mlp(*widths, activation=activation), inputs(number, widths[0])
    double = copy.deepcopy(model).double()
    parameters = dict(double.named_parameters())
    noise = {
        name: unit_displacements(rows(samples), ordinal, parameter.shape, SEED, directions, torch.float64)
        for ordinal, (name, parameter) in enumerate(parameters.items())
    }
    s = float(torch.tensor(SCALE))
    with torch.no_grad():
        outputs = [
            [call(double, {name: parameters[name] + sign * s * noise[name][m] for name in noise}, x.double())
             for m in range(samples)]
            for sign in (1, -1)
        ]  # fmt: skip
    plus, minus = (torch.stack(half) for half in outputs)
    return model, x, (plus - minus) / (2 * s)


def reference(model, x, samples, directions, precision):
    """The same by the reference in plain torch."""
    model = model.cpu()
    scales = torch.full((samples,), SCALE)
    layers = recognise(model).layers
    return mlp_differences(x, layers, rows(samples), scales, SEED, directions, precision=precision,
                           propagation="difference")[0]  # fmt: skip


def without_flips(made, expected, may_flip):
    """Both without the inputs at which a unit fell across a jump: some, and in low precision only."""
    # Five per cent of a typical difference: more than rounding to bfloat16 does, less than one unit of seventeen.
    flips = ((made - expected).abs() > 0.05 * expected.abs().mean()).any(-1) & may_flip
    # About one in 2^8 of forty units does it, in one evaluation or its mirror image.
    assert flips.sum() <= 0.25 * flips.numel() + 1, f"{int(flips.sum())} of {flips.numel()} across a jump"
    return made[~flips], expected[~flips]


def check(activation, directions, path, precision):
    """The kernels' error is at most twice the reference's at every shape."""
    may_flip = torch.tensor(activation in JUMPS and precision != "fp32")
    for widths, number, samples in SHAPES:
        model, x, expected = float64_case(widths, number, samples, activation, directions)
        made, norms = kernel_differences(
            model, x, rows(samples), torch.full((samples,), SCALE), directions, precision=precision, path=path
        )
        assert made.isfinite().all() and norms.isfinite().all()
        same = without_flips(reference(model, x, samples, directions, precision), expected, may_flip)
        allowed, error = relative_error(*same), relative_error(*without_flips(made.cpu(), expected, may_flip))
        # A few numbers may all happen to be rounded well: float32's own precision is always granted.
        assert error <= 2 * max(allowed, torch.finfo(torch.float32).eps), f"{widths}: reference {allowed:.1e}"


@pytest.mark.parametrize("activation", MODELS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("directions", "path"), ROUTES)
def test_difference_against_float64(directions, path, precision, activation):
    """Every family, path and kind of activation, at ones, odd numbers and more than a tile."""
    check(activation, directions, path, precision)


@pytest.mark.parametrize(("directions", "path"), ROUTES if DEVICE == "cuda" else ROUTES[:1])
def test_tf32_against_float64(directions, path):
    """The interpreter has no tf32: there it is a test that the setting is taken."""
    check("gelu", directions, path, "tf32")


@pytest.mark.parametrize("activation", sorted(set(ACTIVATIONS) - {*MODELS, "identity"}))
def test_the_other_activations(activation):
    """Each difference formula on the device."""
    check(activation, "rademacher", "step", "fp32")


@pytest.mark.parametrize("directions", ["gaussian", "flipout(2)", "lowrank(2)"])
def test_chunks_tiles_and_order_do_not_matter(directions, monkeypatch):
    """The same D, to rounding, for a small budget, other tiles, and every displacement alone; the same bits twice."""
    model, x = mlp(20, 70, 2), inputs(9, 20)
    number, scales = torch.arange(3), torch.full((3,), SCALE)

    def run(chosen=slice(None), **settings):
        made = kernel_differences(model, x, number[chosen], scales[chosen], directions, path="step", **settings)[0]
        return made.cpu()

    whole = run()
    assert torch.equal(whole, run())
    assert relative_error(run([2, 1]), whole[[2, 1]]) < 1e-6
    assert relative_error(run(max_bytes=2**15), whole) < 1e-6
    for block in ((32, 16, 32), (64, 32, 64)):
        other = tiles.Tiles(*block, num_warps=4, num_stages=1, parts=2)
        monkeypatch.setattr(tiles, "step_tiles", lambda *_, other=other: other)
        assert relative_error(run(), whole) < 1e-6


@pytest.mark.parametrize("path", ["step", "fused"])
def test_halves_and_scales(path):
    """Halves make the odd part; each row has its own scale; one-sided differences are the first half."""
    model, x = mlp(5, 20, 2), inputs(6, 5)
    number, scales = torch.arange(3), torch.tensor([1e-3, 0.1, 1e-30])

    def run(pairs):
        return kernel_differences(model, x, number, scales, "gaussian", pairs, path=path)[0].cpu()

    plus, minus = run("both")
    torch.testing.assert_close((plus - minus) / 2, run("odd"), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(plus, run("none"), rtol=1e-5, atol=1e-6)
    expected = mlp_differences(x, recognise(model.cpu()).layers, number, scales, SEED, propagation="difference")[0]
    assert relative_error(run("odd"), expected) < 1e-6


@pytest.mark.parametrize("directions", ["gaussian", "flipout(3)", "lowrank(1)"])
@pytest.mark.parametrize("frozen", [("0.weight",), ("2.weight", "2.bias"), ("0.bias", "4.weight")])
def test_frozen_and_tied_parameters(directions, frozen):
    """Parameters that stay are not displaced; a tensor that serves two layers moves once. Non-contiguous inputs."""
    model, x = mlp(6, 6, 6, 3), inputs(6, 8).T
    model[2].weight = model[0].weight
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    model, number, scales = model.cpu(), torch.arange(4), torch.full((4,), SCALE)
    layers = recognise(model).layers
    expected = mlp_differences(x, layers, number, scales, SEED, directions, propagation="difference")
    made = kernel_differences(model, x, number, scales, directions)
    assert relative_error(made[0].cpu(), expected[0]) < 1e-6
    torch.testing.assert_close(made[1].cpu(), expected[1], rtol=1e-6, atol=0)


@pytest.mark.parametrize(("number", "samples"), [(0, 3), (4, 0), (0, 0)])
def test_nothing_to_do(number, samples):
    """No inputs or no displacements: empty differences, and the norms all the same."""
    made, norms = kernel_differences(
        mlp(3, 4, 2), inputs(number, 3), torch.arange(samples), torch.full((samples,), SCALE), "gaussian"
    )
    assert made.shape == (samples, number, 2) and norms.shape == (samples,) and norms.isfinite().all()


def test_launches_bind_and_compile():
    """Every launcher's arguments, ones and None and tuples among them, pass Triton's binder and compiler for sm_90."""
    script = Path(__file__).with_name("launch_on_absent_card.py")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == [
        "layer_step", "project", "small_mlp", "stationary_step", "sum_squares", "write_noise", "write_vector",
        "write_words",
    ]  # fmt: skip


def test_buffers_do_not_grow_with_samples_or_parameters():
    """At d = 10^6 and N = 1024, buffers of a chunk stay below 256 MB whatever M is, and every row is taken once."""
    widths = (784, 1024, 1024, 10)
    assert sum(a * b for a, b in zip(widths, widths[1:], strict=False)) > 1.8e6
    for samples in (64, 4096):
        plan = launch.plan(widths, 1024, samples, 2, 2, 2**28)
        assert plan.buffer_bytes <= 2**28
        assert plan.inputs * plan.rows >= min(1024 * samples, 1024 * 4), "a chunk fills the card"
        assert plan.rows <= samples


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_peak_memory_on_the_gpu():
    """At M = 4096 and d = 10^6 the extra memory is the outputs and 256 MB."""
    model, x = mlp(256, 1000, 700, 1).cuda(), inputs(256, 256).cuda()
    layers, number = recognise(model).layers, torch.arange(4096, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    made = mlp_differences(x, layers, number, torch.full((4096,), SCALE, device="cuda"), SEED)[0]
    assert torch.cuda.max_memory_allocated() - before <= made.nbytes + 2**28


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_the_dispatcher_takes_the_kernels(monkeypatch):
    """The public op on CUDA tensors runs the Triton path."""
    called = []
    evaluate = launch.evaluate_fused
    monkeypatch.setattr(launch, "evaluate_fused", lambda *a: (called.append(1), evaluate(*a)))
    model = mlp(3, 8, 1).cuda()
    scales = torch.full((2,), SCALE, device="cuda")
    mlp_differences(inputs(4, 3).cuda(), recognise(model).layers, torch.arange(2, device="cuda"), scales, SEED)
    assert called
