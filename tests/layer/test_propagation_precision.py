"""Rules at the precisions tf32 and bf16: the error of rounded operands, what stays exact, and what is said of it."""

import copy
import logging

import numpy as np
import pytest
import torch
from conftest import FAMILIES, Wrapped, inputs, mlp, relative_error
from propagation_cases import CASES, P
from torch import nn

from nntk import BlackBox, NonlocalNTK
from nntk.kernels.perturb import products
from nntk.kernels.perturb.products import Products
from nntk.propagation.rules import layers

BOUNDS = {"tf32": (2e-5, 5e-4), "bf16": (2e-4, 4e-3)}
"""Least and largest error of D by precision: without an error, nothing was rounded."""


class Voting(Wrapped):
    """A model that calls a function without a rule."""

    def forward(self, x):
        """Return the outputs plus zero times their mode."""
        outputs = self.model(x)
        return outputs + 0 * outputs.mode(-1, True)[0]


class Recurrent(nn.Module):
    """An LSTM with a head at its last step."""

    def __init__(self):
        """Make the layers."""
        super().__init__()
        self.steps, self.head = nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 4)

    def forward(self, x):
        """Return [N, 4]."""
        return self.head(self.steps(x)[0][:, -1])


def convolutional():
    """Return a CNN with inputs."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, groups=2), nn.Tanh(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    return model, torch.randn(4, 3, 10, 10)


def transformer():
    """Return a transformer block with inputs."""
    block = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, activation="gelu", batch_first=True)
    return nn.Sequential(block, nn.Flatten(), nn.Linear(6 * 16, 5)), torch.randn(4, 6, 16)


MODELS = {
    "CNN": convolutional,
    "transformer": transformer,
    "LSTM": lambda: (Recurrent(), torch.randn(5, 6, 8)),
    "MLP": lambda: (Wrapped(mlp(16, 32, 32, 4, activation="gelu")), torch.randn(6, 16)),
}


def model_of(name):
    """Return a model in evaluation mode with inputs, the same ones at every call."""
    torch.manual_seed(0)
    model, x = MODELS[name]()
    return model.eval(), x


def differences(model, x, **options):
    """Return D by rules, of eight displacements."""
    return NonlocalNTK(model, **{"samples": 8, "propagation": "difference"} | options).differences(x)


@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize(
    "name", ["MLP", "LSTM", *(pytest.param(name, marks=pytest.mark.contract) for name in ("CNN", "transformer"))]
)
def test_the_error_is_that_of_rounded_operands(name, precision):
    """It is relative to the difference, and does not depend on gamma."""
    model, x = model_of(name)
    for gamma in (1e-1, 1e-6):
        exact = differences(copy.deepcopy(model).double(), x.double(), gamma=gamma)
        least, largest = BOUNDS[precision]
        assert least < relative_error(differences(model, x, gamma=gamma, precision=precision), exact) < largest


@pytest.mark.parametrize("precision", BOUNDS)
def test_what_a_precision_holds_is_exact(precision):
    """Inputs that are integers are multiplied by noise of few digits: a layer has the differences of float32."""
    x = torch.randint(-8, 9, (5, 12), generator=torch.Generator().manual_seed(0)).float()
    model = Wrapped(nn.Linear(12, 3))
    exact = differences(copy.deepcopy(model).double(), x.double())
    rounded = differences(model, x, precision=precision)
    assert torch.equal(rounded, differences(model, x)) and relative_error(rounded, exact) < 2e-7


@pytest.mark.parametrize("directions", [family for family in FAMILIES if "lowrank" not in family])
def test_an_mlp_by_rules_is_the_mlp_by_its_layers(directions):
    """The same operands are rounded; a sum in another order may round an entry to its other neighbour."""
    model, x = mlp(16, 32, 32, 4, activation="gelu"), inputs(6, 16)
    for precision, bound in {"tf32": 1e-4, "bf16": 3e-4}.items():
        by_layers, by_rules = (
            differences(m, x, precision=precision, directions=directions) for m in (model, Wrapped(model))
        )
        assert relative_error(by_rules, by_layers) < bound


def test_rounding_does_not_depend_on_how_noise_is_held():
    """With the smallest budget noise is generated in each product, and differences are those of the usual budget."""
    model, x = Wrapped(mlp(64, 512, 8)), inputs(4, 64)
    held, generated = (differences(model, x, precision="bf16", max_memory=budget) for budget in (None, 2**20))
    assert relative_error(generated, held) < 3e-4


def test_patches_of_convolutions_are_rounded_alike(monkeypatch):
    """A GPU multiplies patches, a CPU convolves with one displacement after another."""
    model, x = model_of("CNN")
    one_by_one = differences(model, x, precision="bf16")
    monkeypatch.setattr(layers, "multiplies_patches", lambda device: True)
    assert relative_error(differences(model, x, precision="bf16"), one_by_one) < 3e-4


@pytest.mark.contract
@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize("name", ["matrix products", "attention", "einsum of many", "settings"])
def test_products_of_every_kind(name, precision, directions):
    """Products with parameters that are transposed, of two displaced values, and by indices."""
    function, x = CASES[name]
    actual, exact = (
        differences(function, x, parameters=P, precision=which, directions=directions) for which in (precision, "fp32")
    )
    assert relative_error(actual, exact) < BOUNDS[precision][1]


def test_both_members_are_rounded_alike():
    """The odd part of a pair is that of its members, and one-sided differences are those of the plus members."""
    model, x = model_of("transformer")
    kernel = NonlocalNTK(model, samples=4, precision="bf16", propagation="difference")
    plus, minus = kernel.differences(x, halves=True)
    assert relative_error((plus - minus) / 2, kernel.differences(x)) < 1e-6
    assert relative_error(differences(model, x, samples=4, precision="bf16", antithetic=False), plus) < 1e-3


@pytest.mark.parametrize("propagation", ["auto", "difference"])
def test_the_plan_and_one_line_of_the_log_name_the_precision(propagation, caplog):
    """A model that jumps keeps float32, and both say so; what is emulated is said once for a kernel."""
    caplog.set_level(logging.INFO, "nntk")
    options = {"samples": 4, "propagation": propagation, "precision": "bf16"}
    for activation, expected, text, remark in (
        ("tanh", "bf16", "Operands of products are rounded to bf16 and multiplied in float32, since a CPU", "rule"),
        ("sign", "fp32", "model jumps, so that operands of products are not rounded to bf16", "model jumps"),
    ):
        model, x = Wrapped(mlp(3, 8, 2, activation=activation)), inputs(5, 3)
        kernel = NonlocalNTK(model, **options)
        plan = kernel.plan(x)
        assert (plan.route, plan.propagation, plan.precision) == ("rules", "difference", expected)
        assert remark in plan.reason or propagation == "difference" and expected == "bf16"
        assert expected in str(plan)
        kernel(x)
        kernel(x)
        assert sum(text in record.getMessage() for record in caplog.records) == 1
    exact = NonlocalNTK(model, **{**options, "precision": "fp32"}).differences(x)
    assert torch.equal(kernel.differences(x), exact)


def test_auto_is_float32_on_a_cpu():
    """Nothing is rounded unless it is requested."""
    model, x = model_of("transformer")
    kernel = NonlocalNTK(model, samples=4, gamma=1e-6)
    assert (kernel.plan(x).route, kernel.plan(x).precision) == ("rules", "fp32")
    assert torch.equal(kernel.differences(x), differences(model, x, samples=4, gamma=1e-6, precision="fp32"))


def test_without_rules_float64_copies_serve():
    """A subtraction would leave nothing of rounded products, and so nothing is rounded."""
    model = Voting(mlp(3, 4, 2))
    kernel, x = NonlocalNTK(model, samples=4, precision="tf32"), inputs(4, 3)
    assert (kernel.plan(x).route, kernel.plan(x).precision) == ("copies", "fp64")
    exact = NonlocalNTK(model, samples=4, propagation="direct").differences(x)
    assert torch.equal(kernel.differences(x), exact)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": BlackBox(lambda theta, x: np.sin(x @ theta), np.ones(3))}, "for a BlackBox; got 'auto' and 'bf16'"),
        ({"model": Wrapped(mlp(3, 4, 1)), "draws": 2}, "for a stochastic model; got 'auto' and 'bf16'"),
        ({"model": Wrapped(mlp(3, 4, 1)), "propagation": "direct"}, "subtraction would leave little but rounding"),
        ({"model": Wrapped(mlp(3, 4, 1)).double()}, "precision must be 'auto' for float64 parameters"),
    ],
)
def test_refusals(options, message):
    """What is not propagated, or is in float64, has no rounded products."""
    with pytest.raises(ValueError, match=message):
        NonlocalNTK(precision="bf16", **options)


@pytest.mark.parametrize(("precision", "expected"), [("fp32", "ieee"), ("tf32", "tf32"), ("bf16", "tf32")])
def test_switches_of_a_gpu_are_set_and_restored(precision, expected):
    """PyTorch lets convolutions run in TF32 by default; what a precision says holds for its products alone."""
    switches = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = [switch.fp32_precision for switch in switches]
    with pytest.raises(KeyError), Products(precision).switched(torch.device("cuda")):
        assert [switch.fp32_precision for switch in switches] == [expected] * 2
        raise KeyError
    assert [switch.fp32_precision for switch in switches] == before


@pytest.mark.parametrize("shapes", [((2, 3, 4), (4, 5)), ((2, 1, 3, 4), (2, 6, 4, 5)), ((3, 4), (2, 4, 5))])
def test_products_of_bfloat16_have_the_shapes_of_matmul(shapes, monkeypatch):
    """A GPU's products of bfloat16 with float32 results are replaced here by those of the same numbers in float32."""
    for name in ("mm", "bmm"):
        monkeypatch.setattr(products.torch, name, lambda a, b, out_dtype: a.to(out_dtype) @ b.to(out_dtype))
    a, b = (Products("bf16").round(torch.randn(shape)) for shape in shapes)
    torch.testing.assert_close(products._multiply_bfloat16(a, b), a @ b)


def test_complex_operands_are_rounded_by_their_parts():
    """Float64 is never rounded."""
    z = torch.randn(4, dtype=torch.complex64)
    rounded = Products("bf16").round(z)
    assert torch.equal(rounded.imag, z.imag.bfloat16().float()) and not torch.equal(rounded, z)
    assert torch.equal(Products("bf16").round(z.real.double()), z.real.double())
