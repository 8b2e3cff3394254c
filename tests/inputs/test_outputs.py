"""The choice among outputs: the kernel is that of a model which returns the chosen tensor."""

from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from conftest import inputs
from torch import nn

from nntk import BlackBox, NonlocalNTK, local_ntk

Pair = namedtuple("Pair", "first logits")


class Returns(nn.Module):
    """A model that returns two tensors in some form."""

    def __init__(self, form):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.form = nn.Linear(3, 4), form

    def forward(self, x):
        """Return the form of two halves of the outputs."""
        return self.form(*self.layer(x).tanh().split(2, 1))


FORMS = {
    "tuple": (lambda a, b: (a, b), 1),
    "last of a tuple": (lambda a, b: (a, b), -1),
    "list": (lambda a, b: [a, b], 1),
    "mapping": (lambda a, b: {"first": a, "second": b}, "second"),
    "logits of a mapping": (lambda a, b: {"first": a, "logits": b}, None),
    "named tuple by name": (Pair, "logits"),
    "named tuple by itself": (Pair, None),
    "named tuple by index": (Pair, 1),
    "function": (lambda a, b: SimpleNamespace(a=a, b=b), lambda returned: returned.b),
    "function of a tensor": (lambda a, b: torch.cat((a, b), 1), lambda returned: returned[:, 2:]),
}


@pytest.mark.parametrize(("form", "output"), FORMS.values(), ids=FORMS)
def test_the_kernel_is_that_of_the_chosen_tensor(form, output):
    """Bit for bit, nonlocal and local."""
    model, second, x = Returns(form), Returns(lambda a, b: b), inputs(6, 3)
    settings = {"samples": 8, "propagation": "direct"}
    assert torch.equal(NonlocalNTK(model, output=output, **settings)(x), NonlocalNTK(second, **settings)(x))
    assert torch.equal(local_ntk(model, x, output=output), local_ntk(second, x))


@pytest.mark.parametrize("name", ["tuple", "function"])
def test_every_route_and_method_chooses(name):
    """Rules of propagation, float32 copies, and each method of the local NTK."""
    (form, output), second, x = FORMS[name], Returns(lambda a, b: b), inputs(6, 3)
    for settings in ({}, {"propagation": "difference"}):
        expected = NonlocalNTK(second, samples=8, **settings)(x)
        assert torch.equal(NonlocalNTK(Returns(form), samples=8, output=output, **settings)(x), expected)
    for method in ("jacobian", "reverse", "vector-products"):
        actual = local_ntk(Returns(form), x, output=output, method=method)
        assert torch.equal(actual, local_ntk(second, x, method=method))


def test_functions_and_black_boxes_choose():
    """Functions of parameters and black boxes may return several outputs too."""
    w, x = inputs(3, 2, seed=3), inputs(5, 3)
    expected = NonlocalNTK(lambda p, x: (x @ p["w"]).tanh(), parameters={"w": w}, samples=8)(x)
    both = NonlocalNTK(lambda p, x: {"a": x, "y": (x @ p["w"]).tanh()}, parameters={"w": w}, samples=8, output="y")
    assert torch.equal(both(x), expected)
    theta = w.flatten().double()
    single = NonlocalNTK(BlackBox(lambda t, x: (x @ t.view(3, 2)).tanh(), theta), samples=8)
    box = NonlocalNTK(BlackBox(lambda t, x: (x, (x @ t.view(3, 2)).tanh()), theta), samples=8, output=1)
    assert torch.equal(box(x.double()), single(x.double()))


def test_one_model_with_two_choices_is_probed_for_each():
    """The local NTKs of two outputs of one model do not share what was found out."""
    model, x = Returns(lambda a, b: {"a": a, "b": b.mean(0, keepdim=True).expand_as(b)}), inputs(6, 3)
    local_ntk(model, x, output="a")
    with pytest.raises(ValueError, match="one by one"):
        local_ntk(model, x, output="b")


ERRORS = {
    "nothing chosen": (lambda a, b: (a, b), None, TypeError, "got tuple of 2; output= chooses among several outputs"),
    "no such index": (lambda a, b: (a, b), 2, TypeError, "must choose among what the model returns, tuple of 2; got 2"),
    "no such key": (lambda a, b: {"a": a}, "b", TypeError, "dict with 'a'; got 'b'"),
    "a tensor": (lambda a, b: a, 0, TypeError, "a tensor of shape .*; got 0"),
    "no tensor": (lambda a, b: {"a": a, "b": 3}, "b", TypeError, "row for each .* inputs, got int"),
    "another type": (lambda a, b: a, 1.5, TypeError, "output must be a key, an index or a function"),
    "a boolean": (lambda a, b: a, True, TypeError, "output must be a key, an index or a function"),
}  # fmt: skip


@pytest.mark.parametrize(("form", "output", "error", "text"), ERRORS.values(), ids=ERRORS)
def test_errors_say_what_there_is(form, output, error, text):
    """The message lists what the model returns."""
    x = inputs(4, 3)
    with pytest.raises((error, ValueError), match=text):
        NonlocalNTK(Returns(form), samples=4, output=output)(x)
    with pytest.raises((error, ValueError), match=text):
        local_ntk(Returns(form), x, output=output)
