"""Models that differences cannot be propagated through, and evaluations that must agree with the first one."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import relative_error
from propagation_cases import FUNCTIONS, LINES, TOKENS, P, both, z

from nntk import NonlocalNTK
from nntk.models.recognise import NotRecognised
from nntk.propagation import NoRule, plan, primal, with_tangent
from nntk.propagation.doubts import Doubts, is_short
from nntk.propagation.registry import RULES
from nntk.propagation.rules import layers, linear
from nntk.propagation.rules.window import Window


def products(p, x):
    """Return products of values, for which there is no rule."""
    return z(p, x).cumprod(-1)


def test_functions_without_a_rule_are_evaluated_plainly():
    """``auto`` evaluates plainly; where propagation is required, the message names the function."""
    auto = NonlocalNTK(products, parameters=P, gamma=1e-6, samples=6).differences(LINES)
    plain = NonlocalNTK(products, parameters=P, gamma=1e-6, samples=6, propagation="direct").differences(LINES)
    assert torch.equal(auto, plain)
    for method in (NonlocalNTK.differences, NonlocalNTK.__call__):
        with pytest.raises(NotRecognised, match="model calls Tensor.cumprod, which has no rule"):
            method(NonlocalNTK(products, parameters=P, samples=6, propagation="difference"), LINES)


def under_autocast(function):
    """Return the result of a function under autocast."""
    with torch.autocast("cpu", torch.bfloat16):
        return function()


def doubled(x):
    """Double the values through a view of them."""
    x.view(-1).mul_(2)
    return x


def copied(values):
    """Copy values by torch.tensor, which loses their differences."""
    with warnings.catch_warnings(action="ignore"):
        return torch.tensor(values)


UNSUPPORTED = {
    "batch statistics": lambda p, x: F.batch_norm(z(p, x).mT, None, None, training=True),
    "powers": lambda p, x: z(p, x) ** x,
    "masks as indices": lambda p, x: z(p, x)[z(p, x) > 0].sum() + z(p, x),
    "branches on masks": lambda p, x: z(p, x) if bool((z(p, x) > 0).any()) else x,
    "masks in half precision": lambda p, x: (z(p, x) > 0).to(torch.float16) * z(p, x),
    "masks of infinities": lambda p, x: z(p, x).masked_fill(z(p, x) < 0, -torch.inf).softmax(-1),
    "infinities compared": lambda p, x: (z(p, x).masked_fill(x > 0, -torch.inf) > -torch.inf) * z(p, x),
    "largest of infinities": lambda p, x: z(p, x).masked_fill(x > 0, -torch.inf).max(-1).values,
    "places that repeat": lambda p, x: x.scatter(-1, (z(p, x) > 0).long(), z(p, x)),
    "places": lambda p, x: torch.where(z(p, x) > 0)[0].sum() + z(p, x),
    "decimals": lambda p, x: z(p, x).round(decimals=1),
    "large numbers rounded": lambda p, x: (z(p, x) * 1e9).round(),
    "masks in place": lambda p, x: (z(p, x) > 0).logical_and_(x > 0) * z(p, x),
    "counts of classes": lambda p, x: F.one_hot(z(p, x).argmax(-1))[..., :1] * z(p, x),
    "branches": lambda p, x: z(p, x) if float(z(p, x).sum()) > 0 else x,
    "rounding": lambda p, x: z(p, x).to(torch.bfloat16),
    "views in place": lambda p, x: z(p, x)[:, :2].add_(1.0),
    "constants in place": lambda p, x: torch.zeros(len(x), 7, 6).add_(z(p, x)),
    "casts in place": lambda p, x: z(p, x).to(x.dtype, copy=True).add_(1.0),
    "constant views in place": lambda p, x: z(p, doubled(x + 1)),
    "writing": lambda p, x: z(p, x).zero_() + z(p, x),
    "outputs": lambda p, x: torch.add(z(p, x), x, out=torch.empty_like(x)),
    "casts to integers": lambda p, x: z(p, x).type_as(TOKENS) + z(p, x),
    "rounded division": lambda p, x: torch.div(z(p, x), 2, rounding_mode="floor") + z(p, x),
    "softplus with a low threshold": lambda p, x: F.softplus(z(p, x), threshold=1.0),
    "autocast": lambda p, x: under_autocast(lambda: z(p, x)),
    "new tensors": lambda p, x: copied(z(p, x)) + z(p, x),
    "transforms": lambda p, x: torch.vmap(torch.tanh)(z(p, x)) + z(p, x),
    "gradients": lambda p, x: torch.func.grad(lambda h: h.square().sum())(z(p, x)) + z(p, x),
    "vectors": lambda p, x: F.linear(x, p["v"]),
    "dropout": lambda p, x: F.dropout(z(p, x), 0.5),
    "sums of exponentials": lambda p, x: z(p, x).logsumexp((1, 2)),
    "other norms": lambda p, x: torch.linalg.norm(z(p, x), "nuc", (1, 2)),
    "no matrix": lambda p, x: x @ torch.matrix_power(p["w"], 0) + z(p, x),
    "largest of groups": lambda p, x: z(p, x).scatter_reduce(1, (x > 0).long(), x, "amax"),
    "no batch": lambda p, x: F.conv1d(z(p, x)[0].mT, p["k"])[None].expand(5, -1, -1),
    "indices": lambda p, x: F.max_pool1d(z(p, x).mT, 2, return_indices=True)[0],
    "planes": lambda p, x: F.max_pool2d(z(p, x), 2),
    "max_norm": lambda p, x: F.embedding(TOKENS, p["w"], max_norm=1.0),
    "jumping thresholds": lambda p, x: F.threshold(z(p, x), 0.1, 20.0),
    "slopes at random": lambda p, x: F.rrelu(z(p, x), training=True),
    "powers of zero": lambda p, x: z(p, x) ** 0,
    "scattered products": lambda p, x: z(p, x).scatter(1, (x > 0).long(), 0.5, reduce="multiply"),
    "bags with padding": lambda p, x: F.embedding_bag(TOKENS, p["w"], padding_idx=0),
    "dropped states": lambda p, x: torch.gru(
        z(p, x), x[None, :, 0, :2], [p["w"], p["w"][:, :2], p["v"], p["v"]], True, 1, 0.5, True, False, True
    )[0],
    "dropped attention": lambda p, x: F.scaled_dot_product_attention(z(p, x), x, x, dropout_p=0.5),
    "no displaced parameter": lambda p, x: x,
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_models_raise(name, monkeypatch):
    """A model that rules do not cover raises instead of returning a wrong difference."""
    # The probe would refuse some of them before.
    monkeypatch.setattr("nntk.models.general.probe", lambda model, x: None)
    monkeypatch.setattr(layers, "multiplies_patches", lambda device: True)
    with pytest.raises(TypeError, match="model"):
        NonlocalNTK(UNSUPPORTED[name], parameters=P, samples=2, propagation="difference").differences(LINES)


def test_every_input_needs_rules():
    """``auto`` evaluates plainly if another input than those of the trial needs a function without a rule."""

    def multiplying(p, x):
        """Multiply the values if there is a large input among them."""
        return products(p, x) if float(x.max()) > 5 else z(p, x)

    x = LINES.clone()
    x[2, 0, 0] = 6.0
    auto, direct = (
        NonlocalNTK(multiplying, parameters=P, gamma=1e-6, samples=4, propagation=propagation).differences(x)
        for propagation in ("auto", "direct")
    )
    assert torch.equal(auto, direct)


def rounding(p, x):
    """Normalize in float32, as many models do."""
    h = z(p, x).float()
    return (h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6)).type_as(x)


@pytest.mark.parametrize(("function", "gamma"), [(FUNCTIONS["gelu"], 1e-14), (rounding, 1e-6)])
def test_small_displacements_are_propagated(function, gamma):
    """The trial compares at a larger displacement, where a plain evaluation has digits."""
    kernels = [
        NonlocalNTK(function, parameters=P, gamma=gamma, samples=4, propagation=propagation)
        for propagation in ("auto", "difference")
    ]
    assert torch.equal(*(kernel.differences(LINES) for kernel in kernels))


def written(p, x):
    """Fill a mask with a copy of another."""
    mask = torch.zeros(x.shape, dtype=torch.bool)
    mask.copy_(x > 0)
    return z(p, x).masked_fill(mask, 0.0)


REPEATED = [written, FUNCTIONS["constants convolved"], lambda p, x: F.linear(x.mT.mT, p["w"].T)]


@pytest.mark.parametrize("function", REPEATED, ids=["written", "constants", "attributes"])
def test_every_evaluation_is_like_the_first(function, monkeypatch):
    """New tensors are written in each evaluation, and cached values are found, for chunks of any size."""
    options = {"parameters": P, "gamma": 1e-2, "samples": 7, "propagation": "difference"}
    expected = NonlocalNTK(function, **options).differences(LINES)
    for cache in (2**6, 2**7, 2**8):
        monkeypatch.setattr(plan, "CACHE", cache)
        assert relative_error(NonlocalNTK(function, **options).differences(LINES), expected) < 1e-6


@pytest.mark.parametrize("keep", [lambda x: x.cos(), lambda x: float(x.sum())], ids=["values", "numbers"])
def test_values_of_another_evaluation_raise(keep, monkeypatch):
    """A function that keeps values, or leaves out steps the next time, raises; the probe would refuse it before."""
    monkeypatch.setattr("nntk.models.general.probe", lambda model, x: None)
    monkeypatch.setattr(plan, "CACHE", 2**6)
    state = {}

    def keeping(p, x):
        """Keep a value from the fourth call on."""
        state["calls"] = state.get("calls", 0) + 1
        if state["calls"] > 3:
            state.setdefault("value", None)
            state["value"] = keep(x[:1]) if state["value"] is None else state["value"]
            return z(p, x) * x.sin() * state["value"]
        return z(p, x)

    kernel = NonlocalNTK(keeping, parameters=P, samples=7, propagation="difference")
    with pytest.raises(NotRecognised, match="model (keeps values|does not call the same functions)"):
        kernel.differences(LINES)


def test_patches_are_padded_evenly():
    """Padding that is larger on one side cannot be unfolded."""
    with pytest.raises(NoRule, match="model pads a convolution on one side"):
        Window.from_settings((2, 3), 1, "same", 1)


def test_a_wrong_rule_is_noticed(monkeypatch):
    """``auto`` compares with a plain evaluation."""

    def wrong_rule(ctx, z, inplace=False):
        """Return the value with twice the difference of its argument."""
        return with_tangent(ctx, F.silu(primal(z)), 2 * z.tangent)

    monkeypatch.setitem(RULES, F.silu, wrong_rule)
    options = {"parameters": P, "gamma": 1e-6, "samples": 6}
    auto = NonlocalNTK(FUNCTIONS["silu"], **options).differences(LINES)
    plain = NonlocalNTK(FUNCTIONS["silu"], **options, propagation="direct").differences(LINES)
    assert torch.equal(auto, plain)


def test_numpy_functions_are_evaluated_plainly():
    """A function that leaves PyTorch has no rules, and ``auto`` evaluates it plainly."""

    def by_numpy(p, x):
        return torch.from_numpy(np.tanh(z(p, x).numpy()))

    for gamma, tolerance in ((1e-2, 1e-4), (1e-6, 1e-6)):
        differences = NonlocalNTK(by_numpy, parameters=P, gamma=gamma, samples=6).differences(LINES)
        expected = both(lambda p, x: z(p, x).tanh(), LINES, parameters=P, gamma=gamma)[1]
        assert relative_error(differences, expected) < tolerance


def test_a_jump_is_judged_at_the_inputs_that_come_near_to_it():
    """Those alone have the doubts of all values; ties of short numbers are exact, and other sums of zero are not."""
    value = torch.tensor([[1.0, 2.0], [0.5, -1.0], [0.1, 3.0], [1e-9, 5.0], [0.3, 0.4]])
    dz = torch.tensor([[[-1.0, 4.0], [-0.5, 1.0], [-0.1, 2.0], [7.0, 1.0], [1.0, 2.0]]])[None].repeat(3, 2, 1, 1)
    scales = torch.tensor([1.0, 0.5, 2.0**-20])
    change = dz * scales.view(3, 1, 1, 1)
    exact, every, some = is_short(value), Doubts.none(3, value.device), Doubts.none(3, value.device)
    every.meet_jumps(change + value, change, exact)
    least, most = (change + value).abs().amin(-1), change.abs().amax(-1)
    some.meet_jumps_of_inputs(least, most, dz, scales, value, exact)
    assert some.near_jumps.tolist() == every.near_jumps.tolist() and some.near_jumps.sum() > 0
    assert some.jumps_met == every.jumps_met


def test_parts_of_a_plan_are_even():
    """No part is larger than allowed, and none is much smaller than the others."""
    for total, most in ((64, 56), (32, 15), (7, 100), (5, 0), (0, 3)):
        size = plan._even(total, most)
        assert 1 <= size <= max(1, most) and (not total or -(-total // size) == -(-total // max(1, most)))


@pytest.mark.parametrize("name", ["multiples", "strided views", "views"])
def test_views_by_strides_are_those_of_the_function(name, monkeypatch):
    """The difference of a view is the view of the difference, to the bit."""
    kernel = NonlocalNTK(FUNCTIONS[name], parameters=P, gamma=1e-3, samples=3, propagation="difference")
    expected = kernel.differences(LINES)
    monkeypatch.setattr(linear, "_views", lambda operand, value: None)
    assert torch.equal(kernel.differences(LINES), expected)
