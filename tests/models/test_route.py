"""The route of an evaluation: it is stated, it is tried once, and no result depends on earlier calls."""

import dataclasses
import logging

import numpy as np
import pytest
import torch
from conftest import Wrapped, inputs, mlp, relative_error
from torch import nn

from nntk import BlackBox, NonlocalNTK
from nntk.differences import route, single_precision


class Voting(Wrapped):
    """A model that calls a function without a rule, where a batch has more than two inputs."""

    def forward(self, x):
        """Return the sum of the outputs; in a large batch, zero times their mode is added first."""
        outputs = self.model(x)
        return (outputs + 0 * outputs.mode(-1, True)[0] if len(x) > 2 else outputs).sum(-1)


def black_box():
    """Return a kernel of a function of one vector."""
    return NonlocalNTK(BlackBox(lambda theta, x: np.sin(x @ theta), np.ones(3)), samples=4)


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        (lambda: NonlocalNTK(mlp(3, 4, 1), samples=4), ("layers", "direct", "fp32", "MLP")),
        (lambda: NonlocalNTK(mlp(3, 4, 1).double(), samples=4), ("layers", "direct", "fp64", "MLP")),
        (lambda: NonlocalNTK(Wrapped(mlp(3, 4, 1)), samples=4), ("copies", "direct", "fp32", "Monte-Carlo error")),
        (lambda: NonlocalNTK(Wrapped(mlp(3, 4, 1, activation="sign")), samples=4),
         ("copies", "direct", "fp32", "Monte-Carlo error")),
        (lambda: NonlocalNTK(Wrapped(mlp(3, 4, 1, activation="sign")), gamma=1e-5, samples=4),
         ("copies", "direct", "fp64", "jumps")),
        (lambda: NonlocalNTK(Wrapped(mlp(3, 4, 1, activation="sign")), gamma=1e-12, samples=4),
         ("rules", "difference", "fp32", "has a rule")),
        (lambda: NonlocalNTK(Wrapped(mlp(3, 4, 1)), gamma=1e-6, samples=4),
         ("rules", "difference", "fp32", "has a rule")),
        (lambda: NonlocalNTK(Wrapped(mlp(3, 4, 1, activation="sign")).double(), gamma=1e-5, samples=4),
         ("copies", "direct", "fp64", "jumps")),
        (lambda: NonlocalNTK(Wrapped(mlp(3, 4, 1, activation="sign")).double(), gamma=1e-12, samples=4),
         ("rules", "difference", "fp64", "has a rule")),
        (lambda: NonlocalNTK(Wrapped(mlp(3, 4, 1)).double(), gamma=1e-5, samples=4),
         ("rules", "difference", "fp64", "has a rule")),
        (lambda: NonlocalNTK(Voting(mlp(3, 4, 2)), gamma=1e-12, samples=4),
         ("copies", "direct", "fp64", "no rule")),
        (lambda: NonlocalNTK(Wrapped(mlp(3, 4, 1)), samples=4, propagation="direct", precision="fp32"),
         ("copies", "direct", "fp32", "requested")),
        (lambda: NonlocalNTK(mlp(3, 4, 1), samples=4, draws=2), ("copies", "direct", "fp64", "stochastic")),
        (black_box, ("copies", "direct", "fp64", "black box")),
    ],
    ids=["mlp", "mlp in float64", "module", "module that jumps", "jumps, small gamma", "jumps, least gamma",
         "small gamma", "float64 that jumps", "float64 that jumps, least gamma", "float64", "without a rule", "direct",
         "draws", "black box"],
)  # fmt: skip
def test_the_plan_states_the_route(kernel, expected):
    """It names the route, the form of the evaluation, the precision, and the reason."""
    kernel = kernel()
    plan = kernel.plan(inputs(4, 3, kernel.dtype))
    name, propagation, precision, reason = expected
    assert (plan.route, plan.propagation, plan.precision) == (name, propagation, precision)
    assert reason in plan.reason and plan.reason in str(plan) and plan.reason.endswith((".", "values."))


def test_float32_is_held_against_float64_once(monkeypatch):
    """Its error falls with gamma's growth; the choice is kept for a kind of input, and a larger batch has it too."""
    model, x = Wrapped(mlp(3, 4, 1)), inputs(20, 3)
    whole, trials = single_precision._measure, []

    def trial(*arguments):
        trials.append(whole(*arguments))
        return trials[-1]

    monkeypatch.setattr(single_precision, "_measure", trial)
    for gamma, is_enough in ((1e-1, True), (1e-2, True), (1e-7, False)):
        kernel = NonlocalNTK(model, gamma=gamma, samples=64)
        assert (kernel.plan(x).precision == "fp32" and kernel.plan(x).route == "copies") == is_enough
        exact = NonlocalNTK(model, gamma=gamma, samples=64, propagation="difference")(x)
        assert relative_error(kernel(x), exact) < 1e-3
        torch.testing.assert_close(kernel(x)[:8, :8], kernel(x[:8]), rtol=1e-3, atol=1e-3 * float(exact.abs().max()))
    assert len(trials) == 3 and trials[0].kernel < 1e-5 < 1e-3 < trials[2].kernel
    assert {found.jumps for found in trials} == {0.0}


@pytest.mark.parametrize(("depth", "width", "gamma"), [(3, 256, 0.1), (10, 128, 0.01)])
def test_numbers_that_rounding_carries_across_a_jump_are_predicted(depth, width, gamma):
    """A few of 32,768 differences in float32 are those of another side: their part is below what was predicted."""
    widths, samples = (16, *[width] * depth, 1), 128
    model, x = Wrapped(mlp(*widths, activation="sign")), inputs(256, 16)
    kernel = NonlocalNTK(model, gamma=gamma, samples=samples)
    assert kernel.plan(x).precision == "fp32"
    (findings,) = kernel._findings.values()
    (found,) = findings.float32_errors.values()
    exact = NonlocalNTK(model, gamma=gamma, samples=samples, propagation="direct").differences(x)
    error = relative_error(kernel.differences(x), exact)
    assert 1e-4 < error < found.jumps < 0.1
    assert relative_error(kernel(x), NonlocalNTK(model, gamma=gamma, samples=samples, propagation="direct")(x)) < (
        found.jumps * (2 / samples) ** 0.5
    )


def test_models_of_float32_alone_run_where_rounding_leaves_digits():
    """What cannot be evaluated in float64 is refused only where float32 would lose digits."""

    class Single(Wrapped):
        def forward(self, x):
            """Refuse other values, as products of mixed dtypes do."""
            if x.dtype != torch.float32:
                raise RuntimeError("float32 only")
            return self.model(x)

    model, x = Single(mlp(3, 4, 1)), inputs(4, 3)
    kernel = NonlocalNTK(model, gamma=0.1, samples=8)
    assert relative_error(kernel(x), NonlocalNTK(model.model, gamma=0.1, samples=8)(x)) < 1e-4
    with pytest.raises(TypeError, match="precision='fp32'"):
        NonlocalNTK(model, gamma=1e-7, samples=8)(x)


def test_propagation_is_tried_once_for_a_kind_of_input(monkeypatch):
    """The outcome is kept over calls, and is forgotten when a layer is exchanged for one of another type."""
    model, trials = Wrapped(mlp(3, 4, 1)), []
    whole = route._try_propagation
    monkeypatch.setattr(route, "_try_propagation", lambda *arguments: trials.append(1) or whole(*arguments))
    kernel = NonlocalNTK(model, gamma=1e-6, samples=4)
    for _ in range(2):
        kernel(inputs(4, 3))
        kernel.diagonal(inputs(5, 3))
        kernel.operator(inputs(6, 3)) @ torch.ones(6)
    assert len(trials) == 1
    model.model[1] = nn.ReLU()
    kernel(inputs(4, 3))
    assert len(trials) == 2


def test_a_fallback_is_logged_and_concerns_one_call_alone(caplog):
    """A model that cannot be propagated for many inputs is propagated for few, before and after."""
    kernel, x = NonlocalNTK(Voting(mlp(3, 4, 2)), gamma=1e-6, samples=8), inputs(4, 3)
    before = kernel(x[:2])
    with caplog.at_level(logging.INFO, logger="nntk"):
        kernel(x)
    assert any("displaced copies" in message and "mode" in message for message in caplog.messages)
    assert torch.equal(kernel(x[:2]), before)


def test_every_fallback_is_logged(caplog):
    """A branch on a value stops propagation and vmap: both fallbacks are reported, with their reasons."""

    class Branching(Wrapped):
        def forward(self, x):
            """Branch on a value of the outputs."""
            h = self.model(x)
            return h if float(h.detach().square().sum()) >= 0 else -h

    with caplog.at_level(logging.DEBUG, logger="nntk"):
        NonlocalNTK(Branching(mlp(3, 4, 2)), gamma=1e-12, samples=8)(inputs(4, 3))
    for words in ("as a general model", "at displaced copies", "in turn"):
        assert any(words in message for message in caplog.messages), caplog.messages


def test_settings_are_frozen():
    """A kernel's settings are read as its attributes; none can be assigned."""
    kernel = NonlocalNTK(mlp(3, 4, 1), gamma=0.2, samples=4)
    for field in dataclasses.fields(kernel.settings):
        assert getattr(kernel, field.name) == getattr(kernel.settings, field.name)
        with pytest.raises(AttributeError):
            setattr(kernel, field.name, None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        kernel.settings.gamma = 0.1
