"""Architectures for sequences and sets: recurrent, attention, state spaces, pooling over elements."""

import torch
import torch.nn.functional as F
from registry import Layers, architecture, normal
from torch import nn
from torch.utils.checkpoint import checkpoint

SEQUENCE = (5, 4)


def recurrent(kind, **options):
    """Return a recurrent layer and a linear head on its last state."""
    width = 6 * (2 if options.get("bidirectional") else 1)
    layer = kind(4, 6, batch_first=True, **options)
    return Layers(lambda m, x: m.head(m.layer(x)[0][:, -1]), layer=layer, head=nn.Linear(width, 2))


architecture("RNN", SEQUENCE)(lambda: recurrent(nn.RNN, nonlinearity="relu"))
architecture("GRU", SEQUENCE)(lambda: recurrent(nn.GRU))
architecture("LSTM", SEQUENCE)(lambda: recurrent(nn.LSTM, num_layers=2, dropout=0.2))
architecture("LSTM, bidirectional", SEQUENCE)(lambda: recurrent(nn.LSTM, bidirectional=True))
architecture("LSTM with projection", SEQUENCE)(
    lambda: Layers(
        lambda m, x: m.head(m.layer(x)[1][0][0]),
        layer=nn.LSTM(4, 6, proj_size=3, batch_first=True),
        head=nn.Linear(3, 2),
    )
)


@architecture("GRU cells in a loop", SEQUENCE)
def gru_cells():
    def forward(m, x):
        h = x.new_zeros(len(x), 6)
        for step in x.unbind(1):
            h = m.cell(step, h)
        return m.head(h)

    return Layers(forward, cell=nn.GRUCell(4, 6), head=nn.Linear(6, 2))


@architecture("LSTM by hand, states written in place", SEQUENCE)
def lstm_by_hand():
    def forward(m, x):
        h = c = torch.zeros(len(x), 6, dtype=x.dtype)
        states = torch.empty(len(x), 5, 6, dtype=x.dtype)
        for t in range(5):
            i, f, g, o = (m.inward(x[:, t]) + m.back(h)).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            states[:, t] = h
        return m.head(states.amax(1))

    return Layers(forward, inward=nn.Linear(4, 24), back=nn.Linear(6, 24), head=nn.Linear(6, 2))


@architecture("xLSTM (exponential gates with a stabiliser)", SEQUENCE)
def xlstm():
    def forward(m, x):
        c = n = top = x.new_zeros(len(x), 6)
        for step in x.unbind(1):
            i, f, z, o = m.gates(step).chunk(4, -1)
            log_f = F.logsigmoid(f)
            new = torch.maximum(log_f + top, i)
            c = torch.exp(log_f + top - new) * c + torch.exp(i - new) * z.tanh()
            n, top = torch.exp(log_f + top - new) * n + torch.exp(i - new), new
        return m.head(o.sigmoid() * c / n.clamp(min=1e-6))

    return Layers(forward, gates=nn.Linear(4, 24), head=nn.Linear(6, 2))


@architecture("Mamba (selective scan)", SEQUENCE)
def mamba():
    def forward(m, x):
        h, gate = m.inward(x).chunk(2, -1)
        h = F.silu(m.conv(h.mT)[..., :5].mT)
        delta, b, c = F.softplus(m.delta(h)), m.b(h), m.c(h)
        decay = torch.exp(delta[..., None] * -torch.exp(m.log_a))
        state, out = x.new_zeros(len(x), 6, 3), []
        for t in range(5):
            state = decay[:, t] * state + (delta[:, t] * h[:, t])[..., None] * b[:, t, None]
            out.append((state * c[:, t, None]).sum(-1))
        return m.head((torch.stack(out, 1) + m.skip * h) * F.silu(gate)).mean(1)

    return Layers(
        forward, inward=nn.Linear(4, 12), conv=nn.Conv1d(6, 6, 3, padding=2, groups=6), delta=nn.Linear(6, 6),
        b=nn.Linear(6, 3), c=nn.Linear(6, 3), log_a=torch.rand(6, 3), skip=torch.ones(6), head=nn.Linear(6, 2),
    )  # fmt: skip


@architecture("S4 (diagonal, complex, convolution by FFT)", SEQUENCE)
def s4():
    def forward(m, x):
        lam = torch.complex(-m.log_re.exp(), m.im)
        times = torch.arange(5, dtype=x.dtype)
        kernel = (torch.complex(m.c_re, m.c_im)[..., None] * torch.exp(lam[..., None] * times)).sum(1).real
        y = torch.fft.irfft(torch.fft.rfft(x.mT, 10) * torch.fft.rfft(kernel, 10), 10)[..., :5]
        return m.head(F.gelu(y.mT)).mean(1)

    parts = {"log_re": torch.rand(4, 3), "im": normal(4, 3), "c_re": normal(4, 3), "c_im": normal(4, 3)}
    return Layers(forward, **parts, head=nn.Linear(4, 2))


@architecture("Linear recurrent unit by cumulative sums", SEQUENCE)
def lru():
    def forward(m, x):
        decay = F.logsigmoid(m.decay)
        weights = torch.exp(decay * torch.arange(5, 0, -1, dtype=x.dtype)[:, None])
        return m.head((m.inward(x) * weights).cumsum(1)[:, -1].tanh())

    return Layers(forward, decay=torch.randn(6), inward=nn.Linear(4, 6), head=nn.Linear(6, 2))


@architecture("Temporal convolutional network", SEQUENCE)
def tcn():
    def forward(m, x):
        h = x.mT
        for dilation, conv in zip((1, 2), m.convs, strict=True):
            h = h + F.relu(conv(F.pad(h, (2 * dilation, 0))))
        return m.head(h[..., -1])

    return Layers(forward, convs=nn.ModuleList(nn.Conv1d(4, 4, 3, dilation=d) for d in (1, 2)), head=nn.Linear(4, 2))


@architecture("WaveNet (gated, skips)", SEQUENCE)
def wavenet():
    def forward(m, x):
        a, b = m.conv(F.pad(x.mT, (1, 0))).chunk(2, 1)
        z = torch.tanh(a) * torch.sigmoid(b)
        return m.head(F.relu(m.skip(z) + x.mT).mean(-1))

    return Layers(forward, conv=nn.Conv1d(4, 8, 2), skip=nn.Conv1d(4, 4, 1), head=nn.Linear(4, 2))


@architecture("Transformer encoder of PyTorch", SEQUENCE)
def transformer():
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=True)
    return Layers(
        lambda m, x: m.head(m.layers(x).mean(1)), layers=nn.TransformerEncoder(layer, 2), head=nn.Linear(4, 2)
    )


@architecture("Transformer with encoder and decoder", SEQUENCE)
def encoder_decoder():
    layers = nn.Transformer(4, 2, 1, 1, 8, batch_first=True)
    return Layers(lambda m, x: m.head(m.layers(x, x.flip(1)[:, :3])).mean(1), layers=layers, head=nn.Linear(4, 2))


@architecture("GPT by hand (causal, rotary)", (6,), tokens=11)
def gpt():
    def rotate(h):
        angle = torch.arange(6, dtype=h.dtype)[:, None] * torch.tensor([1.0, 0.1], dtype=h.dtype)
        a, b = h.chunk(2, -1)
        return torch.cat((a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()), -1)

    def forward(m, x):
        h = m.embed(x)
        q, k, v = m.qkv(m.norm(h)).view(len(x), 6, 3, 2, 4).permute(2, 0, 3, 1, 4)
        a = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        h = h + m.out(a.transpose(1, 2).flatten(2))
        h = h + m.down(F.silu(m.gate(h)) * m.up(h))
        return F.linear(m.norm(h[:, -1]), m.embed.weight)

    return Layers(
        forward, embed=nn.Embedding(11, 8), norm=nn.RMSNorm(8), qkv=nn.Linear(8, 24), out=nn.Linear(8, 8),
        gate=nn.Linear(8, 12), up=nn.Linear(8, 12), down=nn.Linear(12, 8),
    )  # fmt: skip


@architecture("Linear attention (Performer-like)", SEQUENCE)
def linear_attention():
    def forward(m, x):
        q, k, v = F.elu(m.q(x)) + 1, F.elu(m.k(x)) + 1, m.v(x)
        state = (k[..., None] * v[..., None, :]).cumsum(1)
        return m.head(torch.einsum("ntd,ntde->nte", q, state) / (q * k.cumsum(1)).sum(-1, keepdim=True)).mean(1)

    return Layers(forward, q=nn.Linear(4, 4), k=nn.Linear(4, 4), v=nn.Linear(4, 4), head=nn.Linear(4, 2))


@architecture("FNet (Fourier mixing)", SEQUENCE)
def fnet():
    def forward(m, x):
        return m.head(m.norm(x + torch.fft.fft2(m.mlp(x)).real)).mean(1)

    return Layers(forward, mlp=nn.Sequential(nn.Linear(4, 4), nn.GELU()), norm=nn.LayerNorm(4), head=nn.Linear(4, 2))


@architecture("Perceiver", SEQUENCE)
def perceiver():
    def forward(m, x):
        latent = m.latent.expand(len(x), -1, -1)
        latent = latent + m.cross(latent, x, x, need_weights=False)[0]
        return m.head((latent + m.own(latent, latent, latent, need_weights=False)[0]).flatten(1))

    attention = {name: nn.MultiheadAttention(4, 2, batch_first=True) for name in ("cross", "own")}
    return Layers(forward, latent=normal(3, 4), **attention, head=nn.Linear(12, 2))


@architecture("Set transformer", SEQUENCE)
def set_transformer():
    def forward(m, x):
        inducing, seed = (p.expand(len(x), -1, -1) for p in (m.inducing, m.seed))
        h = m.back(x, *[m.onto(inducing, x, x)[0]] * 2)[0]
        return m.head(m.pool(seed, h, h)[0][:, 0])

    layers = {name: nn.MultiheadAttention(4, 2, batch_first=True) for name in ("onto", "back", "pool")}
    return Layers(forward, inducing=normal(2, 4), seed=normal(1, 4), **layers, head=nn.Linear(4, 2))


@architecture("DeepSets", SEQUENCE)
def deepsets():
    phi, rho = (nn.Sequential(nn.Linear(a, 8), nn.ReLU(), nn.Linear(8, b)) for a, b in ((4, 6), (6, 2)))
    return Layers(lambda m, x: m.rho(m.phi(x).sum(1)), phi=phi, rho=rho)


@architecture("PointNet (with a learned transform)", (6, 3))
def pointnet():
    def forward(m, x):
        turn = m.turn(x).amax(1).view(-1, 3, 3) + torch.eye(3, dtype=x.dtype)
        return m.head(m.points(torch.bmm(x, turn)).max(1).values)

    return Layers(forward, turn=nn.Linear(3, 9), points=nn.Sequential(nn.Linear(3, 8), nn.ReLU()), head=nn.Linear(8, 2))


@architecture("Dynamic graph of neighbours (DGCNN)", (6, 3))
def dgcnn():
    def forward(m, x):
        near = torch.cdist(x, x).topk(3, largest=False).indices
        neighbours = torch.gather(x[:, None].expand(-1, 6, -1, -1), 2, near[..., None].expand(-1, -1, -1, 3))
        centre = x[:, :, None].expand_as(neighbours)
        return m.head(m.edge(torch.cat((centre, neighbours - centre), -1)).amax(2).mean(1))

    return Layers(forward, edge=nn.Sequential(nn.Linear(6, 8), nn.LeakyReLU(0.2)), head=nn.Linear(8, 2))


@architecture("Attention pooling (multiple instances)", SEQUENCE)
def attention_pooling():
    def forward(m, x):
        a = torch.softmax(m.score(torch.tanh(m.v(x)) * torch.sigmoid(m.u(x))), 1)
        return m.head((a * x).sum(1))

    return Layers(forward, v=nn.Linear(4, 6), u=nn.Linear(4, 6), score=nn.Linear(6, 1), head=nn.Linear(4, 2))


@architecture("Modern Hopfield retrieval", (4,))
def hopfield():
    def forward(m, x):
        for _ in range(3):
            x = torch.softmax(2 * x @ m.patterns.T, -1) @ m.patterns
        return m.head(x)

    return Layers(forward, patterns=torch.randn(6, 4), head=nn.Linear(4, 2))


@architecture("Word2vec bag (EmbeddingBag)", (6,), tokens=12)
def bag():
    return nn.Sequential(nn.EmbeddingBag(12, 5, mode="mean"), nn.ReLU(), nn.Linear(5, 3))


@architecture("Text CNN", (7,), tokens=12)
def text_cnn():
    def forward(m, x):
        h = m.embed(x).mT
        return m.head(torch.cat([F.relu(conv(h)).max(2)[0] for conv in m.convs], 1))

    convs = nn.ModuleList(nn.Conv1d(4, 3, width) for width in (2, 3, 4))
    return Layers(forward, embed=nn.Embedding(12, 4, padding_idx=0), convs=convs, head=nn.Linear(9, 2))


@architecture("Tree LSTM over a fixed tree", SEQUENCE)
def tree_lstm():
    def forward(m, x):
        nodes = [(x[:, t], torch.zeros_like(x[:, t])) for t in range(4)]
        for left, right in ((0, 1), (2, 3), (4, 5)):
            (h1, c1), (h2, c2) = nodes[left], nodes[right]
            i, f1, f2, o, u = m.cell(torch.cat((h1, h2), 1)).split(4, 1)
            c = i.sigmoid() * u.tanh() + f1.sigmoid() * c1 + f2.sigmoid() * c2
            nodes.append((o.sigmoid() * c.tanh(), c))
        return m.head(nodes[-1][0])

    return Layers(forward, cell=nn.Linear(8, 20), head=nn.Linear(4, 2))


@architecture("Checkpointed blocks", (4,))
def checkpointed():
    def forward(m, x):
        for block in m.blocks:
            x = x + checkpoint(block, x, use_reentrant=False)
        return m.head(x)

    blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3))
    return Layers(forward, blocks=blocks, head=nn.Linear(4, 2))


@architecture("Neural Turing machine (soft addressing)", SEQUENCE)
def turing():
    def forward(m, x):
        memory, read = m.memory.expand(len(x), -1, -1), x.new_zeros(len(x), 3)
        for step in x.unbind(1):
            key, erase, add = m.controller(torch.cat((step, read), 1)).split(3, 1)
            w = (5 * F.cosine_similarity(key[:, None], memory, -1)).softmax(-1)
            memory = memory * (1 - w[..., None] * erase.sigmoid()[:, None]) + w[..., None] * add[:, None]
            read = (w[:, None] @ memory)[:, 0]
        return m.head(read)

    return Layers(forward, memory=torch.randn(4, 3), controller=nn.Linear(7, 9), head=nn.Linear(3, 2))
