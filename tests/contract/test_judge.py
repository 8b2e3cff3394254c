"""The judge sees what it is there to see."""

import random

import numpy as np
import pytest
import torch
from definition import private_copy
from judge import judge, refusal
from snapshot import Snapshot
from torch import nn

import nntk

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def model():
    """Return a small network."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


def test_a_good_kernel_is_right():
    """Nothing is complained of for an MLP, in both precisions."""
    assert judge(model(), X, samples=4) == "right"
    assert judge(model().double(), X.double(), samples=4, gammas=(0.1,)).startswith(("right", "WRONG: K off by"))


def test_a_wrong_value_is_wrong(monkeypatch):
    """Differences that are off by a thousandth, and a local NTK that is."""
    differences, local = nntk.NonlocalNTK.differences, nntk.local_ntk
    monkeypatch.setattr(nntk.NonlocalNTK, "differences", lambda kernel, x: 1.001 * differences(kernel, x))
    monkeypatch.setattr(nntk, "local_ntk", lambda m, x: 1.001 * local(m, x))
    verdict = judge(model(), X, samples=4, gammas=(0.1,))
    assert "D off by 1.0e-03" in verdict and "off by 1.0e-03 [NTK limit]" in verdict


@pytest.mark.parametrize(
    "message, is_clear",
    [
        ("model must treat inputs one by one, but its outputs depend on the batch.", True),
        ("x must be torch.float32 like the model's parameters, got torch.int64; use x.float().", True),
        ("vmap: It looks like you're calling .item() on a Tensor.", False),
        ("model fails: forward() got an unexpected keyword argument 'y'.", False),
        ("shape mismatch", False),
    ],
)
def test_a_refusal_is_a_clear_sentence(message, is_clear):
    """It names what is at fault first, and has no words of insides."""
    assert refusal(ValueError(message)).startswith("refused") == is_clear
    assert refusal(RuntimeError(message)).startswith("WRONG")


@pytest.mark.parametrize(
    "change",
    {
        "parameter": lambda m, x: m[0].weight.data.mul_(2),
        "gradient": lambda m, x: setattr(m[0].weight, "grad", torch.ones(5, 3)),
        "requires_grad": lambda m, x: m[0].weight.requires_grad_(False),
        "identity of a parameter": lambda m, x: setattr(m[0], "weight", nn.Parameter(m[0].weight.detach().clone())),
        "mode": lambda m, x: m[1].eval(),
        "attribute": lambda m, x: setattr(m[1], "last", torch.ones(2)),
        "hook": lambda m, x: m[0].register_forward_hook(lambda *_: None),
        "buffer": lambda m, x: m[1].register_buffer("count", torch.ones(1), persistent=False),
        "inputs": lambda m, x: x.mul_(2),
        "torch": lambda m, x: torch.rand(1),
        "numpy": lambda m, x: np.random.rand(),
        "python": lambda m, x: random.random(),
    }.items(),
    ids=lambda item: item[0],
)
def test_every_change_is_seen(change):
    """Of the model, of its inputs and of the global generators."""
    m, x = model(), X.clone()
    before = Snapshot(m, x)
    assert before.changes(m, x) == ""
    change[1](m, x)
    assert before.changes(m, x).startswith("WRONG")
    before.restore_generators()


def test_a_private_copy_shares_no_tensor():
    """Also of a model that holds a result with a history, which ``copy.deepcopy`` refuses."""
    m = model()
    m.held = m[0].weight * 2
    copied = private_copy(m)
    assert copied[0].weight.data_ptr() != m[0].weight.data_ptr() and copied.held.is_leaf
    assert not m.held.is_leaf and copied.held.data_ptr() != m.held.data_ptr()
