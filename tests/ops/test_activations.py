"""Activations: value and derivative as torch has them, and a difference that keeps its digits."""

import pytest
import torch
from conftest import ACTIVATIONS, JUMPS, SMOOTH

from nntk.activations import Quantise, Sawtooth
from nntk.kernels.activations import decode, encode
from nntk.models.recognise import _activation_of


def function_of(name):
    return _activation_of("", ACTIVATIONS[name]())


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_value_and_derivative_equal_the_module_and_its_autograd(name):
    """In float64, at points that include both sides of every jump and kink."""
    z = torch.linspace(-6.03, 6.01, 401, dtype=torch.float64, requires_grad=True)
    h = ACTIVATIONS[name]()(z)
    (gradient,) = torch.autograd.grad(h.sum(), z) if h.requires_grad else (torch.zeros_like(z),)
    torch.testing.assert_close(function_of(name).value(z.detach()), h.detach(), rtol=1e-12, atol=3e-9)
    torch.testing.assert_close(function_of(name).derivative(z.detach()), gradient, rtol=1e-12, atol=3e-9)


@pytest.mark.parametrize("gamma", [1e-6, 1e-3, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("name", SMOOTH)
def test_difference_keeps_its_digits(name, gamma):
    """Float32 against float64 subtraction, |z| up to 20: relative error below 2e-6 in the root mean square."""
    generator = torch.Generator().manual_seed(0)
    z = (torch.rand(20_000, generator=generator, dtype=torch.float64) - 0.5) * 40
    dz = torch.randn(20_000, generator=generator)
    s = torch.tensor(gamma)
    function = function_of(name)
    expected = (function.value(z + s.double() * dz.double()) - function.value(z)) / s.double()
    result = function.difference(function.state(z, torch.float32), dz, s)
    assert result.dtype == torch.float32
    # Float64 subtraction itself is exact only to its rounding over gamma.
    assert (result - expected).norm() <= (2e-6 + 1e-15 / gamma) * expected.norm()


@pytest.mark.parametrize("gamma", [1e-6, 1e-3, 0.1, 1.0])
@pytest.mark.parametrize("name", JUMPS)
def test_difference_finds_every_jump(name, gamma):
    """Starting as close to jumps as displacements reach, at most one entry in 10^5 lands on the wrong side."""
    generator = torch.Generator().manual_seed(0)
    edge = torch.randint(-8, 9, (200_000,), generator=generator) * (1 / 15 if name == "quantise" else 1.0)
    edge = edge if name in ("quantise", "sawtooth") else torch.zeros_like(edge)
    z = edge.double() + gamma * torch.randn(200_000, generator=generator, dtype=torch.float64)
    dz, s = torch.randn(200_000, generator=generator), torch.tensor(gamma)
    function = function_of(name)
    expected = (function.value(z + s.double() * dz.double()) - function.value(z)) / s.double()
    result = function.difference(function.state(z, torch.float32), dz, s)
    assert ((result - expected).abs() > 1e-5 * (1 + expected.abs())).sum() <= 2


@pytest.mark.parametrize("name", JUMPS)
def test_distance_from_the_nearest_jump(name):
    """The value changes only by its slope within that distance, and jumps beyond it on one side."""
    function, s = function_of(name), torch.tensor(0.25, dtype=torch.float64)
    z = torch.linspace(-0.93, 0.91, 47, dtype=torch.float64)
    dz = torch.linspace(3.0, -0.2, 47, dtype=torch.float64).clamp(-0.2, 0.1)
    distance = function.jump_distance(function.state(z, torch.float64), dz, s)
    displaced_z = z + s * dz

    def jumps(step):
        change = function.value(displaced_z + step) - function.value(displaced_z)
        return (change - (step if name == "sawtooth" else 0)).abs() > 1e-9

    assert (distance > 0).all() and not (jumps(0.99 * distance) | jumps(-0.99 * distance)).any()
    assert (jumps(1.01 * distance) | jumps(-1.01 * distance)).all()


@pytest.mark.parametrize("name", JUMPS)
def test_difference_of_two_values_is_the_difference(name):
    """Away from jumps, the displaced pre-activation and its difference say the same."""
    function, s = function_of(name), torch.tensor(0.25, dtype=torch.float64)
    z, dz = torch.linspace(-2.03, 2.11, 301, dtype=torch.float64), torch.linspace(7, -6, 301, dtype=torch.float64)
    expected = function.difference(function.state(z, torch.float64), dz, s)
    torch.testing.assert_close(function.difference_of_values(z, z + s * dz, dz, s), expected, rtol=1e-12, atol=1e-12)


def test_signs_survive_rounding():
    """A pre-activation too small for float32 stays on its side of the jump."""
    z = torch.tensor([-1e-50, 1e-50, -0.0, 0.0], dtype=torch.float64)
    for name in ("sign", "step"):
        function = function_of(name)
        moved = function.difference(function.state(z, torch.float32), torch.full((4,), 1e-3), torch.tensor(1.0))
        assert (moved != 0).tolist() == [True, False, False, False]


def test_quantise_and_sawtooth_at_their_edges():
    """Halves round up, values are clamped; a tooth begins with zero."""
    quantised = Quantise(levels=3, clamp=2.0)(torch.tensor([-9.0, -1.1, -1.0, 0.99, 1.0, 9.0]))
    assert quantised.tolist() == [-2, -2, 0, 0, 2, 2]
    assert Sawtooth()(torch.tensor([-1.0, -0.25, 0.0, 3.5])).tolist() == [0, 0.75, 0, 0.5]


def test_encoding_is_inverted():
    """The op's schema carries names and numbers; they give the same functions back."""
    functions = [function_of(name) for name in ACTIVATIONS] + [Quantise(5, 0.5).function, Sawtooth(3.0).function]
    assert decode(*encode(functions)) == functions


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Quantise(levels=1), ValueError, "levels must be at least 2, got 1"),
        (lambda: Quantise(levels=2.5), TypeError, "levels must be an integer, got 2.5"),
        (lambda: Quantise(clamp=0.0), ValueError, "clamp must be between"),
        (lambda: Quantise(clamp="tight"), TypeError, "clamp must be a number, got 'tight'"),
        (lambda: Sawtooth(period=float("nan")), ValueError, "period must be between .* got nan"),
        (lambda: Sawtooth(period=None), TypeError, "period must be a number, got None"),
    ],
)
def test_bad_arguments_are_named(make, error, message):
    """Each error names the argument, the value and what is allowed."""
    with pytest.raises(error, match=message):
        make()
