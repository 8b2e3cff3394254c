"""Training: sizes of the study, and the rows of one seed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TypeAlias

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import nntk
from nntk.bench.measure import data
from nntk.bench.results.schema import Row
from nntk.bench.studies import Setting
from nntk.bench.studies.analysis.networks import network

NONLOCAL, EVOLUTION = "nonlocal descent", "evolution strategies"
THROUGH, LAST = "straight-through", "autograd (last layer alone)"
METHODS = (THROUGH, NONLOCAL, EVOLUTION, LAST)
_GRADIENT_EVALUATIONS = 3
"""Cost of a forward and a backward pass, in evaluations of the network."""
EASY = 0.5
"""Accuracy up to which evaluations are counted."""
_Loss: TypeAlias = Callable[[], Tensor]


@dataclass(frozen=True)
class Size:
    """Numbers of the study; learning rates and gammas of the methods are the best of small grids on other seeds."""

    seeds: int = 5
    points: int = 24
    grid: int = 51
    widths: tuple[int, ...] = (16, 64, 256, 1024)
    gammas: tuple[float, ...] = (0.01, 0.3, 1.0)
    flow_samples: int = 1024
    flow_steps: int = 1000
    batch: int = 100
    pairs: int = 32
    steps: int = 1000
    gradient_steps: int = 2000
    gamma: float = 0.2
    learning_rate: float = 2e-2
    gradient_learning_rate: float = 1e-2


def replicate(setting: Setting) -> Iterator[Row | str]:
    """Compute the rows of one seed; a string says which part comes next."""
    for width in setting.size.widths:
        yield f"gradient flow, {width} units"
        yield from _flow(setting, width)
    for method in METHODS:
        yield method
        yield from _signs(setting, method)


def _flow(setting: Setting, width: int) -> Iterator[Row]:
    """Train a tanh network by gradient descent, and compare it with the flow that each kernel predicts."""
    size: Size = setting.size
    model = network("tanh", (1, width, 1), setting.seed, setting.device)
    x, grid = (
        torch.linspace(-1, 1, n, dtype=torch.float64, device=setting.device)[:, None] for n in (size.points, size.grid)
    )
    targets = torch.sin(4 * x[:, 0]) + x[:, 0].abs() / 2
    flows = {name: (nntk.GradientFlow(kernel, targets, _outputs(model, x)), cross)
             for name, (kernel, cross) in _kernels(setting, model, x, grid).items()}  # fmt: skip
    start, rate = _outputs(model, grid), flows["NTK"][0].largest_learning_rate / 10
    marks = _marks(size.flow_steps, 25)
    losses = _descend(model, x, targets, rate, marks)
    trained = _outputs(model, grid)
    place = {"table": "flow", "width": width, "steps": marks}
    yield {**place, "by": "training", "loss": losses[-1], "losses": losses}
    for name, (flow, cross) in flows.items():
        losses = [float((flow.at(rate * step) - targets).square().mean()) for step in marks]
        wrong = flow.at(rate * marks[-1], cross, start) - trained
        error = float(wrong.norm() / (trained - start).norm())
        curve = {"inputs": grid[:, 0].tolist(), "wrong": wrong.tolist()} if width == max(size.widths) else {}
        yield {**place, "by": name, "error": error, "loss": losses[-1], "losses": losses, **curve}


def _kernels(setting: Setting, model: nn.Module, x: Tensor, grid: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the kernels of the points, and of the grid with the points."""
    size: Size = setting.size
    kernels = {"NTK": (nntk.local_ntk(model, x), nntk.local_ntk(model, grid, x))}
    for gamma in size.gammas:
        kernel = nntk.NonlocalNTK(model, gamma=gamma, samples=size.flow_samples, seed=setting.seed)
        here, there = kernel.features(torch.cat((x, grid))).split((len(x), len(grid)))
        kernels[_flow_name(gamma)] = (here @ here.T, there @ here.T)
    return kernels


def _flow_name(gamma: float) -> str:
    return f"NNTK, gamma = {gamma:g}"


def _outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        outputs: Tensor = model(x)[:, 0]
    return outputs


def _marks(steps: int, count: int) -> list[int]:
    """Return about ``count`` numbers of steps at which a run is evaluated, evenly spaced on a logarithmic axis."""
    return sorted({round(float(mark)) for mark in np.geomspace(1, steps, count)})


def _descend(model: nn.Module, x: Tensor, targets: Tensor, rate: float, marks: Sequence[int]) -> list[float]:
    """Run plain gradient descent on half the sum of squares, and return the mean squares at the marks."""
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=rate), []
    for step in range(1, marks[-1] + 1):
        optimizer.zero_grad()
        ((model(x)[:, 0] - targets).square().sum() / 2).backward()
        optimizer.step()
        if step in marks:
            losses.append(float((_outputs(model, x) - targets).square().mean()))
    return losses


class _StraightThrough(nn.Module):
    """Sign, with the gradient of hardtanh."""

    def forward(self, z: Tensor) -> Tensor:
        """Return the signs of units of any shape."""
        passed = nn.functional.hardtanh(z)
        return passed + (torch.where(z < 0, -1.0, 1.0) - passed).detach()


def _signs(setting: Setting, method: str) -> Iterator[Row]:
    """Train a sign network on digits, and yield its held-out accuracy and training loss during training."""
    size: Size = setting.size
    digits = data.load(setting.seed, setting.device)
    images, labels = digits.images.double(), digits.labels
    model = network("sign", (64, 32, 32, 10), setting.seed, setting.device, biases=0.0)
    layers = (_StraightThrough() if isinstance(layer, nntk.activations.Sign) else layer for layer in model)
    seen = nn.Sequential(*layers) if method == THROUGH else model
    step, cost, steps = _stepper(method, model, setting)
    batches, marks = torch.Generator().manual_seed(setting.seed), _marks(steps, 20)
    for number in range(1, steps + 1):
        indices = torch.randint(data.TRAINING, (size.batch,), generator=batches).to(setting.device)
        step(partial(_cross_entropy, seen, images[indices], labels[indices]))
        if number in marks:
            with torch.no_grad():
                right = model(images[data.TRAINING :]).argmax(1) == labels[data.TRAINING :]
                loss = _cross_entropy(model, images[: data.TRAINING], labels[: data.TRAINING])
            figures = {"accuracy": float(right.double().mean()), "loss": float(loss)}
            yield {"table": "signs", "method": method, "evaluations": cost * number, **figures}


def _cross_entropy(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(images), labels)


def _stepper(method: str, model: nn.Module, setting: Setting) -> tuple[Callable[[_Loss], object], int, int]:
    """Return the function that takes a step of a method, the cost of a step in evaluations, and the number of steps."""
    size: Size = setting.size
    if method == NONLOCAL:
        descent = nntk.NonlocalGradientDescent(
            model.parameters(), lr=size.learning_rate, gamma=size.gamma, samples=size.pairs, seed=setting.seed
        )
        return descent.step, 2 * size.pairs, size.steps
    if method == EVOLUTION:
        adam = torch.optim.Adam(model.parameters(), lr=size.learning_rate)
        noise = torch.Generator().manual_seed(2**20 + setting.seed)
        return partial(_evolve, model, adam, noise, size), 2 * size.pairs, size.steps
    adam = torch.optim.Adam(model.parameters(), lr=size.gradient_learning_rate)
    return partial(_follow, adam), _GRADIENT_EVALUATIONS, size.gradient_steps


def _follow(adam: torch.optim.Adam, loss: _Loss) -> None:
    adam.zero_grad()
    loss().backward()
    adam.step()


@torch.no_grad()
def _evolve(model: nn.Module, adam: torch.optim.Adam, noise: torch.Generator, size: Size, loss: _Loss) -> None:
    """Take a step of evolution strategies: antithetic normal displacements, weighted by the ranks of their losses."""
    base = parameters_to_vector(model.parameters())
    deltas = torch.randn(size.pairs, len(base), generator=noise, dtype=base.dtype).to(base.device)
    losses = np.empty((2, size.pairs))
    for (row, sign), pair in product(enumerate((1, -1)), range(size.pairs)):
        vector_to_parameters(base + sign * size.gamma / 2**0.5 * deltas[pair], model.parameters())
        losses[row, pair] = float(loss())
    ranks = torch.from_numpy(rankdata(losses).reshape(losses.shape)).to(base) / (losses.size - 1)
    vector_to_parameters(base, model.parameters())
    parameters = list(model.parameters())
    parts = ((ranks[0] - ranks[1]) @ deltas).split([parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter)
    adam.step()
