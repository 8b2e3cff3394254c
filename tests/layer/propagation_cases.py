"""Functions and modules whose differences are propagated by rules, shared by the tests of propagation."""

import torch
import torch.nn.functional as F
from torch import nn

import nntk
from nntk import NonlocalNTK


def random(*shape, seed=0):
    """Return normal numbers, in float32."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


P = {
    "w": random(6, 6),
    "v": random(6, seed=1),
    "b": random(1, seed=7)[0],
    "k": random(6, 6, 3, seed=2) / 4,
    "c": random(6, 6, 3, 3, seed=3) / 7,
}
"""Parameters: a matrix, a vector, a scalar, weights of convolutions."""
LINES, IMAGES = random(5, 7, 6, seed=4), random(4, 6, 8, 8, seed=5)
TOKENS = torch.randint(0, 6, (5, 7), generator=torch.Generator().manual_seed(6))


def z(p, x):
    """Return displaced values of both signs."""
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
    "parts": lambda p, x: torch.cat((*z(p, x).chunk(2, -1), x), -1)
    + torch.stack(z(p, x).unbind(1)[:2], 1).sum((1, 2), keepdim=True),
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
    "selected": lambda p, x: z(p, x).where(x > 0, x) + x.where(x > 1, z(p, x)) + z(p, x).masked_fill(x < 0, p["b"]),
    "masks that broadcast": lambda p, x: p["v"].masked_fill(x > 0, 0.5) + x.masked_fill(x > 0, p["b"]),
    "integers beside": lambda p, x: torch.cat((z(p, x), torch.ones(len(x), 7, 2, dtype=torch.long)), -1),
    "casts to displaced": lambda p, x: z(p, x) * ((x > 0).to(z(p, x)) + (x > 1).type_as(z(p, x))),
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
    """Return the differences by propagation, and those by plain evaluation in float64."""
    options = {"gamma": 1e-2, "samples": 6, **options}
    return tuple(
        NonlocalNTK(model, propagation=propagation, **options).differences(x)
        for propagation in ("difference", "direct")
    )


class Encoder(nn.Module):
    """A transformer layer of PyTorch on embedded tokens, with positions, a mask and cross attention."""

    def __init__(self):
        """Create the model, of width eight."""
        super().__init__()
        self.embedding, self.positions = nn.Embedding(6, 8), nn.Parameter(random(7, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True, activation="gelu")
        self.cross, self.norm = nn.MultiheadAttention(8, 2, batch_first=True), nn.RMSNorm(8)

    def forward(self, tokens):
        """Return outputs [N, 8]: the sum over the tokens."""
        h = self.embedding(tokens) + self.positions
        h = self.layer(h, src_mask=torch.nn.Transformer.generate_square_subsequent_mask(7).to(h.dtype))
        crossed, weights = self.cross(h, h.flip(1), h)
        return self.norm(h + crossed).sum(1) + weights.mean()


class ResNet(nn.Module):
    """Strided blocks with a projected skip, additions and activations in place, and a stem that pools."""

    def __init__(self, activation=nn.ReLU):
        """Create the model, for images of six channels."""
        super().__init__()
        self.stem, self.first = nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(4, 8, 3, stride=2, padding=1, bias=False)
        self.second, self.skip = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.Conv2d(4, 8, 1, stride=2)
        self.norms, self.head = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(2)), nn.Linear(8, 3)
        self.activation = activation(inplace=True) if activation is nn.ReLU else activation()
        for norm in self.norms:
            norm.running_mean.uniform_(-0.1, 0.1)
            norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        """Return outputs [N, 3] of a batch of images."""
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


def make_model(name):
    """Return a model with seeded weights, and its inputs."""
    torch.manual_seed(3)
    make, x = MODELS[name]
    return make().eval(), x
