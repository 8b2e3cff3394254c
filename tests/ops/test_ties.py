"""Pre-activations that lie exactly on a jump: every entry of D is that of the float64 definition."""

import pytest
import torch
from conftest import FAMILIES, covering, inputs, mlp
from torch import nn

from nntk.activations import Quantise, Sawtooth, Sign, Step
from nntk.kernels.perturb import definition, mlp_differences
from nntk.kernels.perturb.exactness import BinaryGrid, layers_with_ties, with_integer_rows
from nntk.kernels.perturb.ties import tie_breaker
from nntk.kernels.philox.source import PLAIN
from nntk.models.recognise import recognise

FEATURES, SEED = 8, 3


def linear(fan_in, fan_out, magnitude=None, frozen=False, bias=True):
    """A layer of normal weights, or of signs times a magnitude; a frozen one is not displaced."""
    layer = nn.Linear(fan_in, fan_out, bias=bias)
    with torch.no_grad():
        layer.weight.normal_()
        if magnitude is not None:
            layer.weight.sign_().mul_(magnitude)
    layer.weight.requires_grad_(not frozen)
    return layer


def frozen(width, activation, magnitude=1.0):
    """A middle layer of signs times a magnitude that is not displaced, between displaced layers."""
    middle = linear(width, width, magnitude, frozen=True, bias=False)
    return nn.Sequential(linear(FEATURES, width), activation(), middle, activation(), linear(width, 1))


def all_off(width, activation):
    """Units that are often all off, in front of a layer without bias; its pre-activations are then exactly zero."""
    first = linear(FEATURES, width)
    with torch.no_grad():
        first.weight.mul_(0.3)
        first.bias.fill_(-1.2)
    return nn.Sequential(first, nn.ReLU(), linear(width, width, bias=False), activation(), linear(width, 2))


def ternary(width):
    """Quantised weights whose magnitudes differ by row; some rows are zero."""
    model = frozen(width, Sign)
    with torch.no_grad():
        model[2].weight.mul_(torch.rand(width, 1)).mul_((torch.rand(width, width) < 0.5).float())[: width // 8] = 0
    return model


def two_magnitudes(width):
    """Quantised weights of two magnitudes in every row."""
    model = frozen(width, Sign)
    with torch.no_grad():
        model[2].weight.mul_(torch.tensor([0.1, 0.3]).repeat(width // 2))
    return model


def deep(width):
    """Two layers of signs that are not displaced, with relu between them."""
    layers = [linear(width, width, 1.0, frozen=True, bias=False) for _ in range(2)]
    return nn.Sequential(linear(FEATURES, width), Sign(), layers[0], nn.ReLU(), layers[1], Step(), linear(width, 1))


INTEGER = {
    "sign": lambda width: frozen(width, Sign),
    "step": lambda width: frozen(width, Step),
    "five levels": lambda width: frozen(width, lambda: Quantise(5)),
    "deep": deep,
}
"""Networks whose sums of signs propagation carries exactly."""

ROUNDED = {
    "tenths": lambda width: frozen(width, Sign, 0.1),
    "two magnitudes": two_magnitudes,
    "four levels": lambda width: frozen(width, lambda: Quantise(4)),
    "sixteen levels": lambda width: frozen(width, Quantise, 0.3),
    "sawtooth": lambda width: frozen(width, lambda: Sawtooth(2.0)),
    "ternary": ternary,
    "all off, sign": lambda width: all_off(width, Sign),
    "all off, step": lambda width: all_off(width, Step),
    "all off, four levels": lambda width: all_off(width, lambda: Quantise(4)),
}
"""Networks whose ties a float64 evaluation decides."""

KINDS = INTEGER | ROUNDED
CASES = covering(
    [
        (kind, width, dtype, gamma, directions, pairs)
        for pairs in ("odd", "none", "both")
        for directions in FAMILIES
        for gamma in (0.4, 0.1, 0.01, 1e-3)
        for dtype in (torch.float32, torch.float64)
        for width in (16, 64, 256)
        for kind in KINDS
    ],
    (0, 1),
    (0, 2, 3),
    (0, 4),
    (0, 5),
)


def make(kind, width, dtype=torch.float32):
    """The network of a kind."""
    torch.manual_seed(0)
    return KINDS[kind](width).to(dtype)


def check(model, x, scales, directions="gaussian", pairs="odd", precision="auto"):
    """Assert that every entry of D is that of the definition, to rounding."""
    arguments = (recognise(model).layers, torch.arange(len(scales)), scales, SEED, directions, pairs)
    expected, _ = definition.mlp_differences(x, *arguments)
    result, _ = mlp_differences(x, *arguments, propagation="difference", precision=precision)
    tolerance = 1e-5 if x.dtype == torch.float32 else 1e-11
    atol = tolerance * float(expected.abs().mean())
    torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=atol)
    return expected


@pytest.mark.parametrize(("kind", "width", "dtype", "gamma", "directions", "pairs"), CASES)
def test_ties_are_on_the_side_of_float64(kind, width, dtype, gamma, directions, pairs):
    """No entry is wrong, for every kind of tie, in both dtypes, for every family and form."""
    x, scales = inputs(12, FEATURES, dtype), torch.full((4,), gamma / 2**0.5, dtype=dtype)
    check(make(kind, width, dtype), x, scales, directions, pairs)


@pytest.mark.parametrize("kind", ["sign", "step", "tenths"])
def test_wide_layers(kind):
    """Sums of a thousand signs."""
    check(make(kind, 1024), inputs(12, FEATURES), torch.full((2,), 0.3))


@pytest.mark.parametrize("kind", ["sign", "tenths", "all off, sign"])
def test_scales_of_their_own(kind, directions):
    """Displacements of different lengths."""
    check(make(kind, 64), inputs(12, FEATURES), torch.linspace(0.01, 0.3, 5), directions)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("kind", ["sign", "step", "five levels"])
def test_low_precision_carries_signs_exactly(kind, precision, directions):
    """Where all operands fit the precision, D has no rounding but that of the sums, and no unit flips."""
    model, x = make(kind, 64), inputs(12, FEATURES).sign()
    with torch.no_grad():
        model[-1].weight.sign_()
    if directions.startswith("lowrank") and precision != "fp32":
        # The product of both factors is rounded, so only hidden layers may be compared, where a flip is far larger.
        layers, rows, scales = recognise(model).layers, torch.arange(4), torch.full((4,), 0.01)
        whole, low = (
            mlp_differences(x, layers, rows, scales, SEED, directions, propagation="difference", precision=p)[0]
            for p in ("fp32", precision)
        )
        assert ((whole - low).abs() > 0.1 * 2 / 0.01).sum() == 0
    else:
        check(model, x, torch.full((4,), 0.3), directions, precision=precision)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize("kind", ["two magnitudes", "all off, sign"])
def test_ties_that_a_precision_would_hide_are_evaluated_in_float32(kind, precision):
    """A rounding error of bfloat16 cannot be told from a difference, so these networks are not rounded."""
    check(make(kind, 64), inputs(12, FEATURES), torch.full((4,), 0.07), precision=precision)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tie_is_left_however_small_the_displacement(dtype):
    """Unperturbed pre-activations that are zero flip by the sign of their noise, at 1e-3 as at 1e-20."""
    torch.manual_seed(0)
    model = nn.Sequential(
        linear(FEATURES, 64, 1.0, bias=False), Sign(), linear(64, 64, 1.0, True, bias=False), Sign(),
        linear(64, 1, 1.0, True, bias=False),
    ).to(dtype)  # fmt: skip
    x, layers = inputs(12, FEATURES, dtype).sign(), recognise(model).layers
    changes = [
        s * mlp_differences(x, layers, torch.arange(4), torch.full((4,), s, dtype=dtype), SEED, pairs="both")[0]
        for s in (1e-3, 1e-20)
    ]
    assert (changes[0].abs() > 1).any()
    torch.testing.assert_close(changes[0], changes[1], rtol=1e-6, atol=1e-6)


def test_ties_do_not_depend_on_how_the_work_is_cut():
    """More inputs than are evaluated together, of which a few are near a jump; budgets that cut noise and inputs."""
    model, x = make("all off, sign", 64), inputs(70, FEATURES)
    expected = check(model, x, torch.full((4,), 0.07))
    rows, scales = torch.arange(4), torch.full((4,), 0.07)
    layers = recognise(model).layers
    small, _ = mlp_differences(x, layers, rows, scales, SEED, propagation="difference", max_bytes=2**20)
    torch.testing.assert_close(small.double(), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().mean()))


@pytest.mark.parametrize("kind", INTEGER)
def test_integer_networks_need_no_second_evaluation(kind):
    """Propagation carries their ties exactly, in every family and in precisions that hold their units."""
    layers = recognise(make(kind, 64)).layers
    for precision in ("fp32", "tf32") if kind == "deep" else ("fp32", "tf32", "bf16"):
        for directions in ("gaussian", "rademacher", "flipout", "lowrank"):
            assert not any(layers_with_ties(layers, precision, directions))


@pytest.mark.parametrize("activation", ["sign", "step", "quantise", "sawtooth"])
def test_displaced_biases_leave_no_ties(activation, directions):
    """A network all of whose parameters are displaced pays nothing."""
    layers = recognise(mlp(8, 16, 16, 1, activation=activation)).layers
    assert tie_breaker(layers, "fp32", directions, (0, 0), 1, PLAIN) is None


def test_which_layers_may_have_ties():
    """By weights, biases, activations in front, precision and family."""

    def ties(model, precision="fp32", directions="gaussian"):
        return layers_with_ties(recognise(model).layers, precision, directions)

    assert ties(make("tenths", 16)) == ties(make("four levels", 16)) == [False, True, False]
    assert ties(make("all off, sign", 16)) == [False, True, False]
    unbiased = nn.Sequential(linear(8, 16), Sign(), linear(16, 16, bias=False), Sign(), linear(16, 1))
    assert not any(ties(unbiased)) and not any(ties(unbiased, directions="rademacher"))
    unbiased[2] = linear(16, 16, 0.1, bias=False)
    assert not any(ties(unbiased)) and ties(unbiased, directions="rademacher") == [False, True, False]
    many_digits = frozen(16, Sign, 2.0**-8)
    with torch.no_grad():
        many_digits[2].weight[0, 0] = 1.0
    assert ties(many_digits, "bf16") == [False, True, False] and not any(ties(many_digits, "tf32"))


@pytest.mark.parametrize("kind", ["tenths", "ternary"])
def test_binary_weights_of_any_magnitude_are_exact(kind):
    """Float32 weights with one magnitude a row become signs; those of two magnitudes, or in float64, stay."""
    layers = recognise(make(kind, 16)).layers
    assert torch.equal(with_integer_rows(layers)[1].weight, layers[1].weight.sign())
    assert not any(layers_with_ties(with_integer_rows(layers), "bf16", "gaussian"))
    for model in (make(kind, 16, torch.float64), make("two magnitudes", 16), make("all off, sign", 16)):
        layers = recognise(model).layers
        assert all(a is b for a, b in zip(layers, with_integer_rows(layers), strict=True))


def test_binary_grids():
    """The digits of numbers, their products and their sums."""
    numbers = torch.tensor([0.0, 0.75, -6.0])
    assert BinaryGrid.of(numbers) == BinaryGrid(-2, 3) and BinaryGrid.of(numbers).bits == 5
    assert BinaryGrid.of(torch.zeros(3)).bits == 0 and BinaryGrid.of(torch.tensor([0.1])).bits > 20
    grid = BinaryGrid(-2, 3)
    assert grid.times(BinaryGrid(1, 2)) == BinaryGrid(-1, 5)
    assert grid.sums(9) == BinaryGrid(-2, 7) and grid.joined(BinaryGrid(-4, 1)) == BinaryGrid(-4, 4)
