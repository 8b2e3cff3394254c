"""Any model: evaluated at the very displacements that an MLP's fast path propagates."""

import itertools

import numpy as np
import pytest
import torch
from conftest import FAMILIES, Wrapped, covering, inputs, mlp, relative_error
from torch import nn

import nntk
from nntk import BlackBox, NonlocalNTK, RoundingWarning
from nntk.bench.measure.reference import float64_differences
from nntk.differences.copies import CopyPlan


class Residual(nn.Module):
    """A small convolutional network with a skip, batch statistics that were taken before, and a pooled head."""

    def __init__(self, activation):
        """For images [3, 6, 6] and four outputs."""
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm, self.activation, self.head = nn.BatchNorm2d(8), activation(), nn.Linear(8, 4)
        self.norm.running_mean.uniform_(-0.1, 0.1)
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        """Return the outputs for a batch of images."""
        h = self.activation(self.stem(x))
        h = h + self.activation(self.norm(self.inner(h)))
        return self.head(h.mean((2, 3)))


class Block(nn.Module):
    """A transformer block on tokens [T], with an embedding tied to the head."""

    def __init__(self, activation):
        """For twelve tokens of width sixteen."""
        super().__init__()
        self.embedding, self.head = nn.Embedding(12, 16), nn.Linear(16, 12, bias=False)
        self.head.weight = self.embedding.weight
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.first, self.second = nn.LayerNorm(16), nn.LayerNorm(16)
        self.mlp = nn.Sequential(nn.Linear(16, 32), activation(), nn.Linear(32, 16))

    def forward(self, tokens):
        """Logits of the last token."""
        h = self.embedding(tokens)
        normal = self.first(h)
        h = (
            h
            + self.attention(
                normal,
                normal,
                normal,
            )[0]
        )
        return self.head((h + self.mlp(self.second(h)))[:, -1])


MODELS = {
    "residual": (Residual, lambda: torch.randn(5, 3, 6, 6, generator=torch.Generator().manual_seed(0))),
    "block": (Block, lambda: torch.randint(0, 12, (5, 7), generator=torch.Generator().manual_seed(0))),
}


def made(name, activation):
    """A model with weights of its own, and inputs."""
    torch.manual_seed(3)
    model, x = MODELS[name]
    return model(activation).eval(), x()


SETTINGS = {"energy": {}, "plugin": {"estimator": "plugin"}, "attention": {"weights": nntk.Attention()}}


@pytest.mark.parametrize(
    ("directions", "name", "antithetic"),
    covering(list(itertools.product(FAMILIES, SETTINGS, (True, False))), (0, 1), (0, 2), (1, 2)),
)
def test_an_mlp_has_one_kernel_by_either_path(directions, name, antithetic):
    """The same displacements, by difference propagation and by plain evaluation in float64."""
    model, x = mlp(5, 16, 3), inputs(7, 5)
    options = {"gamma": 0.05, "samples": 40, "directions": directions, "antithetic": antithetic, **SETTINGS[name]}
    fast, plain = (NonlocalNTK(one, **options) for one in (model, Wrapped(model)))
    assert relative_error(plain.differences(x), fast.differences(x)) < 2e-5
    assert relative_error(plain(x[:4], x), fast(x[:4], x)) < 2e-5
    assert torch.equal(plain(x), plain(x).T)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nntk.activations.Sign])
@pytest.mark.parametrize("name", MODELS)
def test_differences_are_those_of_float64(name, activation):
    """Models without a fast path, smooth and not: nothing of the model changes, and a tied tensor is displaced once."""
    model, x = made(name, activation)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    kernel = NonlocalNTK(model, gamma=1e-2, samples=6, propagation="direct")
    copy = {key: tensor.double() for key, tensor in model.state_dict().items()}
    moved = [kernel.displacements(m) for m in range(6)]
    twin = made(name, activation)[0].double()
    twin.load_state_dict(copy)
    twin_inputs = x.double() if x.is_floating_point() else x

    def at(m, sign):
        parameters = {key: value + sign * moved[m][key].double() for key, value in twin.named_parameters()}
        return nntk.models.functional.call(twin, parameters, twin_inputs)

    expected = torch.stack([(at(m, 1) - at(m, -1)) / 2 for m in range(6)])
    assert relative_error(kernel.differences(x), expected.detach()) < 1e-6
    # The error that float32 may have in the kernel, unless it is a tenth of the Monte-Carlo error.
    assert relative_error(NonlocalNTK(model, gamma=1e-2, samples=6).differences(x), expected.detach()) < 1e-3
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert kernel.num_params == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_the_kernel_tends_to_the_ntk(name):
    """As gamma falls, within four times the Monte-Carlo error."""
    model, x = made(name, nn.Tanh)
    full = nntk.local_ntk(model, x, outputs="full")
    kernel = NonlocalNTK(model, gamma=1e-4, samples=512)
    traced = torch.einsum("ijcc->ij", full).double()
    allowed = 4 * nntk.monte_carlo_error(full.double(), 512, kernel.num_params, "trace")
    assert float((kernel(x).double() - traced).norm()) < allowed


def test_names_choose_what_moves():
    """By pattern; what stays is no part of d. The fast path, the plain one and a frozen model agree."""
    model, x = mlp(5, 8, 3), inputs(6, 5)
    options = {"gamma": 0.05, "samples": 24}
    fast = NonlocalNTK(model, parameters=["2.*"], **options)
    plain = NonlocalNTK(Wrapped(model), parameters=["model.2.weight", "model.2.bias"], **options)
    assert fast.num_params == plain.num_params == 8 * 3 + 3
    model[0].requires_grad_(False)
    frozen = NonlocalNTK(model, **options)(x)
    assert torch.equal(fast(x), frozen) and relative_error(plain(x), frozen) < 1e-5


def test_functions_and_black_boxes_have_kernels():
    """Functions of parameters by name, of a vector in NumPy, and of a vector alone with points of its own."""
    a, x = torch.randn(1, 6, generator=torch.Generator().manual_seed(1)), inputs(5, 6)
    expected = NonlocalNTK(nn.Linear(6, 1, bias=False), gamma=0.1, samples=32)(x)
    named = NonlocalNTK(lambda p, x: x @ p["a"].T, parameters={"a": a}, gamma=0.1, samples=32)
    assert relative_error(named(x), expected) < 1e-5
    theta, y = a[0].double().numpy(), x.double()
    boxes = (BlackBox(lambda t, z: z @ t, theta), BlackBox(lambda t: y.numpy() @ t, theta, points=5))
    first, second = (NonlocalNTK(box, gamma=0.1, samples=32) for box in boxes)
    assert torch.allclose(first(y), second(torch.arange(5)), rtol=1e-12)
    rows = torch.stack([first.displacements(m)["parameters"] for m in range(32)])
    linear = torch.einsum("mk,nk->mn", rows, y)
    assert torch.allclose(first.differences(y)[..., 0], linear, rtol=1e-9, atol=1e-12)
    assert np.array_equal(theta, a[0].double().numpy())


def test_chunks_and_stacking_do_not_matter(monkeypatch):
    """Budgets cut displacements and inputs; what vmap refuses is evaluated in turn, to the same numbers."""
    model, x = made("residual", nn.ReLU)
    expected = NonlocalNTK(model, gamma=0.05, samples=9)(x)
    assert relative_error(NonlocalNTK(model, gamma=0.05, samples=9, max_memory=2**20)(x), expected) < 1e-6

    class Branching(Residual):
        def forward(self, x):
            """With a branch on a value, which vmap cannot take."""
            h = super().forward(x)
            return h if float(h.abs().sum()) >= 0 else -h

    branching = Branching(nn.ReLU).eval()
    branching.load_state_dict(model.state_dict())
    kernel = NonlocalNTK(branching, gamma=0.05, samples=9)
    view = kernel._view()
    plan = CopyPlan.of(view, view.parameters(torch.float64), x.double(), 2**27)
    assert plan.stacked == 1 and relative_error(kernel(x), expected) < 1e-6


def test_float64_keeps_the_digits_and_is_a_choice():
    """At a small gamma a subtraction of float32 outputs has few left; a model of float32 alone must be told so."""
    model, x = Wrapped(mlp(5, 16, 1)), inputs(4, 5)
    options = {"gamma": 1e-5, "samples": 16, "propagation": "direct"}
    exact, rounded = (NonlocalNTK(model, precision=p, **options) for p in ("auto", "fp32"))
    expected = float64_differences(exact, x)
    with pytest.warns(
        RoundingWarning, match="relative rounding error of about 0.00.*larger gamma, or precision='auto'"
    ):
        assert relative_error(rounded.differences(x), expected) > 1e-6
    assert relative_error(exact.differences(x), expected) < 1e-6

    class Named(Wrapped):
        def forward(self, x):
            """With a tensor of float32, which is widened for an evaluation in float64."""
            return self.model(x) @ torch.ones(1, 1)

    assert torch.equal(NonlocalNTK(Named(model.model), **options).differences(x), exact.differences(x))

    class Single(Wrapped):
        def forward(self, x):
            """In float32, whatever the parameters are."""
            if x.dtype != torch.float32:
                raise RuntimeError("float32 only")
            return self.model(x)

    with pytest.raises(TypeError, match="model must be evaluable in torch.float64.*Use precision='fp32'"):
        NonlocalNTK(Single(mlp(5, 16, 1)), gamma=1e-6, samples=4)(x)
    for precision in ("auto", "fp32"):
        assert NonlocalNTK(Single(mlp(5, 16, 1)), gamma=0.1, samples=4, precision=precision)(x).shape == (4, 4)


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (Wrapped(mlp(3, 4, 1)), {"parameters": ["head.*"]}, ValueError, "parameters must fit names of the model"),
        (Wrapped(mlp(3, 4, 1)), {"parameters": "model"}, TypeError, "sequence of names or patterns, got 'model'"),
        (Wrapped(mlp(3, 4, 1)), {"parameters": 3}, TypeError, "sequence of names or patterns, got 3"),
        (Wrapped(mlp(3, 4, 1)), {"parameters": []}, ValueError, "parameters must name at least one .* got none"),
        (Wrapped(mlp(3, 4, 1)), {"parameters": {}}, TypeError, "must be names for an nn.Module"),
        (
            nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2).double()),
            {},
            TypeError,
            "must have one dtype, got .*32, .*64",
        ),
        (Wrapped(mlp(3, 4, 1)).requires_grad_(False), {}, ValueError, "none has requires_grad=True"),
        (Residual(nn.ReLU).train(), {}, ValueError, "model must be in evaluation mode.*call model.eval"),
        (
            nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, track_running_stats=False)).eval(),
            {},
            ValueError,
            r"layer '1' \(BatchNorm1d\) takes the statistics of the batch",
        ),
        (len, {}, TypeError, "parameters must map names to tensors for a callable"),
        (len, {"parameters": {}}, ValueError, "parameters must hold the tensors of the function by name"),
        (len, {"parameters": {"a": torch.ones(2).half()}}, TypeError, "all be float32, or all float64"),
        (len, {"parameters": {"a": 1.0}}, TypeError, "parameter 'a' must be a torch.Tensor, got float"),
        (len, {"parameters": {"a": torch.ones(2) / 0}}, ValueError, "parameter 'a' must be finite, got 2 NaN"),
        (BlackBox(len, np.ones(2)), {"parameters": {}}, TypeError, "must be None for a BlackBox"),
        (BlackBox(len, np.ones(2)), {"propagation": "difference"}, ValueError, "for a BlackBox; got"),
        (3, {}, TypeError, "model must be an nn.Module, a BlackBox or a callable, got int"),
    ],
)
def test_what_cannot_be_is_an_error(model, options, error, message):
    """On construction."""
    with pytest.raises(error, match=message):
        NonlocalNTK(model, **options)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((3, np.ones(2)), TypeError, "function must be callable"),
        ((len, [1.0]), TypeError, "parameters must be an array or a tensor of float32"),
        ((len, np.ones(2, dtype=np.float16)), TypeError, "float32 or float64, got float16"),
        ((len, np.ones((2, 2))), ValueError, r"parameters must be a vector \[d\]"),
        ((len, np.array([np.nan])), ValueError, "parameters must be finite"),
        ((len, np.ones(2), 0), ValueError, "points must be at least 1"),
        ((len, np.ones(2), 1.5), TypeError, "points must be an integer, got 1.5"),
    ],
)
def test_a_black_box_checks_its_parameters(arguments, error, message):
    """As it is made."""
    with pytest.raises(error, match=message):
        BlackBox(*arguments)


def test_outputs_must_have_a_row_an_input():
    """The message says what came instead."""
    with pytest.raises(TypeError, match="model must return a tensor with a row for each of 4 inputs, got shape"):
        NonlocalNTK(lambda p, x: p["a"], parameters={"a": torch.ones(3)}, samples=2).differences(inputs(4, 2))
