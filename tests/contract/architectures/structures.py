"""Architectures for graphs, fields, densities and functions, and common changes to the layers of a model."""

import warnings

import torch
import torch.nn.functional as F
from registry import Layers, architecture, normal
from torch import nn
from torch.nn.utils import parametrizations, prune

FEATURES = (6,)
EDGES = torch.tensor([[0, 1, 2, 3, 4, 0, 2], [1, 2, 3, 4, 0, 2, 4]])
GRAPH = (5, 4)  # five nodes with four features, on one graph


def adjacency():
    """Return the normalised adjacency matrix with loops, [5, 5]."""
    a = torch.eye(5)
    a[EDGES[0], EDGES[1]] = a[EDGES[1], EDGES[0]] = 1
    d = a.sum(1).rsqrt()
    return d[:, None] * a * d


@architecture("GCN", GRAPH)
def gcn():
    def forward(m, x):
        return m.b(m.adjacency @ F.relu(m.a(m.adjacency @ x))).mean(1)

    model = Layers(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    model.register_buffer("adjacency", adjacency())
    return model


@architecture("GAT (softmax over neighbours)", GRAPH)
def gat():
    def forward(m, x):
        h = m.a(x)
        e = F.leaky_relu((h @ m.left)[:, :, None] + (h @ m.right)[:, None, :], 0.2)
        e = e.masked_fill(m.adjacency == 0, float("-inf"))
        return m.b(F.elu(e.softmax(-1) @ h)).mean(1)

    model = Layers(forward, a=nn.Linear(4, 6), left=normal(6), right=normal(6), b=nn.Linear(6, 2))
    model.register_buffer("adjacency", adjacency())
    return model


@architecture("GIN (message passing by index_add)", GRAPH)
def gin():
    def forward(m, x):
        s, t = m.edges
        total = torch.zeros_like(x).index_add(1, t, x[:, s])
        return m.head(m.mlp((1 + m.eps) * x + total).sum(1))

    model = Layers(
        forward,
        mlp=nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4)),
        eps=torch.zeros(1),
        head=nn.Linear(4, 2),
    )
    model.register_buffer("edges", EDGES)
    return model


@architecture("Message passing by scatter_reduce (max)", GRAPH)
def scatter_max():
    def forward(m, x):
        s, t = m.edges
        messages = m.edge(torch.cat((x[:, s], x[:, t]), -1))
        index = t[None, :, None].expand_as(messages)
        nodes = torch.full((len(x), 5, 4), -1.0, dtype=x.dtype).scatter_reduce(1, index, messages, "amax")
        return m.head(nodes.mean(1))

    model = Layers(forward, edge=nn.Linear(8, 4), head=nn.Linear(4, 2))
    model.register_buffer("edges", EDGES)
    return model


@architecture("Chebyshev graph filter, sparse adjacency", GRAPH)
def chebyshev():
    def forward(m, x):
        columns = x.permute(1, 0, 2).reshape(5, -1)
        near = torch.sparse.mm(m.adjacency.to(x.dtype).to_sparse(), columns).view(5, len(x), 4).permute(1, 0, 2)
        return m.head(F.relu(m.a(x) + m.b(near))).mean(1)

    model = Layers(forward, a=nn.Linear(4, 6), b=nn.Linear(4, 6), head=nn.Linear(6, 2))
    model.register_buffer("adjacency", adjacency())
    return model


@architecture("E(n)-equivariant network", (5, 3))
def egnn():
    def forward(m, x):
        difference = x[:, :, None] - x[:, None]
        squared = difference.square().sum(-1, keepdim=True)
        weight = m.message(squared)
        moved = x + (difference * m.place(weight)).mean(2)
        return m.head(torch.cat((weight.sum(2).mean(1), moved.norm(dim=-1).mean(1, keepdim=True)), -1))

    message = nn.Sequential(nn.Linear(1, 6), nn.SiLU())
    return Layers(forward, message=message, place=nn.Linear(6, 1), head=nn.Linear(7, 2))


@architecture("Neural ODE (Runge-Kutta)", FEATURES)
def neural_ode():
    def forward(m, x):
        h = 0.25
        for _ in range(4):
            k1 = m.field(x)
            k2 = m.field(x + h / 2 * k1)
            k3 = m.field(x + h / 2 * k2)
            x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + m.field(x + h * k3))
        return m.head(x)

    return Layers(forward, field=nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6)), head=nn.Linear(6, 2))


@architecture("Deep equilibrium model (fixed number of steps)", FEATURES)
def equilibrium():
    def forward(m, x):
        z = torch.zeros_like(x)
        for _ in range(30):
            z = torch.tanh(0.5 * m.inner(z) + m.outer(x))
        return m.head(z)

    return Layers(forward, inner=nn.Linear(6, 6), outer=nn.Linear(6, 6), head=nn.Linear(6, 2))


@architecture("Deep equilibrium model (until it converges)", FEATURES)
def equilibrium_until():
    def forward(m, x):
        z = torch.zeros_like(x)
        for _ in range(100):
            new = torch.tanh(0.3 * m.inner(z) + m.outer(x))
            if (new - z).abs().max() < 1e-12:
                break
            z = new
        return m.head(z)

    return Layers(forward, inner=nn.Linear(6, 6), outer=nn.Linear(6, 6), head=nn.Linear(6, 2))


@architecture("Implicit layer by torch.linalg.solve", FEATURES)
def implicit_solve():
    def forward(m, x):
        a = torch.eye(6, dtype=x.dtype) + 0.1 * m.matrix.T @ m.matrix
        return m.head(torch.linalg.solve(a, m.inward(x)[..., None])[..., 0])

    return Layers(forward, matrix=torch.randn(6, 6), inward=nn.Linear(6, 6), head=nn.Linear(6, 2))


@architecture("Log-determinant of a learned kernel (DPP)", FEATURES)
def determinant():
    def forward(m, x):
        a = m.inward(x).view(len(x), 3, 3)
        return torch.linalg.slogdet(torch.eye(3, dtype=x.dtype) + a @ a.mT)[1]

    return Layers(forward, inward=nn.Linear(6, 9))


@architecture("Eigenvalue pooling (covariance, matrix logarithm)", (5, 3))
def covariance():
    def forward(m, x):
        h = m.inward(x)
        h = h - h.mean(1, keepdim=True)
        values, vectors = torch.linalg.eigh(h.mT @ h / 5 + 0.1 * torch.eye(3, dtype=x.dtype))
        return m.head(((vectors * values.log()[:, None]) @ vectors.mT).flatten(1))

    return Layers(forward, inward=nn.Linear(3, 3), head=nn.Linear(9, 2))


@architecture("Hypernetwork", FEATURES)
def hypernetwork():
    def forward(m, x):
        w = m.make(x[:, :3]).view(len(x), 4, 3)
        return m.head(torch.tanh(torch.einsum("noi,ni->no", w, x[:, 3:])))

    return Layers(forward, make=nn.Linear(3, 12), head=nn.Linear(4, 2))


@architecture("Fast weights (one inner gradient step)", FEATURES)
def fast_weights():
    def forward(m, x):
        error = F.linear(x, m.w) - x
        fast = m.w - 0.1 * error[..., None] * x[:, None]
        return m.head(torch.tanh((fast @ x[..., None])[..., 0]))

    return Layers(forward, w=normal(6, 6), head=nn.Linear(6, 2))


@architecture("FiLM conditioning", FEATURES)
def film():
    def forward(m, x):
        scale, shift = m.film(x[:, :2]).chunk(2, -1)
        return m.head(F.silu(m.inward(x[:, 2:]) * (1 + scale) + shift))

    return Layers(forward, film=nn.Linear(2, 16), inward=nn.Linear(4, 8), head=nn.Linear(8, 2))


@architecture("NeRF (positional encoding, volume rendering)", FEATURES)
def nerf():
    def forward(m, x):
        t = torch.linspace(0, 1, 5, dtype=x.dtype)
        points = x[:, None, :3] + t[:, None] * x[:, None, 3:]
        angles = (points[..., None] * 2.0 ** torch.arange(3, dtype=x.dtype)).flatten(2)
        h = F.relu(m.inward(torch.cat((angles.sin(), angles.cos()), -1)))
        alpha = 1 - torch.exp(-F.relu(m.density(h))[..., 0] / 5)
        left = torch.cumprod(torch.cat((torch.ones_like(alpha[:, :1]), 1 - alpha + 1e-10), 1), 1)[:, :-1]
        return ((alpha * left)[..., None] * m.colour(h).sigmoid()).sum(1)

    return Layers(forward, inward=nn.Linear(18, 8), density=nn.Linear(8, 1), colour=nn.Linear(8, 3))


@architecture("SIREN", (2,))
def siren():
    def forward(m, x):
        return m.c(torch.sin(30 * m.b(torch.sin(30 * m.a(x)))))

    parts = Layers(forward, a=nn.Linear(2, 8), b=nn.Linear(8, 8), c=nn.Linear(8, 1))
    parts.b.weight.data.div_(30)
    return parts


@architecture("KAN (B-splines)", (3,))
def kan():
    def forward(m, x):
        grid = torch.linspace(-2.5, 2.5, 9, dtype=x.dtype)
        v = x.tanh()[..., None] * 2
        basis = ((v >= grid[:-1]) & (v < grid[1:])).to(x.dtype)
        for k in range(1, 4):
            left = (v - grid[: -k - 1]) / (grid[k:-1] - grid[: -k - 1]) * basis[..., :-1]
            right = (grid[k + 1 :] - v) / (grid[k + 1 :] - grid[1:-k]) * basis[..., 1:]
            basis = left + right
        return torch.einsum("nib,oib->no", basis, m.spline) + m.base(F.silu(x))

    return Layers(forward, spline=normal(2, 3, 5), base=nn.Linear(3, 2))


@architecture("Fourier neural operator", (8, 2))
def fno():
    def forward(m, x):
        h = m.lift(x).mT
        f = torch.fft.rfft(h)
        out = torch.zeros(len(x), 4, 5, dtype=f.dtype)
        out[..., :3] = torch.einsum("nim,iom->nom", f[..., :3], torch.complex(m.re, m.im))
        return m.head(F.gelu(torch.fft.irfft(out, n=8) + m.local(h)).mT).mean(1)

    return Layers(
        forward,
        lift=nn.Linear(2, 4),
        re=normal(4, 4, 3),
        im=normal(4, 4, 3),
        local=nn.Conv1d(4, 4, 1),
        head=nn.Linear(4, 2),
    )


@architecture("Complex-valued network", FEATURES)
def complex_valued():
    def forward(m, x):
        h = torch.view_as_complex(x.view(-1, 3, 2)) @ torch.complex(m.re, m.im)
        return m.head(torch.cat((F.relu(h.abs() - 0.1), h.angle()), -1))

    return Layers(forward, re=normal(3, 4), im=normal(3, 4), head=nn.Linear(8, 2))


@architecture("Haar wavelets", (8,))
def wavelets():
    def forward(m, x):
        low = m.inward(x)
        parts = []
        for _ in range(2):
            low, high = (low[:, ::2] + low[:, 1::2]) / 2**0.5, (low[:, ::2] - low[:, 1::2]) / 2**0.5
            parts.append(F.softshrink(high, 0.1))
        return m.head(torch.cat((low, *parts), 1))

    return Layers(forward, inward=nn.Linear(8, 8), head=nn.Linear(8, 2))


@architecture("Normalising flow (affine couplings)", FEATURES)
def flow():
    def forward(m, x):
        total = 0
        for net in m.nets:
            a, b = x.chunk(2, -1)
            s, t = net(a).chunk(2, -1)
            x, total = torch.cat((b * s.tanh().exp() + t, a), -1), total + s.tanh().sum(-1)
        return total - x.square().sum(-1) / 2

    return Layers(
        forward, nets=nn.ModuleList(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 6)) for _ in range(3))
    )


@architecture("Masked autoregressive density (MADE)", FEATURES)
def made():
    def forward(m, x):
        h = F.relu(F.linear(x, m.a * torch.ones_like(m.a).tril(-1), m.bias))
        mean, log_scale = h @ m.b.triu(), h @ m.c.triu()
        return (-0.5 * ((x - mean) * torch.exp(-log_scale)).square() - log_scale).sum(-1)

    return Layers(forward, a=normal(6, 6), bias=normal(6), b=normal(6, 6), c=normal(6, 6))


@architecture("Energy model whose output is a gradient (score)", FEATURES)
def score():
    def forward(m, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            energy = m.net(x).sum()
            return torch.autograd.grad(energy, x, create_graph=True)[0]

    return Layers(forward, net=nn.Sequential(nn.Linear(6, 8), nn.Softplus(), nn.Linear(8, 1)))


@architecture("Energy model whose output is a gradient (torch.func)", FEATURES)
def score_func():
    def forward(m, x):
        return torch.func.vmap(torch.func.grad(lambda one: m.net(one)[0]))(x)

    return Layers(forward, net=nn.Sequential(nn.Linear(6, 8), nn.Softplus(), nn.Linear(8, 1)))


@architecture("Gaussian mixture (logsumexp)", FEATURES)
def mixture():
    def forward(m, x):
        squared = (x[:, None] - m.mean).square() * torch.exp(-m.log_variance)
        return torch.logsumexp(F.log_softmax(m.logits, 0) - 0.5 * (squared + m.log_variance).sum(-1), -1)

    return Layers(forward, mean=torch.randn(3, 6), log_variance=normal(3, 6), logits=normal(3))


@architecture("Density by torch.distributions", FEATURES)
def distributions():
    def forward(m, x):
        normal_ = torch.distributions.Normal(m.mean, F.softplus(m.scale), validate_args=False)
        return torch.distributions.Independent(normal_, 1).log_prob(x)

    return Layers(forward, mean=torch.randn(6), scale=torch.randn(6))


@architecture("Radial basis functions", FEATURES)
def radial():
    def forward(m, x):
        return m.head(torch.exp(-torch.cdist(x, m.centres).square() * m.width.exp()))

    return Layers(forward, centres=torch.randn(5, 6), width=torch.tensor(-1.0), head=nn.Linear(5, 2))


@architecture("Prototypes by cdist", FEATURES)
def prototypes():
    return Layers(
        lambda m, x: -torch.cdist(m.inward(x), m.prototypes), inward=nn.Linear(6, 3), prototypes=torch.randn(4, 3)
    )


@architecture("Cosine classifier", FEATURES)
def cosine():
    return Layers(
        lambda m, x: 10 * F.linear(F.normalize(m.inward(x)), F.normalize(m.classes)),
        inward=nn.Linear(6, 4),
        classes=torch.randn(3, 4),
    )


@architecture("Bilinear layers", FEATURES)
def bilinear():
    return Layers(
        lambda m, x: m.head(m.pair(x[:, :3], x[:, 3:]).tanh()), pair=nn.Bilinear(3, 3, 4), head=nn.Linear(4, 2)
    )


@architecture("Factorisation machine", FEATURES)
def factorisation():
    def forward(m, x):
        pairs = 0.5 * ((x @ m.v).square() - x.square() @ m.v.square()).sum(-1, keepdim=True)
        return m.linear(x) + pairs

    return Layers(forward, v=normal(6, 3), linear=nn.Linear(6, 1))


@architecture("Deep and cross network on tokens", (3,), tokens=7)
def deep_cross():
    def forward(m, x):
        first = h = m.embed(x).flatten(1)
        for layer in m.cross:
            h = first * layer(h) + h
        return m.head(h)

    return Layers(
        forward,
        embed=nn.Embedding(7, 3, max_norm=None),
        cross=nn.ModuleList(nn.Linear(9, 9) for _ in range(2)),
        head=nn.Linear(9, 1),
    )


@architecture("Embedding with a largest norm", (3,), tokens=7)
def embedding_max_norm():
    return nn.Sequential(nn.Embedding(7, 4, max_norm=1.0), nn.Flatten(), nn.Linear(12, 2))


@architecture("Lagrangian network (Hessian inside)", (4,))
def lagrangian():
    def forward(m, x):
        def energy(one):
            return m.net(one)[0]

        gradient, hessian = torch.func.grad(energy), torch.func.hessian(energy)
        return torch.func.vmap(lambda one: torch.cat((gradient(one), hessian(one).diagonal())))(x)

    return Layers(forward, net=nn.Sequential(nn.Linear(4, 6), nn.Softplus(), nn.Linear(6, 1)))


@architecture("Sinkhorn (learned assignment)", (4, 3))
def sinkhorn():
    def forward(m, x):
        z = m.score(x)
        for _ in range(5):
            z = z - z.logsumexp(-1, keepdim=True)
            z = z - z.logsumexp(-2, keepdim=True)
        return m.head((z.exp().mT @ x).flatten(1))

    return Layers(forward, score=nn.Linear(3, 4), head=nn.Linear(12, 2))


@architecture("LoRA-adapted linear layers", FEATURES)
def lora():
    def forward(m, x):
        h = torch.tanh(m.a(x) + (x @ m.down) @ m.up)
        return m.b(h)

    model = Layers(forward, a=nn.Linear(6, 8), b=nn.Linear(8, 2), down=normal(6, 2), up=normal(2, 8))
    for part in (model.a, model.b):
        part.requires_grad_(False)
    return model


@architecture("Weight norm (parametrisation)", FEATURES)
def weight_norm():
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, 2))


@architecture("Weight norm (legacy)", FEATURES)
def weight_norm_legacy():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, 2))


@architecture("Spectral norm (parametrisation)", FEATURES)
def spectral_norm():
    return nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, 2))


@architecture("Spectral norm (legacy)", FEATURES)
def spectral_norm_legacy():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(nn.utils.spectral_norm(nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, 2))


@architecture("Orthogonal weights (parametrisation)", FEATURES)
def orthogonal():
    return nn.Sequential(parametrizations.orthogonal(nn.Linear(6, 6)), nn.Tanh(), nn.Linear(6, 2))


@architecture("Pruned", FEATURES)
def pruned():
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    prune.l1_unstructured(model[0], "weight", 0.5)
    return model


@architecture("Tied autoencoder", FEATURES)
def tied():
    return Layers(lambda m, x: F.linear(m.a(x).relu(), m.a.weight.T), a=nn.Linear(6, 4))


@architecture("Tied module used twice", FEATURES)
def tied_twice():
    layer = nn.Linear(6, 6)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(6, 2))


@architecture("Variational autoencoder (mean, no sampling)", FEATURES)
def vae():
    def forward(m, x):
        mean, log_variance = m.encode(x).chunk(2, -1)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1, keepdim=True)
        return torch.cat((m.decode(mean), kl), -1)

    return Layers(forward, encode=nn.Linear(6, 6), decode=nn.Linear(3, 4))


@architecture("U-shaped diffusion network with time features", (7,))
def diffusion():
    def forward(m, x):
        t = x[:, :1] * torch.exp(-torch.arange(4, dtype=x.dtype))
        time = F.silu(m.time(torch.cat((t.sin(), t.cos()), -1)))
        h = F.group_norm(m.inward(x[:, 1:]), 2, m.gain, m.shift) * (1 + time)
        return m.out(F.silu(h) + m.skip(x[:, 1:]))

    return Layers(
        forward,
        time=nn.Linear(8, 8),
        inward=nn.Linear(6, 8),
        gain=torch.ones(8),
        shift=normal(8),
        skip=nn.Linear(6, 8),
        out=nn.Linear(8, 6),
    )
