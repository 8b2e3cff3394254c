"""Models that torch.func differentiates wrongly or not at all, or that write to what they hold or are given."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from nntk import activations


class Features(nn.Module):
    """Module of one linear layer, and a function of its outputs [N, width] and the inputs."""

    def __init__(self, function, width=9, inputs=4):
        super().__init__()
        self.layer, self.function = nn.Linear(inputs, width), function

    def forward(self, x):
        """Return the function."""
        return self.function(self.layer(x), x)


def on_matrices(function, width=9):
    """Module whose features are square matrices [N, 3, 3], far from singular."""
    eye = 3 * torch.eye(3)
    return Features(lambda h, x: function(h.view(len(x), 3, 3) + eye.to(h)), width)


def by_lu(a):
    """Solve A y = 1 from a factorisation."""
    factors, pivots = torch.linalg.lu_factor(a)
    return torch.linalg.lu_solve(factors, pivots, torch.ones_like(a[..., :1])).flatten(1)


def quantised(h, x):
    """Round to a grid whose scale is no function for autograd, with a straight-through gradient."""
    with torch.no_grad():
        scale = h.abs().amax(1, keepdim=True) / 7
    q = h / scale
    return (q + (q.round() - q).detach()) * scale


class Cube(torch.autograd.Function):
    """Function in the older form, which torch.func does not accept."""

    @staticmethod
    def forward(context, x):
        """Return the cube."""
        context.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(context, gradient):
        """Return the derivative."""
        return 3 * context.saved_tensors[0] ** 2 * gradient


class Sequence(nn.Module):
    """Recurrent layer with a head, for inputs [N, 4] as four steps."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(layer.hidden_size, 2)

    def forward(self, x):
        """Return outputs after the last step."""
        return self.head(self.layer(x[..., None])[0][:, -1])


class Attending(nn.Module):
    """Attention over four tokens."""

    def __init__(self):
        super().__init__()
        self.embed, self.attention, self.head = (
            nn.Linear(1, 4),
            nn.MultiheadAttention(4, 2, batch_first=True),
            nn.Linear(4, 2),
        )

    def forward(self, x):
        """Return the head of the mean token."""
        h = self.embed(x[..., None])
        return self.head(self.attention(h, h, h)[0].mean(1))


class Checkpointed(nn.Module):
    """Two blocks that are evaluated again in the backward pass."""

    def __init__(self, reentrant):
        super().__init__()
        self.first, self.second = nn.Sequential(nn.Linear(4, 6), nn.Tanh()), nn.Sequential(nn.Linear(6, 2), nn.Tanh())
        self.reentrant = reentrant

    def forward(self, x):
        """Return the outputs."""
        h = checkpoint(self.first, x, use_reentrant=self.reentrant)
        return checkpoint(self.second, h, use_reentrant=self.reentrant)


class Counting(nn.Module):
    """Module that writes to a buffer, to an attribute and to its inputs."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(4, 3), None
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x):
        """Return outputs that do not depend on what earlier calls left."""
        x.mul_(0.5)
        self.last = torch.tanh(self.layer(x))
        self.mean.mul_(0.9).add_(self.last.detach().mean(0))
        return self.last


class Unused(nn.Module):
    """Module with a parameter that does nothing, a scalar one, and one with no entries."""

    def __init__(self):
        super().__init__()
        self.layer, self.unused = nn.Linear(4, 2), nn.Linear(5, 5)
        self.scale, self.empty = nn.Parameter(torch.tensor(0.7)), nn.Parameter(torch.zeros(0, 3))

    def forward(self, x):
        """Return the scaled outputs."""
        return self.scale * self.layer(x)


class Tied(nn.Module):
    """Encoder and decoder that share a weight, which is used twice."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 4), nn.Linear(4, 4)
        self.decoder.weight = self.encoder.weight

    def forward(self, x):
        """Return the reconstruction."""
        return self.decoder(torch.tanh(self.encoder(x))) + functional.linear(x, self.encoder.weight.t())


def filled(h, x):
    """Write into a new tensor in a loop."""
    result = torch.zeros_like(h)
    for column in range(h.shape[1]):
        result[:, column] = h[:, column] * h[:, column - 1]
    return result


def masked(h, x):
    """Change some entries, chosen by a mask."""
    h = h.clone()
    h[h > 0] = h[h > 0].sin()
    return h


def spectrum(h, x):
    """Return amplitudes of complex values."""
    return torch.fft.fft(torch.polar(1 + h.square(), h)).abs()


def transposed():
    """Return a module whose weight is not contiguous."""
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    model[0].weight = nn.Parameter(torch.randn(4, 6).t())
    return model


def weight_normed():
    """Return a module in which a hook computes a weight before each call."""
    return nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 2))


class EnergyForce(nn.Module):
    """Module whose forward pass computes a gradient by its inputs."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(4, 6), nn.Linear(6, 1)

    def forward(self, x):
        """Return the gradient of an energy."""
        x = x.requires_grad_()
        return torch.autograd.grad(self.head(torch.tanh(self.layer(x))).sum(), x, create_graph=True)[0]


def by_numpy(h, x):
    """Multiply by numbers that NumPy computes from the inputs."""
    return h * torch.from_numpy(np.cos(x.numpy()).sum(1, keepdims=True))


class Bytes(nn.Module):
    """Layer for integers in [0, 255], or for a mask."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        """Return a function of the scaled inputs."""
        return self.layer(x.to(self.layer.weight) / 255).tanh()


MODELS = {
    "slogdet": lambda: on_matrices(lambda a: torch.linalg.slogdet(a)[1]),
    "det": lambda: on_matrices(torch.linalg.det),
    "solve": lambda: on_matrices(lambda a: torch.linalg.solve(a, torch.ones_like(a[..., 0]))),
    "lu_solve": lambda: on_matrices(by_lu),
    "inverse": lambda: on_matrices(lambda a: torch.linalg.inv(a).flatten(1)),
    "cdist": lambda: Features(lambda h, x: torch.cdist(h.view(len(x), 3, 3), h.view(len(x), 3, 3).sin()).flatten(1)),
    "quantiser": lambda: Features(quantised, 6),
    "rnn": lambda: Sequence(nn.RNN(1, 5, batch_first=True)),
    "gru": lambda: Sequence(nn.GRU(1, 5, batch_first=True)),
    "lstm": lambda: Sequence(nn.LSTM(1, 5, batch_first=True)),
    "checkpoint": lambda: Checkpointed(reentrant=False),
    "reentrant checkpoint": lambda: Checkpointed(reentrant=True),
    "custom function": lambda: Features(lambda h, x: Cube.apply(h), 6),
    "attention": Attending,
    "boolean index": lambda: Features(masked, 6),
    "loop in place": lambda: Features(filled, 6),
    "tokens": lambda: nn.Sequential(nn.Embedding(20, 4), nn.Flatten(), nn.Linear(16, 2)),
    "sparse gradients": lambda: nn.Sequential(nn.Embedding(20, 4, sparse=True), nn.Flatten(), nn.Linear(16, 2)),
    "state": Counting,
    "unused parameters": Unused,
    "no dependence": lambda: Features(lambda h, x: x.sin()),
    "complex values": lambda: Features(spectrum, 3),
    "not contiguous": transposed,
    "tied": Tied,
    "legacy weight_norm": weight_normed,
    "gradient inside": EnergyForce,
    "numpy": lambda: Features(by_numpy, 3),
    "sign": lambda: nn.Sequential(nn.Linear(4, 5), activations.Sign(), nn.LayerNorm(5), nn.Linear(5, 2)),
    "bytes": Bytes,
    "mask": Bytes,
}
"""Functions that make each model."""

TOKENS = torch.randint(0, 20, (5, 4), generator=torch.Generator().manual_seed(3))
INPUTS = {"tokens": TOKENS, "sparse gradients": TOKENS, "bytes": TOKENS.byte(), "mask": TOKENS > 9}
"""Inputs of the models whose inputs are not floating."""
