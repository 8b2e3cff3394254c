"""Gradient flow in closed form, against training."""

import itertools
import math

import pytest
import torch
from conftest import inputs, relative_error
from torch import nn

import nntk
from nntk import GradientFlow, NonlocalNTK


class Scaled(nn.Module):
    """A tanh network in NTK parameterisation: standard-normal weights, scaled where they are used."""

    def __init__(self, width, width_in):
        """Draw the weights of one hidden layer and of the output."""
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(width, width_in)), nn.Parameter(torch.randn(1, width))

    def forward(self, x):
        """Return outputs [N, 1]."""
        h = torch.tanh(x @ self.first.T / x.shape[1] ** 0.5)
        return h @ self.second.T / self.second.shape[1] ** 0.5


def test_the_flow_predicts_training():
    """200 steps of full-batch descent at half the largest stable rate, by the NTK and by 2048 displacements."""
    torch.manual_seed(0)
    model, x, new = Scaled(1024, 8).double(), inputs(64, 8, torch.float64), inputs(20, 8, torch.float64, seed=4)
    y = torch.sin(x[:, :1])
    start, start_new = model(x).detach(), model(new).detach()
    kernels = {
        "local": lambda *at: nntk.local_ntk(model, *at),
        "nonlocal": NonlocalNTK(model, gamma=1e-3, samples=2048, directions="rademacher"),
    }
    flows = {name: (GradientFlow(kernel(x), y, start), kernel(new, x)) for name, kernel in kernels.items()}
    rate = flows["local"][0].largest_learning_rate / 2
    predicted = {
        name: (flow.at(200 * rate), flow.at(200 * rate, cross, start_new)) for name, (flow, cross) in flows.items()
    }
    for _ in range(200):
        loss = (model(x) - y).square().sum() / 2
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= rate * gradient
    trained, trained_new = model(x).detach(), model(new).detach()
    errors = [relative_error(predicted[name][0], trained) for name in flows]
    assert max(errors) < 0.03, errors
    assert relative_error(predicted["local"][1], trained_new) < 0.1


def test_the_flow_in_its_limits():
    """It starts at the initial outputs, ends at the targets, and follows its differential equation in between."""
    k = torch.randn(5, 8, dtype=torch.float64)
    flow = GradientFlow(k @ k.T, torch.randn(5, 2, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64))
    assert torch.allclose(flow.at(0.0), flow.initial)
    assert torch.allclose(flow.at(math.inf), flow.targets) and torch.allclose(flow.at(1e6), flow.targets)
    slope = (flow.at(0.1 + 1e-6) - flow.at(0.1 - 1e-6)) / 2e-6
    assert torch.allclose(slope, flow.kernel @ (flow.targets - flow.at(0.1)), rtol=1e-5)
    assert torch.allclose(flow.at(0.3, cross=flow.kernel, initial=flow.initial), flow.at(0.3))
    ridgeless = flow.kernel[:2] @ torch.linalg.solve(flow.kernel, flow.targets - flow.initial)
    assert torch.allclose(flow.at(math.inf, cross=flow.kernel[:2]), ridgeless)


def low_rank(dtype, rank, number=60, scale=1.0):
    """Build a kernel of low rank, rounded to a dtype, with targets that it cannot learn."""
    factor = inputs(number, rank, torch.float64, seed=2)
    return (scale * factor @ factor.T).to(dtype), inputs(number, 2, torch.float64, seed=3)


def wide_spectrum(dtype, rank, number=60):
    """Build a kernel whose eigenvalues fall to far below rounding."""
    basis = torch.linalg.qr(inputs(number, rank, torch.float64, seed=2))[0]
    values = torch.logspace(2, -12, rank, dtype=torch.float64)
    return (basis * values @ basis.T).to(dtype), inputs(number, 2, torch.float64, seed=3)


KERNELS = {
    f"{build.__name__}, {rank}, {dtype}": build(dtype, rank)
    for build in (low_rank, wide_spectrum)
    for rank in (3, 60)
    for dtype in (torch.float16, torch.float32, torch.float64)
} | {"zero": (torch.zeros(60, 60), torch.ones(60, 2)), "tiny": low_rank(torch.float32, 3, scale=1e-30)}
TIMES = (1e-300, 1e-6, 1e-3, 1.0, 1e3, 1e9, 1e60, 1e300, math.inf)


@pytest.mark.parametrize(("kernel", "targets"), KERNELS.values(), ids=KERNELS)
def test_both_forms_agree_at_the_training_inputs(kernel, targets):
    """Predictions there are those of cross=kernel at all times, with initial outputs and without."""
    start = inputs(60, 2, torch.float64, seed=4)
    flow, at_rest = GradientFlow(kernel, targets, start), GradientFlow(kernel, targets)
    for time in TIMES:
        # The decomposition is exact to 1e-16 of the largest eigenvalue, which modes near the bound divide by.
        bound = 1e-4 if kernel.dtype == torch.float64 else 1e-6
        torch.testing.assert_close(flow.at(time, flow.kernel, start), flow.at(time), rtol=bound, atol=bound)
        torch.testing.assert_close(at_rest.at(time, flow.kernel), at_rest.at(time), rtol=bound, atol=bound)


@pytest.mark.parametrize(("kernel", "targets"), KERNELS.values(), ids=KERNELS)
def test_the_laws_of_the_flow(kernel, targets):
    """It begins at the initial outputs, its loss never rises, its end is its limit, and it may stop on the way."""
    start, cross = inputs(60, 2, torch.float64, seed=4), inputs(7, 60, torch.float64, seed=5)
    flow = GradientFlow(kernel, targets, start)
    assert torch.equal(flow.at(0.0), start) and torch.equal(flow.at(0.0, cross, start[:7]), start[:7])
    losses = [float((flow.at(time) - targets).square().sum()) for time in (0.0, *TIMES)]
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in itertools.pairwise(losses))
    slowest = float(flow.rates[flow.rates > 0].min()) if flow.rates.any() else 1.0
    torch.testing.assert_close(flow.at(50 / slowest), flow.at(math.inf), rtol=1e-12, atol=1e-12)
    assert torch.equal(flow.at(1e300), flow.at(math.inf)) and torch.equal(
        flow.at(1e300, cross), flow.at(math.inf, cross)
    )
    rest = GradientFlow(kernel, targets, flow.at(0.02))
    torch.testing.assert_close(rest.at(0.3), flow.at(0.32), rtol=1e-9, atol=1e-9)
    onward = rest.at(0.3, cross, flow.at(0.02, cross, start[:7]))
    expected = flow.at(0.32, cross, start[:7])
    torch.testing.assert_close(onward, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


def test_directions_that_a_kernel_does_not_have_are_never_learnt():
    """The error that remains is the part of the targets outside of the kernel's range, in every dtype."""
    for dtype in (torch.float32, torch.float64):
        kernel, targets = low_rank(dtype, 3)
        flow, basis = GradientFlow(kernel, targets), torch.linalg.qr(inputs(60, 3, torch.float64, seed=2))[0]
        assert relative_error(flow.at(math.inf), basis @ basis.T @ targets) < 1e-6
        assert int((flow.rates > 0).sum()) == 3


def test_a_kernel_of_float32_predicts_what_float64_predicts():
    """A relu network of one input, whose kernel has few eigenvalues above rounding, at training inputs and between."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 64), nn.ReLU(), nn.Linear(64, 1))
    x = torch.linspace(-31, 31, 200)[:, None]
    y, new = torch.sin(x[:, 0]), x[:-1] + 0.15
    flow, cross = GradientFlow(nntk.local_ntk(model, x), y), nntk.local_ntk(model, new, x)
    exact = GradientFlow(nntk.local_ntk(model.double(), x.double()), y.double())
    exact_cross = nntk.local_ntk(model, new.double(), x.double())
    assert flow.at(1.0).dtype == torch.float32
    for time, bound in ((1e-4, 1e-4), (1e-2, 2e-3), (1.0, 0.05)):
        assert relative_error(flow.at(time), exact.at(time)) < bound
        assert relative_error(flow.at(time, cross), exact.at(time, exact_cross)) < bound
    assert float(flow.at(math.inf, cross).norm()) < 2 * float(y.norm())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: GradientFlow(torch.eye(2), torch.ones(3)), ValueError, r"kernel must have shape \[3, 3\]"),
        (
            lambda: GradientFlow(torch.eye(2), torch.tensor(1.0)),
            ValueError,
            r"targets must have shape \[N\].* got \(\)",
        ),
        (
            lambda: GradientFlow(torch.eye(2), torch.ones(2), torch.ones(3)),
            ValueError,
            "initial must have the targets'",
        ),
        (
            lambda: GradientFlow(torch.tensor([[1.0, 0.5], [0.0, 1.0]]), torch.ones(2)),
            ValueError,
            "kernel must be symmetric, but two mirrored entries differ by 0.5",
        ),
        (lambda: GradientFlow([[1.0]], torch.ones(1)), TypeError, "kernel must be a torch.Tensor"),
        (lambda: GradientFlow(torch.eye(1), [1.0]), TypeError, "targets must be a torch.Tensor, got list"),
        (
            lambda: GradientFlow(torch.eye(1), torch.ones(1), [0.0]),
            TypeError,
            "initial must be a torch.Tensor, got list",
        ),
        (lambda: GradientFlow(torch.eye(1) / 0, torch.ones(1)), ValueError, "kernel must be finite, got 1 NaN"),
        (lambda: GradientFlow(torch.eye(1), torch.ones(1) / 0), ValueError, "targets must be finite, got 1 NaN"),
        (lambda: GradientFlow(*torch.ones(2, 1, 1), torch.ones(1, 1) / 0), ValueError, "initial must be finite, got 1"),
    ],
)
def test_flows_that_do_not_fit_are_errors(call, error, message):
    """The message names the argument."""
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((-1.0,), ValueError, "time must be between 0 and inf, got -1"),
        ((math.nan,), ValueError, "time must be between 0 and inf, got nan"),
        (("soon",), TypeError, "time must be a number, got 'soon'"),
        ((1.0, [[1.0, 2.0]]), TypeError, "cross must be a torch.Tensor, got list"),
        ((1.0, torch.ones(1, 3)), ValueError, r"cross must have shape \[N2, 2\], got \(1, 3\)"),
        ((1.0, None, torch.ones(2)), ValueError, "initial must be None without cross"),
        ((1.0, torch.ones(3, 2), [0.0]), TypeError, "initial must be a torch.Tensor, got list"),
        ((1.0, torch.ones(3, 2), torch.ones(4)), ValueError, r"initial must have shape \(3,\), got \(4,\)"),
    ],
)
def test_predictions_that_do_not_fit_are_errors(arguments, error, message):
    """The message names the argument."""
    with pytest.raises(error, match=message):
        GradientFlow(torch.eye(2), torch.ones(2)).at(*arguments)
