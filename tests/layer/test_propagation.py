"""Difference propagation through any model: every rule against plain evaluation in float64."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import FAMILIES, inputs, relative_error
from torch import nn
from triton_device import Allocated

import nntk
from nntk import NonlocalNTK
from nntk.kernels.perturb import displacement_products
from nntk.kernels.philox import unit_displacements
from nntk.models.mlp import NotRecognised
from nntk.propagation import displaced_tensor as moved
from nntk.propagation import passes as propagation
from nntk.propagation import rules
from nntk.propagation.rules import layers


def random(*shape, seed=0):
    """Normal numbers, in float32."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


P = {
    "w": random(6, 6),
    "v": random(6, seed=1),
    "b": random(1, seed=7)[0],
    "k": random(6, 6, 3, seed=2) / 4,
    "c": random(6, 6, 3, 3, seed=3) / 7,
}
"""Parameters: a matrix, a vector, weights of convolutions."""
LINES, IMAGES = random(5, 7, 6, seed=4), random(4, 6, 8, 8, seed=5)
TOKENS = torch.randint(0, 6, (5, 7), generator=torch.Generator().manual_seed(6))


def z(p, x):
    """Displaced values of both signs."""
    return F.linear(x, p["w"], p["v"])


FUNCTIONS = {
    "exp": lambda p, x: z(p, x).exp(),
    "log": lambda p, x: z(p, x).square().add(0.1).log(),
    "sqrt": lambda p, x: torch.sqrt(z(p, x).abs() + 0.1),
    "rsqrt": lambda p, x: (z(p, x) ** 2 + 0.1).rsqrt(),
    "powers": lambda p, x: (z(p, x) ** 2 + 0.5) ** -1 + (z(p, x) ** 2 + 0.5) ** 0.5,
    "reciprocal": lambda p, x: (2 + z(p, x).sigmoid()).reciprocal(),
    "clamp": lambda p, x: z(p, x).clamp(-0.5, 0.7) + z(p, x).clamp(min=0.1),
    "relu6": lambda p, x: F.relu6(z(p, x)) + F.hardtanh(z(p, x)),
    "leaky relu": lambda p, x: F.leaky_relu(z(p, x), 0.2),
    "softplus": lambda p, x: F.softplus(z(p, x), beta=2.0),
    "silu": lambda p, x: F.silu(z(p, x)),
    "gelu": lambda p, x: F.gelu(z(p, x)) + F.gelu(z(p, x), approximate="tanh"),
    "sin": lambda p, x: z(p, x).sin() + z(p, x).tanh(),
    "sawtooth": lambda p, x: nntk.activations.Sawtooth()(z(p, x)),
    "quantise": lambda p, x: nntk.activations.Quantise(5)(z(p, x)),
    "softmax": lambda p, x: z(p, x).softmax(-1) + F.softmax(5 * z(p, x), 1),
    "masked softmax": lambda p, x: z(p, x).masked_fill(torch.ones(7, 6).tril(-2).bool(), -torch.inf).softmax(-1),
    "log softmax": lambda p, x: F.log_softmax(z(p, x), -1),
    "largest": lambda p, x: z(p, x).amax(-1),
    "sums": lambda p, x: 1 - z(p, x) + 2 * x - z(p, x) / 3 + torch.add(x, z(p, x), alpha=0.5),
    "products": lambda p, x: z(p, x) * z(p, x.flip(1)) * x * p["v"],
    "quotients": lambda p, x: z(p, x) / (2 + z(p, x).tanh()) + 1 / (3 + z(p, x).sigmoid()),
    "matrix products": lambda p, x: z(p, x) @ z(p, x).mT @ x + x @ p["w"].T,
    "einsum": lambda p, x: torch.einsum("nik,nil->nkl", z(p, x), x) + torch.einsum("nij->nj", z(p, x))[..., None],
    "views": lambda p, x: z(p, x).transpose(1, 2).reshape(len(x), 2, 3, 7).permute(0, 3, 1, 2).flatten(2)[:, 1:-1, ::2],
    "parts": lambda p, x: torch.cat((*z(p, x).chunk(2, -1), x), -1) + torch.stack(z(p, x).unbind(1)[:2]).sum(),
    "choice": lambda p, x: torch.where(x > 0, z(p, x), x),
    "padding": lambda p, x: F.pad(z(p, x), (1, 2), value=3.0),
    "in place": lambda p, x: F.relu(z(p, x).mul_(2).add_(x), inplace=True),
    "computed weight": lambda p, x: F.linear(F.linear(x, p["w"] * p["v"].exp()).tanh(), p["w"].T.abs()),
    "layer norm": lambda p, x: F.layer_norm(z(p, x), (7, 6), None, None) + F.layer_norm(x, (6,), p["v"], p["v"]),
    "rms norm": lambda p, x: F.rms_norm(z(p, x), (6,), p["v"]),
    "group norm": lambda p, x: F.group_norm(z(p, x).mT, 3, p["v"], p["v"]),
    "attention": lambda p, x: F.scaled_dot_product_attention(z(p, x), x, z(p, x), is_causal=True),
    "masked attention": lambda p, x: F.scaled_dot_product_attention(x, z(p, x), x, attn_mask=torch.eye(7)),
    "conv1d": lambda p, x: F.conv1d(F.conv1d(x.mT, p["k"], p["v"], padding=2).tanh(), p["k"], stride=2, dilation=2),
    "pool1d": lambda p, x: F.max_pool1d(F.avg_pool1d(z(p, x).mT, 2), 2),
    "one-sided clamps": lambda p, x: z(p, x).clamp_max(0.3) - z(p, x).clamp_min(0.1) + F.hardtanh(z(p, x), -0.2, 0.4),
    "chosen": lambda p, x: z(p, x).where(x > 0, x) + x.where(x > 1, z(p, x)) + z(p, x).masked_fill(x < 0, p["b"]),
    "masks that broadcast": lambda p, x: p["v"].masked_fill(x > 0, 0.5) + x.masked_fill(x > 0, p["b"]),
    "integers beside": lambda p, x: torch.cat((z(p, x), torch.ones(len(x), 7, 2, dtype=torch.long)), -1),
    "to what moves": lambda p, x: z(p, x) * ((x > 0).to(z(p, x)) + (x > 1).type_as(z(p, x))),
    "computed convolution": lambda p, x: F.conv1d(F.conv1d(x.mT, p["k"].exp()).tanh(), p["k"].exp()),
    "transposed": lambda p, x: F.conv_transpose1d(
        F.conv_transpose1d(x.mT, p["k"], p["v"], 2).tanh(), p["k"], stride=2, output_padding=1
    ),
    "conv3d": lambda p, x: F.conv3d(x.mT[..., None, None], p["k"][..., None, None], p["v"]),
    "constants convolved": lambda p, x: F.conv1d(torch.ones(1, 6, 7, dtype=x.dtype), p["k"], padding=1) * z(p, x).mT,
    "saturated softmax": lambda p, x: sum(
        f(z(p, x).tanh() + 10 * torch.eye(6, dtype=x.dtype)[0], -1)[..., 0] for f in (F.softmax, F.log_softmax)
    ),
    "logsumexp": lambda p, x: z(p, x).logsumexp(-1) + z(p, x).logsumexp(1, keepdim=True)[..., 0],
    "sqrt at zero": lambda p, x: ((z(p, x).tanh() + 2) * torch.eye(6, dtype=x.dtype)[2]).sqrt(),
    "cubes": lambda p, x: z(p, x) ** 3 + z(p, x).cos(),
    "exponential units": lambda p, x: F.elu(z(p, x), 0.5) + F.celu(z(p, x), 0.7) + F.selu(z(p, x)),
    "hard units": lambda p, x: F.hardswish(z(p, x)) + F.hardsigmoid(z(p, x)),
    "smooth units": lambda p, x: F.mish(z(p, x)) + F.logsigmoid(z(p, x)),
    "gates": lambda p, x: F.glu(z(p, x)) + F.prelu(z(p, x).mT, p["v"])[:, :3].mT * F.prelu(x, p["b"][None])[..., :3],
    "added products": lambda p, x: torch.addmm(p["v"], x[:, 0], p["w"], beta=0.5, alpha=2) + torch.mv(p["w"], p["v"]),
    "weight norm": lambda p, x: F.linear(x, torch._weight_norm(p["w"], p["v"][:, None])) + F.normalize(z(p, x), dim=-1),
    "without dropout": lambda p, x: F.dropout(z(p, x), training=False).add_(x) * z(p, x),
    "copies in place": lambda p, x: z(p, x).clone().sub_(z(p, x).mean(-1, keepdim=True)).div_(3),
}  # fmt: skip
CONVOLUTIONS = {
    "plain": lambda p, x: F.conv2d(F.conv2d(x, p["c"], p["v"]).relu(), p["c"], p["v"]),
    "settings": lambda p, x: F.conv2d(
        F.conv2d(x, p["c"], stride=2, padding=1).tanh(), p["c"], dilation=2, padding=(2, 1)
    ),
    "same": lambda p, x: F.conv2d(F.conv2d(x, p["c"], padding="same").tanh(), p["c"], padding="valid"),
    "groups": lambda p, x: F.conv2d(F.conv2d(x, p["c"][:, :2], groups=3).tanh(), p["c"][:, :3], groups=2),
    "pools": lambda p, x: F.max_pool2d(F.conv2d(x, p["c"]), 3, stride=2, padding=1),
    "adaptive": lambda p, x: F.adaptive_avg_pool2d(F.conv2d(x, p["c"], padding=1), (3, 2)),
    "upsampled": lambda p, x: F.interpolate(F.conv2d(x, p["c"]), scale_factor=2),
}
CASES = {
    "embedding": (lambda p, x: F.embedding(x, p["w"]).tanh() @ p["w"], TOKENS),
    **{name: (f, LINES) for name, f in FUNCTIONS.items()},
    **{name: (f, IMAGES) for name, f in CONVOLUTIONS.items()},
}


def both(model, x, **options):
    """Differences by propagation, and by plain evaluation in float64."""
    options = {"gamma": 1e-2, "samples": 6, **options}
    return tuple(NonlocalNTK(model, propagation=by, **options).differences(x) for by in ("difference", "direct"))


@pytest.mark.parametrize("name", CASES)
def test_every_rule_against_float64(name):
    """At a usual displacement, and at one that leaves a subtraction of float32 outputs no digit."""
    function, x = CASES[name]
    for gamma in (1e-1, 1e-6):
        made, expected = both(function, x, parameters=P, gamma=gamma)
        assert (made - expected).norm() <= (3e-6 if gamma > 1e-3 else 3e-5) * expected.norm(), gamma


@pytest.mark.parametrize("name", ["embedding", "matrix products", "settings", "integers beside"])
def test_every_family_and_half(name, directions):
    """One-sided differences too, and those of both halves."""
    function, x = CASES[name]
    for options in ({"antithetic": False}, {}):
        made, expected = both(function, x, parameters=P, directions=directions, **options)
        assert relative_error(made, expected) < 3e-6
    kernels = [
        NonlocalNTK(function, parameters=P, samples=4, directions=directions, propagation=by)
        for by in ("difference", "direct")
    ]
    assert relative_error(*(kernel.differences(x, halves=True) for kernel in kernels)) < 3e-6


def test_float64_models_keep_their_digits():
    """Differences are in the dtype of the parameters."""
    parameters = {name: tensor.double() for name, tensor in P.items()}
    made, expected = both(FUNCTIONS["attention"], LINES.double(), parameters=parameters, gamma=0.1)
    assert made.dtype == torch.float64 and relative_error(made, expected) < 1e-12


class Encoder(nn.Module):
    """A transformer layer of PyTorch's on embedded tokens, with places, a mask and cross attention."""

    def __init__(self):
        """Of width eight."""
        super().__init__()
        self.embedding, self.places = nn.Embedding(6, 8), nn.Parameter(random(7, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True, activation="gelu")
        self.cross, self.norm = nn.MultiheadAttention(8, 2, batch_first=True), nn.RMSNorm(8)

    def forward(self, tokens):
        """Of the tokens' sum."""
        h = self.embedding(tokens) + self.places
        h = self.layer(h, src_mask=torch.nn.Transformer.generate_square_subsequent_mask(7).to(h.dtype))
        crossed, weights = self.cross(h, h.flip(1), h)
        return self.norm(h + crossed).sum(1) + weights.mean()


class ResNet(nn.Module):
    """Strided blocks with a projected skip, additions and activations in place, and a stem that pools."""

    def __init__(self, activation=nn.ReLU):
        """For images of six channels."""
        super().__init__()
        self.stem, self.first = nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(4, 8, 3, stride=2, padding=1, bias=False)
        self.second, self.skip = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.Conv2d(4, 8, 1, stride=2)
        self.norms, self.head = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(2)), nn.Linear(8, 3)
        self.activation = activation(inplace=True) if activation is nn.ReLU else activation()
        for norm in self.norms:
            norm.running_mean.uniform_(-0.1, 0.1)
            norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        """Of a batch of images."""
        x = F.max_pool2d(self.activation(self.stem(x)), 2)
        h = self.activation(self.norms[0](self.first(x)))
        h = self.norms[1](self.second(h))
        h += self.skip(x)
        return self.head(torch.flatten(F.adaptive_avg_pool2d(self.activation(h), 1), 1))


MODELS = {
    "encoder": (Encoder, TOKENS),
    "resnet": (ResNet, IMAGES),
    "sign resnet": (lambda: ResNet(nntk.activations.Sign), IMAGES),
}


def made(name):
    """A model with weights of its own, and inputs."""
    torch.manual_seed(3)
    make, x = MODELS[name]
    return make().eval(), x


@pytest.mark.parametrize("frozen", [None, ["*weight"], ["*norm*"]])
@pytest.mark.parametrize("name", MODELS)
def test_modules_propagate(name, frozen):
    """Whole, and with parameters that stay: nothing is evaluated plainly, and ``auto`` takes it."""
    model, x = made(name)
    found, expected = both(model, x, parameters=frozen)
    assert relative_error(found, expected) < 3e-6
    kernel = NonlocalNTK(model, gamma=1e-2, samples=6, parameters=frozen)
    assert torch.equal(kernel.differences(x), found)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_patches_are_convolutions(name, directions, monkeypatch):
    """The layer step of all patches, as a GPU takes it, gives what a convolution gives."""
    options = {"parameters": P, "samples": 6, "gamma": 1e-2, "directions": directions, "propagation": "difference"}
    expected = NonlocalNTK(CONVOLUTIONS[name], **options).differences(IMAGES)
    monkeypatch.setattr(layers, "unfolds", lambda device: True)
    assert relative_error(NonlocalNTK(CONVOLUTIONS[name], **options).differences(IMAGES), expected) < 2e-6


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("directions", ["gaussian", "flipout(3)"])
def test_chunks_do_not_matter(name, directions, monkeypatch):
    """Noise that is held or made anew, passes of any size, and inputs by themselves: the same differences."""
    model, x = made(name)
    options = {"gamma": 1e-2, "samples": 7, "directions": directions, "propagation": "difference"}
    expected = NonlocalNTK(model, **options).differences(x)
    monkeypatch.setattr(propagation, "TILE", 1)
    assert relative_error(NonlocalNTK(model, **options).differences(x), expected) < 1e-6
    monkeypatch.setattr(propagation, "CACHE", 2**12)
    assert relative_error(NonlocalNTK(model, max_memory=2**20, **options).differences(x), expected) < 1e-6
    assert relative_error(NonlocalNTK(model, **options).differences(x[:1]), expected[:, :1]) < 1e-6


def test_large_weights_are_not_held():
    """The temporaries of a model fit a budget that its displacements would not; its float64 copy comes on top."""
    model, x = nn.Sequential(nn.Linear(8, 768), nn.GELU(), nn.RMSNorm(768), nn.Linear(768, 768)), inputs(4, 8)
    options = {"samples": 24, "directions": "rademacher", "propagation": "difference", "max_memory": 2**24}
    kernel = NonlocalNTK(model, **options)
    with torch.no_grad(), Allocated() as allocated:
        made = kernel.differences(x)
    assert allocated.peak < 2**24 + 8 * kernel.num_params + 3 * made.nbytes < 24 * 4 * kernel.num_params


def sorted_values(p, x):
    """A function without a rule."""
    return z(p, x).sort(-1)[0]


def test_what_has_no_rule_is_evaluated_plainly():
    """By itself; where propagation is asked for, the message names the function."""
    auto = NonlocalNTK(sorted_values, parameters=P, gamma=1e-2, samples=6).differences(LINES)
    plain = NonlocalNTK(sorted_values, parameters=P, gamma=1e-2, samples=6, propagation="direct").differences(LINES)
    assert torch.equal(auto, plain)
    for method in (NonlocalNTK.differences, NonlocalNTK.__call__):
        with pytest.raises(NotRecognised, match="model calls TensorBase.sort, which has no rule"):
            method(NonlocalNTK(sorted_values, parameters=P, samples=6, propagation="difference"), LINES)


def rounded(made):
    """What is made under autocast."""
    with torch.autocast("cpu", torch.bfloat16):
        return made()


def doubled(x):
    """The values, twice as large by a view of them."""
    x.view(-1).mul_(2)
    return x


def copied(values):
    """A tensor of its own, as one should not make it."""
    with warnings.catch_warnings(action="ignore"):
        return torch.tensor(values)


UNRULED = {
    "batch statistics": lambda p, x: F.batch_norm(z(p, x).mT, None, None, training=True),
    "powers": lambda p, x: z(p, x) ** 5,
    "conditions": lambda p, x: torch.where(z(p, x) > 0, x, -x),
    "branches": lambda p, x: z(p, x) if float(z(p, x).sum()) > 0 else x,
    "rounding": lambda p, x: z(p, x).to(torch.bfloat16),
    "views in place": lambda p, x: z(p, x)[:, :2].add_(1.0),
    "constants in place": lambda p, x: torch.zeros(len(x), 7, 6).add_(z(p, x)),
    "casts in place": lambda p, x: z(p, x).to(x.dtype, copy=True).add_(1.0),
    "unmoved views in place": lambda p, x: z(p, doubled(x + 1)),
    "writing": lambda p, x: z(p, x).zero_() + z(p, x),
    "outputs": lambda p, x: torch.add(z(p, x), x, out=torch.empty_like(x)),
    "casts to integers": lambda p, x: z(p, x).type_as(TOKENS) + z(p, x),
    "rounded division": lambda p, x: torch.div(z(p, x), 2, rounding_mode="floor") + z(p, x),
    "early lines": lambda p, x: F.softplus(z(p, x), threshold=1.0),
    "autocast": lambda p, x: rounded(lambda: z(p, x)),
    "new tensors": lambda p, x: copied(z(p, x)) + z(p, x),
    "transforms": lambda p, x: torch.vmap(torch.tanh)(z(p, x)) + z(p, x),
    "gradients": lambda p, x: torch.func.grad(lambda h: h.square().sum())(z(p, x)) + z(p, x),
    "vectors": lambda p, x: F.linear(x, p["v"]),
    "chance": lambda p, x: F.dropout(z(p, x), 0.5),
    "sums of exponentials": lambda p, x: z(p, x).logsumexp((1, 2)),
    "other norms": lambda p, x: F.normalize(z(p, x), 1.0, dim=-1),
    "clamping at tensors": lambda p, x: z(p, x).clamp(x),
    "no batch": lambda p, x: F.conv1d(z(p, x)[0].mT, p["k"])[None].expand(5, -1, -1),
    "indices": lambda p, x: F.max_pool1d(z(p, x).mT, 2, ceil_mode=True),
    "planes": lambda p, x: F.max_pool2d(z(p, x), 2),
    "max_norm": lambda p, x: F.embedding(TOKENS, p["w"], max_norm=1.0),
    "three operands": lambda p, x: torch.einsum("nij,nij,nij->nj", z(p, x), z(p, x), x),
    "dropped attention": lambda p, x: F.scaled_dot_product_attention(z(p, x), x, x, dropout_p=0.5),
    "no part": lambda p, x: x,
}


@pytest.mark.parametrize("name", UNRULED)
def test_what_cannot_be_propagated_says_so(name, monkeypatch):
    """Rather than give a wrong difference."""
    monkeypatch.setattr(layers, "unfolds", lambda device: True)
    with pytest.raises(TypeError, match="model"):
        NonlocalNTK(UNRULED[name], parameters=P, samples=2, propagation="difference").differences(LINES)


def test_only_what_every_input_has_rules_for():
    """``auto`` evaluates plainly what at the first and the last input needed no rule."""

    def sorting(p, x):
        """The values, sorted where there is a large input among them."""
        return sorted_values(p, x) if float(x.max()) > 5 else z(p, x)

    x = LINES.clone()
    x[2, 0, 0] = 6.0
    by = {by: NonlocalNTK(sorting, parameters=P, samples=4, propagation=by).differences(x) for by in ("auto", "direct")}
    assert torch.equal(by["auto"], by["direct"])


def rounding(p, x):
    """A norm that computes in float32, as many do."""
    h = z(p, x).float()
    return (h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6)).type_as(x)


@pytest.mark.parametrize(("function", "gamma"), [(FUNCTIONS["gelu"], 1e-14), (rounding, 1e-6)])
def test_small_displacements_are_propagated(function, gamma):
    """Where a plain evaluation has no digits to compare with, a larger displacement tells whether rules are right."""
    by = {
        by: NonlocalNTK(function, parameters=P, gamma=gamma, samples=4, propagation=by) for by in ("auto", "difference")
    }
    assert torch.equal(*(kernel.differences(LINES) for kernel in by.values()))


def written(p, x):
    """A mask that is filled by a copy of another."""
    mask = torch.zeros(x.shape, dtype=torch.bool)
    mask.copy_(x > 0)
    return z(p, x).masked_fill(mask, 0.0)


PASSES = [written, FUNCTIONS["constants convolved"], lambda p, x: F.linear(x.mT.mT, p["w"].T)]


@pytest.mark.parametrize("function", PASSES, ids=["written", "constants", "attributes"])
def test_every_pass_is_like_the_first(function, monkeypatch):
    """What is not of the pass is written to in each, and what is kept is found, however many displacements it has."""
    options = {"parameters": P, "gamma": 1e-2, "samples": 7, "propagation": "difference"}
    expected = NonlocalNTK(function, **options).differences(LINES)
    for cache in (2**6, 2**7, 2**8):
        monkeypatch.setattr(propagation, "CACHE", cache)
        assert relative_error(NonlocalNTK(function, **options).differences(LINES), expected) < 1e-6


@pytest.mark.parametrize("keep", [lambda x: x.cos(), lambda x: float(x.sum())], ids=["values", "numbers"])
def test_nothing_is_taken_from_another_pass(keep, monkeypatch):
    """Values that a function keeps, and steps that it leaves out the next time, are noticed."""
    monkeypatch.setattr(propagation, "CACHE", 2**6)
    kept = {}

    def keeping(p, x):
        """A function that remembers, from the second call on: the first is a plain one."""
        kept["calls"] = kept.get("calls", 0) + 1
        if kept["calls"] > 3:
            kept.setdefault("value", None)
            kept["value"] = keep(x[:1]) if kept["value"] is None else kept["value"]
            return z(p, x) * x.sin() * kept["value"]
        return z(p, x)

    kernel = NonlocalNTK(keeping, parameters=P, samples=7, propagation="difference")
    with pytest.raises(NotRecognised, match="model (keeps values|does not call the same functions)"):
        kernel.differences(LINES)


class Mixed(nn.Module):
    """A layer after a fixed one whose dtype is another."""

    def __init__(self, dtype):
        """Of width six."""
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.register_buffer("fixed", random(6, 6).to(dtype))

    def forward(self, x):
        """In the dtype that all are evaluated in."""
        return F.linear(self.layer(x), self.fixed) * self.fixed[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_buffers_of_another_dtype(dtype):
    """They are rounded to that of the differences."""
    assert relative_error(*both(Mixed(dtype).eval(), LINES)) < 3e-6


def test_compiled_modules_propagate():
    """As what they were compiled from."""
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.LayerNorm(6)).eval()
    compiled = NonlocalNTK(torch.compile(model, backend="eager"), samples=4, propagation="difference")
    expected = NonlocalNTK(model, samples=4, propagation="difference")
    assert torch.equal(compiled.differences(LINES), expected.differences(LINES))


def test_weights_of_products_do_not_cut_the_inputs(monkeypatch):
    """Their displacements are made once for all inputs of a pass."""
    monkeypatch.setattr(propagation, "CACHE", 2**8)
    plans = []
    monkeypatch.setattr(
        propagation._Plan, "of", lambda *given, of=propagation._Plan.of: plans.append(of(*given)) or plans[0]
    )
    weights = {"a": random(6, 256), "b": random(256, 1)}
    NonlocalNTK(lambda p, x: (x @ p["a"]).tanh() @ p["b"], parameters=weights, samples=4, propagation="difference")(
        LINES[0]
    )
    assert plans[0].inputs == 4


def test_patches_are_padded_evenly():
    """Of one more on one side there is no unfolding."""
    with pytest.raises(moved.NoRule, match="model pads a convolution on one side"):
        layers.Window.of((2, 3), 1, "same", 1)


def test_a_wrong_rule_is_noticed(monkeypatch):
    """``auto`` compares with a plain evaluation at one input."""
    monkeypatch.setitem(moved.RULES, F.silu, lambda at, z, inplace=False: at.result(F.silu(moved.plain(z)), 2 * z.unit))
    auto = NonlocalNTK(FUNCTIONS["silu"], parameters=P, gamma=1e-2, samples=6).differences(LINES)
    plain = NonlocalNTK(FUNCTIONS["silu"], parameters=P, gamma=1e-2, samples=6, propagation="direct").differences(LINES)
    assert torch.equal(auto, plain)


def test_inputs_alone_decide_what_they_like():
    """Branches and masks on values that do not move: they are computed once, in their own dtype."""

    def masked(p, x):
        """Lines whose first number is negative count half."""
        assert x.shape[1:] == (7, 6) and len(x) <= 5
        return z(p, x) * torch.where(x[..., :1] < 0, 0.5, 1.0) if x.isfinite().all() else x

    found, expected = both(masked, LINES, parameters=P)
    assert relative_error(found, expected) < 3e-6


def test_parameters_and_inputs_stay():
    """Nothing of the model or its inputs is written to, and nothing remembers a pass."""
    before = {name: tensor.clone() for name, tensor in P.items()}
    x = LINES.clone()
    both(FUNCTIONS["in place"], x, parameters=P)
    assert torch.equal(x, LINES) and all(torch.equal(P[name], tensor) for name, tensor in before.items())
    assert all(type(tensor) is torch.Tensor for tensor in P.values())


def test_every_rule_is_of_a_function():
    """Of PyTorch as it is installed: no name was mistyped."""
    for names in (rules._QUERIES, rules.linear._LINEAR):
        assert all(list(moved.called(name)) for name in names)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [(5, 7, 37), (9, 37), (5, 0, 37)])
def test_displacement_products_are_products(shape, family):
    """With the displacements as they stand, in chunks of any size."""
    q, rows = random(*shape).double(), torch.arange(5) + 3
    e = unit_displacements(rows, 2, (21, 37), 9, family, torch.float64)
    expected = torch.einsum("...nk,mhk->mnh", q, e) if q.dim() == 2 else torch.einsum("mnk,mhk->mnh", q, e)
    for budget in (2**20, None):
        found = displacement_products(q, 21, 2, rows, 9, family, budget)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"q": torch.ones(3, 2, 4)}, ValueError, r"q must have shape \[n, K\] or \[2, n, K\], got \(3, 2, 4\)"),
        ({"q": torch.ones(2, 4).half()}, TypeError, "q must be float32 or float64, got torch.float16"),
        ({"height": 0}, ValueError, "height must be at least 1"),
        ({"ordinal": -1}, ValueError, "ordinal must be"),
        ({"rows": torch.ones(2)}, TypeError, "sample_ids must be an int64 vector"),
        ({"rows": torch.arange(2, device="meta")}, ValueError, "rows must be on cpu"),
        ({"directions": "cubic"}, ValueError, "directions must be"),
        ({"seed": -1}, ValueError, "seed must be"),
        ({"seed": 0.5}, TypeError, "seed must be an integer, got 0.5"),
        ({"height": 1.5}, TypeError, "height must be an integer, got 1.5"),
        ({"max_bytes": 1}, ValueError, "max_bytes must be at least"),
    ],
)
def test_displacement_products_check_their_arguments(change, error, message):
    """Before any work."""
    arguments = {"q": torch.ones(2, 3, 4), "height": 2, "ordinal": 0, "rows": torch.arange(2), "seed": 0, **change}
    with pytest.raises(error, match=message):
        displacement_products(**arguments)


def test_numpy_functions_are_evaluated_plainly():
    """A function that leaves PyTorch has no rules, and needs none."""

    def by_numpy(p, x):
        return torch.from_numpy(np.tanh(z(p, x).numpy()))

    found = NonlocalNTK(by_numpy, parameters=P, gamma=1e-2, samples=6).differences(LINES)
    assert relative_error(found, both(lambda p, x: z(p, x).tanh(), LINES, parameters=P)[1]) < 1e-6
