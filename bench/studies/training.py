"""Training: gradient flow by the kernel against training, and a sign network trained by four methods."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
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
from nntk.bench.studies import Drawn, Setting, Study
from nntk.bench.studies.analysis import drawing
from nntk.bench.studies.analysis.claims import Claim
from nntk.bench.studies.analysis.networks import network
from nntk.bench.studies.analysis.rows import Rows

_NONLOCAL, _EVOLUTION = "nonlocal descent", "evolution strategies"
_THROUGH, _LAST = "straight-through", "autograd (last layer alone)"
_METHODS = (_THROUGH, _NONLOCAL, _EVOLUTION, _LAST)
_GRADIENT_EVALUATIONS = 3
"""What a forward and a backward pass count for, in evaluations of the network."""

_EASY = 0.5
"""Accuracy until which evaluations are counted."""

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


def _replicate(setting: Setting) -> Iterator[Row | str]:
    for width in setting.size.widths:
        yield f"gradient flow, {width} units"
        yield from _flow(setting, width)
    for method in _METHODS:
        yield method
        yield from _signs(setting, method)


def _flow(setting: Setting, width: int) -> Iterator[Row]:
    """Gradient descent of a tanh network, and what the flow by each kernel makes of it."""
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
    """The kernels of the points, and of the grid with the points."""
    size: Size = setting.size
    made = {"NTK": (nntk.local_ntk(model, x), nntk.local_ntk(model, grid, x))}
    for gamma in size.gammas:
        kernel = nntk.NonlocalNTK(model, gamma=gamma, samples=size.flow_samples, seed=setting.seed)
        here, there = kernel.features(torch.cat((x, grid))).split((len(x), len(grid)))
        made[_by(gamma)] = (here @ here.T, there @ here.T)
    return made


def _by(gamma: float) -> str:
    return f"NNTK, gamma = {gamma:g}"


def _outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        outputs: Tensor = model(x)[:, 0]
    return outputs


def _marks(steps: int, count: int) -> list[int]:
    """Where a run is looked at: about as many numbers of steps, evenly on a logarithmic axis."""
    return sorted({round(float(mark)) for mark in np.geomspace(1, steps, count)})


def _descend(model: nn.Module, x: Tensor, targets: Tensor, rate: float, marks: Sequence[int]) -> list[float]:
    """Plain gradient descent on half the sum of squares; mean squares at the marks."""
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
        """Units of any shape."""
        passed = nn.functional.hardtanh(z)
        return passed + (torch.where(z < 0, -1.0, 1.0) - passed).detach()


def _signs(setting: Setting, method: str) -> Iterator[Row]:
    """A sign network trained on digits: accuracy on the others, and the training loss, along evaluations."""
    size: Size = setting.size
    digits = data.load(setting.seed, setting.device)
    images, labels = digits.images.double(), digits.labels
    model = network("sign", (64, 32, 32, 10), setting.seed, setting.device, biases=0.0)
    layers = (_StraightThrough() if isinstance(layer, nntk.activations.Sign) else layer for layer in model)
    seen = nn.Sequential(*layers) if method == _THROUGH else model
    step, cost, steps = _stepper(method, model, setting)
    batches, marks = torch.Generator().manual_seed(setting.seed), _marks(steps, 20)
    for number in range(1, steps + 1):
        some = torch.randint(data.TRAINING, (size.batch,), generator=batches).to(setting.device)
        step(partial(_cross_entropy, seen, images[some], labels[some]))
        if number in marks:
            with torch.no_grad():
                right = model(images[data.TRAINING :]).argmax(1) == labels[data.TRAINING :]
                loss = _cross_entropy(model, images[: data.TRAINING], labels[: data.TRAINING])
            figures = {"accuracy": float(right.double().mean()), "loss": float(loss)}
            yield {"table": "signs", "method": method, "evaluations": cost * number, **figures}


def _cross_entropy(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(images), labels)


def _stepper(method: str, model: nn.Module, setting: Setting) -> tuple[Callable[[_Loss], object], int, int]:
    """What makes a step of a method from the loss of a batch, its cost in evaluations, and the number of steps."""
    size: Size = setting.size
    if method == _NONLOCAL:
        descent = nntk.NonlocalGradientDescent(
            model.parameters(), lr=size.learning_rate, gamma=size.gamma, samples=size.pairs, seed=setting.seed
        )
        return descent.step, 2 * size.pairs, size.steps
    if method == _EVOLUTION:
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
    """A step of evolution strategies: antithetic normal displacements, weighted by their losses' ranks."""
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


def _claims(rows: Rows) -> Sequence[Claim]:
    return [*_claims_of_flow(rows.where(table="flow")), *_claims_of_signs(rows.where(table="signs"))]


def _claims_of_flow(rows: Rows) -> list[Claim]:
    widths, names = rows.distinct("width"), rows.distinct("by")
    narrow, wide = min(widths), max(widths)
    exact, small, large = (rows.where(by=name) for name in (names[1], names[2], names[-1]))
    training = rows.where(by="training", width=wide)
    errors = [exact.values("error", width=width) for width in (narrow, wide)]
    return [
        Claim(
            "flow: the NTK",
            f"The flow by the NTK predicts what gradient descent makes of {wide} tanh units with an error of {{}} of "
            "the change of the function,",
            errors[1], 0, 0.02, ".1e", ratio=True,
        ),
        Claim(
            "flow: width",
            "which goes as the width to the power of {}.",
            np.log(errors[1] / errors[0]) / np.log(wide / narrow), -2.2, -0.7, ".2f",
        ),
        Claim(
            "flow: a small gamma",
            f"By the {names[2]}, it is {{}}, what the kernel's Monte-Carlo error makes of it;",
            small.values("error", width=wide), 0.001, 0.1, ".2g", ratio=True,
        ),
        Claim(
            "flow: a large gamma",
            f"by the {names[-1]}, it is {{}}.",
            large.values("error", width=wide), 0.02, 0.2, ".2g", ratio=True,
        ),
        Claim(
            "flow: a smoothed kernel is slow",
            "That kernel is of a smoothed network: the loss that it predicts at the end is {} times the one reached. "
            "Where there is a gradient, training follows it, and the NTK predicts it best.",
            large.values("loss", width=wide) / training.values("loss"), 1.1, 3, ".2f", ratio=True,
        ),
    ]  # fmt: skip


def _claims_of_signs(rows: Rows) -> list[Claim]:
    last = {name: rows.where(method=name).distinct("evaluations")[-1] for name in _METHODS}
    ends = {name: rows.values("accuracy", method=name, evaluations=last[name]) for name in _METHODS}
    return [
        Claim(
            "signs: nonlocal descent",
            f"On digits nonlocal descent brings the sign network in {last[_NONLOCAL]:,} evaluations to {{}} of those "
            "held out,",
            ends[_NONLOCAL], 0.5, 1, ".3f",
        ),
        Claim(
            "signs: autograd",
            "which is {} more than autograd does, which sees the last layer alone.",
            ends[_NONLOCAL] - ends[_LAST], 0.02, 0.6, ".3f",
        ),
        Claim(
            "signs: evolution strategies",
            "The accuracy of evolution strategies less its own is {}: they see losses of the same kind, and differ by "
            "ranks and by the division by |delta|^2.",
            ends[_EVOLUTION] - ends[_NONLOCAL], -0.04, 0.08, ".3f",
        ),
        Claim(
            "signs: straight-through",
            f"The straight-through estimator is after {last[_THROUGH]:,} evaluations more accurate than both, by {{}},",
            ends[_THROUGH] - np.maximum(ends[_NONLOCAL], ends[_EVOLUTION]), 0.01, 0.45, ".3f",
        ),
        Claim(
            "signs: evaluations",
            f"and takes {{}} of the evaluations to reach {_EASY:.0%}: for the price of three it has a "
            "surrogate gradient by every parameter, where M pairs tell of M directions. It needs a network whose "
            "layers it can replace.",
            _evaluations(rows, _THROUGH) / _evaluations(rows, _NONLOCAL), 1e-3, 0.1, ".2g", ratio=True,
        ),
    ]  # fmt: skip


def _evaluations(rows: Rows, method: str) -> np.ndarray:
    """Evaluations at which a method first has half of the digits right, or at its end, one a seed."""
    of = rows.where(method=method)
    places = np.array(of.distinct("evaluations"), dtype=float)
    accuracies = np.array([of.values("accuracy", evaluations=place) for place in places])
    reached = accuracies >= _EASY
    return np.asarray(np.where(reached.any(0), places[reached.argmax(0)], places[-1]))


def _figures(rows: Rows) -> Iterator[Drawn]:
    yield _draw_flow(rows.where(table="flow"))
    yield _draw_signs(rows.where(table="signs"))


def _draw_flow(rows: Rows) -> Drawn:
    figure, (losses, curves, errors) = drawing.panels(1, 3, width=3.5, height=3.6)
    wide = max(rows.distinct("width"))
    for number, name in enumerate(rows.distinct("by")):
        of = rows.where(by=name)
        first = next(iter(of.where(width=wide)))
        look = drawing.look(number)
        # Beneath the others, which lie on it.
        below = {} if "error" in first else {"linewidth": 5, "alpha": 0.35}
        losses.plot(first["steps"], first["losses"], **{**look, "marker": "", **below}, label=name)
        if "error" in first:
            curves.plot(first["inputs"], first["wrong"], **{**look, "marker": ""})
            drawing.draw(errors, of.band("width", "error", True), name, number)
    losses.set(xscale="log", yscale="log")
    errors.set(xscale="log", yscale="log")
    errors.set_xticks(rows.distinct("width"), [str(width) for width in rows.distinct("width")])
    errors.set_xticks((), minor=True)
    drawing.entitle(losses, f"Loss, {wide} units", "steps of gradient descent (number)", "mean squared error")
    drawing.entitle(curves, f"Error, {wide} units", "input x", "predicted minus trained function")
    drawing.entitle(errors, "Error and width", "hidden units (number)", "error (relative to the change)")
    drawing.legend(figure, 5, losses)
    return Drawn(
        "flow",
        "Gradient flow by a kernel against gradient descent of a tanh network. Left: the loss, and what each kernel "
        "predicts. Middle: the function at the end, predicted minus trained. Both are of the first seed. Right: that "
        "error by width, geometric means and 95 % intervals over seeds.",
        figure,
    )


def _draw_signs(rows: Rows) -> Drawn:
    figure, (accuracy, loss) = drawing.panels(1, 2, width=4.8, height=3.6)
    for number, method in enumerate(_METHODS):
        of = rows.where(method=method)
        drawing.draw(accuracy, of.band("evaluations", "accuracy"), method, number)
        drawing.draw(loss, of.band("evaluations", "loss", True), method, number)
    accuracy.set(xscale="log", ylim=(0, 1))
    loss.set(xscale="log", yscale="log")
    drawing.entitle(accuracy, "Held out", "evaluations of the network (number)", "accuracy (fraction of digits)")
    drawing.entitle(loss, "Training", "evaluations of the network (number)", "cross-entropy (nats)")
    drawing.legend(figure, 4, accuracy)
    return Drawn(
        "signs",
        "A sign network trained on 1000 digits by four methods, along evaluations of a batch (a forward and a backward "
        "pass count three): accuracy on the 797 held out, and the loss on those of training. Means (of the loss "
        "geometric) and 95 % intervals over seeds.",
        figure,
    )


STUDY = Study(
    name="training",
    title="Training predicted by the kernel, and training without gradients",
    about="Flow: a tanh network of one input and one hidden layer (He's initialisation, normal biases of standard "
    "deviation 0.5) is trained by gradient descent on half the sum of squares at points evenly spaced in [-1, 1], "
    "target sin(4 x) + |x| / 2, at a tenth of the largest stable learning rate of the NTK. nntk.GradientFlow predicts "
    "it from the kernel at initialisation: the exact NTK, or the energy form of gaussian antithetic displacements. "
    "The error is that of the final function on a grid, relative to its change, in the 2-norm. Signs: scikit-learn's "
    "8x8 digits, 1000 for training, 797 held out; a sign network 64-32-32-10 (He's initialisation, biases zero), "
    "cross-entropy, the same initial weights and the same batches for every method. Nonlocal descent is "
    "nntk.NonlocalGradientDescent. Evolution strategies (Salimans et al. 2017) take as many antithetic pairs of the "
    "same law, centred ranks and Adam. Straight-through (Bengio et al. 2013) has the gradient of hardtanh in place of "
    "sign's, and Adam; autograd has sign's own, zero, and Adam. An antithetic pair counts as two evaluations of the "
    "network at a batch, a forward and a backward pass as three. Those with gradients end earlier, after their "
    "accuracy has settled. The settings of both methods of displacements are the best, for both, of ten combinations "
    "of learning rates from 0.005 to 0.04 and gammas from 0.05 to 0.4, tried on seeds 100 and 101; the learning rate "
    "of those with gradients is the best of 0.001, 0.003, 0.01 and 0.03 for straight-through on the same seeds. A seed "
    "sets the split of the digits too. All in float64.",
    full=Size(),
    quick=replace(
        Size(),
        seeds=3,
        widths=(16, 256),
        gammas=(0.01, 1.0),
        flow_samples=256,
        flow_steps=300,
        steps=80,
        gradient_steps=200,
    ),
    replicate=_replicate,
    claims=_claims,
    figures=_figures,
)
