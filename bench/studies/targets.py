"""Targets: regression of jumps, kinks and rough functions by NTK, NNTK and an RBF kernel, on four networks."""

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from sklearn.metrics.pairwise import rbf_kernel
from torch import Tensor, nn

import nntk
from nntk.bench.results.schema import Row
from nntk.bench.studies import Setting, Study, StudyFigure
from nntk.bench.studies.analysis import drawing, ridge
from nntk.bench.studies.analysis.claims import Claim, interval
from nntk.bench.studies.analysis.networks import ACTIVATIONS, network
from nntk.bench.studies.analysis.rows import Rows

TARGETS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "sign": nntk.activations.Sign(),
    "sawtooth": nntk.activations.Sawtooth(period=0.5),
    "relu": nn.ReLU(),
    "rough": lambda x: torch.stack([2.0**-k * torch.cos(3**k * math.pi * x) for k in range(6)]).sum(0),
    "smooth": lambda x: torch.sin(math.pi * x),
}
"""Functions on [-1, 1]; rough is Weierstrass's up to its sixth term."""

_KERNELS = ("NTK", "NNTK energy", "NNTK plugin", "attention on outputs", "attention on parameters", "RBF")
_FITTED = ("NTK", "NNTK energy", "RBF")


@dataclass(frozen=True)
class Size:
    """Numbers of the study."""

    seeds: int = 10
    hidden: tuple[int, ...] = (64, 64)
    training: int = 50
    test: int = 200
    noise: float = 0.1
    draws: int = 8
    samples: int = 1024
    gammas: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0)
    attention_gamma: float = 0.1
    temperatures_outputs: tuple[float, ...] = (1.0, 3.0, 10.0)
    temperatures_parameters: tuple[float, ...] = (0.003, 0.01, 0.03)
    length_scales: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True)
class _Task:
    """Noisy values of the T targets at the training inputs, and their true values on a grid."""

    x: Tensor
    grid: Tensor
    observed: np.ndarray
    """Noisy targets, [training, T, draws]."""
    truth: np.ndarray
    """Targets on the grid, [test, T]."""


def _task(size: Size, seed: int) -> _Task:
    generator = torch.Generator().manual_seed(seed)
    grid = torch.linspace(-1, 1, size.test, dtype=torch.float64)
    cells = torch.arange(size.training, dtype=torch.float64)
    x = 2 * (cells + torch.rand(size.training, generator=generator, dtype=torch.float64)) / size.training - 1
    noise = torch.randn(size.training, len(TARGETS), size.draws, generator=generator, dtype=torch.float64)
    on_grid, on_x = (torch.stack([function(inputs) for function in TARGETS.values()], 1) for inputs in (grid, x))
    mean, deviation = on_grid.mean(0), on_grid.std(0)
    observed = ((on_x - mean) / deviation)[:, :, None] + size.noise * noise
    return _Task(x, grid, observed.numpy(), ((on_grid - mean) / deviation).numpy())


def _replicate(setting: Setting) -> Iterator[Row | str]:
    size: Size = setting.size
    task = _task(size, setting.seed)
    for number, target in enumerate(TARGETS if setting.first else ()):
        common = {"table": "fits", "units": "", "target": target}
        yield {**common, "kernel": "samples", "x": task.x.tolist(), "y": task.observed[:, number, 0].tolist()}
        yield {**common, "kernel": "truth", "x": task.grid.tolist(), "y": task.truth[:, number].tolist()}
    x = torch.cat((task.x, task.grid))[:, None]
    rbf = {("length scale", scale): _rbf(x, scale) for scale in size.length_scales}
    yield from _regress("RBF", "", rbf, task, setting.first)
    for units in ACTIVATIONS:
        model = network(units, (1, *size.hidden, 1), setting.seed, setting.device)
        for kernel, candidates in _kernels(model, x.to(setting.device), setting).items():
            yield f"{units}, {kernel}"
            yield from _regress(kernel, units, candidates(), task, setting.first)


_Candidates = dict[tuple[str, float], Tensor]
"""Kernels by the name and the value of the setting that distinguishes them."""


def _rbf(x: Tensor, scale: float) -> Tensor:
    return torch.from_numpy(rbf_kernel(x.numpy(), gamma=1 / (2 * scale**2)))


def _kernels(model: nn.Module, x: Tensor, setting: Setting) -> dict[str, Callable[[], _Candidates]]:
    """Return functions that make the candidates of every kernel of a network."""
    size: Size = setting.size
    kernel_of = partial(nntk.NonlocalNTK, model, samples=size.samples, seed=setting.seed)

    def energy(estimator: str) -> _Candidates:
        return {("gamma", g): kernel_of(gamma=g, estimator=estimator)(x) for g in size.gammas}

    def attention(on: str, temperatures: Sequence[float]) -> _Candidates:
        kernels = {}
        for temperature in temperatures:
            weights = nntk.Attention(on=on, temperature=temperature)
            kernel = kernel_of(gamma=size.attention_gamma, weights=weights)
            with warnings.catch_warnings():  # the study compares such weights on purpose
                warnings.simplefilter("ignore", nntk.EffectiveSampleWarning)
                kernels["temperature", temperature] = kernel(x)
        return kernels

    return {
        "NTK": lambda: {("gamma", 0.0): nntk.local_ntk(model, x)},
        "NNTK energy": lambda: energy("energy"),
        "NNTK plugin": lambda: energy("plugin"),
        "attention on outputs": lambda: attention("outputs", size.temperatures_outputs),
        "attention on parameters": lambda: attention("parameters", size.temperatures_parameters),
    }


def _regress(kernel: str, units: str, candidates: _Candidates, task: _Task, draw: bool) -> Iterator[Row]:
    """Yield test errors of every candidate and of that with the least leave-one-out error, and a fit of the latter."""
    training, shape = len(task.observed), task.observed.shape[1:]
    observed = task.observed.reshape(training, -1)
    fits = [ridge.fit(ridge.root(candidate), observed, training) for candidate in candidates.values()]
    predictions = np.stack([fit.predictions.reshape(-1, *shape) for fit in fits])
    squared = np.square(predictions - task.truth[:, :, None]).mean(1)
    loo = np.stack([fit.loo.reshape(shape) for fit in fits])
    best = loo.argmin(0)[None]
    chosen = np.take_along_axis(squared, best, 0)[0]
    for number, target in enumerate(TARGETS):
        common = {"units": units, "kernel": kernel, "target": target}
        for place, (name, value) in enumerate(candidates):
            yield {"table": "errors", **common, name: value, "error": _root_mean(squared[place, number])}
        yield {"table": "chosen", **common, "error": _root_mean(chosen[number])}
        if draw and kernel in _FITTED:
            curve = predictions[best[0, number, 0], :, number, 0]
            yield {"table": "fits", **common, "x": task.grid.tolist(), "y": curve.tolist()}


def _root_mean(squares: np.ndarray) -> float:
    return float(np.sqrt(squares.mean()))


def _ratio(
    rows: Rows,
    kernel: str,
    other: str,
    units: Sequence[str] = tuple(ACTIVATIONS),
    targets: Sequence[str] = tuple(TARGETS),
    **settings: float,
) -> np.ndarray:
    """Return the ratio of the test errors of two kernels, a geometric mean over networks and targets.

    Args:
        rows: Rows of the study.
        kernel: Kernel of the numerator; its candidate is that of the least leave-one-out error.
        other: Kernel of the denominator; its candidate is chosen likewise, or has ``settings``.
        units: Units of the networks.
        targets: Names of the targets.
        **settings: Settings of the denominator's candidate; without any, leave-one-out chooses it.

    Returns:
        The ratios, [seeds].
    """
    logs = []
    for unit, target in itertools.product(units, targets):
        common = {"target": target, "units": "" if other == "RBF" else unit}
        below = rows.where(table="errors" if settings else "chosen", kernel=other, **common, **settings)
        above = rows.where(table="chosen", kernel=kernel, target=target, units=unit)
        logs.append(np.log(above.values("error") / below.values("error")))
    return np.asarray(np.exp(np.mean(logs, axis=0)))


def _claims(rows: Rows) -> Sequence[Claim]:
    energy, small = "NNTK energy", min(rows.where(table="errors", kernel="NNTK energy").distinct("gamma"))
    return [
        Claim(
            "sign units: NNTK over NTK",
            "With sign units, where the NTK has the last layer only, the NNTK's test error is {} of the NTK's over the "
            "five targets,",
            _ratio(rows, energy, "NTK", ["sign"]), 0, 0.8, ".2f", ratio=True,
        ),
        Claim(
            "4 bits: NNTK over NTK",
            "and with 4-bit units {}.",
            _ratio(rows, energy, "NTK", ["4 bits"]), 0, 0.85, ".2f", ratio=True,
        ),
        Claim(
            "relu units: NNTK over NTK",
            "With relu units it is {}: the NTK jumps where a kink passes an input, and displacements smooth that out.",
            _ratio(rows, energy, "NTK", ["relu"]), 0, 0.95, ".2f", ratio=True,
        ),
        Claim(
            "tanh units, smooth target: NNTK over NTK",
            "With tanh units there is nothing to gain on the smooth target, {},",
            _ratio(rows, energy, "NTK", ["tanh"], ["smooth"]), 0.9, 1.15, ".2f", ratio=True,
        ),
        Claim(
            "tanh units, rough target: NNTK over NTK",
            "but on the rough one, {}: displacements of the size of the weights make a kernel of short range.",
            _ratio(rows, energy, "NTK", ["tanh"], ["rough"]), 0, 0.9, ".2f", ratio=True,
        ),
        Claim(
            "sign units, smooth target: NNTK over RBF",
            "**Where it loses:** on the smooth target the sign network's NNTK errs by {} times the error of the RBF "
            "kernel, whose smoothness is that of the target;",
            _ratio(rows, energy, "RBF", ["sign"], ["smooth"]), 1.3, form=".2f", ratio=True,
        ),
        Claim(
            "sign units, sign target: NNTK over RBF",
            "on the jump of sign(x) it is ahead of it, {}.",
            _ratio(rows, energy, "RBF", ["sign"], ["sign"]), 0, 0.98, ".2f", ratio=True,
        ),
        Claim(
            "sign units, smallest gamma: NTK over NNTK",
            f"A gamma that is too small loses as well: at gamma = {small:g} few displacements move an input across "
            "a jump, and the NTK's error is {} of the NNTK's on the smooth target.",
            _ratio(rows, "NTK", energy, ["sign"], ["smooth"], gamma=small), 0, 0.95, ".2f", ratio=True,
        ),
        Claim(
            "plugin over energy",
            "Plugin errs by {} times the error of energy, over all networks and targets.",
            _ratio(rows, "NNTK plugin", energy), 0.95, 1.06, ".2f", ratio=True,
        ),
        Claim(
            "attention on outputs over equal weights",
            "Attention buys nothing here: beside equal weights at the same gamma of 0.1 its error is {} on outputs",
            _ratio(rows, "attention on outputs", energy, gamma=0.1), 0.96, 1.1, ".2f", ratio=True,
        ),
        Claim(
            "attention on parameters over equal weights",
            "and {} on parameters, although its temperature is chosen.",
            _ratio(rows, "attention on parameters", energy, gamma=0.1), 0.96, 1.15, ".2f", ratio=True,
        ),
    ]  # fmt: skip


def _figures(rows: Rows) -> Iterator[StudyFigure]:
    yield _fits(rows.where(table="fits"))
    yield _errors(rows.where(table="chosen"))
    yield _along_gamma(rows.where(table="errors"))


def _fits(rows: Rows) -> StudyFigure:
    targets, networks = ("sign", "sawtooth", "rough"), ("relu", "sign")
    figure, axes = drawing.panels(len(networks), len(targets), height=2.3)
    for panel, (units, target) in zip(axes, ((u, t) for u in networks for t in targets), strict=True):
        curves = {row["kernel"]: row for row in rows.where(target=target, units="")}
        panel.plot(curves["truth"]["x"], curves["truth"]["y"], color="0.75", linewidth=3, label="target")
        samples = curves["samples"]
        panel.plot(samples["x"], samples["y"], ".", color="0.3", markersize=3, label="noisy samples")
        for number, kernel in enumerate(_FITTED):
            row = next(iter(rows.where(target=target, kernel=kernel, units="" if kernel == "RBF" else units)))
            style = {**drawing.look(number), "marker": "", "linestyle": ("--", "-", ":")[number]}
            panel.plot(row["x"], row["y"], **style, label=kernel)
        drawing.entitle(panel, f"{target} target, {units} units", "x (input)", "y (standard deviations)")
    drawing.legend(figure, 5)
    return StudyFigure(
        "fits",
        "Fits of one seed. Kernel ridge regression of 50 noisy samples by the NTK and the NNTK (energy) of the same "
        "untrained network, and by an RBF kernel; ridge, gamma and length scale by leave-one-out.",
        figure,
    )


def _errors(rows: Rows) -> StudyFigure:
    figure, axes = drawing.panels(2, 3)
    for panel, target in zip(axes, TARGETS, strict=False):
        for number, kernel in enumerate(_KERNELS[:-1]):
            errors = [rows.values("error", target=target, kernel=kernel, units=units) for units in ACTIVATIONS]
            intervals = [interval(values, True) for values in errors]
            places = np.arange(len(intervals)) + 0.14 * (number - 2)
            bars = np.array([(bounds.mean - bounds.low, bounds.high - bounds.mean) for bounds in intervals]).T
            style = {**drawing.look(number), "linestyle": ""}
            panel.errorbar(places, [bounds.mean for bounds in intervals], bars, **style, label=kernel)
        rbf = interval(rows.values("error", target=target, kernel="RBF"), True)
        panel.axhspan(rbf.low, rbf.high, color="0.7", alpha=0.5, linewidth=0, label="RBF")
        drawing.entitle(panel, f"{target} target", "units of the network", "test error (standard deviations)")
        panel.set_xticks(range(len(ACTIVATIONS)), list(ACTIVATIONS))
        panel.set_ylim(bottom=0)
    figure.delaxes(axes[-1])
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower right", bbox_to_anchor=(0.97, 0.15))
    return StudyFigure(
        "errors",
        "Test errors against the noiseless targets: root mean squares on [-1, 1], geometric means and 95 % intervals "
        "over seeds. Ridge, gamma, temperature and length scale by leave-one-out, the same way for all.",
        figure,
    )


def _along_gamma(rows: Rows) -> StudyFigure:
    targets = ("sign", "rough", "smooth")
    figure, axes = drawing.panels(1, len(targets), height=3.2)
    for panel, target in zip(axes, targets, strict=True):
        for number, units in enumerate(ACTIVATIONS):
            selected = rows.where(target=target, units=units)
            band = selected.where(kernel="NNTK energy").band("gamma", "error", True)
            drawing.draw(panel, band, f"NNTK, {units}", number)
            ntk = interval(selected.values("error", kernel="NTK"), True).mean
            panel.axhline(ntk, color=drawing.look(number)["color"], linestyle=":", label=f"NTK, {units}")
        drawing.entitle(panel, f"{target} target", "gamma (parameter units)", "test error (standard deviations)")
        panel.set_xscale("log")
    drawing.legend(figure, 4)
    return StudyFigure(
        "gamma",
        "Test error of the NNTK (energy) against gamma, beside the NTK of the same network (dotted). Geometric means "
        "and 95 % intervals over seeds.",
        figure,
    )


STUDY = Study(
    name="targets",
    title="Rough targets: where the nonlocal kernel helps, and where it does not",
    about="Kernel ridge regression, with an intercept, of noisy samples at a random place in each of as many equal "
    "cells of [-1, 1]; targets are sign(x), a sawtooth of period 1/2, relu(x), Weierstrass's sum of 2^-k cos(3^k pi x) "
    "for k < 6, and sin(pi x), each of mean 0 and variance 1, with noise in units of its standard deviation. Kernels "
    "are those of untrained networks (weights of variance 2 / fan-in, biases of standard deviation 0.5; 4 bits are 16 "
    "levels from -1 to 1) and the RBF kernel. The ridge is the largest whose exact leave-one-out error is within a "
    "thousandth of the least, from 1e-8 to 1e3 of the mean diagonal; by the same error are chosen gamma, temperature "
    "(attention, dot scores) and length scale, for each target and draw of the noise, over which errors are root mean "
    "squares. A seed is another sample, other networks and displacements.",
    full=Size(),
    quick=Size(seeds=3, samples=256, gammas=(0.01, 0.1, 1.0), test=100, training=40, hidden=(48, 48)),
    replicate=_replicate,
    claims=_claims,
    figures=_figures,
)
