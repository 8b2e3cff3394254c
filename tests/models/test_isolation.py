"""Isolation of models: private copies, the probe at the first inputs, wrappers, and digits of displaced copies."""

import copy
import pickle
import random
import threading
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import inputs, mlp, relative_error
from torch import nn

from nntk import BlackBox, NonlocalNTK, RoundingWarning
from nntk.activations import Sign
from nntk.models.isolation.private_copy import StateTrace, private_copy

X = inputs(12, 5)


class Net(nn.Module):
    """A network with a step between its layers that may do anything, given the module and the hidden values."""

    def __init__(self, step=lambda module, h: h, activation=None):
        """Create the layers, and what the steps of this file keep."""
        super().__init__()
        self.inner, self.outer, self.extra = nn.Linear(5, 8), nn.Linear(8, 2), nn.Linear(8, 8)
        self.activation = nn.Tanh() if activation is None else activation
        self.step, self.last, self.values, self.calls, self.table = step, None, [], 0, None
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("membrane", torch.zeros(8), persistent=False)

    def forward(self, x):
        """Return outputs [N, 2]."""
        return self.outer(self.step(self, self.activation(self.inner(x))))


def stored(module, h):
    """Store an activation."""
    module.last = h
    return h


def listed(module, h):
    """Append to a list, and scale by its length."""
    module.values.append(h)
    return h * len(module.values)


def counted(module, h):
    """Count calls in a buffer and in an attribute, and use both."""
    module.count += 1
    module.calls += 1
    return h * module.count / module.calls


def charged(module, h):
    """Charge a buffer with a constant."""
    module.membrane.add_(0.5)
    return h + module.membrane


def tabulated(module, h):
    """Make a table at the first call."""
    if module.table is None:
        module.table = torch.linspace(0, 1, 8, dtype=h.dtype)
    return h * module.table


def clipped(module, h):
    """Clip a parameter through its data."""
    module.outer.weight.data.clamp_(-0.1, 0.1)
    return h


STATES = [stored, listed, counted, charged, tabulated, clipped]


def snapshot(model):
    """Return all that a call must leave alone, in a form that can be compared."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    attributes = {name: repr(value) for name, value in vars(model).items() if name not in ("_parameters", "_buffers")}
    return {name: tensor.tolist() for name, tensor in tensors.items()}, attributes


@pytest.mark.parametrize("step", STATES, ids=lambda step: step.__name__)
@pytest.mark.parametrize("propagation", ["auto", "direct"])
def test_state_begins_anew_at_every_evaluation(step, propagation):
    """The kernel is that of a function with the state of the user's model, which stays as it is."""
    model, gamma = Net(step), 0.1
    before = snapshot(model)
    kernel = NonlocalNTK(model, gamma=gamma, samples=4, propagation=propagation)
    d = kernel.differences(X)
    assert snapshot(model) == before and torch.equal(kernel.differences(X), d)
    pickle.dumps(private_copy(model.inner)), copy.deepcopy(model)
    for m in range(4):
        plus, minus = (displaced(model, kernel.displacements(m), sign)(X.double()).detach() for sign in (1, -1))
        assert relative_error(d[m], (plus - minus) / 2) < 2e-6


def displaced(model, displacement, sign):
    """Return a copy in float64 with displaced parameters."""
    twin = copy.deepcopy(model).double()
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            parameter += sign * displacement[name].double()
    return twin


def test_inputs_that_are_written_to_stay():
    """A model may work in place on its inputs: they are copies."""

    class Halving(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 1)

        def forward(self, x):
            return torch.tanh(self.layer(x.mul_(0.5)))

    model, x = Halving().double(), X.double()
    kernel = NonlocalNTK(model, samples=8)
    expected = NonlocalNTK(nn.Sequential(Scale(0.5), model.layer, nn.Tanh()), samples=8)
    assert relative_error(kernel(x), expected(x)) < 1e-12 and torch.equal(x, X.double())


class Scale(nn.Module):
    """Multiplication by a number."""

    def __init__(self, factor):
        """Keep the factor."""
        super().__init__()
        self.factor = factor

    def forward(self, x):
        """Return the product."""
        return x * self.factor


RANDOM = {
    "functional dropout": lambda module, h: F.dropout(h, 0.01),
    "noise": lambda module, h: h + 1e-3 * torch.randn_like(h),
    "python": lambda module, h: h if random.random() < 0.999 else 0 * h,
    "numpy": lambda module, h: h * float(np.random.rand() < 0.999),
    "gumbel": lambda module, h: F.gumbel_softmax(h),
    "rrelu": lambda module, h: F.rrelu(h, training=True),
    "attention": lambda module, h: F.scaled_dot_product_attention(h[:, None], h[:, None], h[:, None], dropout_p=0.1)[
        :, 0
    ],
}
MIXING = {
    "statistics": lambda module, h: h - h.mean(0),
    "softmax": lambda module, h: torch.softmax(h, 0),
    "largest": lambda module, h: h / (h.sum(1) ** 2).max(),
    "median": lambda module, h: h * (h > h.median()),
    "size": lambda module, h: h / len(h),
    "position": lambda module, h: h + torch.arange(len(h))[:, None],
    "last to first": lambda module, h: torch.cat((h[:1] + 0.1 * h[-1:], h[1:])),
    "large batches": lambda module, h: h - h.mean(0) if len(h) > 4 else h,
    "duplicates": lambda module, h: h * (torch.cdist(h, h) > 0).sum(1, keepdim=True).clamp(max=1),
    "one alone": lambda module, h: F.batch_norm(h, None, None, training=True),
}


@pytest.mark.parametrize("activation", [nn.Tanh, Sign], ids=["tanh", "sign"])
@pytest.mark.parametrize("name", [*RANDOM, *MIXING])
def test_impure_models_are_refused(name, activation):
    """Random numbers and mixed inputs are seen at the first call, and the generators stay as they are."""
    model = Net({**RANDOM, **MIXING}[name], activation())
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    words = "draws=16" if name in RANDOM else "inputs of a batch one by one"
    with pytest.raises(ValueError, match=f"^model must .*{words}"):
        NonlocalNTK(model, samples=2)(X)
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]


@pytest.mark.parametrize("name", RANDOM)
def test_draws_seed_every_global_generator(name):
    """What is refused without draws has a kernel of its mean with them."""
    kernel = NonlocalNTK(Net(RANDOM[name]), samples=2, draws=2)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(kernel(X), kernel(X))
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]


def test_parameters_past_the_copy_are_refused():
    """A closure that calls a layer of the model would leave it undisplaced."""
    model = Net()
    model.step = lambda module, h: model.extra(h)
    with pytest.raises(ValueError, match="^model must read its parameters from itself"):
        NonlocalNTK(model, samples=2)(X)


def test_wrappers_are_seen_through_or_refused():
    """The kernel of a wrapped module is that of the module; compiled ones are refused as they are given."""
    model = Net()
    expected = NonlocalNTK(model, samples=4)(X)
    for wrapped in (nn.DataParallel(model), torch.compile(model, backend="eager")):
        assert torch.equal(NonlocalNTK(wrapped, samples=4)(X), expected)
    child = Net()
    child.load_state_dict(model.state_dict())
    child.activation = torch.compile(nn.Tanh(), backend="eager")
    assert torch.equal(NonlocalNTK(child, samples=4)(X), expected)
    with warnings.catch_warnings(action="ignore"):
        scripted = torch.jit.script(mlp(5, 3, 1))
        exported = torch.export.export(mlp(5, 3, 1), (X,))
    for bad in (scripted, nn.Sequential(scripted), torch.jit.trace(mlp(5, 3, 1), X), exported, exported.module()):
        with pytest.raises(TypeError, match="^model must be .*(TorchScript|torch.export); give the module"):
            NonlocalNTK(bad)
    with pytest.raises(TypeError, match="not initialised yet"):
        NonlocalNTK(nn.LazyLinear(3))


def test_threads_share_a_module():
    """Kernels of one module in several threads are those of one thread, and the module stays whole."""

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.out = nn.LSTM(5, 4, batch_first=True), nn.Linear(4, 1)

        def forward(self, x):
            return self.out(self.lstm(x)[0][:, -1])

    model, x = Recurrent(), X.view(4, 3, 5)
    kernel = NonlocalNTK(model, samples=8)
    expected, operator, same = kernel(x), kernel.operator(x), []
    product = operator @ torch.ones(4)

    def work():
        same.extend((torch.equal(kernel(x), expected), torch.equal(operator @ torch.ones(4), product)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert same == [True] * 8 and all(parameter.requires_grad for parameter in model.parameters())
    assert model.lstm._flat_weights[0] is model.lstm.weight_ih_l0


def test_private_copies_share_tensors_and_nothing_else():
    """Hooks and lists that hold parts of the module hold those of the copy; a trace sees what a call changed."""
    model = Net(listed)
    model.parts = [model.inner, {"outer": model.outer}]
    model.call = model.extra.forward
    model.last = torch.tanh(model.inner(X))
    twin = private_copy(model)
    assert twin.parts[0] is twin.inner is not model.inner and twin.parts[1]["outer"] is twin.outer
    assert twin.call.__self__ is twin.extra and twin.inner.weight is model.inner.weight
    assert torch.equal(twin(X), model(X))
    before = StateTrace(twin)
    assert before == StateTrace(twin)
    twin(X)
    assert before != StateTrace(twin) and len(model.values) == 1 and len(twin.values) == 2


class Cast(Net):
    """A network that normalises in float32, and ends in a function that has no rule."""

    def forward(self, x):
        """Return outputs [N, 2]."""
        h = self.inner(x)
        t = h.to(torch.float32)
        h = (t * torch.rsqrt(t.pow(2).mean(-1, keepdim=True) + 1e-6)).to(h.dtype)
        return self.outer(torch.erf(h))


def test_float32_within_a_model_loses_no_digits():
    """Casts to float32 are casts to float64 in an evaluation in float64, so small displacements keep digits."""
    model = Cast()
    reference, *smaller = (NonlocalNTK(model, gamma=gamma, samples=16)(X) for gamma in (1e-6, 1e-7, 1e-9))
    assert all(relative_error(kernel, reference) < 1e-4 for kernel in smaller)


class Gamma(nn.Module):
    """A smooth function without a rule."""

    def forward(self, x):
        """Return an incomplete gamma function of the sigmoid."""
        return torch.igamma(torch.ones_like(x), torch.sigmoid(x))


def test_lost_digits_are_stated_and_refused():
    """The stated rounding error is that of the differences, within a factor of ten."""
    model = nn.Sequential(nn.Linear(5, 8), Gamma(), nn.Linear(8, 1))
    expected = NonlocalNTK(model, gamma=1e-9, samples=16).differences(X) / 1e-9
    for gamma in (1e-14, 1e-15):
        with pytest.warns(RoundingWarning) as caught:
            d = NonlocalNTK(model, gamma=gamma, samples=16).differences(X) / gamma
        stated = float(str(caught[0].message).split("of about ")[1].split(",")[0])
        assert stated / 10 < relative_error(d, expected) < 10 * stated
    for gamma in (1e-17, 1e-20, 1e-30):
        with pytest.raises(ValueError, match="^gamma must leave digits of the differences"):
            NonlocalNTK(model, gamma=gamma, samples=16)(X)


def test_autocast_around_a_call_changes_nothing():
    """The user's context does not reach the evaluation."""
    for model in (mlp(5, 8, 1), Net()):
        kernel = NonlocalNTK(model, samples=4)
        expected = kernel(X)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(kernel(X), expected)


def test_black_boxes_must_repeat():
    """A function that changes from call to call is refused."""
    calls = []
    box = BlackBox(lambda theta, x: x @ theta + len(calls) + (calls.append(1) or 0), np.ones(5))
    with pytest.raises(ValueError, match="two evaluations differ"):
        NonlocalNTK(box, samples=2)(X.double())
