"""Training as the kernel sees it, against training."""

import math

import pytest
import torch
from conftest import inputs, mlp, relative_error
from sklearn.datasets import load_digits
from torch import nn

import nntk
from nntk import GradientFlow, NonlocalGradientDescent, NonlocalNTK


class Scaled(nn.Module):
    """A tanh network in NTK parameterisation: standard-normal weights, scaled where they are used."""

    def __init__(self, width, width_in):
        """Of one hidden layer."""
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(width, width_in)), nn.Parameter(torch.randn(1, width))

    def forward(self, x):
        """Outputs [N, 1]."""
        h = torch.tanh(x @ self.first.T / x.shape[1] ** 0.5)
        return h @ self.second.T / self.second.shape[1] ** 0.5


def test_the_flow_predicts_training():
    """Full-batch descent at half the largest stable rate, 200 steps: by the NTK, and by 2048 displacements."""
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


@pytest.mark.parametrize("frozen", [False, True], ids=["whole", "output frozen"])
def test_a_sign_network_learns_digits(frozen):
    """Nine of ten digits held out, also with its output layer frozen, where autograd sees nothing at all."""
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)
    torch.manual_seed(0)
    hidden = [nn.Linear(64, 32), nntk.activations.Sign(), nn.Linear(32, 32), nntk.activations.Sign()]
    model, batches = nn.Sequential(*hidden, nn.Linear(32, 10)), torch.Generator().manual_seed(0)
    model[4].requires_grad_(not frozen)
    optimizer = NonlocalGradientDescent(model.parameters(), lr=1e-2, gamma=0.1, samples=96)
    for _ in range(600):
        some = torch.randint(1000, (250,), generator=batches)
        optimizer.step(lambda some=some: nn.functional.cross_entropy(model(x[some]), y[some]))
    assert float((model(x[1000:]).argmax(1) == y[1000:]).double().mean()) >= 0.9


def test_the_gradient_is_that_of_a_linear_loss():
    """In expectation: of <g, theta> within its Monte-Carlo error; parameters are left as they were."""
    parameters = [torch.zeros(6, 5), torch.zeros(4)]
    slopes = [torch.randn(6, 5), torch.randn(4)]

    def loss():
        return sum(float((p.double() * s.double()).sum()) for p, s in zip(parameters, slopes, strict=True))

    optimizer = NonlocalGradientDescent([p.requires_grad_() for p in parameters], samples=4000, directions="rademacher")
    with torch.no_grad():
        made, mean = optimizer._gradient(parameters, loss)
    expected, actual = (torch.cat([part.flatten() for part in parts]) for parts in (slopes, made))
    assert relative_error(actual, expected) < 4 * math.sqrt(34 / 4000) and abs(mean) < 1e-6
    assert all(not parameter.any() for parameter in parameters)


def test_runs_repeat_and_resume():
    """The displacements are those of the seed and the step: two runs agree, also where one goes on from a state."""
    x = inputs(8, 3)

    def run(optimizer, model, steps):
        return [optimizer.step(lambda: model(x).square().mean()) for _ in range(steps)]

    def begun():
        model = mlp(3, 4, 1)
        return NonlocalGradientDescent(model.parameters(), samples=4, seed=3), model

    whole, (first, model) = run(*begun(), 5), begun()
    assert run(first, model, 3) == whole[:3] and len(set(whole)) == 5
    second = NonlocalGradientDescent(model.parameters(), samples=4, seed=3)
    second.load_state_dict(first.state_dict())
    assert second.steps == 3 and run(second, model, 2) == whole[3:]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: NonlocalGradientDescent([torch.ones(2)], lr=0.0), ValueError, "lr must be between"),
        (lambda: NonlocalGradientDescent([torch.ones(2)], betas=(1.0, 0.9)), ValueError, "the first of betas must be"),
        (lambda: NonlocalGradientDescent([torch.ones(2)]).step(), ValueError, "closure must be given, got None"),
        (lambda: NonlocalGradientDescent([torch.ones(2)]).step(lambda: 1.0), ValueError, "params must .* got none"),
        (lambda: NonlocalGradientDescent([]), ValueError, "empty parameter list"),
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
def test_what_cannot_be_is_an_error(call, error, message):
    """It names the argument."""
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
def test_what_cannot_be_predicted_is_an_error(arguments, error, message):
    """It names the argument."""
    with pytest.raises(error, match=message):
        GradientFlow(torch.eye(2), torch.ones(2)).at(*arguments)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"lr": "fast"}, TypeError, "lr must be a number, got 'fast'"),
        ({"gamma": 0.0}, ValueError, "gamma must be between 1e-30 and 1e\\+30, got 0"),
        ({"gamma": "wide"}, TypeError, "gamma must be a number, got 'wide'"),
        ({"samples": 0}, ValueError, "samples must be at least 1, got 0"),
        ({"samples": 2.5}, TypeError, "samples must be an integer, got 2.5"),
        ({"directions": "cubic"}, ValueError, "directions must be one of .* got 'cubic'"),
        ({"betas": 0.9}, TypeError, "betas must be a pair of numbers, got 0.9"),
        ({"betas": (0.9,)}, TypeError, r"betas must be a pair of numbers, got \(0.9,\)"),
        ({"betas": (0.9, -0.1)}, ValueError, "the second of betas must be between 0 and 1, got -0.1"),
        ({"betas": (0.9, "x")}, TypeError, "the second of betas must be a number, got 'x'"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"seed": 1.5}, TypeError, "seed must be an integer, got 1.5"),
    ],
)
def test_settings_of_descent_that_cannot_be_are_errors(settings, error, message):
    """As it is made."""
    with pytest.raises(error, match=message):
        NonlocalGradientDescent([torch.ones(2)], **settings)


def test_a_loss_that_is_not_finite_leaves_the_parameters():
    """The step fails, and nothing has moved."""
    weight = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="closure must return a finite loss, got nan at step 0"):
        NonlocalGradientDescent([weight]).step(lambda: math.nan)
    with pytest.raises(TypeError, match="closure must return a number, the loss; got None"):
        NonlocalGradientDescent([weight]).step(lambda: None)
    assert torch.equal(weight.detach(), torch.ones(2))
