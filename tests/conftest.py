"""Models and inputs that many tests share."""

import os
import random
from contextlib import contextmanager

# Workers of pytest-xdist share the cores: each computes on one thread, and so does every process that it starts.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ |= {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}
    # Tests that ask for two threads have them wait without using a core that the other worker needs.
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import numpy as np
import pytest
import torch
from torch import nn

from nntk import activations
from nntk.kernels import cpu


def pytest_configure():
    """Without a GPU, Triton interprets its kernels; it must be told before a test imports them."""
    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Seed the global generators before the fixtures of a test: what it draws does not depend on earlier tests."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


RUN_FACTS = {
    "device": {"kind": "cpu", "name": "abacus", "driver": None, "threads": 1, "processors": 2, "selected": "cpu"},
    "versions": {"python": "3.11", "torch": "2.13"},
    "commit": "abc",
    "uncommitted_changes": False,
    "stream_version": 1,
    "seed": 0,
}
"""Facts of a run of the benchmarks on a machine that does not exist."""
ACTIVATIONS = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.1),
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "sin": activations.Sin,
    "identity": nn.Identity,
    "sign": activations.Sign,
    "step": activations.Step,
    "quantise": activations.Quantise,
    "sawtooth": activations.Sawtooth,
}
JUMPS = ("sign", "step", "quantise", "sawtooth")
SMOOTH = tuple(name for name in ACTIVATIONS if name not in JUMPS)


class Wrapped(nn.Module):
    """A model that is not recognised as the MLP that it holds."""

    def __init__(self, model):
        """Hold a model, whose parameters keep their order."""
        super().__init__()
        self.model = model

    def forward(self, x):
        """Return the outputs of the model."""
        return self.model(x)


def mlp(*widths, activation="tanh", dtype=torch.float32, seed=0, bias=True):
    """An MLP with weights of variance 2 / fan-in and small biases; no activation after the last layer."""
    generator = torch.Generator().manual_seed(seed)
    modules = []
    for fan_in, fan_out in zip(widths[:-1], widths[1:], strict=True):
        layer = nn.Linear(fan_in, fan_out, bias=bias)
        with torch.no_grad():
            layer.weight.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
            if bias:
                layer.bias.normal_(0, 0.1, generator=generator)
        modules += [layer, ACTIVATIONS[activation]()]
    return nn.Sequential(*modules[:-1]).to(dtype)


def inputs(number, width, dtype=torch.float32, seed=1):
    """Standard-normal inputs."""
    return torch.randn(number, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def relative_error(actual, expected):
    """Frobenius norm of the error over that of the expected."""
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def covering(cases, *positions):
    """Choose a few cases, in a fixed order, that show every combination of values at each tuple of positions.

    Args:
        cases: Tuples of hashable values, one for each parameter of a test; combinations that do not exist are absent.
        positions: Tuples of parameters, each of whose combinations must be tested.

    Returns:
        The chosen cases, found greedily.
    """

    def combinations(case):
        return {(group, tuple(case[position] for position in group)) for group in positions}

    missing, chosen = set().union(*map(combinations, cases)), []
    while missing:
        chosen.append(max(cases, key=lambda case: len(combinations(case) & missing)))
        missing -= combinations(chosen[-1])
    return chosen


@pytest.fixture(autouse=True)
def same_threads():
    """Restore PyTorch's number of threads after each test."""
    before = torch.get_num_threads()
    yield
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def poisoned_memory():
    """Every new tensor is full of NaN until it is written."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]


@contextmanager
def plain_torch():
    """Let plain torch serve the CPU, as it does without Numba: the reference."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "serves", lambda: False)
        yield


FAMILIES = ("gaussian", "rademacher", "flipout(3)", "lowrank(2)")


@pytest.fixture(params=FAMILIES)
def directions(request):
    """Each family of directions."""
    return request.param


@pytest.fixture(params=["difference", "direct"])
def propagation(request):
    """Each form of the evaluation."""
    return request.param
