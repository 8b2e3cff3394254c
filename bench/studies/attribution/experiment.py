"""Attribution: sizes of the study, and the rows of one seed."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import nntk
from nntk.bench.measure import data
from nntk.bench.results.schema import Row
from nntk.bench.studies import Setting
from nntk.learning.attribution import output_features, scores_of_features

TRAK, TWIN, HEAD, SURROGATE, NONLOCAL = (
    "TRAK", "TRAK of a float twin", "TRAK by autograd", "TRAK straight-through", "NNTK",
)  # fmt: skip
RELU, SIGN, QUANTISED = "relu", "sign", "4 bits"
ACTIVATIONS: dict[str, type[nn.Module]] = {
    RELU: nn.ReLU,
    SIGN: nntk.activations.Sign,
    QUANTISED: nntk.activations.Quantise,
}
METHODS = {RELU: (TRAK, NONLOCAL), **dict.fromkeys((SIGN, QUANTISED), (TWIN, SURROGATE, HEAD, NONLOCAL))}
"""Methods of each network."""

WIDTHS = (64, 64, 10)
_SMALL_GAMMA = 0.01
"""Gamma of the network with gradients, where the features tend to them."""


@dataclass(frozen=True)
class Size:
    """Numbers of the study; of the digits, the first number is for training and the second is held out."""

    seeds: int = 5
    digits: tuple[int, int] = (500, 100)
    subsets: int = 40
    initialisations: int = 2
    models: int = 2
    steps: int = 100
    learning_rate: float = 0.02
    samples: int = 2048
    gammas: tuple[float, ...] = (0.2, 0.4)
    ridges: tuple[float, ...] = (0.01, 0.1, 0.3, 1.0, 3.0)


class StraightThrough(nn.Module):
    """A unit with the outputs of another one, and with the gradient of a clip to [-1, 1]."""

    def __init__(self, unit: nn.Module) -> None:
        super().__init__()
        self.unit = unit

    def forward(self, z: Tensor) -> Tensor:
        """Return the outputs of the unit."""
        clipped = z.clamp(-1, 1)
        outputs: Tensor = clipped + (self.unit(z) - clipped).detach()
        return outputs


@dataclass(frozen=True)
class _Digits:
    """Training and held-out digits: pixels, float64, and labels."""

    x: Tensor
    labels: Tensor
    new: Tensor
    new_labels: Tensor

    @classmethod
    def load(cls, setting: Setting) -> "_Digits":
        training, held_out = setting.size.digits
        digits = data.load(setting.seed, setting.device)
        x, labels = digits.images[: training + held_out].double(), digits.labels[: training + held_out]
        return cls(x[:training], labels[:training], x[training:], labels[training:])


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """Return log p - log(1 - p) of the labels, [..., N], by logits [..., N, C]."""
    chosen = labels.expand(logits.shape[:-1])[..., None]
    return logits.gather(-1, chosen)[..., 0] - logits.scatter(-1, chosen, -math.inf).logsumexp(-1)


def train(digits: _Digits, units: str, subsets: Tensor, size: Size, seed: int) -> list[Tensor]:
    """Train a network on each of several subsets of one size, all at once.

    Args:
        digits: The digits.
        units: Units of the networks.
        subsets: Numbers of the training digits of each network, [R, n].
        size: Sizes of the study.
        seed: Seed of the initialisations.

    Returns:
        Weights [R, in, out] and biases [R, 1, out] of each layer in turn, float32.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = []
    for fan_in, fan_out in zip(WIDTHS[:-1], WIDTHS[1:], strict=True):
        weight = torch.randn(len(subsets), fan_in, fan_out, generator=generator) * (2 / fan_in) ** 0.5
        parameters += [weight.to(digits.x.device), torch.zeros(len(subsets), 1, fan_out, device=digits.x.device)]
    for parameter in parameters:
        parameter.requires_grad_()
    optimizer = torch.optim.Adam(parameters, size.learning_rate)
    x, labels = digits.x.float()[subsets], digits.labels[subsets]
    for _ in range(size.steps):
        optimizer.zero_grad()
        logits = evaluate(parameters, x, units)
        losses = nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        losses.mean(1).sum().backward()
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


def evaluate(parameters: Sequence[Tensor], x: Tensor, units: str) -> Tensor:
    """Return the logits of several networks, [R, n, C], at inputs [R, n, 64] of their own."""
    unit = ACTIVATIONS[units]() if units == RELU else StraightThrough(ACTIVATIONS[units]())
    hidden = unit(torch.baddbmm(parameters[1], x, parameters[0]))
    return torch.baddbmm(parameters[3], hidden, parameters[2])


def replicate(setting: Setting) -> Iterator[Row | str]:
    """Compute the rows of one seed; a string says which part comes next."""
    size: Size = setting.size
    digits, generator = _Digits.load(setting), torch.Generator().manual_seed(setting.seed)
    number = len(digits.x)
    subsets = torch.stack([torch.randperm(number, generator=generator)[: number // 2] for _ in range(size.subsets)])
    members = torch.zeros(size.subsets, number, dtype=torch.bool).scatter_(1, subsets, True)
    everything = torch.arange(number).expand(size.models, -1)
    trained = {}
    for units in ACTIVATIONS:
        yield f"{units}: retraining"
        outputs = torch.zeros(size.subsets, len(digits.new), device=setting.device)
        for start in range(size.initialisations):
            parameters = train(digits, units, subsets.to(setting.device), size, 1000 * setting.seed + start)
            logits = evaluate(parameters, digits.new.float().expand(size.subsets, -1, -1), units)
            outputs += margins(logits, digits.new_labels) / size.initialisations
        parameters = train(digits, units, everything.to(setting.device), size, 1000 * setting.seed + 500)
        logits = evaluate(parameters, digits.new.float().expand(size.models, -1, -1), units)
        accuracy = float((logits.argmax(2) == digits.new_labels).double().mean())
        yield {"table": "networks", "units": units, "accuracy": accuracy, "margin": float(outputs.mean())}
        trained[units] = [module(parameters, units, index) for index in range(size.models)]
        for method in METHODS[units]:
            yield f"{units}: {method}"
            models = trained[RELU if method == TWIN else units]
            yield from _score(digits, models, units, method, members, outputs.cpu(), setting)


def module(parameters: Sequence[Tensor], units: str, index: int) -> nn.Sequential:
    """Return one of the trained networks as a module, in float64 and without straight-through gradients."""
    layers = [nn.Linear(*sizes) for sizes in zip(WIDTHS[:-1], WIDTHS[1:], strict=True)]
    with torch.no_grad():
        for number, layer in enumerate(layers):
            layer.weight.copy_(parameters[2 * number][index].T)
            layer.bias.copy_(parameters[2 * number + 1][index, 0])
    model = nn.Sequential(layers[0], ACTIVATIONS[units](), layers[1])
    return model.double().to(parameters[0].device).eval()


def gradient_features(model: nn.Module, x: Tensor, labels: Tensor, number: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return TRAK's features, gradients of the margins times a normal matrix, [N, number], and the margins, [N]."""
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def margin(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return margins(functional_call(model, parameters, (image[None],)), label[None])[0]

    found = vmap(grad(margin), (None, 0, 0))(parameters, x, labels)
    gradients = torch.cat([found[name].flatten(1) for name in parameters], 1)
    generator = torch.Generator().manual_seed(seed)
    projection = torch.randn(gradients.shape[1], number, generator=generator, dtype=gradients.dtype).to(x.device)
    return gradients @ projection / number**0.5, margins(model(x), labels).detach()


def _score(
    digits: _Digits,
    models: Sequence[nn.Sequential],
    units: str,
    method: str,
    members: Tensor,
    outputs: Tensor,
    setting: Setting,
) -> Iterator[Row]:
    """Yield the LDS of a method at every gamma and ridge, and that of the best choice on the other held-out digits."""
    size: Size = setting.size
    best = (-math.inf, 0.0, 0.0, 0.0)
    gammas = (size.gammas if units != RELU else (_SMALL_GAMMA,)) if method == NONLOCAL else (0.0,)
    for gamma in gammas:
        functions = list(_features(models, method, gamma, setting))
        known = [features(digits.x, digits.labels) for features in functions]
        others = [features(digits.new, digits.new_labels)[0] for features in functions]
        pairs = [_compress(a, b) for (a, _), b in zip(known, others, strict=True)]
        slopes = torch.stack([torch.sigmoid(-outputs) for _, outputs in known]).mean(0)
        for ridge in size.ridges:
            scores = scores_of_features([a for a, _ in pairs], [b for _, b in pairs], slopes, ridge)
            correlations = nntk.linear_datamodeling_score(scores.cpu(), members, outputs)
            chosen, reported = float(correlations[::2].mean()), float(correlations[1::2].mean())
            settings = {"units": units, "method": method, "gamma": gamma, "ridge": ridge}
            yield {"table": "choices", **settings, "lds": chosen}
            best = max(best, (chosen, reported, gamma, ridge))
    yield {"table": "scores", "units": units, "method": method, "lds": best[1], "gamma": best[2], "ridge": best[3]}


def _compress(known: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Return features of the same inner products, at most as many as inputs, so that every ridge is solved quickly."""
    values, vectors = torch.linalg.eigh(known @ known.T)
    kept = values > len(values) * torch.finfo(values.dtype).eps * values[-1]
    roots, vectors = values[kept].sqrt(), vectors[:, kept]
    return vectors * roots, others @ (known.T @ (vectors / roots))


_Features = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def _features(models: Sequence[nn.Sequential], method: str, gamma: float, setting: Setting) -> Iterator[_Features]:
    """Yield, for each model, the function from inputs and labels to features and margins."""
    size: Size = setting.size
    for index, model in enumerate(models):
        seed = 1000 * setting.seed + index
        if method == NONLOCAL:
            kernel = nntk.NonlocalNTK(model, gamma=gamma, samples=size.samples, seed=seed)
            yield partial(output_features, kernel)
            continue
        if method == SURROGATE:
            model = nn.Sequential(model[0], StraightThrough(model[1]), model[2])
        yield partial(gradient_features, model, number=size.samples, seed=seed)
