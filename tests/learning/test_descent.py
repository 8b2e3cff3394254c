"""Descent along nonlocal gradients."""

import math

import pytest
import torch
from conftest import inputs, mlp, relative_error
from sklearn.datasets import load_digits
from torch import nn

import nntk
from nntk import NonlocalGradientDescent


def test_a_sign_network_learns_digits():
    """Nine of ten held-out digits are right with a frozen output layer, where autograd sees zero gradients."""
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)
    torch.manual_seed(0)
    hidden = [nn.Linear(64, 32), nntk.activations.Sign(), nn.Linear(32, 32), nntk.activations.Sign()]
    model, batches = nn.Sequential(*hidden, nn.Linear(32, 10)), torch.Generator().manual_seed(0)
    model[4].requires_grad_(False)
    optimizer = NonlocalGradientDescent(model.parameters(), lr=1e-2, gamma=0.1, samples=96)
    for _ in range(600):
        batch = torch.randint(1000, (250,), generator=batches)
        optimizer.step(lambda batch=batch: nn.functional.cross_entropy(model(x[batch]), y[batch]))
    assert float((model(x[1000:]).argmax(1) == y[1000:]).double().mean()) >= 0.9


def test_the_gradient_is_that_of_a_linear_loss():
    """The estimate for <g, theta> is g within its Monte-Carlo error, and parameters are left as they were."""
    parameters = [torch.zeros(6, 5), torch.zeros(4)]
    slopes = [torch.randn(6, 5), torch.randn(4)]

    def loss():
        return sum(float((p.double() * s.double()).sum()) for p, s in zip(parameters, slopes, strict=True))

    optimizer = NonlocalGradientDescent([p.requires_grad_() for p in parameters], samples=4000, directions="rademacher")
    with torch.no_grad():
        gradients, mean = optimizer._nonlocal_gradients(parameters, loss)
    expected, actual = (torch.cat([part.flatten() for part in parts]) for parts in (slopes, gradients))
    assert relative_error(actual, expected) < 4 * math.sqrt(34 / 4000) and abs(mean) < 1e-6
    assert all(not parameter.any() for parameter in parameters)


def test_a_step_is_that_of_adam():
    """Nonlocal gradients take the place of derivatives; each group has its learning rate; frozen parameters stay."""
    x, model, copy = inputs(8, 3), mlp(3, 4, 1), mlp(3, 4, 1)
    groups = [[{"params": m[0].parameters(), "lr": 0.1}, {"params": m[2].parameters()}] for m in (model, copy)]
    model[2].bias.requires_grad_(False)
    copy[2].bias.requires_grad_(False)
    optimizer, adam = NonlocalGradientDescent(groups[0], samples=4), torch.optim.Adam(groups[1], 1e-2, eps=1e-12)
    moving = [[p for p in m.parameters() if p.requires_grad] for m in (model, copy)]
    for _ in range(3):
        with torch.no_grad():
            gradients, _ = optimizer._nonlocal_gradients(moving[0], lambda: model(x).square().mean())
        for parameter, gradient in zip(moving[1], gradients, strict=True):
            parameter.grad = gradient
        adam.step()
        optimizer.step(lambda: model(x).square().mean())
        assert all(map(torch.equal, model.parameters(), copy.parameters()))
    assert optimizer.steps == 3 and not torch.equal(model[0].weight, mlp(3, 4, 1)[0].weight)


def test_gradients_that_parameters_hold_are_neither_used_nor_changed():
    """Also those of a frozen parameter, which a step leaves where it is."""
    weight, frozen, bare = (nn.Parameter(torch.ones(2)) for _ in range(3))
    weight.grad, frozen.grad = torch.full((2,), 5.0), torch.full((2,), 7.0)
    held = weight.grad, frozen.grad
    frozen.requires_grad_(False)
    optimizer = NonlocalGradientDescent([weight, frozen, bare], samples=4)
    optimizer.step(lambda: -weight.sum() - bare.sum())
    assert weight.grad is held[0] and frozen.grad is held[1] and bare.grad is None
    assert (held[0] == 5).all() and (held[1] == 7).all()
    assert torch.equal(frozen, torch.ones(2)) and (weight > 1).any() and not torch.equal(bare, torch.ones(2))


def test_runs_repeat_and_resume():
    """Displacements depend on the seed and the step: two runs agree, also where one resumes from a state."""
    x = inputs(8, 3)

    def run(optimizer, model, steps):
        return [optimizer.step(lambda: model(x).square().mean()) for _ in range(steps)]

    def start():
        model = mlp(3, 4, 1)
        return NonlocalGradientDescent(model.parameters(), samples=4, seed=3), model

    whole, (first, model) = run(*start(), 5), start()
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
    ],
)
def test_steps_that_cannot_be_made_are_errors(call, error, message):
    """The message names the argument."""
    with pytest.raises(error, match=message):
        call()


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
def test_settings_out_of_range_are_errors(settings, error, message):
    """The message names the argument, at construction."""
    with pytest.raises(error, match=message):
        NonlocalGradientDescent([torch.ones(2)], **settings)


def test_a_loss_that_is_not_finite_leaves_the_parameters():
    """The step fails, and the parameters are unperturbed."""
    weight = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="closure must return a finite loss, got nan at step 0"):
        NonlocalGradientDescent([weight]).step(lambda: math.nan)
    with pytest.raises(TypeError, match="closure must return a number, the loss; got None"):
        NonlocalGradientDescent([weight]).step(lambda: None)
    assert torch.equal(weight.detach(), torch.ones(2))
