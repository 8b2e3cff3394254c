"""The structured NTK's kernel against float64, in every mode of output, at ones, odd numbers and more than a tile."""

import copy
import functools

import pytest
import torch
from conftest import inputs, mlp, relative_error
from triton_device import DEVICE

from nntk.kernels.activations import encode
from nntk.kernels.assemble import OUTPUTS
from nntk.kernels.local_ntk import reference
from nntk.kernels.local_ntk.triton import config, launch
from nntk.models.recognise import recognise

EPS = torch.finfo(torch.float32).eps
# Widths and the numbers of rows and columns.
SHAPES = (((5, 7, 10), 3, 17), ((3, 33, 1), 130, 17), ((17, 10), 17, 1), ((1, 1, 1), 1, 3))


pytestmark = pytest.mark.usefixtures("poisoned_memory")


def arguments(model, device="cpu"):
    """Return a model as the op's schema carries it; parameters that require no gradient are constant."""
    layers = recognise(model.to(device)).layers
    return (
        [layer.weight.detach() for layer in layers],
        [None if layer.bias is None else layer.bias.detach() for layer in layers],
        *encode([layer.activation for layer in layers]),
        [-1 if layer.weight_ordinal is None else layer.weight_ordinal for layer in layers],
        [-1 if layer.bias_ordinal is None else layer.bias_ordinal for layer in layers],
    )


def by_kernel(model, x1, x2, outputs):
    """The kernel by Triton, on whatever it can run here."""
    x2 = None if x2 is None else x2.to(DEVICE)
    return launch.structured_ntk(x1.to(DEVICE), x2, *arguments(model, DEVICE), outputs).cpu()


def expected(model, x1, x2, outputs):
    """The reference in float64, and its own error in float32."""
    double = copy.deepcopy(model).cpu().double()
    exact = reference.structured_ntk(x1.double(), None if x2 is None else x2.double(), *arguments(double), outputs)
    return exact, relative_error(reference.structured_ntk(x1, x2, *arguments(model), outputs), exact)


def check(model, x1, x2, outputs):
    """At most twice the reference's error; the same bits twice; symmetric to the last of them."""
    exact, allowed = expected(model, x1, x2, outputs)
    result = by_kernel(model, x1, x2, outputs)
    assert result.shape == exact.shape and result.isfinite().all()
    assert relative_error(result, exact) <= 2 * max(allowed, EPS), f"{outputs}: reference {allowed:.1e}"
    if x2 is None:
        assert torch.equal(result, by_kernel(model, x1, x2, outputs))
        swapped = result.transpose(0, 1)
        assert torch.equal(result, swapped.transpose(2, 3) if outputs == "full" else swapped)


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
@pytest.mark.parametrize("outputs", OUTPUTS)
def test_kernel_against_float64(outputs, activation):
    """Symmetric and cross, one output and ten."""
    for widths, n1, n2 in SHAPES:
        if n1 == 130 and outputs != "trace":
            continue  # The test below has several tiles in every mode; with one output all modes compute the trace.
        model = mlp(*widths, activation=activation)
        x1, x2 = inputs(n1, widths[0]), inputs(n2, widths[0], seed=2)
        check(model, x1, None, outputs)
        check(model, x1, x2, outputs)


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_more_lines_than_a_tile(outputs):
    """Three squares of tiles of 130 lines; the lines of an input lie on both sides of a tile's edge."""
    model, x = mlp(4, 40, 3), inputs(130 if outputs != "full" else 45, 4)
    check(model, x, None, outputs)
    check(model, x, inputs(17, 4, seed=2), outputs)


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize(
    "moving", [("2.weight",), ("0.bias", "2.bias"), ("0.weight", "2.bias"), ("0.bias", "4.weight", "4.bias")]
)
def test_frozen_parameters_do_not_count(moving, outputs):
    """Weights without their biases, biases without their weights, layers left out; strided inputs."""
    model = mlp(6, 6, 6, 3)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in moving)
    check(model, inputs(6, 9).T, None, outputs)
    check(model, inputs(6, 9).T, inputs(5, 12, seed=2)[:, ::2], outputs)


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_no_biases_at_all(outputs):
    """Layers that have none."""
    check(mlp(4, 8, 3, bias=False), inputs(5, 4), None, outputs)


@pytest.mark.parametrize(("n1", "n2"), [(0, None), (0, 3), (3, 0), (0, 0)])
def test_no_inputs(n1, n2):
    """Empty kernels of the right shape."""
    model, x2 = mlp(4, 8, 3), None if n2 is None else inputs(n2, 4)
    assert by_kernel(model, inputs(n1, 4), x2, "trace").shape == (n1, n1 if n2 is None else n2)
    assert by_kernel(model, inputs(n1, 4), x2, "full").shape == (n1, n1 if n2 is None else n2, 3, 3)


def test_float64_takes_the_reference():
    """The kernel is for float32."""
    model, x = mlp(4, 8, 3, dtype=torch.float64), inputs(5, 4, torch.float64)
    own = reference.structured_ntk(x, None, *arguments(model), "full")
    torch.testing.assert_close(by_kernel(model, x, None, "full"), own, rtol=1e-12, atol=1e-12)


@functools.cache
def every_choice():
    """Tiles of every architecture for few lines and for many."""
    return [
        config.pick(lines, lines, copies, symmetric, fused, arch)
        for arch in ("sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "gfx942", "interpreter")
        for lines in (1, 500, 10**5)
        for copies in (1, 10)
        for symmetric in (False, True)
        for fused in (False, True)
    ]


def test_tiles_divide_squares_and_steps_divide_rows():
    """The kernel relies on these divisions."""
    for cut in every_choice():
        assert cut.block_i % cut.block_j == 0 and config.STEP % cut.block_k == 0 and cut.block_j % cut.part == 0


def test_programs_cover_one_triangle_or_all():
    """Counted by hand for tiles of 128 x 64: a square is two programs."""
    cut = config.Tiles(128, 64, 32, 16, 8, 3)
    assert cut.programs(128, 128, True) == 2 and cut.programs(129, 129, True) == 6
    assert cut.programs(129, 129, False) == 8 and cut.programs(1, 300, False) == 6


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_the_dispatcher_takes_the_kernel(monkeypatch):
    """The public op on CUDA tensors runs the Triton path."""
    called = []
    pick = config.pick
    monkeypatch.setattr(config, "pick", lambda *a: (called.append(1), pick(*a))[1])
    torch.ops.nntk.structured_ntk(inputs(5, 4).cuda(), None, *arguments(mlp(4, 8, 3), "cuda"), "trace")
    assert called
