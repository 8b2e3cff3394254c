"""Frozen backbones in half precision: the kernel is that of the same rounded backbone in float64."""

import copy
from unittest.mock import patch

import numpy as np
import pytest
import torch
from conftest import inputs, relative_error
from torch import nn
from torch.func import functional_call

from nntk import KernelRidge, NonlocalNTK, local_ntk, write_kernel

CALLS = []
"""One entry for each evaluation of a backbone."""


class Backbone(nn.Module):
    """Layers that do not move."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(6, 16), nn.LayerNorm(16), nn.Linear(16, 16)

    def forward(self, x):
        """Return [N, 16]."""
        CALLS.append(len(x))
        return self.second(self.norm(torch.tanh(self.first(x))))


class Tuned(nn.Module):
    """A frozen backbone, and a head that moves."""

    def __init__(self, half=torch.bfloat16, unit=nn.Tanh, casts=True):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = Backbone().to(half).requires_grad_(False)
        self.head = nn.Sequential(nn.Linear(16, 8), unit(), nn.Linear(8, 3))
        self.half, self.casts = half, casts

    def forward(self, x):
        """Return [N, 3]."""
        if self.half == torch.float32:
            return self.head(self.backbone(x))
        h = self.backbone(x.to(self.half))
        return self.head(h.float() if self.casts else h)


def head_differences(kernel, h):
    """Differences of the head in float64, one displacement after another, at values of the backbone."""
    head, rows = copy.deepcopy(kernel.model.head).double(), []
    base = dict(head.named_parameters())
    for m in range(kernel.samples):
        steps = {name.removeprefix("head."): step.double() for name, step in kernel.displacements(m).items()}
        plus, minus = (functional_call(head, {n: base[n] + s * steps[n] for n in base}, (h,)) for s in (1, -1))
        rows.append((plus - minus).detach() / 2)
    return torch.stack(rows)


ROUTES = {
    "auto": {},
    "copies": {"propagation": "direct"},
    "rules": {"propagation": "difference"},
    "tiny gamma": {"gamma": 1e-6},
}


@pytest.mark.parametrize(
    ("half", "route"),
    [
        (torch.float16, "auto"),
        (torch.bfloat16, "copies"),
        (torch.float16, "rules"),
        (torch.bfloat16, "rules"),
        (torch.bfloat16, "tiny gamma"),
    ],
)
def test_differences_are_those_of_the_rounded_backbone(half, route):
    """The error against float64 is that of float32, 1e-6 or less; the backbone's rounding is not part of it."""
    model, x = Tuned(half), inputs(9, 6)
    kernel = NonlocalNTK(model, samples=16, **ROUTES[route])
    expected = head_differences(kernel, model.backbone(x.to(half)).double())
    assert relative_error(kernel.differences(x), expected) < 1e-6
    assert {p.dtype for p in model.backbone.parameters()} == {half} and kernel.dtype == torch.float32


def test_a_head_with_jumps():
    """Signs are decided as in float64."""
    from nntk.activations import Sign

    model, x = Tuned(unit=Sign), inputs(9, 6)
    kernel = NonlocalNTK(model, samples=64)
    expected = head_differences(kernel, model.backbone(x.bfloat16()).double())
    assert relative_error(kernel.differences(x), expected) < 1e-5


def test_a_head_in_half_precision_moves_in_float32():
    """Its values are those of the rounded parameters, its displacements are not rounded."""
    model, x = Tuned(casts=False), inputs(9, 6)
    model.head.bfloat16()
    kernel = NonlocalNTK(model, samples=16)
    assert kernel.dtype == torch.float32
    expected = head_differences(kernel, model.backbone(x.bfloat16()).double())
    assert relative_error(kernel.differences(x), expected) < 1e-6
    rules = NonlocalNTK(model, samples=16, propagation="difference")
    assert relative_error(rules.differences(x), expected) < 1e-6


class Adapted(nn.Module):
    """A layer in half precision with an adapter of low rank in float32, between two frozen ones."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.before, self.middle, self.after = (nn.Linear(6, 6).half().requires_grad_(False) for _ in range(3))
        self.down, self.up = nn.Linear(6, 2, bias=False), nn.Linear(2, 6, bias=False)

    def forward(self, x):
        """Return [N, 6], in the wider dtype behind the adapter."""
        h = torch.tanh(self.before(x.half()))
        return self.after(torch.tanh(self.middle(h) + self.up(self.down(h.float()))))


@pytest.mark.parametrize("settings", [{}, {"propagation": "difference"}], ids=["auto", "rules"])
def test_adapters_move_between_frozen_layers(settings):
    """What stands behind the adapter is evaluated in the wider dtype, with the rounded weights."""
    model, x = Adapted(), inputs(9, 6)
    kernel = NonlocalNTK(model, samples=16, parameters=["down.*", "up.*"], **settings)
    wide = copy.deepcopy(model).double()
    h = torch.tanh(model.before(x.half()))
    fixed, h = model.middle(h).double(), h.double()

    def evaluate(steps, sign):
        down, up = (getattr(wide, n).weight + sign * steps[f"{n}.weight"].double() for n in ("down", "up"))
        return wide.after(torch.tanh(fixed + h @ down.T @ up.T)).detach()

    steps = [kernel.displacements(m) for m in range(16)]
    expected = torch.stack([(evaluate(step, 1) - evaluate(step, -1)) / 2 for step in steps])
    assert relative_error(kernel.differences(x), expected) < 1e-6


@pytest.mark.parametrize(
    "settings", [{"propagation": "direct"}, {"propagation": "difference"}], ids=["copies", "rules"]
)
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
def test_the_backbone_is_evaluated_once(half, settings):
    """The number of its evaluations does not depend on the number of displacements."""
    counts = []
    for samples in (8, 64):
        kernel, x = NonlocalNTK(Tuned(half), samples=samples, **settings), inputs(9, 6)
        kernel.differences(x)  # It probes the model, and plans the evaluation.
        CALLS.clear()
        kernel.differences(x)
        counts.append(len(CALLS))
    assert counts[0] == counts[1] <= 3


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
def test_kept_results_change_no_bit(half):
    """Differences are those of an evaluation that keeps nothing, and each call sees the present backbone."""
    x, settings = inputs(40, 6), {"samples": 16, "max_memory": 2**20, "propagation": "direct"}
    model = Tuned(half)
    kernel = NonlocalNTK(model, **settings)
    before = kernel.differences(x)
    with patch("nntk.models.general.GeneralModel.remember_prefix"):
        assert torch.equal(NonlocalNTK(model, **settings).differences(x), before)
    with torch.no_grad():
        model.backbone.first.weight.mul_(2)
    assert torch.equal(kernel.differences(x), NonlocalNTK(model, **settings).differences(x))
    assert relative_error(kernel.differences(x), before) > 1e-2


def test_inputs_in_half_precision():
    """Those of the frozen dtype are accepted, and never cast."""
    model, x = Tuned(), inputs(9, 6)
    assert torch.equal(NonlocalNTK(model, samples=16)(x.bfloat16()), NonlocalNTK(model, samples=16)(x))


def test_the_local_ntk_of_a_head():
    """By plain gradients of the head at the backbone's values."""
    model, x = Tuned(), inputs(5, 6)
    head, h = copy.deepcopy(model.head).double(), model.backbone(x.bfloat16()).double()
    for method in ("auto", "reverse"):
        assert relative_error(local_ntk(model, x, method=method), local_ntk(head, h)) < 1e-5


def test_kernels_in_files_and_ridge(tmp_path):
    """write_kernel and KernelRidge keep the backbone as it is."""
    model, x = Tuned(), inputs(12, 6)
    kernel = NonlocalNTK(model, samples=16)
    matrix = torch.tensor(np.array(write_kernel(tmp_path / "k.npy", kernel, x, tile=5)))
    assert relative_error(matrix, kernel(x)) < 1e-5
    fit = KernelRidge(model, samples=16, alpha=1.0).fit(x.numpy(), x[:, 0].numpy())
    assert {p.dtype for p in fit.kernel_.model.backbone.parameters()} == {torch.bfloat16}
    assert relative_error(fit.kernel_(x), kernel(x)) < 1e-6


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), Backbone])
def test_a_model_that_moves_in_half_precision_has_the_kernel_of_its_float32_form(make, half):
    """Copies and rules displace its rounded values in float32, rounded products too; the model stays as it is."""
    torch.manual_seed(0)
    model, x = make().to(half), inputs(5, 6)
    wide = copy.deepcopy(model).float()
    for options in ({}, {"gamma": 1e-6}, {"propagation": "difference", "precision": "bf16"}):
        kernel = NonlocalNTK(model, samples=8, **options)
        assert kernel.dtype == torch.float32
        assert relative_error(kernel.differences(x), NonlocalNTK(wide, samples=8, **options).differences(x)) < (
            1e-3 if "precision" in options else 1e-5
        )
    assert relative_error(local_ntk(model, x), local_ntk(wide, x)) < 1e-5
    assert {parameter.dtype for parameter in model.parameters()} == {half}


def test_other_inputs_in_half_precision_are_refused():
    """The backbone is in bfloat16, the inputs are in float16."""
    with pytest.raises(TypeError, match="x1 must be torch.float32"):
        NonlocalNTK(Tuned(), samples=4)(inputs(4, 6).half())
