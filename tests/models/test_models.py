"""Recognition of models: what is seen through, and what is refused by name."""

import pytest
import torch
from conftest import ACTIVATIONS, inputs
from torch import nn

from nntk import NonlocalNTK
from nntk.kernels import activations as functions
from nntk.models.functional import call
from nntk.models.recognise import recognise


def test_nested_models_are_seen_through():
    """Flatten first, Sequentials inside, Dropout in eval mode, Identity, a layer without bias, a final activation."""
    model = nn.Sequential(
        nn.Flatten(),
        nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.ReLU()),
        nn.Identity(),
        nn.Sequential(nn.Sequential(nn.Linear(8, 3, bias=False)), nn.Sigmoid()),
    ).eval()
    result = recognise(model)
    assert result.flattens and result.num_params == 4 * 8 + 8 + 24 and result.num_outputs(inputs(1, 4)) == 3
    assert [type(layer.activation) for layer in result.layers] == [functions.Relu, functions.Sigmoid]
    assert result.names == {0: "1.0.weight", 1: "1.0.bias", 2: "3.0.0.weight"}
    x = inputs(5, 4)
    h = x
    for layer in result.layers:
        h = layer.activation.value(nn.functional.linear(h, layer.weight, layer.bias))
    torch.testing.assert_close(h, model(x))


def test_a_linear_layer_alone_is_a_model():
    """The smallest one."""
    assert recognise(nn.Linear(3, 2)).num_params == 8


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_is_known(name):
    """Each module has its function, with its parameters."""
    layers = recognise(nn.Sequential(nn.Linear(2, 2), ACTIVATIONS[name]())).layers
    assert layers[0].activation.name == name


class Reversed(nn.Flatten):
    """A subclass that computes something else."""

    def forward(self, x):
        """Flattened from the end."""
        return super().forward(x).flip(1)


class Shifted(nn.ReLU):
    """A subclass that computes something else."""

    def forward(self, x):
        """Not a relu any more."""
        return super().forward(x) + 1


def hooked():
    layer = nn.Linear(4, 2)
    layer.register_forward_hook(lambda *_: None)
    return nn.Sequential(layer)


def parametrized():
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)))


def replaced():
    layer = nn.Linear(4, 2)
    layer.forward = lambda z: z.sum(1, keepdim=True)
    return nn.Sequential(layer)


def computed():
    layer = nn.Linear(4, 2)
    del layer.weight
    layer.weight = torch.ones(2, 4)
    return nn.Sequential(layer)


def not_a_number():
    layer = nn.Linear(4, 2)
    layer.bias.data[1] = torch.nan
    return nn.Sequential(layer)


def integer():
    layer = nn.Linear(4, 2)
    layer.weight = nn.Parameter(torch.ones(2, 4, dtype=torch.int64), requires_grad=False)
    return nn.Sequential(layer)


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (lambda x: x, TypeError, "model must be a torch.nn.Module, got function"),
        (nn.Sequential(), TypeError, "model must have at least one Linear layer, got none"),
        (nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), TypeError, r"layer '1' \(LayerNorm\) is not recognised"),
        (nn.Sequential(nn.Sequential(nn.Conv1d(1, 1, 1))), TypeError, r"layer '0.0' \(Conv1d\) is not recognised"),
        (nn.Sequential(Reversed(), nn.Linear(4, 4)), TypeError, r"layer '0' \(Reversed\)"),
        (nn.Sequential(nn.Linear(4, 4), Shifted()), TypeError, r"layer '1' \(Shifted\)"),
        (nn.Sequential(nn.ReLU(), nn.Linear(4, 4)), TypeError, "layer '0' .* an activation must follow a Linear layer"),
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Tanh()), TypeError, "layer '2' .* follows another activation"),
        (nn.Sequential(nn.Linear(4, 4), nn.Flatten()), TypeError, "layer '1' .* may only stand first"),
        (nn.Sequential(nn.Linear(4, 4), nn.Softplus(threshold=5)), TypeError, "threshold must be at least 20, got 5"),
        (hooked(), TypeError, "layer '0' .* a hook or a forward of its own"),
        (parametrized(), TypeError, "layer '0'"),
        (replaced(), TypeError, "layer '0' .* a hook or a forward of its own"),
        (computed(), TypeError, "layer '0' .* a tensor of it is computed, not a parameter"),
        (nn.Sequential(nn.Linear(4, 2, device="meta")), ValueError, "parameter '0.weight' must hold numbers"),
        (
            nn.Sequential(nn.Linear(4, 2), nn.Dropout()),
            ValueError,
            r"'1' \(Dropout\) is in training mode; call model.eval",
        ),
        (nn.Sequential(nn.Linear(4, 2), nn.Linear(3, 2)), ValueError, r"weight of layer '1' .* layer '0' gives 2 feat"),
        (
            nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2).double()),
            TypeError,
            "weight of layer '1' must be torch.float",
        ),
        (
            nn.Sequential(nn.Linear(4, 2).half()),
            TypeError,
            "in float32 or float64 to be evaluated by its layers",
        ),
        (integer(), TypeError, "must be float32, float64 or in half precision, got torch.int64"),
        (not_a_number(), ValueError, "parameter '0.bias' must be finite, got 1 NaN or infinite of 2"),
        (nn.Sequential(nn.Linear(4, 2)).requires_grad_(False), ValueError, "none has requires_grad=True"),
    ],
)
def test_what_is_not_recognised_is_named(model, error, message):
    """With the layer's name and what is known; what is no MLP may still be evaluated, what is broken may not."""
    with pytest.raises(error, match=message):
        recognise(model)
    if error is ValueError:
        with pytest.raises(error):
            NonlocalNTK(model)


def test_calls_with_other_tensors_leave_shared_layers_alone():
    """A layer in two places, and a tensor in two layers: replaced everywhere, and put back."""
    shared, other = nn.Linear(3, 3), nn.Linear(3, 3)
    other.weight = shared.weight
    model = nn.Sequential(shared, nn.Tanh(), shared, nn.Tanh(), other)
    before = dict(model.named_parameters())
    assert list(before) == ["0.weight", "0.bias", "4.bias"]
    x, weight = inputs(4, 3), torch.eye(3)
    expected = x
    for bias in (shared.bias, shared.bias):
        expected = torch.tanh(expected + bias)
    torch.testing.assert_close(call(model, {"0.weight": weight}, x), expected + other.bias)
    assert all(left is put for left, put in zip(model.parameters(), before.values(), strict=True))
    assert shared.weight is other.weight is before["0.weight"]
