"""The local NTK of any model: by reverse mode where torch.func is wrong or fails, or refused; nothing is changed."""

import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import inputs, mlp
from local_ntk_cases import INPUTS, MODELS, Bytes, Features
from torch import nn
from triton_device import Allocated

from nntk import LocalNTK, local_ntk
from nntk.local import memory
from nntk.local.local_ntk import METHODS

FALLS_BACK = {
    "cdist", "rnn", "gru", "lstm", "checkpoint", "reentrant checkpoint", "custom function", "boolean index",
    "sparse gradients", "state", "numpy", "gradient inside",
}  # fmt: skip
"""Models that torch.func differentiates wrongly, or not at all."""


DTYPES = {"state": torch.float32}
"""Dtypes of the models that are not in float64."""
SMALLEST = memory.BlockSizes(rows=1, columns=1, outputs=1, total=0)
METHODS_FOR_ANY_MODEL = ("jacobian", "vector-products", "reverse")

# Warnings of PyTorch about models that it advises against.
pytestmark = [
    pytest.mark.contract,
    pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated"),
    pytest.mark.filterwarnings("ignore:There is a performance drop"),
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad"),
]


def case(name):
    """Return a model and five inputs."""
    torch.manual_seed(0)
    dtype = DTYPES.get(name, torch.float64)
    return MODELS[name]().to(dtype), INPUTS.get(name, inputs(5, 4, dtype))


def assert_equal(kernel, expected):
    """Assert that they are equal but for rounding."""
    rtol, atol = (1e-10, 1e-12) if expected.dtype == torch.float64 else (1e-5, 1e-5)
    torch.testing.assert_close(kernel, expected, rtol=rtol, atol=atol)


def by_training(name):
    """Compute the full kernel from gradients that backward() leaves with the parameters, an output at a time."""
    model, x = case(name)
    rows = []
    for single in x.split(1):
        single = single.clone()
        if name == "reentrant checkpoint":  # It passes gradients on only if its inputs require one.
            single.requires_grad_()
        for output in model(single).reshape(-1):
            model.zero_grad()
            if output.requires_grad:
                output.backward(retain_graph=True)
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad.to_dense() for p in model.parameters()]
            rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    jacobian = torch.stack(rows).view(len(x), -1, len(rows[0]))
    return torch.einsum("icd,jkd->ijck", jacobian, jacobian)


def state(model):
    """Return what a caller can see of a model and of the global generator."""
    return (
        [(name, tensor.tolist()) for name, tensor in model.state_dict().items()],
        [(p.requires_grad, p.is_leaf, p.data_ptr(), p.grad) for p in model.parameters()],
        [(module.training, dict(vars(module))) for module in model.modules()],
        torch.get_rng_state().tolist(),
    )


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_a_local_ntk(name, caplog):
    """It is that of plain backward passes, repeats bit for bit, and leaves model, inputs and generator as they were."""
    model, x = case(name)
    expected, before, given = by_training(name), state(model), x.clone()
    with caplog.at_level(logging.INFO, logger="nntk"):
        kernel = local_ntk(model, x, outputs="full")
    assert_equal(kernel, expected)
    assert torch.equal(local_ntk(model, x, outputs="full"), kernel)
    assert state(model) == before and torch.equal(x, given)
    assert any("method='reverse'" in message for message in caplog.messages) == (name in FALLS_BACK)


@pytest.mark.parametrize("name", MODELS)
def test_a_chosen_method_is_right_or_refused(name):
    """A method that cannot be right says so in one sentence, with the advice; reverse mode is always right."""
    model, x = case(name)
    expected, before = by_training(name), state(model)
    for method in METHODS_FOR_ANY_MODEL:
        try:
            kernel = local_ntk(model, x, x[:3], outputs="full", method=method)
        except ValueError as error:
            assert method != "reverse" and str(error).startswith(f"method='{method}' does not give the NTK")
            assert str(error).endswith("use method='auto' or method='reverse'.") and "\n" not in str(error)
        else:
            assert_equal(kernel, expected[:, :3])
        assert state(model) == before


@pytest.mark.parametrize("name", MODELS)
def test_operators_and_features_are_those_of_backward_passes(name):
    """Products, the diagonal and the features hold for every model too, and change nothing."""
    model, x = case(name)
    full, before = by_training(name), state(model)
    kernel, expected = LocalNTK(model), full.diagonal(dim1=2, dim2=3).sum(2)
    vectors = torch.eye(len(x), dtype=full.dtype)
    assert_equal(kernel.operator(x) @ vectors, expected)
    assert_equal(kernel.diagonal(x), expected.diagonal())
    features = kernel.features(x)
    assert_equal(features @ features.T, expected)
    assert state(model) == before


def test_forward_derivatives_of_constants_are_refused():
    """Forward mode differentiates what a no_grad block computes; the sum over a block sees 0.6 %."""
    model, x = case("quantiser")
    with pytest.raises(
        ValueError, match=r"its derivatives differ by \S+ \(relative\) from those of torch.autograd.grad"
    ):
        local_ntk(model, x, method="vector-products")


@pytest.mark.parametrize("name", ["rnn", "attention", "checkpoint", "det"])
def test_frozen_parameters_do_not_count(name):
    """The kernels of two complementary sets of parameters add up, and .grad fields stay."""
    model, x = case(name)
    full = local_ntk(model, x)
    first, *others = model.parameters()
    first.grad = torch.full_like(first, 7.0)
    first.requires_grad_(False)
    partial = local_ntk(model, x)
    for parameter in model.parameters():
        parameter.requires_grad_(not parameter.requires_grad)
    assert_equal(partial + local_ntk(model, x), full)
    assert bool((first.grad == 7).all()) and all(parameter.grad is None for parameter in others)


@pytest.mark.parametrize("name", ["lstm", "cdist", "reentrant checkpoint"])
def test_blocks_and_batches_of_outputs_do_not_matter(name, monkeypatch):
    """Blocks of one input, and each output's backward pass by itself, give the kernel of all at once."""
    model, x = case(name)
    whole = local_ntk(model, x, outputs="diagonal")
    monkeypatch.setattr("nntk.local.local_ntk.plan", lambda *_: SMALLEST)
    assert_equal(local_ntk(model, x, outputs="diagonal"), whole)
    monkeypatch.setattr("nntk.local.reverse_mode._FEW_OUTPUTS", 10**9)
    assert_equal(local_ntk(model, x, outputs="diagonal"), whole)


def test_blocks_of_outputs_do_not_matter(monkeypatch):
    """Vector products with columns for one output of one input at a time, and one row, give the same kernel."""
    model, x = mlp(4, 6, 3, dtype=torch.float64), inputs(4, 4, torch.float64)
    whole = {outputs: local_ntk(model, x, outputs=outputs, method="vector-products") for outputs in ("trace", "full")}
    monkeypatch.setattr("nntk.local.local_ntk.plan", lambda *_: SMALLEST)
    for outputs, expected in whole.items():
        assert_equal(local_ntk(model, x, outputs=outputs, method="vector-products"), expected)


def test_results_have_the_dtype_of_the_parameters():
    """Whatever that of the inputs is; a half-precision input is refused, as is an integer one of a Linear layer."""
    for dtype in (torch.float32, torch.float64):
        model = Bytes().to(dtype)
        for x in (inputs(3, 4, dtype), torch.tensor([[0, 1, 3, 255]]), INPUTS["bytes"], INPUTS["mask"]):
            for method in ("auto", *METHODS_FOR_ANY_MODEL):
                assert local_ntk(model, x, method=method).dtype == dtype
        for half in (torch.float16, torch.bfloat16):
            with pytest.raises(TypeError, match=f"x1 must be {dtype} like the model's parameters, got {half}"):
                local_ntk(model, inputs(3, 4).to(half))
    with pytest.raises(TypeError, match=r"x1 must be torch.float32 like the model's parameters, got torch.int64"):
        local_ntk(mlp(4, 2), torch.ones(3, 4, dtype=torch.int64))


def test_a_gradient_that_is_not_finite_is_refused():
    """The branch of torch.where that is not taken has a gradient of infinity times zero."""
    model = Features(lambda h, x: torch.where(x[:, :1] > 9, (h - h).sqrt(), h)).double()
    for method in ("auto", *METHODS_FOR_ANY_MODEL):
        with pytest.raises(ValueError, match="the kernel, from the model's gradients, must be finite"):
            local_ntk(model, inputs(3, 4, torch.float64), method=method)


class Failing(nn.Module):
    """Module that fails at inputs that torch.func may not look at, after it wrote to a buffer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        """Raise an error if a gradient could be computed."""
        self.calls.add_(1)
        if self.layer.weight.requires_grad:
            raise RuntimeError("no training")
        return self.layer(x)


def test_a_model_is_unchanged_after_an_error():
    """The error is the model's own, and the module can be evaluated and has its numbers."""
    model, x = Failing(), inputs(3, 4)
    before = state(model)
    for method in ("auto", *METHODS_FOR_ANY_MODEL):
        with pytest.raises((RuntimeError, ValueError), match="no training"):
            local_ntk(model, x, method=method)
        assert state(model) == before
    model.requires_grad_(False)
    assert model(x).shape == (3, 2)


def test_recurrent_layers_do_without_cudnn():
    """Its layers have no backward pass in evaluation mode; the setting is restored."""
    model, x = case("lstm")
    seen = []
    model.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.enabled))
    local_ntk(model, x, method="reverse")
    assert seen[-1] is False and torch.backends.cudnn.enabled


def test_inputs_that_the_model_does_not_accept_are_refused():
    """The error is one sentence, also for an MLP by a method for any module."""
    for model in (mlp(4, 3), Bytes()):
        for method in METHODS_FOR_ANY_MODEL:
            with pytest.raises(ValueError, match="model must be evaluable at these inputs, but fails: RuntimeError"):
                local_ntk(model, inputs(3, 5), method=method)


def test_threads_may_share_a_model():
    """Calls at the same time give the kernels of calls in turn, and leave the module as it was."""
    model, x = case("attention")
    before, expected = state(model), [local_ntk(model, x[n:]) for n in range(4)]
    with ThreadPoolExecutor(4) as pool:
        kernels = list(pool.map(lambda n: local_ntk(model, x[n % 4 :]), range(12)))
    assert all(torch.equal(kernel, expected[n % 4]) for n, kernel in enumerate(kernels)) and state(model) == before


def test_models_work_in_inference_mode():
    """Also with inputs that were made there."""
    model, _ = case("lstm")
    expected = local_ntk(model, inputs(5, 4, torch.float64))
    with torch.inference_mode():
        assert_equal(local_ntk(model, inputs(5, 4, torch.float64)), expected)
        assert_equal(local_ntk(mlp(4, 2), inputs(5, 4)), local_ntk(mlp(4, 2), inputs(5, 4), method="reverse"))


@pytest.mark.parametrize("method", [method for method in METHODS if method != "auto"])
def test_what_does_not_fit_is_refused(method, monkeypatch):
    """Before any work, in words that say what would fit."""
    monkeypatch.setattr("nntk.estimators.memory.free_bytes", lambda device: 2**20)
    with pytest.raises(
        MemoryError, match=rf"method='{method}' take .* are free. Less memory is needed for fewer inputs"
    ):
        local_ntk(mlp(4, 300, 300, 4), inputs(2000, 4), method=method)


def large_case(kind):
    """Return a model and inputs of which one part of the memory is large: activations, Jacobians or the kernel."""
    if kind == "convolution":
        layers = nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 3), nn.Flatten(), nn.Linear(8, 3)
        return nn.Sequential(*layers), inputs(12, 16).view(12, 1, 4, 4)
    if kind in MODELS:
        return case(kind)[0], inputs(12, 4, torch.float64)
    return (mlp(4, 90, 90, 3), inputs(12, 4)) if kind == "wide" else (mlp(4, 8, 3), inputs(60, 4))


@pytest.mark.parametrize("method", METHODS_FOR_ANY_MODEL)
@pytest.mark.parametrize("outputs", ["trace", "full"])
@pytest.mark.parametrize("kind", ["wide", "many inputs", "convolution", "attention", "det"])
def test_a_plan_bounds_what_is_allocated(kind, outputs, method, monkeypatch):
    """The bytes that are planned are at least the most that are held at once."""
    model, x = large_case(kind)
    plans, plan = [], memory.plan
    monkeypatch.setattr("nntk.local.local_ntk.plan", lambda *a: plans.append(plan(*a)) or plans[-1])
    local_ntk(model, x[:2], outputs=outputs, method=method)
    with torch.no_grad(), Allocated() as allocated:
        local_ntk(model, x, outputs=outputs, method=method, max_memory=2**20)
    assert allocated.peak <= plans[-1].total


@pytest.mark.parametrize("outputs", ["trace", "full"])
def test_a_plan_bounds_what_the_structured_method_allocates(outputs):
    """The kernel, layers and blocks."""
    for widths, number in (((4, 90, 90, 3), 12), ((4, 8, 3), 300)):
        model, x = mlp(*widths), inputs(number, 4)
        problem = memory.Problem(number, number, 3, 2 * (outputs == "full"), 0, sum(widths[1:]) * 7 * 4, torch.float32)
        with torch.no_grad(), Allocated() as allocated:
            local_ntk(model, x, outputs=outputs)
        assert allocated.peak <= memory.plan(problem, "structured", 0).total
