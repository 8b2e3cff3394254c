"""Training of linear models: coupled outputs, ridge, momentum, ensembles and cross-entropy."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.special
import torch
from conftest import inputs, mlp
from torch import nn

import nntk
from nntk import CrossEntropyFlow, GradientFlow

N, C, NEW = 4, 3, 2


@pytest.fixture
def linear():
    """Return Jacobians [N, C, d] at training inputs and others, targets, and initial outputs at both."""
    parts = inputs(N + NEW, C * 20, torch.float64, seed=1).view(-1, C, 20) / 4
    y, start = inputs(N, C, torch.float64, seed=2), inputs(N + NEW, C, torch.float64, seed=3)
    return parts[:N], parts[N:], y, start[:N], start[N:]


def full(first, second):
    """Return the kernel of two Jacobians, [N1, N2, C, C]."""
    return torch.einsum("icp,jdp->ijcd", first, second)


def as_matrix(kernel):
    """Return the kernel as a matrix of NumPy, with inputs first and outputs second in each index."""
    n1, n2, c, _ = kernel.shape
    return kernel.permute(0, 2, 1, 3).reshape(n1 * c, n2 * c).numpy()


@pytest.mark.parametrize("ridge", [0.0, 0.4])
def test_coupled_outputs_follow_the_matrix_exponential(linear, ridge):
    """SciPy's expm of the whole matrix, at training inputs and at others; the end of training solves the ridge."""
    j, new, y, start, start_new = linear
    flow = GradientFlow(full(j, j), y, start, ridge)
    matrix = as_matrix(full(j, j)) + ridge * np.eye(N * C)
    error = (y - start).reshape(-1).numpy()
    for time in (0.0, 0.1, 1.7, math.inf):
        decay = np.zeros_like(matrix) if time == math.inf else scipy.linalg.expm(-matrix * time)
        weights = np.linalg.solve(matrix, (np.eye(N * C) - decay) @ error)
        expected = start.reshape(-1).numpy() + as_matrix(full(j, j)) @ weights
        np.testing.assert_allclose(flow.at(time).reshape(-1), expected, rtol=1e-9, atol=1e-11)
        other = start_new.reshape(-1).numpy() + as_matrix(full(new, j)) @ weights
        np.testing.assert_allclose(flow.at(time, full(new, j), start_new).reshape(-1), other, rtol=1e-9, atol=1e-11)
    assert flow.is_coupled and flow.largest_learning_rate == pytest.approx(2 / np.linalg.eigvalsh(matrix)[-1])


def test_outputs_that_do_not_interact_are_those_of_the_small_kernel():
    """A kernel times the identity of outputs couples nothing."""
    a = inputs(5, 8, torch.float64)
    kernel, y = a @ a.T, inputs(5, C, torch.float64, seed=2)
    coupled = kernel[:, :, None, None] * torch.eye(C, dtype=torch.float64)
    torch.testing.assert_close(GradientFlow(coupled, y, ridge=0.1).at(0.3), GradientFlow(kernel, y, ridge=0.1).at(0.3))


@pytest.mark.parametrize("ridge", [0.0, 0.3])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_steps_are_those_of_sgd(linear, ridge, momentum, nesterov):
    """torch.optim.SGD of a linear model, whose weight decay is the ridge; also of the kernel without coupling."""
    j, new, y, start, start_new = linear
    flow = GradientFlow(full(j, j), y, start, ridge)
    rate = 0.9 * flow.largest_learning_rate
    weights = nn.Parameter(torch.zeros(20, dtype=torch.float64))
    sgd = torch.optim.SGD([weights], rate, momentum, weight_decay=ridge, nesterov=nesterov)
    for steps in range(8):
        options = {"momentum": momentum, "nesterov": nesterov}
        torch.testing.assert_close(flow.after(steps, rate, **options), (start + j @ weights).detach())
        at_new = flow.after(steps, rate, **options, cross=full(new, j), initial=start_new)
        torch.testing.assert_close(at_new, (start_new + new @ weights).detach())
        sgd.zero_grad()
        (0.5 * (start + j @ weights - y).square().sum()).backward()
        sgd.step()


def test_small_steps_are_the_flow(linear):
    """Many small steps equal the flow at their sum, with momentum over one minus it; tiny ones keep their digits."""
    j, _, y, start, _ = linear
    flow = GradientFlow(full(j, j), y, start, 0.1)
    torch.testing.assert_close(flow.after(10**7, 1e-7), flow.at(1.0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(flow.after(10**7, 1e-8, momentum=0.9), flow.at(1.0), rtol=1e-5, atol=1e-5)
    step = flow.after(1, 1e-13) - start
    exact = 1e-13 * torch.einsum("ijcd,jd->ic", full(j, j), y - start)
    torch.testing.assert_close(step, exact, rtol=1e-2, atol=1e-16)


def test_the_ensemble_is_what_the_flow_makes_of_initial_outputs(linear):
    """Outputs are affine in the initial ones: the covariance follows from the flow of each unit vector."""
    j, new, y, start, start_new = linear
    k, cross = full(j, j), full(new, j)
    root = inputs((N + NEW) * C, 30, torch.float64, seed=7)
    prior = (root @ root.T).view(N + NEW, C, N + NEW, C).transpose(1, 2)
    flow = GradientFlow(k, y, start, 0.2)
    kinds = {"prior": prior[:N, :N], "prior_cross": prior[N:, :N], "prior_other": prior[N:, N:]}
    columns = []
    for unit in torch.eye((N + NEW) * C, dtype=torch.float64).view(-1, N + NEW, C):
        moved = GradientFlow(k, y * 0, unit[:N], 0.2)
        columns.append(torch.cat((moved.at(0.6), moved.at(0.6, cross, unit[N:]))).reshape(-1))
    linear_map = torch.stack(columns, 1)
    expected = (linear_map @ root @ root.T @ linear_map.T).view(N + NEW, C, N + NEW, C).transpose(1, 2)
    mean, covariance = flow.ensemble(0.6, prior[:N, :N])
    torch.testing.assert_close(covariance, expected[:N, :N])
    torch.testing.assert_close(mean, flow.at(0.6))
    mean, covariance = flow.ensemble(0.6, **kinds, cross=cross, initial=start_new)
    torch.testing.assert_close(covariance, expected[N:, N:])
    torch.testing.assert_close(mean, flow.at(0.6, cross, start_new))
    single = GradientFlow(k[..., 0, 0], y)
    small = single.ensemble(math.inf, prior[:N, :N, 0, 0])
    assert small.covariance.shape == (N, N) and float(small.covariance.abs().max()) < 1e-8, "interpolated"


def test_a_trained_ensemble_at_the_end_is_a_gaussian_process():
    """With the prior as the kernel, and no noise, the posterior of exact inference (NNGP); at time 0 the prior."""
    a = inputs(7, 9, torch.float64)
    k, y = a @ a.T, inputs(5, 1, torch.float64, seed=2)[:, 0]
    train, cross, other = k[:5, :5], k[5:, :5], k[5:, 5:]
    flow = GradientFlow(train, y)
    mean, covariance = flow.ensemble(math.inf, train, cross=cross, prior_cross=cross, prior_other=other)
    np.testing.assert_allclose(mean, cross @ np.linalg.solve(train, y), rtol=1e-8)
    np.testing.assert_allclose(covariance, other - cross @ np.linalg.solve(train, cross.T), rtol=1e-6, atol=1e-8)
    before = flow.ensemble(0.0, train, cross=cross, prior_cross=cross, prior_other=other)
    assert torch.equal(before.covariance, other) and not before.mean.any()


def test_a_network_with_several_outputs_trains_as_its_full_kernel_says():
    """Full-batch steps of a wide tanh network of three outputs, by the NTK of ``outputs="full"``."""
    model, x = mlp(6, 512, C, dtype=torch.float64), inputs(8, 6, torch.float64)
    with torch.no_grad():
        model[2].weight.mul_(0.1)
    y, start = torch.sin(2 * x[:, :C]), model(x).detach()
    flow = GradientFlow(nntk.local_ntk(model, x, outputs="full"), y, start)
    rate = flow.largest_learning_rate / 4
    expected = flow.after(60, rate, momentum=0.5)
    sgd = torch.optim.SGD(model.parameters(), rate, momentum=0.5)
    for _ in range(60):
        sgd.zero_grad()
        (0.5 * (model(x) - y).square().sum()).backward()
        sgd.step()
    assert float((model(x).detach() - expected).norm() / (y - start).norm()) < 0.02
    assert float((expected - y).norm() / (start - y).norm()) < 0.5


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f: GradientFlow(f.kernel, f.targets[:, 0]), ValueError, r"kernel must have shape \[4, 4\]"),
        (lambda f: GradientFlow(f.kernel, f.targets[:, :2]), ValueError, r"kernel must have shape \[4, 4, 2, 2\]"),
        (lambda f: GradientFlow(f.kernel, f.targets, None, -1.0), ValueError, "ridge must be between 0 and"),
        (
            lambda f: f.at(1.0, f.kernel[:, :3]),
            ValueError,
            r"cross must have shape \[N2, 4, 3, 3\], got \(4, 3, 3, 3\)",
        ),
        (lambda f: f.after(-1, 0.1), ValueError, "steps must be at least 0, got -1"),
        (lambda f: f.after(1.5, 0.1), TypeError, "steps must be an integer, got 1.5"),
        (lambda f: f.after(1, 0.0), ValueError, "learning_rate must be between"),
        (lambda f: f.after(1, 0.1, momentum=1.0), ValueError, "momentum must be below 1"),
        (lambda f: f.after(1, 0.1, nesterov=1), TypeError, "nesterov must be True or False"),
        (lambda f: f.after(10**6, 10.0), ValueError, "learning_rate must not let 1000000 steps diverge, got 10; "),
        (lambda f: f.ensemble(1.0, f.kernel[0]), ValueError, r"prior must have shape \(4, 4, 3, 3\)"),
        (
            lambda f: f.ensemble(1.0, f.kernel, cross=f.kernel),
            TypeError,
            "prior_cross must be a torch.Tensor, got None",
        ),
        (lambda f: f.ensemble(1.0, f.kernel, prior_other=f.kernel), ValueError, "must be None without cross"),
    ],
)
def test_settings_that_do_not_fit_are_errors(linear, call, error, message):
    """The message names the argument, the value given and what is allowed."""
    j, _, y, start, _ = linear
    with pytest.raises(error, match=message):
        call(GradientFlow(full(j, j), y, start))


def test_the_flow_of_one_input_is_lamberts_function():
    """For two classes the difference z of the logits obeys z + exp(z) = 2 k t + 1, which has a closed form."""
    for method in ("LSODA", "Radau", "DOP853"):
        flow = CrossEntropyFlow(torch.tensor([[1.7]], dtype=torch.float64), torch.tensor([1]), method=method)
        times = [0.0, 0.3, 2.0, 50.0]
        logits = flow.at(times)
        total = 2 * 1.7 * np.array(times) + 1
        expected = total - scipy.special.lambertw(np.exp(total)).real
        np.testing.assert_allclose((logits[:, 0, 1] - logits[:, 0, 0]), expected, rtol=1e-4, atol=1e-7)
        assert logits.shape == (4, 1, 2) and float(logits.sum(2).abs().max()) < 1e-9


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_cross_entropy_is_that_of_a_linear_model_in_small_steps(linear, ridge):
    """3,000 steps of autograd's gradients, with outputs coupled; at other inputs too, by every method."""
    j, new, _, start, start_new = linear
    labels = torch.tensor([0, 2, 1, 2])
    weights = torch.zeros(20, dtype=torch.float64, requires_grad=True)
    rate, steps = 1e-3, 3000
    for _ in range(steps):
        loss = nn.functional.cross_entropy(start + j @ weights, labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss + ridge / 2 * weights.square().sum(), weights)
        with torch.no_grad():
            weights -= rate * gradient
    for method in ("LSODA", "BDF", "RK45"):
        flow = CrossEntropyFlow(full(j, j), labels, start, ridge, method=method)
        torch.testing.assert_close(flow.at(rate * steps), start + j @ weights.detach(), rtol=3e-3, atol=1e-3)
        at_new = flow.at(rate * steps, full(new, j), start_new)
        torch.testing.assert_close(at_new, start_new + new @ weights.detach(), rtol=3e-3, atol=1e-3)


def test_cross_entropy_ends_where_the_ridge_says():
    """There the gradient of the regularised loss is zero; labels are probabilities of one class."""
    a = inputs(6, 4, torch.float64)
    kernel, labels = a @ a.T, torch.tensor([0, 1, 2, 0, 1, 2])
    flow = CrossEntropyFlow(kernel, labels, ridge=0.5)
    end = flow.at(200.0)
    coefficients = flow.coefficients([200.0])[0]
    targets = nn.functional.one_hot(labels)
    torch.testing.assert_close(0.5 * coefficients, targets - end.softmax(1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(CrossEntropyFlow(kernel, targets, ridge=0.5).at(1.0), flow.at(1.0))
    spread = kernel[:, :, None, None] * torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(CrossEntropyFlow(spread, labels, ridge=0.5).at(1.0), flow.at(1.0), rtol=1e-4, atol=1e-5)
    assert torch.equal(flow.at(0.0), torch.zeros(6, 3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda k, y: CrossEntropyFlow(k, y.double()), TypeError, "must be integer labels, got torch.float64"),
        (lambda k, y: CrossEntropyFlow(k, -y), ValueError, "targets must be at least 0, got -1"),
        (lambda k, y: CrossEntropyFlow(k[:1], y), ValueError, r"kernel must have shape \[2, 2\] or \[2, 2, 2, 2\]"),
        (lambda k, y: CrossEntropyFlow(k, y, torch.ones(2, 1)), ValueError, "targets must be labels below 1 or have 1"),
        (lambda k, y: CrossEntropyFlow(k, y, torch.ones(3, 2)), ValueError, r"initial must have shape \[2, C\]"),
        (lambda k, y: CrossEntropyFlow(k, y, method="Euler"), ValueError, "method must be one of 'LSODA', "),
        (lambda k, y: CrossEntropyFlow(k, y, rtol=1.0), ValueError, "rtol must be between"),
        (lambda k, y: CrossEntropyFlow(k.triu(1), y), ValueError, "kernel must be symmetric"),
        (lambda k, y: CrossEntropyFlow(k, y).at([1.0, 0.5]), ValueError, "time must hold rising times"),
        (lambda k, y: CrossEntropyFlow(k, y).at(math.inf), ValueError, "time must be between 0 and 1e.300, got inf"),
        (lambda k, y: CrossEntropyFlow(k, y).at("soon"), TypeError, "time must be a number"),
        (lambda k, y: CrossEntropyFlow(k, y).at(1.0, k[:, :1]), ValueError, r"cross must have shape \[N2, 2\]"),
        (lambda k, y: CrossEntropyFlow(k, y).at(1.0, None, k), ValueError, "initial must be None without cross"),
        (lambda k, y: CrossEntropyFlow(k, y).at(1.0, k, k[:1]), ValueError, r"initial must have shape \(2, 2\)"),
        (lambda k, y: CrossEntropyFlow([1.0], y), TypeError, "kernel must be a torch.Tensor, got list"),
    ],
)
def test_classifiers_that_do_not_fit_are_errors(call, error, message):
    """The message names the argument, the value given and what is allowed."""
    with pytest.raises(error, match=message):
        call(torch.ones(2, 2), torch.tensor([0, 1]))
