"""Random small modules composed of PyTorch's layers and functions; a list of integers says which."""

import random
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from registry import Layers, normal
from torch import nn
from torch.utils.checkpoint import checkpoint

import nntk

KINDS = {"vector": (6,), "sequence": (4, 6), "image": (2, 6, 6)}
"""Shapes of one input."""
LARGEST = 200
"""Largest number of entries of the hidden values of one input."""

STEPS = {}
"""Functions (random, example) -> module that may follow hidden values, by name; they fail where they do not apply."""


def step(name, *dims):
    """Enter a maker of modules for hidden values of some numbers of axes, the batch axis counted (any if none)."""

    def enter(make):
        assert name not in STEPS, name
        STEPS[name] = make, dims
        return make

    return enter


def each(functions, *dims):
    """Enter functions of hidden values alone."""
    for name, function in functions.items():
        step(name, *dims)(lambda r, h, function=function: Layers(lambda m, h: function(h)))


class Cube(torch.autograd.Function):
    """A custom function."""

    @staticmethod
    def forward(ctx, h):
        ctx.save_for_backward(h)
        return h**3

    @staticmethod
    def backward(ctx, gradient):
        return 3 * gradient * ctx.saved_tensors[0] ** 2


def const(h):
    """Return fixed numbers like one input, in the dtype of the hidden values."""
    return torch.linspace(-1, 1, h[0].numel(), dtype=h.dtype).view(h.shape[1:])


each(
    {
        "relu": F.relu,
        "leaky_relu": lambda h: F.leaky_relu(h, 0.2),
        "elu": F.elu,
        "celu": lambda h: F.celu(h, 0.7),
        "selu": F.selu,
        "gelu": F.gelu,
        "gelu tanh": lambda h: F.gelu(h, approximate="tanh"),
        "silu": F.silu,
        "mish": F.mish,
        "softplus": lambda h: F.softplus(h, 2.0),
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "hardtanh": F.hardtanh,
        "hardswish": F.hardswish,
        "hardsigmoid": F.hardsigmoid,
        "relu6": lambda h: F.relu6(3 * h),
        "softsign": F.softsign,
        "tanhshrink": F.tanhshrink,
        "hardshrink": F.hardshrink,
        "softshrink": F.softshrink,
        "logsigmoid": F.logsigmoid,
        "threshold": lambda h: F.threshold(h, 0.1, -0.5),
        "sin": torch.sin,
        "cos": torch.cos,
        "atan": torch.atan,
        "asinh": torch.asinh,
        "erf": torch.erf,
        "exp": lambda h: torch.exp(-h.square()),
        "log1p": lambda h: torch.log1p(h.square()),
        "sqrt": lambda h: torch.sqrt(h.square() + 0.1),
        "rsqrt": lambda h: (h**2 + 0.5).rsqrt(),
        "sinc": torch.sinc,
        "reciprocal": lambda h: 1 / (1 + h * h),
        "abs": torch.abs,
        "square": torch.square,
        "cube": lambda h: h.tanh() ** 3,
        "expm1": lambda h: torch.expm1(h.clamp(max=1)),
        "clamp": lambda h: h.clamp(-0.8, 0.9),
        "sign": torch.sign,
        "round": lambda h: torch.round(2 * h) / 2,
        "floor": lambda h: torch.floor(2 * h),
        "ceil": torch.ceil,
        "trunc": torch.trunc,
        "frac": torch.frac,
        "remainder": lambda h: torch.remainder(h, 0.7),
        "fmod": lambda h: torch.fmod(h, 0.7),
        "step": lambda h: (h > 0).to(h.dtype),
        "heaviside": lambda h: torch.heaviside(h, h.new_zeros(())),
        "where": lambda h: torch.where(h > 0.1, h, 0.3 * h.sin()),
        "masked_fill": lambda h: h.masked_fill(const(h) > 0.3, 0.5),
        "maximum": lambda h: torch.maximum(h, const(h)),
        "logaddexp": lambda h: torch.logaddexp(h, const(h)),
        "hypot": lambda h: torch.hypot(h, const(h) + 2),
        "atan2": lambda h: torch.atan2(h, const(h) + 2),
        "copysign": lambda h: torch.copysign(const(h), h),
        "lerp": lambda h: torch.lerp(h, const(h), 0.3),
        "nan_to_num": torch.nan_to_num,
        "addcmul": lambda h: torch.addcmul(const(h), h, h.sigmoid(), value=0.5),
        "relu_": lambda h: F.relu(h + 0.1, inplace=True),
        "mul_ add_": lambda h: (h * 1).mul_(0.7).add_(0.2),
        "sigmoid_": lambda h: h.clone().sigmoid_(),
        "clamp_": lambda h: (h + 0).clamp_(-0.5, 0.5),
        "halves": lambda h: h / 2 - (h * 0.3).detach(),
        "straight through": lambda h: h + (h.sign() - h).detach(),
        "custom function": Cube.apply,
        "sign of the library": nntk.activations.Sign(),
        "quantise of the library": nntk.activations.Quantise(5),
        "sawtooth of the library": nntk.activations.Sawtooth(),
        "glu": F.glu,
        "dropout": lambda h: F.dropout(h, 0.5, training=False),
        "log_softmax": lambda h: F.log_softmax(h, -1),
        "softmax": lambda h: h.softmax(-1),
        "softmin": lambda h: F.softmin(h, -1),
        "normalize": lambda h: F.normalize(h, dim=-1),
        "layer_norm": lambda h: F.layer_norm(h, h.shape[-1:]),
        "rms_norm": lambda h: F.rms_norm(h, h.shape[-1:], eps=1e-5),
        "cumsum": lambda h: h.cumsum(-1),
        "cumprod": lambda h: (1 + 0.3 * h.tanh()).cumprod(-1),
        "logcumsumexp": lambda h: h.logcumsumexp(-1),
        "cummax": lambda h: h.cummax(-1).values,
        "flip": lambda h: h.flip(-1),
        "roll": lambda h: h.roll(1, -1),
        "sort": lambda h: h.sort(-1).values,
        "topk": lambda h: h.topk(2, -1).values,
        "argsort": lambda h: h.gather(-1, h.argsort(-1, descending=True)),
        "diff": lambda h: h.diff(dim=-1),
        "pad": lambda h: F.pad(h, (1, 0), value=0.4),
        "narrow": lambda h: h.narrow(-1, 0, h.shape[-1] - 1),
        "even entries": lambda h: h[..., ::2],
        "index_select": lambda h: h.index_select(-1, torch.tensor([1, 0, 1])),
        "indexed by lists": lambda h: h[..., [0, 1, 0]],
        "cat": lambda h: torch.cat((h, h.sin()), -1),
        "chunks": lambda h: (lambda a, b: a * b.sigmoid())(*h.chunk(2, -1)),
        "split": lambda h: torch.cat(h.split(2, -1)[::-1], -1),
        "unbound": lambda h: torch.stack(h.unbind(-1)[:3], -1),
        "stacked": lambda h: torch.stack((h, h.tanh()), -1).flatten(-2),
        "repeat_interleave": lambda h: h[..., :3].repeat_interleave(2, -1),
        "fft": lambda h: torch.fft.rfft(h).abs(),
        "fft filtered": lambda h: torch.fft.irfft(torch.fft.rfft(h) * 0.5, n=h.shape[-1]),
        "complex": lambda h: torch.view_as_real(torch.exp(1j * h)).flatten(-2),
        "powers": lambda h: torch.pow(h.abs() + 0.1, 1.5),
        "float_power": lambda h: (h.square() + 0.3) ** h.tanh(),
        "var": lambda h: h - h.var(-1, keepdim=True),
        "std": lambda h: h / (h.std(-1, keepdim=True) + 0.1),
        "mean removed": lambda h: h - h.mean(-1, keepdim=True),
        "largest": lambda h: h / (h.abs().amax(-1, keepdim=True) + 0.1),
        "written": lambda h: written(h),
        "masked write": lambda h: masked_write(h),
        "scatter": lambda h: torch.zeros_like(h).scatter(-1, h.argmax(-1, keepdim=True), 1.0) * h,
        "index_add": lambda h: torch.zeros_like(h).index_add(-1, torch.tensor([0, 1]), h[..., :2]),
        "norm": lambda h: h / (1 + h.norm(dim=-1, keepdim=True)),
        "logsumexp": lambda h: h - h.logsumexp(-1, keepdim=True),
        "sparse top": lambda h: h * (h >= h.topk(2, -1).values[..., -1:]),
        "one hot": lambda h: F.one_hot(h.argmax(-1), h.shape[-1]).to(h.dtype),
        "bucketize": lambda h: torch.bucketize(h, torch.linspace(-1, 1, 5, dtype=h.dtype)).to(h.dtype),
        "square root of sums": lambda h: (h.square().cumsum(-1) + 0.01).sqrt(),
        "lgamma": lambda h: torch.lgamma(h.abs() + 1),
        "digamma": lambda h: torch.digamma(h.square() + 1),
        "float and back": lambda h: h.to(torch.float64).tanh().to(h.dtype),
        "swapped signs": lambda h: torch.where((torch.arange(h.shape[-1]) % 2).bool(), h, -h),
        "prod": lambda h: h + h.tanh().prod(-1, keepdim=True),
    }
)


def written(h):
    """Write the first entries into a new tensor."""
    out = torch.zeros_like(h)
    out[..., 0] = h[..., -1]
    out[..., 1:] += 0.5 * h[..., 1:]
    return out


def masked_write(h):
    """Write where a condition holds."""
    out = h.clone()
    out[h < -0.2] = 0.1
    return out


each(
    {
        "mean over positions": lambda h: h.mean(1),
        "sum over positions": lambda h: h.sum(1),
        "max over positions": lambda h: h.max(1).values,
        "last position": lambda h: h[:, -1],
        "logsumexp over positions": lambda h: h.logsumexp(1),
        "median over positions": lambda h: h.median(1).values,
        "flatten": lambda h: h.flatten(1),
        "transpose": lambda h: h.transpose(1, 2),
        "flip over positions": lambda h: h.flip(1),
        "self products": lambda h: h @ h.mT @ h / 4,
        "einsum of itself": lambda h: torch.einsum("nti,nsi->nts", h, h),
        "causal attention": lambda h: F.scaled_dot_product_attention(h, h.sin(), h, is_causal=True),
        "attention by hand": lambda h: (h @ h.mT / 2).softmax(-1) @ h,
        "masked attention": lambda h: (
            (h @ h.mT).masked_fill(torch.ones(h.shape[1], h.shape[1]).triu(1).bool(), float("-inf")).softmax(-1) @ h
        ),
        "avg_pool1d": lambda h: F.avg_pool1d(h, 2),
        "max_pool1d": lambda h: F.max_pool1d(h, 2),
        "unfold": lambda h: h.unfold(-1, 2, 1).flatten(2),
        "tril": lambda h: h.tril(),
        "softmax over positions": lambda h: h.softmax(1),
        "cdist of itself": lambda h: torch.cdist(h, h + 1),
        "pairwise distances": lambda h: (h[:, :, None] - h[:, None]).square().sum(-1),
        "cosine similarities": lambda h: F.cosine_similarity(h[:, :, None], h[:, None], -1),
        "differences of positions": lambda h: h[:, 1:] - h[:, :-1],
        "cumsum over positions": lambda h: h.cumsum(1),
        "sort over positions": lambda h: h.sort(1).values,
        "loop over positions": lambda h: loop(h),
        "written positions": lambda h: positions(h),
        "solve": lambda h: torch.linalg.solve(torch.eye(h.shape[1], dtype=h.dtype) + 0.1 * h @ h.mT, h),
        "slogdet": lambda h: torch.linalg.slogdet(torch.eye(h.shape[1], dtype=h.dtype) + h @ h.mT)[1],
        "matrix exponential": lambda h: torch.linalg.matrix_exp(0.3 * (h @ h.mT).tanh()),
        "eigenvalues": lambda h: torch.linalg.eigvalsh(h @ h.mT + torch.diag(torch.arange(h.shape[1], dtype=h.dtype))),
        "cholesky": lambda h: torch.linalg.cholesky(torch.eye(h.shape[1], dtype=h.dtype) + h @ h.mT),
    },
    3,
)
each(
    {
        "global average": lambda h: h.mean((2, 3)),
        "global max": lambda h: h.amax((2, 3)),
        "flatten image": lambda h: h.flatten(1),
        "pixels as positions": lambda h: h.flatten(2).mT[:, :8],
        "max_pool2d": lambda h: F.max_pool2d(h, 2),
        "max_pool2d padded": lambda h: F.max_pool2d(h, 3, 2, 1),
        "avg_pool2d": lambda h: F.avg_pool2d(h, 3, 2, 1),
        "avg_pool2d ceil": lambda h: F.avg_pool2d(h, 2, 2, ceil_mode=True, count_include_pad=False),
        "adaptive_avg_pool2d": lambda h: F.adaptive_avg_pool2d(h, (2, 3)),
        "adaptive_max_pool2d": lambda h: F.adaptive_max_pool2d(h, 2),
        "lp_pool2d": lambda h: F.lp_pool2d(h.abs() + 0.1, 2.0, 2),
        "bilinear": lambda h: F.interpolate(h, size=(4, 4), mode="bilinear", align_corners=True),
        "bicubic": lambda h: F.interpolate(h, size=(4, 4), mode="bicubic"),
        "nearest": lambda h: F.interpolate(h[:, :, ::2, ::2], scale_factor=2),
        "area": lambda h: F.interpolate(h, size=(3, 3), mode="area"),
        "pixel_unshuffle": lambda h: F.pixel_unshuffle(h, 2),
        "reflect": lambda h: F.pad(h, (1, 0, 0, 1), mode="reflect"),
        "circular": lambda h: F.pad(h, (1, 1, 0, 0), mode="circular"),
        "replicate": lambda h: F.pad(h, (0, 1, 1, 0), mode="replicate"),
        "patches": lambda h: F.unfold(h, 2, stride=2),
        "instance_norm": F.instance_norm,
        "softmax over channels": lambda h: h.softmax(1),
        "local_response_norm": lambda h: F.local_response_norm(h, 2),
        "permute": lambda h: h.permute(0, 2, 3, 1),
        "rot90": lambda h: h.rot90(1, (2, 3)),
        "squeeze gate": lambda h: h * h.mean((2, 3), keepdim=True).sigmoid(),
        "grid_sample": lambda h: F.grid_sample(
            h,
            F.affine_grid(
                torch.eye(2, 3, dtype=h.dtype)[None].expand(len(h), -1, -1) * 0.8, list(h.shape), align_corners=False
            ),
            align_corners=False,
        ),
        "channel shuffle": lambda h: F.channel_shuffle(h, 2),
        "max_unpool": lambda h: F.max_unpool2d(*F.max_pool2d(h, 2, return_indices=True), 2),
    },
    4,
)


def loop(h):
    """Return the last state of a recurrence without parameters."""
    state = h.new_zeros(h[:, 0].shape)
    for part in h.unbind(1):
        state = torch.tanh(0.5 * state + part)
    return state


def positions(h):
    """Write positions one after another."""
    out = torch.empty_like(h)
    for t in range(h.shape[1]):
        out[:, t] = h[:, t] * (t + 1)
    return out


# With parameters -----------------------------------------------------------------------------------------------------
@step("linear")
def _(r, h):
    return nn.Linear(h.shape[-1], r.choice((3, 4, 6)), bias=r.random() < 0.7)


@step("linear, tanh")
def _(r, h):
    return nn.Sequential(nn.Linear(h.shape[-1], r.choice((4, 6))), nn.Tanh())


@step("matrix product")
def _(r, h):
    return Layers(lambda m, h: h @ m.w + m.b, w=normal(h.shape[-1], 4), b=normal(4))


@step("computed weight")
def _(r, h):
    function = r.choice(
        (
            torch.tanh,
            torch.sign,
            torch.exp,
            lambda w: w.softmax(-1),
            lambda w: F.normalize(w, dim=-1),
            lambda w: w.square().round(),
        )
    )
    return Layers(lambda m, h: F.linear(h, function(m.w)), w=normal(4, h.shape[-1]))


@step("binary weights and units")
def _(r, h):
    return Layers(lambda m, h: F.linear(h.sign(), m.w.sign()) / 2, w=normal(4, h.shape[-1]))


@step("scaled binary weights")
def _(r, h):
    return Layers(lambda m, h: F.linear(h, m.w.sign() * m.w.abs().mean(1, keepdim=True)), w=normal(4, h.shape[-1]))


@step("frozen signs of signs")
def _(r, h):
    function = r.choice(
        (torch.sign, nntk.activations.Sign(), lambda z: (z > 0).to(z.dtype), nntk.activations.Quantise(3))
    )
    layer = nn.Linear(h.shape[-1], r.choice((4, 6)), bias=False).requires_grad_(False)
    layer.weight.sign_()
    return Layers(lambda m, h: function(m.f(function(h))), f=layer)


@step("units that are off, then a norm")
def _(r, h):
    norm = r.choice((nn.RMSNorm(4, eps=1e-6), nn.RMSNorm(4), nn.LayerNorm(4), nn.Softmax(-1)))
    return nn.Sequential(
        nn.Linear(h.shape[-1], 4), r.choice((nn.ReLU(), nntk.activations.Quantise(3), nn.Hardshrink())), norm
    )


@step("einsum with a weight")
def _(r, h):
    return Layers(lambda m, h: torch.einsum("...i,ij->...j", h, m.w), w=normal(h.shape[-1], 4))


@step("scale and shift")
def _(r, h):
    return Layers(lambda m, h: h * m.a + m.b, a=1 + normal(h.shape[-1]), b=normal(h.shape[-1]))


@step("division by a parameter")
def _(r, h):
    return Layers(lambda m, h: h / (1 + m.a.square()), a=normal(h.shape[-1]))


@step("scalar parameter")
def _(r, h):
    return Layers(lambda m, h: torch.where(h > m.a, h, m.a * h), a=torch.tensor(0.3))


@step("prelu")
def _(r, h):
    return nn.PReLU(h.shape[1] if r.random() < 0.5 else 1)


@step("layer norm")
def _(r, h):
    return nn.LayerNorm(h.shape[-1])


@step("layer norm of all")
def _(r, h):
    return nn.LayerNorm(h.shape[1:])


@step("rms norm")
def _(r, h):
    return nn.RMSNorm(h.shape[-1], eps=r.choice((1e-6, 1e-5, 1e-3)))


@step("relu, rms norm")
def _(r, h):
    return nn.Sequential(nn.ReLU(), nn.RMSNorm(h.shape[-1], eps=1e-6))


@step("batch norm")
def _(r, h):
    layer = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[h.dim()](h.shape[1])
    layer.running_mean.normal_(0, 0.2), layer.running_var.uniform_(0.5, 2)  # noqa: B018
    return layer


@step("group norm")
def _(r, h):
    return nn.GroupNorm(r.choice([g for g in (1, 2, 3) if h.shape[1] % g == 0]), h.shape[1])


@step("residual")
def _(r, h):
    return Layers(
        lambda m, h: h + m.f(h), f=nn.Sequential(nn.Linear(h.shape[-1], 5), nn.GELU(), nn.Linear(5, h.shape[-1]))
    )


@step("gated")
def _(r, h):
    return Layers(lambda m, h: m.a(h).sigmoid() * m.b(h), a=nn.Linear(h.shape[-1], 4), b=nn.Linear(h.shape[-1], 4))


@step("tied twice")
def _(r, h):
    return Layers(lambda m, h: m.f(m.f(h).tanh()), f=nn.Linear(h.shape[-1], h.shape[-1]))


@step("autoencoder, tied")
def _(r, h):
    return Layers(lambda m, h: F.linear(F.linear(h, m.w).relu(), m.w.T), w=normal(4, h.shape[-1]))


@step("checkpointed")
def _(r, h):
    return Layers(
        lambda m, h: checkpoint(m.f, h, use_reentrant=False), f=nn.Sequential(nn.Linear(h.shape[-1], 4), nn.SiLU())
    )


@step("mixture of experts, hard")
def _(r, h):
    def forward(m, h):
        p = m.gate(h).softmax(-1)
        return torch.where(p[..., :1] > 0.5, m.a(h), m.b(h)) * p[..., :1]

    return Layers(forward, gate=nn.Linear(h.shape[-1], 2), a=nn.Linear(h.shape[-1], 4), b=nn.Linear(h.shape[-1], 4))


@step("cdist to a parameter")
def _(r, h):
    return Layers(lambda m, h: torch.cdist(h.flatten(2) if h.dim() == 4 else h, m.c), c=normal(4, h.shape[-1]))


@step("cosine classifier")
def _(r, h):
    return Layers(
        lambda m, h: 3 * F.linear(F.normalize(h, dim=-1), F.normalize(m.c, dim=-1)), c=torch.randn(4, h.shape[-1])
    )


@step("embedding of a bucket")
def _(r, h):
    return Layers(lambda m, h: F.embedding(h.argmax(-1), m.table), table=torch.randn(h.shape[-1], 4))


@step("weight norm")
def _(r, h):
    return nn.utils.parametrizations.weight_norm(nn.Linear(h.shape[-1], 4))


@step("bilinear layer", 2)
def _(r, h):
    return Layers(lambda m, h: m.f(h, h.tanh()), f=nn.Bilinear(h.shape[-1], h.shape[-1], 3))


@step("hypernetwork", 2)
def _(r, h):
    return Layers(
        lambda m, h: torch.bmm(m.f(h).view(len(h), 3, -1).tanh(), h[..., None])[..., 0],
        f=nn.Linear(h.shape[-1], 3 * h.shape[-1]),
    )


@step("to a sequence", 2)
def _(r, h):
    return Layers(lambda m, h: m.f(h).view(len(h), 3, 4), f=nn.Linear(h.shape[-1], 12))


@step("to an image", 2)
def _(r, h):
    return Layers(lambda m, h: m.f(h).view(len(h), 2, 4, 4), f=nn.Linear(h.shape[-1], 32))


@step("euler steps", 2)
def _(r, h):
    def forward(m, h):
        for _ in range(3):
            h = h + 0.3 * torch.tanh(m.f(h))
        return h

    return Layers(forward, f=nn.Linear(h.shape[-1], h.shape[-1]))


@step("mixture of gaussians", 2)
def _(r, h):
    return Layers(lambda m, h: (-(h[:, None] - m.mean).square() / 2).sum(-1), mean=torch.randn(3, h.shape[-1]))


@step("gru cells", 3)
def _(r, h):
    def forward(m, h):
        state = torch.zeros(len(h), 4, dtype=h.dtype)
        for part in h.unbind(1):
            state = m.cell(part, state)
        return state

    return Layers(forward, cell=nn.GRUCell(h.shape[-1], 4))


@step("recurrent", 3)
def _(r, h):
    layer = r.choice((nn.LSTM, nn.GRU, nn.RNN))(h.shape[-1], 4, batch_first=True, bidirectional=r.random() < 0.3)
    return Layers(lambda m, h: m.layer(h)[0], layer=layer)


@step("multi-head attention", 3)
def _(r, h):
    return Layers(
        lambda m, h: m.f(h, h, h, need_weights=False)[0],
        f=nn.MultiheadAttention(h.shape[-1], 2 - h.shape[-1] % 2, batch_first=True),
    )


@step("transformer layer", 3)
def _(r, h):
    width = h.shape[-1]
    return nn.TransformerEncoderLayer(
        width, 2 - width % 2, 8, batch_first=True, norm_first=r.random() < 0.5, activation=r.choice(("relu", "gelu"))
    )


@step("conv1d", 3)
def _(r, h):
    return nn.Conv1d(h.shape[1], 4, 2, padding=1, stride=r.choice((1, 2)), padding_mode=r.choice(("zeros", "circular")))


@step("conv_transpose1d", 3)
def _(r, h):
    return nn.ConvTranspose1d(h.shape[1], 3, 2, stride=2)


@step("graph convolution", 3)
def _(r, h):
    a = torch.eye(h.shape[1]).roll(1, 0) + torch.eye(h.shape[1])
    model = Layers(lambda m, h: m.f(m.a @ h), f=nn.Linear(h.shape[-1], 4))
    model.register_buffer("a", a / 2)
    return model


@step("relative positions", 3)
def _(r, h):
    return Layers(lambda m, h: (h @ h.mT + m.b).softmax(-1) @ h, b=normal(h.shape[1], h.shape[1]))


@step("learned query", 3)
def _(r, h):
    return Layers(lambda m, h: (h @ m.q).softmax(1)[:, None] @ h, q=normal(h.shape[-1]))


@step("conv2d", 4)
def _(r, h):
    return nn.Conv2d(h.shape[1], 4, r.choice((1, 3)), padding=1, stride=r.choice((1, 2)), bias=r.random() < 0.5)


@step("depthwise", 4)
def _(r, h):
    return nn.Conv2d(h.shape[1], h.shape[1], 3, padding="same", groups=h.shape[1])


@step("dilated", 4)
def _(r, h):
    return nn.Conv2d(h.shape[1], 3, 2, dilation=2, padding=1)


@step("conv_transpose2d", 4)
def _(r, h):
    return nn.ConvTranspose2d(h.shape[1], 2, 2, stride=r.choice((1, 2)))


@step("conv, batch norm, relu in place", 4)
def _(r, h):
    return nn.Sequential(nn.Conv2d(h.shape[1], 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))


@step("binary convolution", 4)
def _(r, h):
    return Layers(lambda m, h: F.conv2d(h.sign(), m.w.sign(), padding=1) / 4, w=normal(4, h.shape[1], 3, 3))


TIES = (
    "sign", "round", "step", "heaviside", "relu", "hardtanh", "maximum", "sign of the library",
    "quantise of the library",
    "straight through", "topk", "sort", "one hot", "linear", "computed weight", "binary weights and units",
    "scaled binary weights", "frozen signs of signs", "units that are off, then a norm", "relu, rms norm", "normalize",
    "layer_norm", "rms_norm", "norm", "max over positions", "max_pool2d", "global max", "conv2d", "binary convolution",
    "custom function", "cumsum", "residual", "masked write", "sparse top", "mean over positions", "flatten image",
)  # fmt: skip
"""Steps that jump, that give exact zeros, or that magnify rounding at them."""


# Programs ------------------------------------------------------------------------------------------------------------
def build(kind, codes, seed):
    """Return a module, its inputs and the names of its steps.

    Args:
        kind: Kind of the inputs.
        codes: One integer for each step: it chooses among all steps, a negative one among those with ties; the next
            that applies is taken.
        seed: Seed of the weights and inputs; every fourth has integers as inputs, every fifth is in float64.
    """
    torch.manual_seed(seed)
    example = torch.randn(3, *KINDS[kind])
    modules, names = [], []
    for code in codes:
        taken = next_step(code, example)
        if taken is not None:
            name, module, example = taken
            modules.append(module)
            names.append(name)
    name, module, example = linear_first(example)
    x = torch.randn(4, *KINDS[kind])
    model, dtype = nn.Sequential(*modules, module).eval(), torch.float64 if seed % 5 == 4 else torch.float32
    return model.to(dtype), (x.round() if seed % 4 == 3 else x).to(dtype), [*names, name]


def linear_first(example):
    """Return a last linear layer, so that every program has parameters."""
    head = nn.Sequential(nn.Flatten(), nn.Linear(example[0].numel(), 2))
    return "head", head, head(example).detach()


def next_step(code, example):
    """Return the name, the module and the outputs of the step that a code chooses; None if there is no such step."""
    fitting = [name for name, (_, dims) in STEPS.items() if not dims or example.dim() in dims]
    names = fitting if code >= 0 else [name for name in fitting if name in TIES]
    for offset in range(len(names)):
        name = names[(abs(code) + offset) % len(names)]
        try:
            module = STEPS[name][0](random.Random(code), example).eval()
            with torch.no_grad():
                outputs = module(example.clone())
                module(example[:1].clone())
        except (RuntimeError, IndexError, ValueError, KeyError, AssertionError):
            continue
        fits = outputs.dim() in (2, 3, 4) and len(outputs) == len(example) and 2 <= outputs[0].numel() <= LARGEST
        if fits and outputs.shape[-1] > 1 and outputs.isfinite().all() and outputs.abs().max() < 100:
            if outputs.dtype == example.dtype:
                return name, module, outputs
    return None


def random_program(number):
    """Return the arguments of :func:`build` for the program of a number; every third one is of steps with ties."""
    r = random.Random(number)
    sign = 1 if number % 3 else -1
    return r.choice(list(KINDS)), [sign * r.randrange(10**6) for _ in range(r.randint(1, 6))], number


def main():
    """Judge ``--models`` random programs, and print every one that is wrong."""
    import argparse

    from judge import report

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--models", type=int, default=500)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--local", action="store_true", help="judge the local NTK too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    counts = {"right": 0, "refused": 0, "WRONG": 0}
    for number in range(arguments.first, arguments.first + arguments.models):
        program = random_program(number)
        model, x, names = build(*program)
        gamma = (0.1, 1e-3)[number % 2]
        verdict = report(model, x, gammas=(gamma,), samples=4, local=arguments.local).verdict
        counts[verdict.split(":")[0]] += 1
        if verdict != "right":
            print(f"build{program!r}: {', '.join(names)}; gamma {gamma}: {verdict}", flush=True)
    print(counts)
    sys.exit(counts["WRONG"] > 0)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
