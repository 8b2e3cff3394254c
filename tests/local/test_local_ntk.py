"""The local NTK: three methods compared with explicit Jacobians and with another implementation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ACTIVATIONS, inputs, mlp
from torch import nn

from nntk import local_ntk
from nntk.kernels import local_ntk as op
from nntk.kernels.assemble import OUTPUTS
from nntk.kernels.local_ntk import reference
from nntk.models.recognise import recognise

METHODS = ("structured", "jacobian", "vector-products")
REFERENCE = np.load(Path(__file__).parents[1] / "data" / "neural_tangents.npz")


def tensor(name):
    return torch.from_numpy(REFERENCE[name])


def explicit(model, x1, x2):
    """Compute J J^T by one backward pass for each output: [N1, N2, C, C]."""

    def jacobian(x):
        rows = []
        for output in model(x).flatten():
            gradients = torch.autograd.grad(output, list(model.parameters()), retain_graph=True)
            rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
        return torch.stack(rows).view(len(x), -1, len(rows[0]))

    return torch.einsum("icd,jkd->ijck", jacobian(x1), jacobian(x2))


def select(full, outputs):
    diagonal = full.diagonal(dim1=2, dim2=3)
    return {"full": full, "diagonal": diagonal, "trace": diagonal.sum(2), "mean": diagonal.mean(2)}[outputs]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("widths", [(5, 17, 9, 3), (4, 3), (1, 1, 3)])
def test_methods_equal_the_explicit_jacobian(widths, activation, method):
    """They agree to 1e-10 in float64, for all outputs, symmetric and cross kernels, and odd sizes."""
    model = mlp(*widths, activation=activation, dtype=torch.float64)
    x1, x2 = inputs(7, widths[0], torch.float64), inputs(5, widths[0], torch.float64, seed=2)
    for outputs in OUTPUTS:
        cross = local_ntk(model, x1, x2, outputs=outputs, method=method)
        torch.testing.assert_close(cross, select(explicit(model, x1, x2), outputs), rtol=1e-10, atol=1e-10)
        kernel = local_ntk(model, x1, outputs=outputs, method=method)
        torch.testing.assert_close(kernel, select(explicit(model, x1, x1), outputs), rtol=1e-10, atol=1e-10)
        swapped = kernel.transpose(0, 1)
        assert torch.equal(kernel, swapped.transpose(2, 3) if outputs == "full" else swapped)


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name not in ("tanh", "relu")])
def test_methods_agree_for_every_activation(activation):
    """The structured method's derivatives are autograd's, jumps included."""
    model, x = mlp(4, 12, 7, 2, activation=activation, dtype=torch.float64), inputs(6, 4, torch.float64)
    structured, *others = (local_ntk(model, x, outputs="full", method=method) for method in METHODS)
    for other in others:
        torch.testing.assert_close(structured, other, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid", "sin", "gelu"])
def test_mlps_equal_neural_tangents(activation, method):
    """They agree to 1e-10 with values of neural-tangents 0.6.5."""
    prefix = f"mlp_{activation}_"
    model = mlp(5, 16, 24, 2, activation=activation, dtype=torch.float64)
    for number, layer in enumerate(model[::2]):
        layer.weight.data, layer.bias.data = tensor(f"{prefix}weight{number}"), tensor(f"{prefix}bias{number}")
    kernel = local_ntk(model, tensor(f"{prefix}x1"), tensor(f"{prefix}x2"), outputs="full", method=method)
    torch.testing.assert_close(kernel, tensor(f"{prefix}ntk"), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", ["auto", "jacobian", "vector-products"])
def test_a_cnn_equals_neural_tangents(method):
    """The general methods accept any module."""
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, 3),
    ).double()
    for number, name in ((0, "conv0"), (2, "conv1"), (5, "linear")):
        model[number].weight.data, model[number].bias.data = tensor(f"cnn_{name}_weight"), tensor(f"cnn_{name}_bias")
    kernel = local_ntk(model, tensor("cnn_x1"), tensor("cnn_x2"), outputs="full", method=method)
    torch.testing.assert_close(kernel, tensor("cnn_ntk"), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", ["jacobian", "vector-products"])
def test_blocks_do_not_matter(method, monkeypatch):
    """Blocks of three inputs give the kernel of one block."""
    model = mlp(5, 69, 69, 2, dtype=torch.float64)
    x1, x2 = inputs(11, 5, torch.float64), inputs(8, 5, torch.float64, seed=2)
    # Four arrays of C d float64 numbers an input: a mebibyte holds three of these.
    assert 2**20 // (4 * 2 * sum(p.numel() for p in model.parameters()) * 8) == 3
    for other in (None, x2):
        torch.testing.assert_close(
            local_ntk(model, x1, other, method=method, max_memory=2**20), local_ntk(model, x1, other, method=method)
        )


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_blocks_of_the_structured_method_do_not_matter(outputs, monkeypatch):
    """Blocks of seven rows give the kernel of one block, with and without other columns, symmetric to the last bit."""
    layers = recognise(mlp(5, 17, 3, dtype=torch.float64)).layers
    x1, x2 = inputs(23, 5, torch.float64), inputs(11, 5, torch.float64, seed=2)
    whole = [op.structured_ntk(layers, x1, other, outputs) for other in (None, x2)]
    monkeypatch.setattr(reference, "_MIN_BLOCK", 7)
    blocks = [op.structured_ntk(layers, x1, other, outputs) for other in (None, x2)]
    for one, other in zip(whole, blocks, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
        assert other.is_contiguous()
    swapped = blocks[0].transpose(0, 1)
    assert torch.equal(blocks[0], swapped.transpose(2, 3) if outputs == "full" else swapped)


@pytest.mark.parametrize("method", METHODS)
def test_frozen_parameters_do_not_count(method):
    """Only parameters that require a gradient count: the kernels of two complementary sets add up."""
    model, x = mlp(4, 8, 6, 2, dtype=torch.float64), inputs(5, 4, torch.float64)
    full = local_ntk(model, x, method=method)
    model[0].weight.requires_grad_(False)
    model[2].weight.requires_grad_(False)
    model[2].bias.requires_grad_(False)
    partial = local_ntk(model, x, method=method)
    for parameter in model.parameters():
        parameter.requires_grad_(not parameter.requires_grad)
    torch.testing.assert_close(partial + local_ntk(model, x, method=method), full)


def test_tied_layers_fall_back_to_the_jacobian():
    """The gradient of a shared layer is a sum over its places, which the structured form does not have."""
    shared = nn.Linear(6, 6)
    model = nn.Sequential(shared, nn.Tanh(), shared, nn.Tanh(), nn.Linear(6, 1)).double()
    x = inputs(4, 6, torch.float64)
    torch.testing.assert_close(local_ntk(model, x), explicit(model, x, x)[:, :, 0, 0], rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="must not share parameters .* got ordinal 0 2 times, ordinal 1 2 times"):
        local_ntk(model, x, method="structured")


def test_auto_accepts_all_inputs_of_the_model():
    """A Linear layer accepts inputs of several axes: every place is an output."""
    model, x = nn.Linear(3, 2).double(), inputs(8, 3, torch.float64).view(4, 2, 3)
    flat = local_ntk(model, x.view(8, 3)).view(4, 2, 4, 2)
    torch.testing.assert_close(local_ntk(model, x), torch.einsum("icjc->ij", flat))


def test_autocast_does_not_matter():
    """Gradients are computed in the model's dtype."""
    model, x = mlp(4, 8, 2), inputs(5, 4)
    for method in METHODS:
        with torch.autocast("cpu", torch.bfloat16):
            cast = local_ntk(model, x, method=method)
        assert torch.equal(cast, local_ntk(model, x, method=method))


def test_autograd_sees_only_the_last_layer_of_a_sign_network():
    """The NTK of a sign network is that of its last layer: the reason for the nonlocal kernel."""
    model, x = mlp(6, 20, 15, 1, activation="sign", dtype=torch.float64), inputs(8, 6, torch.float64)
    h = model[:4](x)
    for method in METHODS:
        torch.testing.assert_close(local_ntk(model, x, method=method), (h @ h.T + 1).detach())


@pytest.mark.parametrize("method", METHODS)
def test_empty_inputs_give_an_empty_kernel(method):
    """The kernel may have no rows, no columns, or neither."""
    model, x, empty = mlp(4, 8, 3), inputs(5, 4), inputs(0, 4)
    assert local_ntk(model, empty, method=method).shape == (0, 0)
    assert local_ntk(model, x, empty, method=method).shape == (5, 0)
    assert local_ntk(model, empty, x, method=method, outputs="full").shape == (0, 5, 3, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "exact"}, ValueError, "method must be one of 'auto', 'structured', 'jacobian', 'vector-products'"),
        ({"outputs": "none"}, ValueError, "outputs must be one of"),
        ({"max_memory": 5}, ValueError, "max_memory must be at least 1048576, got 5"),
        ({"x1": torch.ones(3, 5)}, ValueError, r"x1 must have shape \[N, 4\]"),
        ({"x1": torch.ones(3, 4).double()}, TypeError, "x1 must be torch.float32 like the model's parameters"),
        ({"x2": torch.full((3, 4), torch.nan)}, ValueError, "x2 must be finite, got 12 NaN or infinite of 12"),
        ({"model": len}, TypeError, r"or a function f\(parameters, x\) .* got builtin_function_or_method without"),
        ({"model": nn.Sequential(nn.Linear(4, 2), nn.Dropout())}, ValueError, r"layer '1' \(Dropout\) is in training"),
        (
            {"model": nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))},
            ValueError,
            r"'1' \(BatchNorm1d\) is in training",
        ),
        (
            {"model": nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2, track_running_stats=False)).eval()},
            ValueError,
            "takes the statistics of the batch",
        ),
        ({"model": nn.LSTM(4, 2), "x1": torch.ones(3, 4)}, TypeError, "model must return a tensor .* got tuple"),
        ({"x1": torch.ones(3, 4).to_sparse()}, TypeError, "x1 must be a dense tensor, got layout torch.sparse_coo"),
        ({"x1": torch.full((3, 4), 1e25)}, ValueError, "the kernel, from the model's gradients, must be finite"),
        ({"model": nn.Sequential(nn.Linear(4, 2)).requires_grad_(False)}, ValueError, "requires_grad=True, got none"),
        ({"model": nn.Linear(4, 2).half(), "x1": torch.ones(3, 4).half()}, TypeError, "x1 must be torch.float32"),
        ({"x1": [[1.0] * 4]}, TypeError, "x1 must be a torch.Tensor, got list"),
        ({"max_memory": 2.0**21}, TypeError, "max_memory must be an integer, got 2097152.0"),
        (
            {"model": nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), "method": "structured"},
            TypeError,
            r"layer '1' \(LayerNorm\) is not recognised",
        ),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    """Each error names the argument, the value and the allowed values."""
    with pytest.raises(error, match=message):
        local_ntk(**{"model": mlp(4, 6, 2), "x1": inputs(3, 4), **arguments})


def test_a_parameter_that_is_not_finite_has_no_gradient():
    """The error names the parameter."""
    model = mlp(4, 2)
    model[0].bias.data[1] = torch.nan
    with pytest.raises(ValueError, match="parameter '0.bias' must be finite, got 1 NaN"):
        local_ntk(model, inputs(3, 4))


def layer(ordinal=0):
    """Build a layer of four inputs and four outputs."""
    return op.Layer(torch.ones(4, 4), weight_ordinal=ordinal)


@pytest.mark.parametrize(
    ("layers", "x", "settings", "error", "message"),
    [
        ([], inputs(3, 4), {}, ValueError, "layers must hold at least one layer, got none"),
        ([layer()], inputs(3, 5), {}, ValueError, "weight of layer '0' must be .* 5 features; got shape"),
        ([layer()], inputs(3, 4).to("meta"), {}, ValueError, "weight of layer '0' must be on meta .* got cpu"),
        ([layer()], inputs(3, 4, torch.float64), {}, TypeError, "weight of layer '0' must be torch.float64 .* got"),
        ([layer()], inputs(3, 4), {"x2": inputs(2, 5)}, ValueError, "weight of layer '0' must be .* 5 features"),
        ([layer()], inputs(3, 4), {"outputs": "sum"}, ValueError, "outputs must be one of .* got 'sum'"),
        ([layer(), layer()], inputs(3, 4), {}, ValueError, "layers must not share parameters .* got ordinal 0 2 times"),
        ([layer(None)], inputs(3, 4), {}, ValueError, "layers must have at least one parameter with an ordinal"),
        ([layer(-1)], inputs(3, 4), {}, ValueError, "weight_ordinal of layer '0' must be at least 0, got -1"),
        ([layer(0.5)], inputs(3, 4), {}, TypeError, "weight_ordinal of layer '0' must be an integer, got 0.5"),
    ],
)
def test_layers_without_a_structured_ntk_are_named(layers, x, settings, error, message):
    """The error names the layer, before any work."""
    with pytest.raises(error, match=message):
        op.structured_ntk(layers, x, **settings)
