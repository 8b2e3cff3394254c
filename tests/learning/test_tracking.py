"""Tracking of kernels along training."""

import dataclasses

import pytest
import torch
from conftest import inputs, mlp, relative_error
from torch import nn

from nntk import GradientFlow, KernelTracker, NonlocalNTK


def make_kernel(model, samples=24, **settings):
    """Build a kernel that is quickly evaluated."""
    return NonlocalNTK(model, gamma=0.01, samples=samples, **settings)


def train(model, tracker, x, y, lr, steps=20):
    """Make steps of gradient descent on half the sum of squares, with a record before and after."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    tracker.record(0)
    for _ in range(steps):
        optimizer.zero_grad()
        (0.5 * (model(x)[:, 0] - y).square().sum()).backward()
        optimizer.step()
    return tracker.record(steps)


@pytest.mark.parametrize("number", [15, 200], ids=["few inputs", "many inputs"])
def test_records_are_those_of_the_matrices(number):
    """Records equal results from both matrices, also with a budget so small that features come in blocks."""
    model, x, y = mlp(3, 8, 2, dtype=torch.float64), inputs(number, 3, torch.float64), inputs(number, 2, seed=3)
    kernel = make_kernel(model, max_memory=2**20)
    tracker = KernelTracker(kernel, x, y, top=3)
    k0, _ = kernel(x), tracker.record(0)
    model[0].weight.data.mul_(1.5)
    k, record, gram = kernel(x), tracker.record(7), y.double() @ y.double().T
    assert record.step == 7 and tracker.records[1] is record
    assert record.trace == pytest.approx(float(k.trace()), rel=1e-9)
    assert record.effective_rank == pytest.approx(float(k.trace() ** 2 / k.square().sum()), rel=1e-9)
    assert record.eigenvalues == pytest.approx(torch.linalg.eigvalsh(k).flip(0)[:3].tolist(), rel=1e-9)
    assert record.similarity == pytest.approx(float((k0 * k).sum() / k0.norm() / k.norm()), rel=1e-9)
    assert record.change == pytest.approx(float((k - k0).norm() / k0.norm()), rel=1e-7)
    assert record.alignment == pytest.approx(float((k * gram).sum() / k.norm() / gram.norm()), rel=1e-9)


@pytest.mark.parametrize("number", [15, 200], ids=["few inputs", "many inputs"])
def test_the_kernel_of_a_frozen_model_does_not_change(number):
    """All records have the same displacements."""
    tracker = KernelTracker(make_kernel(mlp(3, 8, 1)), inputs(number, 3))
    first, second = tracker.record(0), tracker.record(1)
    assert first == dataclasses.replace(second, step=0) and first.alignment is None
    assert second.similarity == pytest.approx(1, abs=1e-9) and second.change < 1e-6


def test_the_kernel_of_a_linear_model_does_not_change():
    """Training changes its parameters by more than half."""
    model, x = nn.Linear(3, 1).double(), inputs(50, 3, torch.float64)
    before = model.weight.detach().clone()
    last = train(model, KernelTracker(make_kernel(model), x), x, x[:, 0] - 2, lr=0.01)
    assert relative_error(model.weight.detach(), before) > 0.5 and last.change < 1e-6


def test_a_wide_network_is_lazier_than_a_narrow_one():
    """Both learn the same task for the same time in units of their kernels."""
    x = inputs(24, 3)
    y = torch.sign(x[:, 0])
    last = {}
    for width in (8, 512):
        model = mlp(3, width, 1)
        kernel = make_kernel(model, samples=256)
        lr = GradientFlow(kernel(x), y).largest_learning_rate / 4
        last[width] = train(model, KernelTracker(kernel, x, y), x, y, lr)
    assert (
        last[8].change > 0.05 and last[512].change < 0.5 * last[8].change and last[512].similarity > last[8].similarity
    )


def test_recording_does_not_change_training():
    """Modes of layers, running statistics and random numbers are as before, also where the kernel fails."""
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 1))
    kernel = make_kernel(model.eval(), samples=8)
    model.train()[1].eval()
    modes, numbers = [layer.training for layer in model.modules()], torch.get_rng_state()
    tracker, state = KernelTracker(kernel, inputs(9, 3)), {k: v.clone() for k, v in model.state_dict().items()}
    assert tracker.record(0).trace > 0
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="parameter '0.weight' must be finite"):
        tracker.record(1)
    assert [layer.training for layer in model.modules()] == modes and len(tracker.records) == 1
    assert torch.equal(torch.get_rng_state(), numbers)


def test_an_infinite_output_is_an_error():
    """Recording raises the error of the kernel."""
    model = nn.Linear(3, 1)
    tracker = KernelTracker(make_kernel(model), inputs(5, 3))
    with torch.no_grad():
        model.weight.fill_(3e38)
    tracker.x.fill_(1e30)
    with pytest.raises(ValueError, match="the model's outputs at displaced parameters, must be finite, got"):
        tracker.record(0)


def test_the_table_has_the_columns_of_the_records():
    """Columns are plain lists, inputs and targets are copies, and the model need not be a module."""
    x, y, weight = inputs(9, 3), torch.ones(9), torch.ones(3)
    kernel = NonlocalNTK(lambda p, x: torch.tanh(x @ p["w"]), samples=8, parameters={"w": weight})
    tracker = KernelTracker(kernel, x, y, top=20)
    first = tracker.record(0)
    for tensor in (x, y):
        tensor.zero_()
    weight.mul_(2)
    second = tracker.record(10)
    table = tracker.table()
    assert table["step"] == [0, 10] and table["alignment"] == [first.alignment, second.alignment]
    assert table["eigenvalues"] == [first.eigenvalues, second.eigenvalues] and len(first.eigenvalues) == 8
    assert second.alignment > 0 and second.change > 0.01
    assert set(table) == {field.name for field in dataclasses.fields(first)}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda k, x: KernelTracker(k.model, x), TypeError, "kernel must be a NonlocalNTK, got Linear"),
        (lambda k, x: KernelTracker(k, x.tolist()), TypeError, "x must be a torch.Tensor, got list"),
        (lambda k, x: KernelTracker(k, x[:, :2]), ValueError, r"x must have shape \[N, 3\]"),
        (lambda k, x: KernelTracker(make_kernel(k.model, estimator="unbiased"), x), ValueError, "unbiased kernels are"),
        (lambda k, x: KernelTracker(k, x, [1.0] * 5), TypeError, "targets must be a torch.Tensor"),
        (lambda k, x: KernelTracker(k, x, torch.ones(4)), ValueError, r"targets must have shape \[5\] or \[5, T\]"),
        (lambda k, x: KernelTracker(k, x, torch.full((5,), torch.inf)), ValueError, "targets must be finite"),
        (lambda k, x: KernelTracker(k, x, top=0), ValueError, "top must be at least 1"),
        (lambda k, x: KernelTracker(k, x, top=1.5), TypeError, "top must be an integer, got 1.5"),
        (lambda k, x: KernelTracker(k, x.double()), TypeError, "x must be torch.float32 .* got torch.float64"),
        (lambda k, x: KernelTracker(k, x).record(-1), ValueError, "step must be at least 0"),
        (lambda k, x: KernelTracker(k, x).record(0.5), TypeError, "step must be an integer"),
    ],
)
def test_arguments_out_of_range_are_errors(call, error, message):
    """The message names the argument."""
    with pytest.raises(error, match=message):
        call(make_kernel(nn.Linear(3, 1)), inputs(5, 3))
