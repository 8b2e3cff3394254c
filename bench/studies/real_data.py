"""Real data: digits and diabetes by the NTK, the NNTK and an RBF kernel, against M and time."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

import nntk
from nntk.bench.measure import data
from nntk.bench.results.schema import Row
from nntk.bench.studies import Setting, Study, StudyFigure
from nntk.bench.studies.analysis import drawing
from nntk.bench.studies.analysis.claims import Claim
from nntk.bench.studies.analysis.networks import network
from nntk.bench.studies.analysis.ridge import Fit, fit, root
from nntk.bench.studies.analysis.rows import Rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_UNITS = ("relu", "sign", "4 bits")
_LINES = {"RBF": ("0.0", ":"), "linear": ("0.5", "-."), "wide NTK": ("#E69F00", "--")}
"""Colours and dashes of the kernels that do not depend on the narrow networks."""


@dataclass(frozen=True)
class Size:
    """Numbers of the study; of a task's inputs, the first number is for training and the second is held out."""

    seeds: int = 5
    digits: tuple[int, int] = (400, 400)
    diabetes: tuple[int, int] = (300, 142)
    hidden: tuple[int, ...] = (64, 64)
    samples: tuple[int, ...] = (32, 128, 512, 2048)
    wide: tuple[int, ...] = (1024, 1024)
    gammas: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
    gamma_samples: int = 128
    length_scales: tuple[float, ...] = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 4.0)


@dataclass(frozen=True)
class _Task:
    """Inputs [N, K] and targets [N, T], training inputs first, and the function that scores held-out predictions."""

    name: str
    x: np.ndarray
    targets: np.ndarray
    training: int
    score: Callable[["_Task", np.ndarray, Fit], Row]

    @property
    def training_targets(self) -> np.ndarray:
        return self.targets[: self.training]

    @property
    def held_out(self) -> np.ndarray:
        return self.targets[self.training :]


def _tasks(setting: Setting) -> Iterator[_Task]:
    from sklearn.datasets import load_diabetes
    from sklearn.preprocessing import StandardScaler

    size: Size = setting.size
    digits = data.load(setting.seed, torch.device("cpu"))
    images, labels = (part[: sum(size.digits)].numpy() for part in (digits.images, digits.labels))
    yield _Task("digits", images.astype(float), np.eye(10)[labels], size.digits[0], _score_classes)
    x, y = load_diabetes(return_X_y=True)
    order = np.random.default_rng(setting.seed).permutation(len(y))[: sum(size.diabetes)]
    training = size.diabetes[0]
    x, targets = (StandardScaler().fit(part[:training]).transform(part) for part in (x[order], y[order].reshape(-1, 1)))
    yield _Task("diabetes", x, targets, training, _score_values)


def _score_classes(task: _Task, features: np.ndarray, fitted: Fit) -> Row:
    """Return the fraction of wrong classes, and the mean negative log-likelihood of a softmax of the predictions.

    Its temperature is fitted to the leave-one-out predictions.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    def likelihood(scores: np.ndarray, members: np.ndarray, coldness: float) -> float:
        return -float((members * log_softmax(np.exp(coldness) * scores, axis=1)).sum(1).mean())

    optimum = minimize_scalar(
        lambda c: likelihood(fitted.left_out, task.training_targets, c), bounds=(-2, 7), method="bounded"
    )
    wrong = fitted.predictions.argmax(1) != task.held_out.argmax(1)
    return {"error": float(wrong.mean()), "nll": likelihood(fitted.predictions, task.held_out, optimum.x)}


def _score_values(task: _Task, features: np.ndarray, fitted: Fit) -> Row:
    """Return the root mean square error, and the mean negative log-likelihood of gaussian predictions.

    Their scale and noise are those of the highest evidence.
    """
    from scipy.stats import norm
    from sklearn.linear_model import BayesianRidge

    process = BayesianRidge().fit(features[: task.training], task.training_targets[:, 0])
    mean, deviation = process.predict(features[task.training :], return_std=True)
    return {
        "error": float(np.sqrt(np.square(fitted.predictions - task.held_out).mean())),
        "nll": -float(norm.logpdf(task.held_out[:, 0], mean, deviation).mean()),
    }


def _features(task: _Task, kernel: Tensor) -> np.ndarray:
    """Return features with a mean square of one at the training inputs."""
    return root(kernel / kernel.diagonal()[: task.training].mean())


def _loo(task: _Task, kernel: Tensor) -> float:
    """Mean squared leave-one-out error by the kernel of the training inputs."""
    return float(fit(_features(task, kernel), task.training_targets, task.training, shared=True).loo.mean())


def _row(task: _Task, make: Callable[[], Tensor], **settings: str | float) -> Row:
    """Return the row of a kernel of all inputs: its scores, and the time to compute it."""
    start = time.perf_counter()
    kernel = make().cpu()
    seconds = time.perf_counter() - start
    features = _features(task, kernel)
    fitted = fit(features, task.training_targets, task.training, shared=True)
    return {
        "table": "kernels",
        "task": task.name,
        **settings,
        "loo": float(fitted.loo.mean()),
        "alpha": float(fitted.alpha[0]),
        **task.score(task, features, fitted),
        "kernel_s": seconds,
    }


def _replicate(setting: Setting) -> Iterator[Row | str]:
    for task in _tasks(setting):
        yield f"{task.name}, RBF"
        yield from _reference_rows(task, setting)
        for units in _UNITS:
            yield from _networks(task, units, setting)


def _reference_rows(task: _Task, setting: Setting) -> Iterator[Row]:
    """Yield the rows of the kernels that do not depend on the narrow networks."""
    from scipy.spatial.distance import pdist
    from sklearn.metrics.pairwise import linear_kernel, rbf_kernel

    def rbf(x: np.ndarray, scale: float) -> Tensor:
        return torch.from_numpy(rbf_kernel(x, gamma=0.5 / scale**2))

    size: Size = setting.size
    training_inputs = task.x[: task.training]
    scales = np.median(pdist(training_inputs)) * np.array(size.length_scales)
    best = min(scales, key=lambda scale: _loo(task, rbf(training_inputs, scale)))
    yield _row(task, lambda: rbf(task.x, best), method="RBF", length_scale=float(best))
    yield _row(task, lambda: torch.from_numpy(linear_kernel(task.x)), method="linear")
    wide, x = _network("relu", task, size.wide, setting)
    yield _row(task, lambda: nntk.local_ntk(wide, x), method="wide NTK")


def _network(units: str, task: _Task, hidden: tuple[int, ...], setting: Setting) -> tuple[nn.Sequential, Tensor]:
    """Return a network with these hidden layers, and its inputs."""
    widths = (task.x.shape[1], *hidden, 1)
    return network(units, widths, setting.seed, setting.device), torch.from_numpy(task.x).to(setting.device)


def _networks(task: _Task, units: str, setting: Setting) -> Iterator[Row | str]:
    size: Size = setting.size
    model, x = _network(units, task, size.hidden, setting)
    scale = float(nn.utils.parameters_to_vector(model.parameters()).detach().square().mean().sqrt())

    def nonlocal_ntk(gamma: float, samples: int) -> nntk.NonlocalNTK:
        return nntk.NonlocalNTK(model, gamma=gamma, samples=samples, seed=setting.seed)

    yield _row(task, lambda: nntk.local_ntk(model, x), method="NTK", units=units)
    errors = {}
    for gamma in size.gammas:
        yield f"{task.name}, {units}, gamma = {gamma:g}"
        errors[gamma] = _loo(task, nonlocal_ntk(gamma, size.gamma_samples)(x[: task.training]))
        yield {"table": "gammas", "task": task.name, "units": units, "gamma": gamma, "loo": errors[gamma]}
    best = min(errors, key=errors.__getitem__)
    for samples in size.samples:
        yield f"{task.name}, {units}, M = {samples}"
        make = partial(nonlocal_ntk(best, samples), x)
        settings = {"gamma": best, "displacement": best / 2**0.5 / scale}
        yield _row(task, make, method="NNTK", units=units, samples=samples, **settings)


def _claims(rows: Rows) -> Sequence[Claim]:
    largest = max(rows.distinct("samples"))

    def ratio(task: str, key: str, numerator: dict[str, str], denominator: dict[str, str]) -> np.ndarray:
        """Return the ratio of a figure of two kernels, for NNTKs with the largest number of displacements."""
        kernels = rows.where(table="kernels", task=task)
        samples = [{"samples": largest} if kernel["method"] == "NNTK" else {} for kernel in (numerator, denominator)]
        pair = zip((numerator, denominator), samples, strict=True)
        values = [kernels.values(key, **kernel, **extra) for kernel, extra in pair]
        return np.asarray(values[0] / values[1])

    local, displaced = ({units: {"method": method, "units": units} for units in _UNITS} for method in ("NTK", "NNTK"))
    digits = rows.where(table="kernels", task="digits")
    sizes = [digits.values("displacement", method="NNTK", units=units, samples=largest) for units in _UNITS]
    return [
        Claim(
            "digits, sign: NTK",
            "Ridge regression by the NTK of the sign network, of which autograd sees the last layer only, gets {} % of "
            "the held-out digits wrong;",
            100 * digits.values("error", **local["sign"]), 25, 80, ".1f",
        ),
        Claim(
            "digits, sign: NNTK",
            f"by its NNTK at M = {largest} it gets {{}} % wrong.",
            100 * digits.values("error", samples=largest, **displaced["sign"]), 0, 10, ".1f",
        ),
        Claim(
            "digits, 4 bits: NNTK",
            "With 4-bit units the NNTK has {} of the NTK's negative log-likelihood,",
            ratio("digits", "nll", displaced["4 bits"], local["4 bits"]), 0, 0.5, ".2f", ratio=True,
        ),
        Claim(
            "digits, relu: NNTK",
            "and with relu units, of which the gradient is exact, still {}.",
            ratio("digits", "nll", displaced["relu"], local["relu"]), 0, 0.85, ".2f", ratio=True,
        ),
        Claim(
            "digits: size of the displacements",
            "Leave-one-out chooses displacements of {} times the parameters in root mean square: such a kernel is "
            "an average over many networks, and tells little of the one it is given.",
            np.exp(np.log(sizes).mean(0)), 0.5, 20, ".1f", ratio=True,
        ),
        Claim(
            "digits: a wide network",
            "Where there is a gradient, width does nearly the same: the NTK of a wide relu network has {} times the "
            "negative log-likelihood of the NNTK of the narrow one,",
            ratio("digits", "nll", {"method": "wide NTK"}, displaced["relu"]), 0.8, 2, ".2f", ratio=True,
        ),
        Claim(
            "digits: time",
            "which takes {} times as long to make.",
            ratio("digits", "kernel_s", displaced["relu"], {"method": "wide NTK"}), form=".0f", ratio=True,
        ),
        Claim(
            "digits: RBF",
            "An RBF kernel needs no network at all and has {} times the negative log-likelihood of that NNTK.",
            ratio("digits", "nll", {"method": "RBF"}, displaced["relu"]), 0.4, 1.3, ".2f", ratio=True,
        ),
        Claim(
            "diabetes, sign: NNTK",
            "On diabetes the sign network's NNTK errs, in root mean square, {} times as much as its NTK;",
            ratio("diabetes", "error", displaced["sign"], local["sign"]), 0.8, 0.99, ".3f", ratio=True,
        ),
        Claim(
            "diabetes, relu: NNTK",
            "but there is little to learn beyond a line: that of the relu network errs {} times as much as a linear "
            "kernel.",
            ratio("diabetes", "error", displaced["relu"], {"method": "linear"}), 0.95, 1.02, ".3f", ratio=True,
        ),
    ]  # fmt: skip


_SCORES = {
    "digits": {"error": "held-out digits wrong (fraction)", "nll": "negative log-likelihood (nats)"},
    "diabetes": {"error": "RMSE (standard deviations of y)", "nll": "negative log-likelihood (nats)"},
}


def _figures(rows: Rows) -> Iterator[StudyFigure]:
    figure, axes = drawing.panels(2, 3, width=3.5, height=3.1)
    for task, panels in zip(_SCORES, (axes[:3], axes[3:]), strict=True):
        kernels = rows.where(table="kernels", task=task)
        for panel, key in zip(panels, ("error", "nll"), strict=False):
            _draw_along_samples(panel, kernels, key)
            drawing.entitle(panel, task, "displacements M (number)", _SCORES[task][key])
        _draw_against_time(panels[2], kernels)
        drawing.entitle(panels[2], task, "time to make the kernel (s)", _SCORES[task]["error"])
    for panel in axes:
        panel.set_xscale("log")
    for panel in axes[:3]:
        panel.set_yscale("log")
    drawing.legend(figure, 3)
    yield StudyFigure(
        "real_data",
        "Held-out error and likelihood of each kernel. Left and middle: the NNTK against the number of displacements, "
        "at the gamma of least leave-one-out error; kernels without displacements are level lines. Right: the same "
        "errors against the time the kernel matrix takes; crosses are NTKs, the star is that of the wide network, "
        "squares are kernels without a network. Means and 95 % intervals over seeds.",
        figure,
    )
    figure, axes = drawing.panels(1, 2, width=4.0, height=3.2)
    for task, panel in zip(_SCORES, axes, strict=True):
        for number, units in enumerate(_UNITS):
            along = rows.where(table="gammas", task=task, units=units)
            drawing.draw(panel, along.band("gamma", "loo"), f"{units}, NNTK", number)
            level = rows.values("loo", table="kernels", task=task, method="NTK", units=units).mean()
            panel.axhline(level, color=drawing.look(number)["color"], linestyle="--", label=f"{units}, NTK")
        drawing.entitle(panel, task, "gamma (parameter units)", "leave-one-out error (mean square)")
        panel.set_xscale("log")
    drawing.legend(figure, 3)
    yield StudyFigure(
        "real_data_gamma",
        "Leave-one-out error on the training inputs, by which gamma is chosen, at few displacements. Dashed: the NTK "
        "of the same network. Means and 95 % intervals over seeds.",
        figure,
    )


def _draw_along_samples(panel: "Axes", kernels: Rows, key: str) -> None:
    for number, units in enumerate(_UNITS):
        along = kernels.where(method="NNTK", units=units)
        drawing.draw(panel, along.band("samples", key), f"{units}, NNTK", number)
    for number, units in enumerate(_UNITS):
        level = kernels.values(key, method="NTK", units=units).mean()
        panel.axhline(level, color=drawing.look(number)["color"], linestyle="--", label=f"{units}, NTK")
    for method, (colour, dashes) in _LINES.items():
        panel.axhline(kernels.values(key, method=method).mean(), color=colour, linestyle=dashes, label=method)


def _draw_against_time(panel: "Axes", kernels: Rows) -> None:
    def place(**settings: Any) -> tuple[float, float]:
        return float(np.median(kernels.values("kernel_s", **settings))), kernels.values("error", **settings).mean()

    for number, units in enumerate(_UNITS):
        line = np.array([place(method="NNTK", units=units, samples=m) for m in kernels.distinct("samples")])
        panel.plot(*line.T, **drawing.look(number))
        panel.plot(*place(method="NTK", units=units), "x", color=drawing.look(number)["color"], markersize=8)
    for method, (colour, _) in _LINES.items():
        panel.plot(*place(method=method), "*" if method == "wide NTK" else "s", color=colour, markersize=8)


STUDY = Study(
    name="real_data",
    title="Digits and diabetes: accuracy and likelihood of NTK, NNTK and RBF",
    about="The 8x8 digits (pixels in [0, 1]) and the diabetes data (inputs and target standardised by the training "
    "inputs), both of scikit-learn; of each some inputs are for training and some held out (first and second number). "
    "A seed is another shuffle of the same data, another network and other displacements: intervals do not cover other "
    "data. Untrained networks with relu, sign or 4-bit units and one output: He's initialisation, normal biases of "
    "standard deviation 0.5, float64. Energy form, gaussian antithetic displacements. Ridge regression with an "
    "intercept, of one-hot targets for digits; the ridge, one for all targets, is the largest whose exact "
    "leave-one-out error is within a thousandth of the least, of 45 from 1e-8 to 1e3 in means of the training kernel's "
    "diagonal. By the same error are chosen gamma (at few displacements) and the length scale of the RBF kernel, in "
    "medians of the distance between training inputs. Class probabilities are the softmax of predictions at a "
    "temperature that is fitted to leave-one-out predictions of training inputs. Gaussian predictions for diabetes "
    "have scale and noise of the highest evidence (scikit-learn's BayesianRidge). The NTK is the structured one; "
    "seconds are those of the kernel matrix of all inputs.",
    full=Size(),
    quick=replace(
        Size(), seeds=3, digits=(150, 100), diabetes=(150, 100), hidden=(32, 32), samples=(32, 384), gammas=(0.3, 1.0),
        wide=(256, 256), gamma_samples=64, length_scales=(0.5, 1.0, 2.0),
    ),
    replicate=_replicate,
    claims=_claims,
    figures=_figures,
)  # fmt: skip
