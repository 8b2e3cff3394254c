"""Networks of the benchmarks and studies: smooth ones, and three with jumps, which gradients do not see.

The hard networks have an option ``surrogate``. None is the derivative as autograd sees it, which is zero. A width gives
the derivative of a smooth stand-in, as training by surrogate gradients uses it. The outputs are the same in both cases.
All of them evaluate under ``torch.func.vmap`` over stacked parameters, in float32 and in float64.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from nntk.activations import activate
from nntk.kernels import activations as functions


class ResNet(nn.Module):
    """ResNet of three residual blocks with 32, 64 and 128 channels, batch norms in evaluation mode, a pooled head."""

    def __init__(self, activation: type[nn.Module]) -> None:
        super().__init__()
        self.activation = activation()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.first, self.second, self.skips = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for width, out in ((32, 32), (32, 64), (64, 128)):
            stride = out // width
            self.first.append(nn.Sequential(nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)))
            self.second.append(nn.Sequential(nn.Conv2d(out, out, 3, padding=1, bias=False), nn.BatchNorm2d(out)))
            self.skips.append(nn.Conv2d(width, out, 1, stride) if stride > 1 else nn.Identity())
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return ten outputs of images [N, 3, ...]."""
        h: Tensor = self.activation(self.stem(x))
        for first, second, skip in zip(self.first, self.second, self.skips, strict=True):
            h = self.activation(second(self.activation(first(h))) + skip(h))
        outputs: Tensor = self.head(h.mean((2, 3)))
        return outputs


class Transformer(nn.Module):
    """Transformer block of width 192 with six heads on 24 embedded tokens, and a head on the last token."""

    def __init__(self, activation: type[nn.Module]) -> None:
        super().__init__()
        self.activation = activation()
        self.embedding, self.places = nn.Embedding(1000, 192), nn.Parameter(torch.randn(24, 192) / 10)
        self.queries, self.mixed = nn.Linear(192, 3 * 192), nn.Linear(192, 192)
        self.norms = nn.ModuleList(nn.LayerNorm(192) for _ in range(3))
        self.register_buffer("later", torch.ones(24, 24, dtype=torch.bool).triu(1))
        self.later: Tensor
        self.wide, self.narrow, self.head = nn.Linear(192, 768), nn.Linear(768, 192), nn.Linear(192, 20)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return twenty outputs of tokens [N, 24]."""
        h = self.embedding(tokens) + self.places
        parts = self.queries(self.norms[0](h)).unflatten(-1, (3, 6, 32)).permute(2, 0, 3, 1, 4)
        # Attention is written out, since vmap has no rule for the fused op, which would slow the baseline.
        scores = (parts[0] @ parts[1].mT / 32**0.5).masked_fill(self.later, -torch.inf)
        attended = torch.softmax(scores, -1) @ parts[2]
        h = h + self.mixed(attended.transpose(1, 2).flatten(2))
        h = h + self.narrow(self.activation(self.wide(self.norms[1](h))))
        outputs: Tensor = self.head(self.norms[2](h[:, -1]))
        return outputs


class LongShortTermMemory(nn.Module):
    """LSTM of one layer over a sequence, such as the rows of an image, and a head on its last state.

    Args:
        features: Numbers in each element of the sequence.
        width: Units of the layer.
        outputs: Outputs of the head.
    """

    def __init__(self, features: int = 8, width: int = 64, outputs: int = 10) -> None:
        super().__init__()
        # The cell is written out: torch.func.vmap has no rule for nn.LSTM, and could not be the baseline.
        self.inputs, self.recurrent = nn.Linear(features, 4 * width), nn.Linear(width, 4 * width)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs of sequences [N, T, features]."""
        gates = self.inputs(x)
        h = cell = gates.new_zeros(len(x), self.recurrent.in_features)
        for step in range(gates.shape[1]):
            # The order of the gates is that of nn.LSTM.
            enter, forget, candidate, leave = (gates[:, step] + self.recurrent(h)).chunk(4, -1)
            cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(candidate)
            h = torch.sigmoid(leave) * torch.tanh(cell)
        outputs: Tensor = self.head(h)
        return outputs


class SpikingNetwork(nn.Module):
    """Spiking network: two layers of leaky integrate-and-fire units, driven by a constant current.

    At each step the potential of a unit decays, gains the current, and fires where it reaches one; a spike subtracts
    one. The head reads the mean number of spikes per step.

    Args:
        inputs: Numbers in an input.
        widths: Units of both layers.
        outputs: Outputs of the head.
        steps: Time steps.
        decay: Factor by which a potential decays in a step.
        surrogate: None, or the width w of the derivative 1 / (1 + abs(v) / w)^2 of a spike at potential 1 + v (Zenke
            and Ganguli 2018).
    """

    def __init__(
        self,
        inputs: int = 64,
        widths: tuple[int, int] = (64, 64),
        outputs: int = 10,
        steps: int = 25,
        decay: float = 0.9,
        surrogate: float | None = None,
    ) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(inputs, widths[0]), nn.Linear(*widths)
        self.head = nn.Linear(widths[1], outputs)
        self.steps, self.decay, self.surrogate = steps, decay, surrogate

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs of inputs [N, inputs]."""
        current = self.first(x)
        potentials = [torch.zeros_like(current), current.new_zeros(len(x), self.second.out_features)]
        total = torch.zeros_like(potentials[1])
        for _ in range(self.steps):
            spikes, potentials[0] = self._advance(potentials[0], current)
            spikes, potentials[1] = self._advance(potentials[1], self.second(spikes))
            total = total + spikes
        outputs: Tensor = self.head(total / self.steps)
        return outputs

    def _advance(self, potential: Tensor, current: Tensor) -> tuple[Tensor, Tensor]:
        """Return the spikes of a step, and the potentials after it."""
        potential = self.decay * potential + current
        spikes = spike(potential - 1, self.surrogate)
        return spikes, potential - spikes


class BinaryCnn(nn.Module):
    """Convolutional network on 8 x 8 images with binary weights and binary units, and a head of real weights.

    The weights of a convolution are their signs times the mean of their absolute values (Rastegari et al. 2016).

    Args:
        channels: Channels of both convolutions.
        outputs: Outputs of the head.
        surrogate: None, or the width w of the derivative of a sign, which is one for absolute values up to w
            (Courbariaux et al. 2016).
    """

    def __init__(self, channels: tuple[int, int] = (16, 32), outputs: int = 10, surrogate: float | None = None) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, channels[0], 3, padding=1), nn.Conv2d(*channels, 3, padding=1)
        self.head = nn.Linear(4 * channels[1], outputs)
        self.surrogate = surrogate

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs of images [N, 1, 8, 8]."""
        for layer in (self.first, self.second):
            weight = sign(layer.weight, self.surrogate) * layer.weight.abs().mean((1, 2, 3), keepdim=True)
            z = nn.functional.conv2d(x, weight, layer.bias, padding=1)
            x = sign(nn.functional.max_pool2d(z, 2), self.surrogate)
        outputs: Tensor = self.head(x.flatten(1))
        return outputs


class Mixture(nn.Module):
    """Mixture of experts with hard routing: a router sends each input to the expert of its largest score.

    Args:
        inputs: Numbers in an input.
        width: Hidden units of an expert.
        outputs: Outputs of an expert.
        experts: Number of experts.
        surrogate: None, or the temperature of a softmax of the scores, whose derivative the choice then has.
    """

    def __init__(
        self, inputs: int = 64, width: int = 32, outputs: int = 10, experts: int = 4, surrogate: float | None = None
    ) -> None:
        super().__init__()
        self.router = nn.Linear(inputs, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, outputs)) for _ in range(experts)
        )
        self.surrogate = surrogate

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs of inputs [N, inputs]."""
        choice = choose(self.router(x), self.surrogate)
        outputs = torch.stack([expert(x) for expert in self.experts], -1)
        return (choice[:, None] * outputs).sum(-1)


def spike(z: Tensor, surrogate: float | None) -> Tensor:
    """Return 1 where ``z`` >= 0, else 0; see :class:`SpikingNetwork` for the surrogate."""
    return activate(z, functions.Step()) if surrogate is None else _apply(_SurrogateSpike, z, surrogate)


def sign(z: Tensor, surrogate: float | None) -> Tensor:
    """Return 1 where ``z`` >= 0, else -1; see :class:`BinaryCnn` for the surrogate."""
    return activate(z, functions.Sign()) if surrogate is None else _apply(_StraightThroughSign, z, surrogate)


def choose(scores: Tensor, surrogate: float | None) -> Tensor:
    """Return 1 at the largest of the scores [N, E], else 0; see :class:`Mixture` for the surrogate."""
    return _largest(scores) if surrogate is None else _apply(_SurrogateChoice, scores, surrogate)


def _largest(scores: Tensor) -> Tensor:
    # Not nn.functional.one_hot, which returns integers and, under vmap, needs the number of classes.
    return torch.zeros_like(scores).scatter(-1, scores.argmax(-1, keepdim=True), 1.0)


def _apply(function: type[Function], z: Tensor, surrogate: float) -> Tensor:
    result: Tensor = function.apply(z, surrogate)
    return result


class _Surrogate(Function):
    """Function with the derivative of another one; what vmap does with it follows from its operations."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        z, ctx.surrogate = inputs
        ctx.save_for_backward(z)


class _SurrogateSpike(_Surrogate):
    """Unit step with the derivative of a fast sigmoid."""

    @staticmethod
    def forward(z: Tensor, surrogate: float) -> Tensor:
        return functions.Step().value(z)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (z,) = ctx.saved_tensors
        return gradient / (1 + z.abs() / ctx.surrogate) ** 2, None


class _StraightThroughSign(_Surrogate):
    """Sign with the derivative of a clipped identity."""

    @staticmethod
    def forward(z: Tensor, surrogate: float) -> Tensor:
        return functions.Sign().value(z)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (z,) = ctx.saved_tensors
        return gradient * (z.abs() <= ctx.surrogate).to(gradient.dtype), None


class _SurrogateChoice(_Surrogate):
    """Choice of the largest score, with the derivative of a softmax."""

    @staticmethod
    def forward(z: Tensor, surrogate: float) -> Tensor:
        return _largest(z)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (z,) = ctx.saved_tensors
        shares = torch.softmax(z / ctx.surrogate, -1)
        return shares * (gradient - (shares * gradient).sum(-1, keepdim=True)) / ctx.surrogate, None
