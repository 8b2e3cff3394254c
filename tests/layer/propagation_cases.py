"""Functions and modules whose differences are propagated by rules, shared by the tests of propagation."""

import warnings

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


def assigned(h, x):
    """Assign to slices, to integer positions and to a mask."""
    h = h * 2
    h[:, 0] = x[:, 1]
    h[:, 2:4, ::2] = x[:, 1:2, ::2] * 3
    h[:, [5, 4], 1] = 0.5
    h[..., torch.arange(6) > 3] += x[:, :, :2]
    return h


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
    "multiples": lambda p, x: (
        0.9 * z(p, x) + x - 0.5 * (2 * z(p, x)[:, :1].sigmoid()) + (3 * z(p, x)).mT.mT - (4 * z(p, x)) * (z(p, x) * 2)
    ),
    "strided views": lambda p, x: (
        torch.cat(z(p, x).mT.chunk(4, 1)[1:3], 1).transpose(1, 2)[:, 1::2].mT
        + z(p, x)[:, 1:5, 3:].unfold(1, 2, 2).sum(-1).repeat(1, 2, 1)
        + z(p, x).unflatten(2, (2, 3)).permute(2, 0, 1, 3)[1, :, :1].expand(-1, 4, -1)
    ),
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
    "larger and smaller": lambda p, x: torch.maximum(z(p, x), x) + torch.min(z(p, x), p["v"]) * torch.fmax(x, z(p, x)),
    "extremes": lambda p, x: z(p, x).amax(-1) + z(p, x).amin(dim=1, keepdim=True)[..., 0] * z(p, x).amin(-1)
    + p["w"].max() * p["v"].min(),
    "exponentials": lambda p, x: z(p, x).expm1() + torch.exp2(z(p, x)) * z(p, x).sinh() + z(p, x).cosh(),
    "logarithms": lambda p, x: z(p, x).sigmoid().log1p() + (z(p, x).abs() + 0.5).log2()
    * (z(p, x).abs() + 0.5).log10(),
    "logits": lambda p, x: torch.logit(z(p, x).sigmoid() * 0.9 + 0.05) + torch.logaddexp(z(p, x), p["v"] * x),
    "error function": lambda p, x: torch.erf(z(p, x)) + torch.erfc(z(p, x) * 0.3) * torch.special.erf(2 * z(p, x)),
    "angles": lambda p, x: z(p, x).atan() + (0.5 * z(p, x).tanh()).tan(),
    "integer powers": lambda p, x: z(p, x) ** 5 + z(p, x) ** 4 * (z(p, x) ** 2 + 0.5) ** -3 + z(p, x) ** 1,
    "real powers": lambda p, x: (z(p, x).abs() + 0.1) ** 1.7 + z(p, x).relu() ** 2.5 + (z(p, x) ** 2 + 0.3).pow(-0.3),
    "powers of numbers": lambda p, x: 2 ** z(p, x) + torch.pow(0.7, z(p, x)) + x.abs().add(0.1) ** z(p, x),
    "further units": lambda p, x: F.softsign(z(p, x)) + F.tanhshrink(z(p, x)) + F.softshrink(z(p, x), 0.3),
    "further slopes": lambda p, x: F.rrelu(z(p, x)) + F.threshold(z(p, x), 0.2, 0.2) * F.softmin(z(p, x), -1),
    "combined products": lambda p, x: torch.addcmul(x, z(p, x), x, value=0.5)
    + torch.addcdiv(x, x, 2 + z(p, x).tanh()) + torch.lerp(z(p, x), x, 0.3) + torch.lerp(x, z(p, x), z(p, x)),
    "all factors": lambda p, x: (1 + 0.5 * z(p, x).tanh()).prod(1) + p["w"].sigmoid().prod(),
    "factors kept": lambda p, x: z(p, x).prod(-1, keepdim=True),
    "variances": lambda p, x: z(p, x).var(-1) + z(p, x).std(-1, unbiased=False) + torch.var(z(p, x), 2, correction=2),
    "variances of axes": lambda p, x: torch.var_mean(z(p, x), (1, 2), keepdim=True)[0][..., 0]
    + torch.std_mean(z(p, x), 1)[1],
    "norms": lambda p, x: z(p, x).norm(dim=-1) + torch.linalg.norm(z(p, x), dim=-1) * z(p, x).norm(1, -1)
    + torch.linalg.vector_norm(z(p, x), torch.inf, -1) + z(p, x).norm(p=3, dim=-1) + p["w"].norm(),
    "normalized": lambda p, x: F.normalize(z(p, x), 1.0, dim=-1) + F.normalize(z(p, x), dim=1),
    "distances": lambda p, x: F.cosine_similarity(z(p, x), x, dim=-1) + F.pairwise_distance(z(p, x), x)
    + torch.cdist(z(p, x), x[:, :1] + 3)[..., 0],
    "instance norm": lambda p, x: F.instance_norm(z(p, x).mT, weight=p["v"], bias=p["v"]),
    "local response": lambda p, x: F.local_response_norm(z(p, x).mT, 3, alpha=0.5, beta=0.7),
    "stacks": lambda p, x: torch.hstack((z(p, x), x)).mT @ torch.vstack((p["w"], p["v"])).sum(-1).repeat(2)
    + torch.column_stack((p["v"], p["w"])).sum(1) + torch.dstack((z(p, x), x)).sum((1, 2))[:, None],
    "outer products": lambda p, x: z(p, x) @ torch.outer(p["v"], p["w"][0]) + torch.tensordot(z(p, x), p["w"], 1)
    + torch.tensordot(x, p["w"], ([2], [0])) + torch.dot(p["v"], p["b"] * p["v"]),
    "kronecker": lambda p, x: x @ torch.kron(p["w"][:2, :2], p["w"][2:5, 2:5]) + torch.inner(x, p["w"]),
    "cross": lambda p, x: torch.cross(z(p, x)[..., :3], z(p, x)[..., 3:], dim=-1),
    "bilinear": lambda p, x: F.bilinear(z(p, x), x, p["k"].reshape(3, 6, 6), p["v"][:3]),
    "einsum of many": lambda p, x: torch.einsum("nij,jk,nil,nkl->nl", z(p, x), p["w"], x, z(p, x)[:, :6])
    + torch.einsum("...i,ij,j", x[:, 0], p["w"], p["v"])[:, None],
    "running sums": lambda p, x: z(p, x).cumsum(1) + z(p, x).roll(1, -1)
    + z(p, x).rot90(2, (1, 2)) * torch.take(p["w"], TOKENS[0, :6])
    + z(p, x).moveaxis(1, 2).mT
    + z(p, x).diff(dim=1, append=x[:, :1]),
    "triangles": lambda p, x: x @ (p["w"].tril() + torch.diag(p["v"]) + p["w"].triu(1))
    + p["w"].trace() + p["w"].diag(),
    "gathered": lambda p, x: z(p, x).index_select(2, TOKENS[0, :6]) + z(p, x).take_along_dim((x > 1).long(), 1)
    + z(p, x).gather(-1, (x > 0).long()),
    "scattered": lambda p, x: torch.index_add(x, 2, TOKENS[0, :6], z(p, x)) * z(p, x)
    + z(p, x).clone().scatter_add_(1, (x > 0).long(), z(p, x)) + z(p, x).scatter(1, (x > 1).long(), 0.5),
    "unfolded": lambda p, x: F.fold(F.unfold(z(p, x)[:, None], 3, padding=1), (7, 6), 3, padding=1)[:, 0],
    "upsampled lines": lambda p, x: F.interpolate(z(p, x).mT, scale_factor=2, mode="linear")
    + F.interpolate(z(p, x).mT, 14),
    "ceil pools": lambda p, x: F.max_pool1d(z(p, x).mT, 2, ceil_mode=True) + F.avg_pool1d(z(p, x).mT, 2, ceil_mode=True)
    + F.adaptive_max_pool1d(z(p, x).mT, 4),
    "types": lambda p, x: z(p, x).type(x.dtype) * z(p, x).to(x.device, x.dtype) + z(p, x).type_as(x).to(x),
    "grouped attention": lambda p, x: F.scaled_dot_product_attention(
        z(p, x).unflatten(-1, (3, 2)).transpose(1, 2)[:, [0, 1, 2, 0]], x[:, None, :, :2].expand(-1, 2, -1, -1),
        z(p, x).unflatten(-1, (3, 2)).transpose(1, 2)[:, :2], enable_gqa=True, scale=0.5,
    ),
    "attention to some": lambda p, x: F.scaled_dot_product_attention(
        z(p, x), z(p, x), x, attn_mask=(x[..., :1].mT > 0) | torch.eye(7).bool()
    ),
    "in place again": lambda p, x: z(p, x).abs_().add_(0.5).log_().pow_(2).addcmul_(x, z(p, x)).clamp_min_(0.1)
    + z(p, x).square().mul_(2).add_(0.1).sqrt(),
    "inverse functions": lambda p, x: (0.9 * z(p, x).tanh()).asin() + (0.8 * z(p, x).tanh()).acos()
    + (0.9 * z(p, x).tanh()).atanh() + torch.hypot(z(p, x), x),
    "further products": lambda p, x: torch.linalg.vecdot(z(p, x), x)[..., None] + x @ torch.matrix_power(p["w"], 5)
    + torch.linalg.matmul(x, torch.linalg.multi_dot((p["w"], p["w"].H, p["w"]))) + torch.linalg.matrix_norm(p["w"]),
    "clamped at tensors": lambda p, x: z(p, x).clamp(x, x + 0.5) + torch.clamp(x, min=z(p, x)),
    "reduced": lambda p, x: z(p, x).scatter_reduce(1, (x > 0).long(), z(p, x), "sum")
    + torch.norm(z(p, x), dim=1)[:, None],
    "steep functions": lambda p, x: (5 * z(p, x)).sinh() + (4 * z(p, x)).cosh() + (2 * z(p, x)).atan(),
    "units that are off": lambda p, x: (z(p, x) - 1.5).relu() ** 1.5 + F.normalize((z(p, x) - 1.5).relu(), 1.0, dim=-1)
    + (z(p, x) - 1.5).relu().norm(3, -1, keepdim=True) + (z(p, x) - 1.5).relu().std(-1, keepdim=True),
    "assigned": lambda p, x: assigned(z(p, x), x) + assigned(x * 1, z(p, x)),
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
    "bilinear upsampling": lambda p, x: (
        F.interpolate(F.conv2d(x, p["c"]), (9, 11), mode="bilinear", align_corners=True)
        + F.interpolate(F.conv2d(x, p["c"]), (9, 11), mode="bicubic")
    ),
    "ceil": lambda p, x: (
        F.max_pool2d(F.conv2d(x, p["c"]), 3, 2, 1, ceil_mode=True)
        + F.avg_pool2d(F.conv2d(x, p["c"]), 3, 2, 1, ceil_mode=True)
    ),
    "ceil beyond": lambda p, x: F.max_pool2d(F.conv2d(x, p["c"]), (2, 3), (4, 2), (1, 0), (2, 1), ceil_mode=True),
    "adaptive maxima": lambda p, x: F.adaptive_max_pool2d(F.conv2d(x, p["c"], padding=1), (3, None)),
    "volumes": lambda p, x: (
        F.max_pool3d(F.conv2d(x, p["c"])[:, None], (3, 2, 2), 2, 1)
        + F.adaptive_max_pool3d(F.conv2d(x, p["c"])[:, None], (3, 4, 4))
    ),
    "shuffled": lambda p, x: F.pixel_shuffle(F.conv2d(x, p["c"])[:, :4], 2) * F.channel_shuffle(x, 3)[:, :1, :1, :1],
}
CASES = {
    "embedding": (lambda p, x: F.embedding(x, p["w"]).tanh() @ p["w"], TOKENS),
    "bags": (lambda p, x: F.embedding_bag(x, p["w"]) + F.embedding_bag(x, p["w"], mode="max"), TOKENS),
    "bags of one line": (
        lambda p, x: sum(
            F.embedding_bag(x[:, 0], p["w"], torch.arange(len(x)), mode=m).tanh() for m in ("sum", "mean")
        ),
        TOKENS,
    ),
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


class Padded(nn.Module):
    """Transformer layers of PyTorch on padded sequences, with dropout in place and masks of several kinds."""

    def __init__(self):
        """Create the model, of width eight."""
        super().__init__()
        self.embedding, self.dropout = nn.Embedding(6, 8), nn.Dropout(0.3, inplace=True)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False
        )
        self.decoder = nn.TransformerDecoderLayer(8, 2, 16, 0.1, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, add_bias_kv=True, add_zero_attn=True, batch_first=True)

    def forward(self, tokens):
        """Return outputs [N, 8]: the mean over the tokens."""
        padding, h = tokens == 5, self.embedding(tokens)
        padding = padding & (torch.arange(7) > 0)
        encoded = self.encoder(self.dropout(h.transpose(0, 1)).transpose(0, 1), src_key_padding_mask=padding)
        mask = torch.nn.Transformer.generate_square_subsequent_mask(7).to(h.dtype)
        decoded = self.decoder(h, encoded, mask, memory_key_padding_mask=padding, tgt_is_causal=True)
        further, _ = self.attention(h, encoded, decoded, padding)
        return self.dropout(decoded).mean(1) + further[:, 0]


class Recurrent(nn.Module):
    """Recurrent layers of all kinds, one after another, and their cells."""

    def __init__(self):
        """Create the model, for lines of width six."""
        super().__init__()
        self.lstm = nn.LSTM(6, 4, num_layers=2, batch_first=True, bidirectional=True, dropout=0.1)
        self.gru, self.projected = nn.GRU(8, 5, bidirectional=True), nn.LSTM(10, 6, proj_size=3, bias=False)
        self.tanh, self.relu = nn.RNN(3, 4, batch_first=True), nn.RNN(4, 3, 2, nonlinearity="relu", batch_first=True)
        self.norm = nn.LayerNorm(3)
        self.cells = nn.ModuleList((nn.LSTMCell(3, 4), nn.GRUCell(4, 4), nn.RNNCell(4, 4)))

    def forward(self, x):
        """Return outputs [N, 4]: a state that all layers act on."""
        h, (state, _) = self.lstm(x)
        with warnings.catch_warnings(action="ignore"):
            # A plain evaluation warns that its projections are slow.
            h, _ = self.projected(self.gru(h.transpose(0, 1))[0])
        h, last = self.relu(self.tanh(self.norm(h).transpose(0, 1))[0])
        hidden, memory = self.cells[0](h[:, -1])
        hidden = self.cells[1](memory, hidden)
        return self.cells[2](hidden, state[0]) + last.sum((0, 2))[:, None]


class Norms(nn.Module):
    """Norms, activations and pools of PyTorch's modules that images pass through."""

    def __init__(self):
        """Create the model, for images of six channels."""
        super().__init__()
        norms = (nn.GroupNorm(2, 6), nn.InstanceNorm2d(6, affine=True), nn.LocalResponseNorm(3), nn.RMSNorm(8))
        units = (nn.PReLU(6), nn.Hardswish(inplace=True), nn.ELU(inplace=True), nn.Softsign())
        self.normed = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), *pair) for pair in zip(norms, units, strict=True))
        )
        self.head = nn.Sequential(
            nn.MaxPool2d(3, 2, ceil_mode=True), nn.Dropout2d(0.2), nn.AdaptiveMaxPool2d(2), nn.Flatten(),
            nn.Dropout(0.5, inplace=True), nn.AlphaDropout(0.1), nn.Linear(24, 3), nn.FeatureAlphaDropout(0.1),
        )  # fmt: skip

    def forward(self, x):
        """Return outputs [N, 3] of a batch of images."""
        return self.head(self.normed(x))


MODELS = {
    "padded": (Padded, TOKENS),
    "recurrent": (Recurrent, LINES),
    "norms": (Norms, IMAGES),
    "encoder": (Encoder, TOKENS),
    "resnet": (ResNet, IMAGES),
    "sign resnet": (lambda: ResNet(nntk.activations.Sign), IMAGES),
}


def make_model(name):
    """Return a model with seeded weights, and its inputs."""
    torch.manual_seed(3)
    make, x = MODELS[name]
    return make().eval(), x
