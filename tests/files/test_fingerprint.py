"""Fingerprints: models that compute something else have another one, and the same model has the same everywhere."""

import copy
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import inputs, mlp
from torch import nn
from torch.nn.utils import parametrizations, prune

import nntk
from nntk.files.fingerprint import fingerprint
from nntk.files.hashing import hash_tensors

SCALE, TABLE = 2.0, {"power": 2}


def helper(x):
    """Scale."""
    return SCALE * x


class Layer(nn.Module):
    """A layer of the user's own, with settings of many kinds."""

    factor = 1.0

    def __init__(self, value=1.0, plain=1.0, attribute=None, persistent=False):
        """Hold a buffer, a tensor that is none, and any attribute."""
        super().__init__()
        self.linear = nn.Linear(3, 1)
        with torch.no_grad():
            self.linear.weight.fill_(0.5)
            self.linear.bias.fill_(0.5)
        self.register_buffer("value", torch.tensor(value), persistent=persistent)
        self.plain, self.attribute = torch.tensor(plain), attribute

    def forward(self, x):
        """Return outputs."""
        return self.scaled(x) + 0 * helper(x).sum()

    def scaled(self, x):
        """Scale the outputs."""
        return self.linear(x) * self.factor * self.value * self.plain


class Twice(Layer):
    """A layer that uses another method."""

    def scaled(self, x):
        """Scale the outputs twice."""
        return 2 * super().scaled(x)


class Mode(nn.Module):
    """A layer whose code asks for its mode."""

    def __init__(self):
        super().__init__()
        self.linear = Layer().linear

    def forward(self, x):
        """Return outputs of the mode."""
        return self.linear(x) * (2 if self.training else 1)


def print_of(model, **settings):
    """Return the fingerprint of a kernel of a model."""
    return fingerprint(nntk.NonlocalNTK(model, samples=4, **settings))


def between(*layers):
    """Build a network of these layers between two linear ones with fixed weights."""
    first, _, last = mlp(3, 4, 1)
    return nn.Sequential(first, *layers, last)


def hooked(hook):
    """Build a layer with a hook."""
    model = Layer()
    model.linear.register_forward_hook(hook)
    return model


def changed(model, change):
    """Change a model in place, and return it."""
    with torch.no_grad():
        change(model)
    return model


def function_of(power):
    """Return a function that closes over a number."""
    return lambda p, x: x @ p["a"] ** power


PARAMETERS = {"a": torch.ones(3, 1)}
MODULES = {
    "activation": lambda: (between(nn.Tanh()), between(nn.ReLU())),
    "setting": lambda: (between(nn.ELU(1.0)), between(nn.ELU(2.0))),
    "text setting": lambda: [between(nn.GELU(form)) for form in ("none", "tanh")],
    "activation of this project": lambda: [between(nntk.activations.Quantise(levels)) for levels in (2, 4)],
    "order": lambda: (between(nn.ReLU(), nn.Tanh()), between(nn.Tanh(), nn.ReLU())),
    "shared layer": lambda: [between(*[nn.Tanh()] * number) for number in (1, 2)],
    "parameter": lambda: (mlp(3, 4, 1), mlp(3, 4, 1, seed=3)),
    "non-persistent buffer": lambda: (Layer(1.0), Layer(5.0)),
    "persistent buffer": lambda: (Layer(1.0, persistent=True), Layer(5.0, persistent=True)),
    "tensor that is no buffer": lambda: (Layer(plain=1.0), Layer(plain=5.0)),
    "number": lambda: (Layer(attribute=1), Layer(attribute=2)),
    "array": lambda: (Layer(attribute=np.ones(2)), Layer(attribute=np.zeros(2))),
    "nested settings": lambda: (Layer(attribute={"a": [1, {2}]}), Layer(attribute={"a": [1, {3}]})),
    "function": lambda: (Layer(attribute=torch.tanh), Layer(attribute=torch.relu)),
    "universal function": lambda: (Layer(attribute=np.tanh), Layer(attribute=np.sin)),
    "partial": lambda: [Layer(attribute=functools.partial(torch.clamp, min=low)) for low in (0, 1)],
    "module that is not registered": lambda: (Layer(attribute=[mlp(1, 1)]), Layer(attribute=[mlp(1, 1, seed=4)])),
    "method": lambda: (Layer(), Twice()),
    "class attribute": lambda: (Layer(), type("Layer", (Layer,), {"factor": 3.0})()),
    "forward of an instance": lambda: (Layer(), changed(Layer(), lambda m: setattr(m, "forward", m.linear.forward))),
    "hook": lambda: (Layer(), hooked(lambda m, i, o: 2 * o)),
    "another hook": lambda: (hooked(lambda m, i, o: 2 * o), hooked(lambda m, i, o: 3 * o)),
    "mode": lambda: (Mode(), Mode().eval()),
    "weight norm": lambda: [
        changed(Layer(), lambda m, d=d: parametrizations.weight_norm(m.linear, dim=d)) for d in (0, 1)
    ],
    "pruning": lambda: [changed(Layer(), lambda m, n=n: prune.l1_unstructured(m.linear, "weight", n)) for n in (1, 2)],
    "traced graph": lambda: [torch.fx.symbolic_trace(between(layer)) for layer in (nn.Tanh(), nn.ReLU())],
    "global value": lambda: (Layer(), (Layer(), "SCALE")),
}  # fmt: skip
FUNCTIONS = {
    "text": (lambda p, x: x @ p["a"], lambda p, x: x.sin() @ p["a"]),
    "closure": (function_of(1), function_of(2)),
    "default": (lambda p, x, power=1: x @ p["a"] ** power, lambda p, x, power=2: x @ p["a"] ** power),
    "partial": tuple(functools.partial(lambda power, p, x: x @ p["a"] ** power, power) for power in (1, 2)),
    "method of an object": (Layer(attribute=1).scaled, Layer(attribute=2).scaled),
    "method of a module with other weights": (mlp(3, 1).forward, mlp(3, 1, seed=2).forward),
}


@pytest.mark.parametrize("build", MODULES.values(), ids=MODULES)
def test_modules_that_differ_have_other_fingerprints(build, monkeypatch):
    """Each pair differs in one respect, and each model alone has one fingerprint."""
    first, second = build()
    before = print_of(first)
    assert before == print_of(first) == print_of(copy.deepcopy(first))
    if isinstance(second, tuple):
        monkeypatch.setitem(globals(), second[1], 3.0)
        second = second[0]
    after = print_of(second)
    assert {name for name in before if before[name] != after[name]} & {"architecture", "model"}


@pytest.mark.parametrize("pair", FUNCTIONS.values(), ids=FUNCTIONS)
def test_functions_that_differ_have_other_fingerprints(pair):
    """As models with parameters of their own, as black boxes, and as scores of attention."""
    for build in (
        lambda f: print_of(f, parameters=PARAMETERS),
        lambda f: print_of(nntk.BlackBox(f, torch.ones(3))),
        lambda f: print_of(mlp(3, 4, 1), weights=nntk.Attention(score=f)),
    ):
        assert build(pair[0]) == build(pair[0]) != build(pair[1])


class Keeping(nn.Module):
    """A layer that keeps its outputs."""

    def __init__(self):
        super().__init__()
        self.linear = Layer().linear

    def forward(self, x):
        """Return outputs, and keep them."""
        self.kept = self.linear(x)
        return 1 * self.linear(x)


def test_activations_that_are_kept_are_left_out():
    """The model was evaluated by the user."""
    model = Keeping()
    before = print_of(model)
    with torch.no_grad():
        model(inputs(2, 3))
    assert hasattr(model, "kept") and print_of(model) == before


class Endless:
    """An object that makes another one whenever it is looked at."""

    def __getattr__(self, name):
        """Return another object."""
        return Endless()


def test_what_cannot_matter_is_left_out():
    """Objects that no code names, values that hold themselves, and objects without an end."""
    nested = [[1]]
    nested.append(nested)
    deep = functools.reduce(lambda inner, _: [inner], range(5000), [])
    for attribute in (nested, deep, {"self": nested}, Endless()):
        assert print_of(Layer(attribute=attribute)) == print_of(Layer(attribute=attribute))
    trainers = [type("Trainer", (), {"step": step})() for step in (1, 2)]
    assert print_of(Layer(attribute=trainers[0])) == print_of(Layer(attribute=trainers[1]))


def test_what_changes_no_number_changes_no_fingerprint():
    """Modes of layers without one, gradients, evaluations, comments and layout of functions."""
    model = mlp(3, 4, 1)
    before = print_of(model)
    model.eval()(inputs(2, 3)).sum().backward()
    assert print_of(model) == before and all(parameter.grad is not None for parameter in model.parameters())
    texts = ("f = lambda p, x: x @ p['a']", "f = lambda p, x: x @ p['a']  # a comment")
    assert print_of(Layer(attribute=(1, 2))) == print_of(Layer(attribute=tuple([1, 2])))
    spaces = [{}, {}]
    for text, space in zip(texts, spaces, strict=True):
        exec(text, space)  # Without a source, functions are told apart by their bytecode.
    first, second = (print_of(space["f"], parameters=PARAMETERS) for space in spaces)
    assert first == second


def all_prints():
    """Return the fingerprints of the first model of each pair."""
    models = [list(build())[0] for build in MODULES.values()]
    functions = [pair[0] for pair in FUNCTIONS.values()]
    return [*map(print_of, models), *(print_of(function, parameters=PARAMETERS) for function in functions)]


def test_fingerprints_are_the_same_in_every_process():
    """Whatever the seed of hashes, the addresses of objects, and the module that imports the code."""
    here = Path(__file__).parent
    script = (
        f"import sys; sys.path[:0] = [{str(here.parent)!r}, {str(here)!r}]\nimport json, test_fingerprint as tests\n"
    )
    command = [sys.executable, "-c", f"{script}print(json.dumps(tests.all_prints()))"]
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    there = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    here_and_now = json.loads(json.dumps(all_prints()))
    assert json.loads(there) == here_and_now and len(here_and_now) == len(MODULES) + len(FUNCTIONS)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(True), torch.ones(0, 3), torch.ones(2, 3).T, torch.eye(2).to_sparse(), torch.ones(2).bfloat16(),
        torch.ones(2, device="meta"), torch.ones(2).to(torch.float8_e4m3fn), torch.ones(2).cfloat().conj(),
    ],
    ids=lambda tensor: f"{tensor.dtype}-{tensor.layout}-{tensor.device}",
)  # fmt: skip
def test_tensors_of_every_kind_have_a_hash(tensor):
    """The hash is that of an equal tensor, and not of one of another dtype, shape or name."""
    assert hash_tensors({"a": tensor}) == hash_tensors({"a": tensor.clone()}) != hash_tensors({"b": tensor})
    assert hash_tensors({"a": tensor}) != hash_tensors({"a": tensor[None]})
    assert hash_tensors({"a": torch.ones(2)}) != hash_tensors({"a": torch.ones(2).int()})
