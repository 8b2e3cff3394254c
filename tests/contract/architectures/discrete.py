"""Architectures with jumps or choices: binary, quantised, spiking, mixtures of experts, trees."""

import torch
import torch.nn.functional as F
from registry import Layers, architecture, normal
from torch import nn
from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver

import nntk
from nntk.activations import Sign, activate

FEATURES = (6,)


class Straight(torch.autograd.Function):
    """Sign with the gradient of a clipped identity."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0).to(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * (x.abs() <= 1).to(x)


class RoundStraight(torch.autograd.Function):
    """Rounding with the gradient of the identity."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class SpikeSurrogate(torch.autograd.Function):
    """Heaviside step with a fast-sigmoid gradient."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x > 0).to(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient / (1 + 10 * x.abs()) ** 2


@architecture("Binary network (signs of weights and units)", FEATURES)
def binary():
    def forward(m, x):
        h = Straight.apply(F.linear(x, Straight.apply(m.a)))
        h = Straight.apply(F.linear(h, Straight.apply(m.b)))
        return F.linear(h, m.c)

    return Layers(forward, a=normal(8, 6), b=normal(8, 8), c=normal(2, 8))


@architecture("Binary network by torch.sign", FEATURES)
def binary_sign():
    def forward(m, x):
        h = torch.sign(F.linear(torch.sign(F.linear(x, m.a.sign())), m.b.sign()))
        return F.linear(h, m.c)

    return Layers(forward, a=normal(8, 6), b=normal(8, 8), c=normal(2, 8))


@architecture("Binary network by the library's sign", FEATURES)
def binary_library():
    sign = Sign().function

    def forward(m, x):
        h = activate(F.linear(x, activate(m.a, sign)), sign)
        return F.linear(activate(F.linear(h, activate(m.b, sign)), sign), m.c)

    return Layers(forward, a=normal(8, 6), b=normal(8, 8), c=normal(2, 8))


@architecture("Sign MLP", FEATURES)
def sign_mlp():
    return nn.Sequential(nn.Linear(6, 8), Sign(), nn.Linear(8, 8), Sign(), nn.Linear(8, 2))


@architecture("Sign MLP with a frozen layer of +-1", FEATURES)
def frozen_sign_mlp():
    model = nn.Sequential(nn.Linear(6, 8), Sign(), nn.Linear(8, 8, bias=False), Sign(), nn.Linear(8, 2))
    model[2].weight.data.sign_()
    model[2].weight.requires_grad_(False)
    return model


@architecture("XNOR-Net (scaled binary convolution)", (2, 6, 6))
def xnor():
    def forward(m, x):
        h = Straight.apply(m.norm(m.first(x)))
        scale = m.weight.abs().mean((1, 2, 3), keepdim=True)
        return m.head(F.conv2d(h, Straight.apply(m.weight) * scale, padding=1).relu().mean((2, 3)))

    return Layers(
        forward, first=nn.Conv2d(2, 4, 3), norm=nn.BatchNorm2d(4), weight=normal(4, 4, 3, 3), head=nn.Linear(4, 2)
    )


@architecture("BinaryConnect (detached signs)", FEATURES)
def binary_connect():
    def forward(m, x):
        w = m.a + (m.a.sign() - m.a).detach()
        h = F.linear(x, w)
        return m.head(h + (h.sign() - h).detach())

    return Layers(forward, a=normal(8, 6), head=nn.Linear(8, 2))


@architecture("Ternary weights", FEATURES)
def ternary():
    def forward(m, x):
        threshold = 0.7 * m.a.abs().mean()
        kept = (m.a.abs() > threshold).to(m.a)
        alpha = (m.a.abs() * kept).sum() / kept.sum()
        return m.head(F.relu(F.linear(x, m.a.sign() * kept * alpha)))

    return Layers(forward, a=normal(8, 6), head=nn.Linear(8, 2))


@architecture("BitNet b1.58 (absolute mean, RMS norm, 8 bits)", FEATURES)
def bitnet():
    def forward(m, x):
        x = F.rms_norm(m.inward(x), (8,))
        s = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
        x = x + ((x * s).round().clamp(-128, 127) / s - x).detach()
        g = 1 / m.w.abs().mean().clamp(min=1e-5)
        w = m.w + ((m.w * g).round().clamp(-1, 1) / g - m.w).detach()
        return F.linear(x, w)

    return Layers(forward, inward=nn.Linear(6, 8), w=normal(2, 8))


@architecture("DoReFa (2 bits)", FEATURES)
def dorefa():
    def quantise(v):
        return RoundStraight.apply(v * 3) / 3

    def forward(m, x):
        w = torch.tanh(m.w)
        w = 2 * quantise(w / (2 * w.abs().max()) + 0.5) - 1
        return m.head(quantise(F.linear(x, w).clamp(0, 1)))

    return Layers(forward, w=normal(8, 6), head=nn.Linear(8, 2))


@architecture("LSQ (learned step size)", FEATURES)
def lsq():
    def forward(m, x):
        step = m.step.abs() + 1e-3
        w = RoundStraight.apply((m.w / step).clamp(-4, 3)) * step
        return m.head(F.relu(F.linear(x, w)))

    return Layers(forward, w=normal(8, 6), step=torch.tensor(0.2), head=nn.Linear(8, 2))


@architecture("Quantised MLP of the library", FEATURES)
def quantised_mlp():
    return nn.Sequential(
        nn.Linear(6, 8), nntk.activations.Quantise(5), nn.Linear(8, 8), nntk.activations.Quantise(5), nn.Linear(8, 2)
    )


@architecture("Fake quantisation (torch.ao, observer running)", FEATURES)
def fake_quantise():
    fake = FakeQuantize(MovingAverageMinMaxObserver, quant_min=0, quant_max=255)
    model = nn.Sequential(nn.Linear(6, 8), fake, nn.ReLU(), nn.Linear(8, 2))
    model(torch.randn(16, 6))
    return model


@architecture("Fake quantisation (torch.ao, observer off)", FEATURES)
def fake_quantise_fixed():
    model = fake_quantise()
    model[1].disable_observer()
    return model


@architecture("Product quantisation (VQ codebook, straight through)", FEATURES)
def vector_quantised():
    def forward(m, x):
        z = m.inward(x)
        code = m.codes[torch.cdist(z, m.codes).argmin(-1)]
        return m.head(z + (code - z).detach())

    return Layers(forward, inward=nn.Linear(6, 3), codes=torch.randn(5, 3), head=nn.Linear(3, 2))


@architecture("Finite scalar quantisation", FEATURES)
def fsq():
    def forward(m, x):
        z = 2 * m.inward(x).tanh()
        return m.head(z + (z.round() - z).detach())

    return Layers(forward, inward=nn.Linear(6, 3), head=nn.Linear(3, 2))


class Spiking(nn.Module):
    """Leaky integrate-and-fire units over four steps; ``memory`` says where the membrane lives between calls."""

    def __init__(self, memory):
        super().__init__()
        self.inward, self.head, self.memory = nn.Linear(6, 8), nn.Linear(8, 2), memory
        self.membrane = None
        if memory == "buffer":
            del self.membrane
            self.register_buffer("membrane", torch.zeros(8))

    def forward(self, x):
        v = self.membrane if self.memory == "buffer" else torch.zeros(len(x), 8, dtype=x.dtype)
        total = 0
        for _ in range(4):
            v = 0.9 * v + self.inward(x)
            spike = SpikeSurrogate.apply(v - 1)
            v = v - spike
            total = total + spike
        if self.memory == "buffer":
            self.membrane.copy_(v.detach().mean(0))
        if self.memory == "attribute":
            self.membrane = v.detach()
        return self.head(total / 4)


architecture("Spiking, membrane inside", FEATURES)(lambda: Spiking("local"))
architecture("Spiking, membrane in a buffer", FEATURES)(lambda: Spiking("buffer"))
architecture("Spiking, membrane in an attribute", FEATURES)(lambda: Spiking("attribute"))


@architecture("Spiking convolution by torch.heaviside", (1, 6, 6))
def spiking_conv():
    def forward(m, x):
        v, total = 0, 0
        for _ in range(3):
            v = v + m.conv(x)
            s = torch.heaviside(v - 0.5, torch.zeros((), dtype=x.dtype))
            v = v * (1 - s)
            total = total + s
        return m.head(total.flatten(1))

    return Layers(forward, conv=nn.Conv2d(1, 2, 3), head=nn.Linear(32, 2))


def experts(forward, **options):
    """Return a mixture of four experts with a gate."""
    nets = nn.ModuleList(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)) for _ in range(4))
    return Layers(forward, gate=nn.Linear(6, 4), experts=nets, **options)


@architecture("Mixture of experts, soft", FEATURES)
def moe_soft():
    return experts(lambda m, x: (m.gate(x).softmax(-1)[:, None] @ torch.stack([e(x) for e in m.experts], 1))[:, 0])


@architecture("Mixture of experts, top 1, boolean indices", FEATURES)
def moe_top1():
    def forward(m, x):
        p, chosen = m.gate(x).softmax(-1).max(-1)
        out = x.new_zeros(len(x), 2)
        for number, expert in enumerate(m.experts):
            rows = chosen == number
            out[rows] = expert(x[rows]) * p[rows, None]
        return out

    return experts(forward)


@architecture("Mixture of experts, top 2, index_add", FEATURES)
def moe_top2():
    def forward(m, x):
        weights, chosen = m.gate(x).topk(2)
        weights = weights.softmax(-1)
        out = torch.zeros(len(x), 2, dtype=x.dtype)
        for number, expert in enumerate(m.experts):
            row, place = torch.where(chosen == number)
            out.index_add_(0, row, expert(x[row]) * weights[row, place, None])
        return out

    return experts(forward)


@architecture("Mixture of experts with capacity (drops a batch's tokens)", FEATURES, count=6)
def moe_capacity():
    def forward(m, x):
        p, chosen = m.gate(x).softmax(-1).max(-1)
        out = torch.zeros(len(x), 2, dtype=x.dtype)
        for number, expert in enumerate(m.experts):
            rows = torch.nonzero(chosen == number)[:1, 0]
            out = out.index_put((rows,), expert(x[rows]) * p[rows, None])
        return out

    model = experts(forward)
    model.gate.bias.data[0] += 3
    return model


@architecture("Mixture of experts within a sequence", (5, 6))
def moe_tokens():
    def forward(m, x):
        flat = x.reshape(-1, 6)
        p, chosen = m.gate(flat).softmax(-1).topk(1)
        out = torch.stack([e(flat) for e in m.experts], 1)
        return (p * out.gather(1, chosen[..., None].expand(-1, -1, 2))[:, 0]).view(len(x), 5, 2).mean(1)

    return experts(forward)


@architecture("Soft decision tree", FEATURES)
def soft_tree():
    def forward(m, x):
        p = torch.sigmoid(m.split(x))
        left, right = p[:, :1], 1 - p[:, :1]
        leaves = torch.cat((left * p[:, 1:2], left * (1 - p[:, 1:2]), right * p[:, 2:], right * (1 - p[:, 2:])), 1)
        return leaves @ m.leaves

    return Layers(forward, split=nn.Linear(6, 3), leaves=torch.randn(4, 2))


@architecture("Hard decision tree", FEATURES)
def hard_tree():
    def forward(m, x):
        bits = (m.split(x) > 0).long()
        return m.leaves[2 * bits[:, 0] + torch.where(bits[:, 0] > 0, bits[:, 1], bits[:, 2])]

    return Layers(forward, split=nn.Linear(6, 3), leaves=torch.randn(4, 2))


@architecture("Random hashing by signs (LSH)", FEATURES)
def lsh():
    def forward(m, x):
        bits = (x @ m.planes > 0).to(torch.int64)
        return F.embedding((bits * torch.tensor([1, 2, 4])).sum(-1), m.table)

    return Layers(forward, planes=torch.randn(6, 3), table=torch.randn(8, 2))


@architecture("Winner takes all (top-k units)", FEATURES)
def winners():
    def forward(m, x):
        h = m.inward(x)
        kept = h.topk(3, -1)
        return m.head(torch.zeros_like(h).scatter(-1, kept.indices, kept.values))

    return Layers(forward, inward=nn.Linear(6, 8), head=nn.Linear(8, 2))


@architecture("Maxout", FEATURES)
def maxout():
    return Layers(
        lambda m, x: m.head(m.inward(x).view(len(x), 4, 3).max(-1).values),
        inward=nn.Linear(6, 12),
        head=nn.Linear(4, 2),
    )


@architecture("Sparsemax attention", (5, 4))
def sparsemax():
    def forward(m, x):
        z = m.score(x)[..., 0]
        ordered = z.sort(-1, descending=True).values
        sums = ordered.cumsum(-1)
        k = torch.arange(1, 6, dtype=x.dtype)
        support = (1 + k * ordered > sums).sum(-1, keepdim=True)
        tau = (sums.gather(-1, support - 1) - 1) / support
        return m.head(((z - tau).clamp(min=0)[..., None] * x).sum(1))

    return Layers(forward, score=nn.Linear(4, 1), head=nn.Linear(4, 2))


@architecture("Adaptive computation (halts by a threshold)", FEATURES)
def adaptive():
    def forward(m, x):
        h, halted = m.inward(x).tanh(), torch.zeros(len(x), 1, dtype=torch.bool)
        for _ in range(4):
            h = torch.where(halted, h, m.cell(h).tanh())
            halted = halted | (m.halt(h) > 0.2)
        return m.head(h)

    return Layers(forward, inward=nn.Linear(6, 5), cell=nn.Linear(5, 5), halt=nn.Linear(5, 1), head=nn.Linear(5, 2))
