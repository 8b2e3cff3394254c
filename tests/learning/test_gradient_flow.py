"""Gradient flow in closed form, against training."""

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
        ((1.0, torch.ones(3, 2), [0.0]), TypeError, "initial must be a torch.Tensor, got list"),
        ((1.0, torch.ones(3, 2), torch.ones(4)), ValueError, r"initial must have shape \(3,\), got \(4,\)"),
    ],
)
def test_predictions_that_do_not_fit_are_errors(arguments, error, message):
    """The message names the argument."""
    with pytest.raises(error, match=message):
        GradientFlow(torch.eye(2), torch.ones(2)).at(*arguments)
