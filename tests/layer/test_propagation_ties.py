"""Ties at jumps, norms of values that vanish, and values that lose their class: against the definition."""

import copy
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from propagation_cases import LINES, P, both, z
from torch import nn

from nntk import NonlocalNTK
from nntk.activations import Quantise, Sawtooth, Sign, Step, activate
from nntk.models.recognise import NotRecognised
from nntk.propagation import NoRule
from nntk.propagation.batch import DisplacementBatch
from nntk.propagation.differences import propagate

pytestmark = pytest.mark.contract

SIGN = Sign().function


class SignWeights(nn.Module):
    """A network of signs of weights and of units, with an optional factor as in XNOR networks."""

    def __init__(self, width, factor=1.0):
        """Create the model, for eight inputs."""
        super().__init__()
        shapes = ((width, 8), (width, width), (1, width))
        self.a, self.b, self.c = (nn.Parameter(torch.randn(*shape)) for shape in shapes)
        self.factor = factor

    def forward(self, x):
        """Return outputs [N, 1]."""
        h = activate(F.linear(x, activate(self.a, SIGN)), SIGN)
        return F.linear(activate(F.linear(h, activate(self.b, SIGN) * self.factor), SIGN), self.c)


class Frozen(nn.Module):
    """Two activations with a fixed layer of plus and minus one between them, times a factor."""

    def __init__(self, width, first, second, factor=1.0):
        """Create the model, for eight inputs."""
        super().__init__()
        self.inner, self.outer = nn.Linear(8, width), nn.Linear(width, 1)
        self.register_buffer("fixed", torch.randn(width, width).sign() * factor)
        self.first, self.second = first, second

    def forward(self, x):
        """Return outputs [N, 1]."""
        return self.outer(self.second(F.linear(self.first(self.inner(x)), self.fixed)))


class Off(nn.Module):
    """Relu units that are often all off, an unbiased layer, and an activation that jumps."""

    def __init__(self, width, activation):
        """Create the model, for eight inputs."""
        super().__init__()
        self.few, self.many, self.out = nn.Linear(8, 4), nn.Linear(4, width, bias=False), nn.Linear(width, 1)
        self.few.bias.data -= 0.4
        self.activation = activation

    def forward(self, x):
        """Return outputs [N, 1]."""
        return self.out(self.activation(self.many(F.relu(self.few(x)))))


class Normed(nn.Module):
    """A layer, an activation that may vanish at all units, a norm, and a layer."""

    def __init__(self, width, activation, norm):
        """Create the model, for eight inputs."""
        super().__init__()
        self.inner, self.activation, self.norm, self.outer = nn.Linear(8, width), activation, norm, nn.Linear(width, 1)
        self.inner.bias.data -= 0.5

    def forward(self, x):
        """Return outputs [N, 1]."""
        return self.outer(self.norm(self.activation(self.inner(x))))


def definition(model, kernel, x):
    """Return the odd part of the change at the kernel's displacements, evaluated in float64, [M, N, C]."""
    model, rows = copy.deepcopy(model).double(), []
    for m in range(kernel.samples):
        delta = kernel.displacements(m)
        plus, minus = (
            torch.func.functional_call(
                model, {name: p + sign * delta[name].double() for name, p in model.named_parameters()}, (x.double(),)
            )
            for sign in (1, -1)
        )
        rows.append((plus - minus) / 2)
    return torch.stack(rows).detach()


def check(make, gamma, dtype, tolerance, propagations=("difference", "direct"), samples=16):
    """Assert that no entry of the differences is further from the definition than the tolerance times the largest.

    What ``auto`` takes may be wrong in a few entries: their kernel is within a tenth of the Monte-Carlo error.
    """
    torch.manual_seed(1)
    model, x = make().to(dtype), torch.randn(20, 8, dtype=dtype)
    kernel = partial(NonlocalNTK, model, gamma=gamma, samples=samples)
    expected = definition(model, kernel(), x)
    assert expected.isfinite().all()
    for propagation in propagations:
        differences = kernel(propagation=propagation).differences(x).double()
        assert (differences - expected).abs().max() <= tolerance * expected.abs().max()
    chosen, exact = (torch.tensordot(d, d, ([0, 2], [0, 2])) for d in (kernel().differences(x).double(), expected))
    assert (chosen - exact).norm() <= 0.1 * (2 / (samples * expected.shape[2])) ** 0.5 * exact.norm()


INTEGER = {
    "sign weights": SignWeights,
    "signs": lambda width: Frozen(width, Sign(), Sign()),
    "steps": lambda width: Frozen(width, Step(), Step()),
    "quantised": lambda width: Frozen(width, Quantise(3), Quantise(5)),
    "halves": lambda width: Frozen(width, Quantise(5), Sign(), 0.5),
    "sawtooth": lambda width: Frozen(width, Step(), Sawtooth(2.0)),
}
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("width", [16, 64, 256])
@pytest.mark.parametrize("name", INTEGER)
def test_integer_networks_have_no_wrong_entry(name, width, dtype):
    """Sums of integers are carried exactly, and so every tie is decided as the model decides it."""
    for gamma, samples in ((0.1, 8), (0.01, 8), (1e-3, 64 if width == 16 else 8)):
        check(lambda: INTEGER[name](width), gamma, dtype, TOLERANCE[dtype], samples=samples)


@pytest.mark.parametrize("name", INTEGER)
def test_rules_alone_decide_integer_networks(name):
    """No tie of integers is left to float64."""
    for gamma in (0.1, 0.01):
        check(lambda: INTEGER[name](32), gamma, torch.float32, TOLERANCE[torch.float32], ("difference",), 8)


def test_a_wide_integer_network_has_no_wrong_entry():
    """The width of a thousand leaves integers exact in float32."""
    check(lambda: Frozen(1024, Sign(), Sign()), 0.01, torch.float32, 2e-6, samples=8)


NEAR = {
    "relu off": lambda width: Off(width, Sign()),
    "relu off, quantised": lambda width: Off(width, Quantise(6)),
    "relu off, sawtooth": lambda width: Off(width, Sawtooth(0.3)),
    "thirds": lambda width: Frozen(width, Quantise(4), Sign()),
    "sixteen levels": lambda width: Frozen(width, Step(), Quantise(16)),
    "tenths": lambda width: Frozen(width, Sign(), Sign(), 0.1),
    "sawtooth of thirds": lambda width: Frozen(width, Sign(), Sawtooth(3.0)),
    "factor of sign weights": lambda width: SignWeights(width, 0.3),
}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", NEAR)
def test_near_ties_are_decided_in_float64(name, dtype):
    """Where rounding would decide, float64 does."""
    for width, gamma in ((16, 0.1), (16, 1e-3), (64, 0.01)):
        check(lambda width=width: NEAR[name](width), gamma, dtype, TOLERANCE[dtype])


NORMS = {
    "layer norm": lambda h: F.layer_norm(h, h.shape[-1:]),
    "layer norm without epsilon": lambda h: F.layer_norm(h, h.shape[-1:], eps=1e-12),
    "group norm": lambda h: F.group_norm(h, 1),
    "rms norm": lambda h: F.rms_norm(h, h.shape[-1:], eps=1e-7),
    "normalize": lambda h: F.normalize(h, dim=-1),
    "norm": lambda h: h / (h.norm(dim=-1, keepdim=True) + 1e-6),
    "root": lambda h: h / (h.pow(2).sum(-1, keepdim=True) ** 0.5 + 1e-8),
    "rsqrt": lambda h: torch.rsqrt((h * h).mean(-1, keepdim=True) + 1e-7) * h,
    "reciprocal": lambda h: h * ((h * h).mean(-1, keepdim=True) + 1e-7).sqrt().reciprocal(),
    "absolute values": lambda h: h / (h.abs().sum(-1, keepdim=True) + 1e-6),
    "sum": lambda h: h / (h.sum(-1, keepdim=True) + 1e-4),
    "logarithm": lambda h: (h.square() + 1e-8).log(),
    "logarithm of relu": lambda h: (h.relu() + 1e-8).log(),
    "clamped": lambda h: h / h.square().sum(-1, keepdim=True).clamp(min=1e-8).sqrt(),
    "sign of a norm": lambda h: activate(F.layer_norm(h, h.shape[-1:]), SIGN),
}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("activation", [Quantise(5), nn.ReLU(), Quantise(4)], ids=["quantised", "relu", "thirds"])
def test_norms_of_vanishing_values(name, activation):
    """Rounding before a norm is not normalised to order one."""
    for width in (2, 4):
        check(lambda width=width: Normed(width, activation, NORMS[name]), 0.3, torch.float32, 2e-4)
    check(lambda: Normed(2, activation, NORMS[name]), 0.3, torch.float64, 1e-9)


def test_the_epsilon_is_that_of_the_model():
    """RMS norm without an epsilon takes that of the model's dtype, also for values that are not displaced."""
    weight, x = torch.randn(8, 8), 1e-4 * torch.randn(5, 8)
    epsilon = torch.finfo(torch.float32).eps
    left, given = (
        NonlocalNTK(
            lambda p, x, eps=eps: F.rms_norm(F.linear(F.rms_norm(x, (8,), eps=eps) * 1e-3, p["w"]), (8,), eps=eps),
            parameters={"w": weight}, samples=4, propagation="difference",
        )
        for eps in (None, epsilon)
    )  # fmt: skip
    assert torch.equal(left.differences(x), given.differences(x))


def test_uncertain_displacements_are_recomputed():
    """The caller's function is called for the displacements that rounding decides, or the model is refused."""
    batch = DisplacementBatch(torch.arange(6), torch.full((6,), 0.5), 0, "rademacher", 1, 2**24)
    parameters, x = {"w": torch.eye(3)[:1] * 0.3}, torch.tensor([[1.0, 0, 0], [0, 1, 0]])

    def model(tensors, x):
        """Cancel three tenths at every displacement whose first sign is negative."""
        flips = activate(tensors["w"][:, :1] - 0.1, SIGN) - 1
        return activate((0.3 + 0.15 * flips).expand(len(x), 1) - 0 * x[:, :1], SIGN) + F.linear(x, tensors["w"])

    arguments = (model, {"w": parameters["w"].double()}, parameters, {"w": 0}, x.double(), batch)
    with pytest.raises(NoRule, match="model has values within rounding of a jump.* only float64 decides"):
        propagate(*arguments)
    seen = []

    def recompute(positions):
        """Return sevens."""
        seen.extend(positions.tolist())
        return torch.full((len(positions), 1, 2, 1), 7.0, dtype=torch.float64)

    differences = propagate(*arguments, recompute)
    assert 0 < len(seen) < 6
    assert [bool((row == 7).all()) for row in differences] == [m in seen for m in range(6)]


@torch.jit.script
def scripted(h):
    """Return the hyperbolic tangent, by scripted code."""
    return h.tanh()


def plainly(function):
    """Return the result of a function, under which subclasses of tensors do not override functions."""
    with torch._C.DisableTorchFunctionSubclass():
        return function()


def without_warnings(function):
    """Return the result of a function that warns."""
    with warnings.catch_warnings(action="ignore"):
        return function()


class Hidden(torch.autograd.Function):
    """A function that goes below the override protocol."""

    @staticmethod
    def forward(ctx, h):
        """Return the hyperbolic tangent."""
        return plainly(h.tanh)


STRIPPED = {
    "scripted": scripted,
    "subclass": lambda h: h.as_subclass(torch.Tensor),
    "new subclass": lambda h: torch.Tensor._make_subclass(torch.Tensor, h),
    "memory": lambda h: torch.empty(0, dtype=h.dtype).set_(h),
    "nested": lambda h: torch.nested.to_padded_tensor(
        without_warnings(lambda: torch.nested.nested_tensor(list(h))), 0.0
    ),
    "disabled": lambda h: plainly(lambda: torch.Tensor.tanh(h)),
    "data": lambda h: h.data.tanh(),
    "numbers": lambda h: torch.tensor(h.tolist(), dtype=h.dtype),
    "item": lambda h: h * 0 + h.sum().item(),
    "branch": lambda h: h if bool(h.sum()) else 2 * h,
    "new": lambda h: without_warnings(lambda: torch.zeros(1, dtype=h.dtype).new_tensor(h)),
    "copied": lambda h: torch.empty(h.shape, dtype=torch.bfloat16).copy_(h),
    "exchanged": lambda h: torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(h)),
    "custom function": Hidden.apply,
    "operation": lambda h: torch.ops.aten.tanh.default(h),
    "random": lambda h: h + torch.rand_like(h),
    "random constant": lambda h: h + F.dropout(torch.ones(6), 0.5),
    "rounded": lambda h: h.sum(-1, keepdim=True, dtype=torch.float16),
    "limits": lambda h: h.clamp(0.5, -0.5),
}


def caught(h):
    """Catch what scripted code raises."""
    try:
        return scripted(h)
    except Exception:
        return h


@pytest.mark.parametrize("function", [*STRIPPED.values(), caught], ids=[*STRIPPED, "caught"])
def test_stripped_values_are_seen(function, monkeypatch):
    """Code that loses differences raises where it runs, whatever the size of its effect."""
    # The probe would refuse some of them before.
    monkeypatch.setattr("nntk.models.general.probe", lambda model, x: None)

    def model(p, x):
        """Add the function in a branch that hardly matters."""
        h = z(p, x)
        return h + 1e-9 * function(h)

    state = torch.get_rng_state()
    with pytest.raises(NotRecognised, match="model (calls|reads|draws)"):
        NonlocalNTK(model, parameters=P, samples=2, propagation="difference", gamma=1e-2).differences(
            LINES.flatten(1)[:, :6]
        )
    torch.set_rng_state(state)


class Ternary(torch.autograd.Function):
    """A straight-through estimator of three values."""

    @staticmethod
    def forward(ctx, h):
        """Return -1, 0 or 1."""
        ctx.save_for_backward(h)
        return torch.where(h.abs() > 1, torch.sign(h), 0.0)

    @staticmethod
    def backward(ctx, gradient):
        """Return the gradient as it is."""
        return gradient


JUMPS = {
    "sign": lambda p, x: torch.sign(z(p, x)) + F.linear(z(p, x).sgn(), p["w"]).sign(),
    "heaviside": lambda p, x: torch.heaviside(z(p, x), torch.tensor(0.5, dtype=x.dtype)) @ p["w"],
    "round": lambda p, x: torch.round(z(p, x) / 2) + (z(p, x) * 0.25).round().mul(0.5).round(),
    "floor and ceil": lambda p, x: z(p, x).floor() + 3 * torch.ceil(z(p, x) / 2),
    "trunc": lambda p, x: z(p, x).trunc() + torch.fix(z(p, x) * 1.5) + z(p, x).frac(),
    "comparisons": lambda p, x: (z(p, x) > 0).float() + 2 * (z(p, x) >= 1).to(x.dtype) + (z(p, x) < x).type_as(x),
    "equal": lambda p, x: (z(p, x) == 0).double() + 3 * (z(p, x) != 1).type(torch.float32) + (2 >= z(p, x)).float(),
    "of two": lambda p, x: (z(p, x) > x @ p["w"]).float() + (z(p, x) == z(p, x).flip(-1)).float(),
    "masks": lambda p, x: z(p, x) * (z(p, x) > 0.5) + (z(p, x) > 1) * x + 0.1 * (z(p, x) > 0),
    "where numbers": lambda p, x: torch.where(z(p, x) >= 0, 1.0, -1.0) @ p["w"],
    "where": lambda p, x: torch.where(z(p, x) >= 0, z(p, x), 0.1) + torch.where(z(p, x)[:, :1] > 0, p["v"], x),
    "where method": lambda p, x: z(p, x).where(z(p, x) > x, p["v"] * 2) + torch.where(z(p, x) > 0, 1, -1) * x,
    "masked fill": lambda p, x: z(p, x).masked_fill(z(p, x) < 0, -1.0) + x.masked_fill((z(p, x) > x) & (x > 0), 0.0),
    "logic": lambda p, x: ((z(p, x) > 0) & ~(z(p, x) > 2) | (x > 0) ^ (z(p, x) == -1)).float(),
    "counts": lambda p, x: (z(p, x) > 0).sum(-1, keepdim=True) * z(p, x) / (1 + (z(p, x) > 1).sum(-1, keepdim=True)),
    "parity": lambda p, x: ((z(p, x) > 0).sum(-1) % 2 == 1).float() + (z(p, x) > 3).any(-1).float(),
    "parts": lambda p, x: torch.cat((z(p, x) > 0, z(p, x)), -1) * torch.cat((z(p, x) < 0, x > 0), -1).float(),
    "jumps in place": lambda p, x: z(p, x).tanh().mul_(z(p, x) > 0).masked_fill_(z(p, x) > 2, 3.0),
    "units that are off": lambda p, x: (z(p, x).relu() > 0).float() @ p["w"],
    "largest": lambda p, x: (z(p, x) >= z(p, x).amax(-1, keepdim=True)).float(),
    "top one": lambda p, x: F.one_hot(z(p, x).argmax(-1), 6) * z(p, x).softmax(-1),
    "places": lambda p, x: (
        z(p, x).gather(-1, z(p, x).argmin(-1, keepdim=True)) + (z(p, x).argmax(1) == 2).float()[:, None]
    ),
    "experts": lambda p, x: F.embedding(z(p, x).argmin(-1), p["w"]) + p["w"][z(p, x).argmax(-1)] * x,
    "rows": lambda p, x: z(p, x)[torch.arange(len(x)), z(p, x).argmax(1)] + x.gather(1, z(p, x).argmin(1, True))[:, 0],
    "maxima": lambda p, x: (
        z(p, x).max(-1)[0] + z(p, x).min(1).values * z(p, x).max(-1, keepdim=True).indices[:, 0].float()
    ),
    "top values": lambda p, x: z(p, x).topk(2, -1).values - z(p, x).topk(3, largest=False)[0][:, 1:],
    "sorted": lambda p, x: z(p, x).sort(-1).values - 2 * torch.sort(z(p, x), dim=1, descending=True)[0],
    "ranks": lambda p, x: (
        torch.argsort(z(p, x), dim=-1, stable=True).float() * x + x.gather(1, z(p, x).sort(stable=True)[1])
    ),
    "fake quantised": lambda p, x: torch.fake_quantize_per_tensor_affine(z(p, x), 0.25, 1, -8, 7) * p["v"],
    "fake quantised weights": lambda p, x: F.linear(
        x, torch.fake_quantize_per_channel_affine(p["w"], torch.full((6,), 0.5), torch.zeros(6), 0, -4, 3)
    ),
    "top masks": lambda p, x: z(p, x) * F.one_hot(z(p, x).topk(2, -1).indices, 6).sum(1),
    "thresholds": lambda p, x: z(p, x) * (z(p, x) >= z(p, x).topk(2, -1).values[:, -1:]),
    "scattered": lambda p, x: z(p, x) * torch.zeros_like(x).scatter(-1, z(p, x).topk(2, -1).indices, 1.0),
    "numbers": lambda p, x: torch.where(p["v"].sum() > 0, x * p["v"], x) + SIGN.value(x) * (p["b"] > 0),
    "rounded in place": lambda p, x: z(p, x).mul_(0.5).round_().add_(z(p, x).floor_()) + z(p, x).logical_not().double(),
    "means of masks": lambda p, x: (z(p, x) * (z(p, x) > 0)).sum(-1) / (z(p, x) > 0).sum(-1).clamp(min=1),
    "integers": lambda p, x: ((z(p, x) > 0).long() + (z(p, x) > 1).int()) * x - (1 - (z(p, x) > 0).long()) * z(p, x),
    "winners": lambda p, x: torch.zeros_like(x).scatter(-1, z(p, x).topk(2, -1)[1], z(p, x).topk(2, -1)[0]),
    "winners among others": lambda p, x: z(p, x).tanh().scatter(-1, z(p, x).argmax(-1, keepdim=True), 1.0),
    "largest of all": lambda p, x: F.linear(x, p["w"] / p["w"].abs().max() + p["v"].min()),
    "codes": lambda p, x: F.embedding((x[:, None] - p["w"]).square().sum(-1).argmin(-1), p["w"]),
    "rounded weights": lambda p, x: F.linear(x, torch.round(p["w"] / p["w"].abs().amax() * 127) / 127),
    "ternary weights": lambda p, x: F.linear(x, torch.where(p["w"].abs() > 0.7, p["w"].sign(), 0.0)),
    "straight through": lambda p, x: Ternary.apply(z(p, x)) @ p["w"],
    "detached": lambda p, x: (z(p, x) + (torch.sign(z(p, x)) - z(p, x)).detach()) @ p["w"],
    "casts to integers": lambda p, x: z(p, x).long() * x + (z(p, x) / 2).to(torch.int32) + z(p, x).bool().double(),
    "rounded quotients": lambda p, x: z(p, x) // 2 + torch.div(z(p, x), 0.5, rounding_mode="trunc") - 5 // (x + 5.25),
    "remainders": lambda p, x: z(p, x) % 2 + torch.fmod(z(p, x), 1.5) + torch.remainder(z(p, x), -0.75),
    "thresholds of units": lambda p, x: F.hardshrink(z(p, x)) + F.threshold(z(p, x), 1.0, 20.0) + F.hardshrink(x, 1.0),
    "steep softplus": lambda p, x: F.softplus(z(p, x), 1.0, 1.0) * p["v"],
    "signs of others": lambda p, x: torch.copysign(z(p, x), z(p, x).flip(-1) + 0.5) + torch.signbit(z(p, x)).double(),
    "buckets": lambda p, x: (
        torch.bucketize(z(p, x), torch.tensor([-1.0, 0, 2], dtype=x.dtype)) * x
        + torch.searchsorted(p["v"].abs().cumsum(0), z(p, x), right=True).to(x.dtype)
    ),
    "any and all": lambda p, x: (
        z(p, x).relu().any(-1).double() + 2 * (z(p, x) - 1).all(-1) + torch.count_nonzero(z(p, x).relu(), -1).double()
    ),
    "close": lambda p, x: (
        torch.isclose(z(p, x), x, rtol=0.0, atol=1.0).double() + (z(p, x) == x).any(-1, True).double()
    ),
    "running places": lambda p, x: z(p, x).cummax(-1).indices.to(x.dtype) + z(p, x).cummin(-1)[0],
    "places of ranks": lambda p, x: (
        x.gather(-1, z(p, x).kthvalue(2, -1, True)[1]) + z(p, x).median(-1)[1].double()[:, None]
    ),
    "taken along": lambda p, x: x.take_along_dim(z(p, x).argsort(dim=-1, stable=True), dim=-1) * p["v"],
    "quarters of a turn": lambda p, x: torch.atan2(z(p, x) + 0.5, x - 3) @ p["w"],
    "ranks of parameters": lambda p, x: F.linear(x, p["w"] * (p["w"] >= p["w"].topk(2, 0)[0][-1]) + p["w"].sort(0)[0]),
    "new tensors": lambda p, x: torch.zeros(len(x), 6).index_add_(1, torch.tensor([4, 1]), torch.sign(z(p, x))[:, :2]),
}


def integers(*shape, seed):
    """Return integers from -2 to 2, in float32."""
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize("gamma", [1e-1, 1e-3, 1e-6])
@pytest.mark.parametrize("name", JUMPS)
def test_functions_that_jump(name, gamma, monkeypatch):
    """The differences are those of the model in float64, at sums of integers that tie and at real numbers."""
    # That check moves parameters by rounding errors, which moves ties of integers too.
    monkeypatch.setattr("nntk.differences.copies.check_digits", lambda *arguments: None)
    whole = {"w": integers(6, 6, seed=1), "v": integers(6, seed=2), "b": torch.zeros(())}, integers(8, 6, seed=3)
    real = {"w": P["w"], "v": P["v"], "b": P["b"]}, LINES[:, 0]
    # The odd part of a pair does not contain the unperturbed value, and so one gamma is evaluated without pairs.
    options = {"gamma": gamma, "samples": 8, "antithetic": gamma != 1e-3}
    for parameters, x in (whole, real, (whole[0], LINES[:, 1])):
        for dtype, tolerance in ((torch.float32, 2e-6), (torch.float64, 1e-8)):
            own = {key: value.to(dtype) for key, value in parameters.items()}
            found, expected = both(JUMPS[name], x.to(dtype), parameters=own, **options)
            assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize(("seed", "width", "gamma"), [(0, 6, 0.3), (4, 6, 0.013), (5, 3, 0.013)])
@pytest.mark.parametrize("function", [Sign(), torch.sign, lambda h: (h >= 0).float()], ids=["sign", "torch", "mask"])
def test_sums_of_multiples_of_gamma_are_decided_in_float64(function, seed, width, gamma):
    """A sum such as 0.7 + 1.4 - 2.1 may be zero in float32 alone."""
    generator = torch.Generator().manual_seed(seed)
    w, x = (torch.randint(low, high, shape, generator=generator).float() for low, high, shape in (
        (-2, 3, (16, width)), (-3, 4, (30, width)),
    ))  # fmt: skip
    w[:4] = 0
    options = {"parameters": {"w": w}, "gamma": gamma, "samples": 64, "antithetic": False}
    found, expected = both(lambda p, x: function(x @ p["w"].T), x, **options)
    assert torch.equal(found, expected)
