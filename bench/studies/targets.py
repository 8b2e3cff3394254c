"""Targets: regression of jumps, kinks and rough functions by NTK, NNTK and an RBF kernel, on four networks."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from sklearn.metrics.pairwise import rbf_kernel
from torch import Tensor, nn

import nntk
from nntk.bench.results import Row
from nntk.bench.studies import Drawn, Setting, Study, drawing, ridge
from nntk.bench.studies.claims import Claim, interval
from nntk.bench.studies.networks import ACTIVATIONS, network
from nntk.bench.studies.rows import Rows

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
    samples: int = 1024
    gammas: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0)
    attention_gamma: float = 0.1
    temperatures_outputs: tuple[float, ...] = (1.0, 3.0, 10.0)
    temperatures_parameters: tuple[float, ...] = (0.003, 0.01, 0.03)
    length_scales: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True)
class _Task:
    """Noisy samples of the targets, [training, T], and their true values on a grid, [test, T]."""

    x: Tensor
    grid: Tensor
    observed: np.ndarray
    truth: np.ndarray


def _task(size: Size, seed: int) -> _Task:
    generator = torch.Generator().manual_seed(seed)
    grid = torch.linspace(-1, 1, size.test, dtype=torch.float64)
    x = torch.rand(size.training, generator=generator, dtype=torch.float64) * 2 - 1
    noise = torch.randn(size.training, len(TARGETS), generator=generator, dtype=torch.float64)
    on_grid, on_x = (torch.stack([function(at) for function in TARGETS.values()], 1) for at in (grid, x))
    mean, deviation = on_grid.mean(0), on_grid.std(0)
    observed = (on_x - mean) / deviation + size.noise * noise
    return _Task(x, grid, observed.numpy(), ((on_grid - mean) / deviation).numpy())


def _replicate(setting: Setting) -> Iterator[Row | str]:
    size: Size = setting.size
    task = _task(size, setting.seed)
    for number, target in enumerate(TARGETS if setting.first else ()):
        common = {"table": "fits", "units": "", "target": target}
        yield {**common, "kernel": "samples", "x": task.x.tolist(), "y": task.observed[:, number].tolist()}
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
"""Kernels by the name and the value of the setting that tells them apart."""


def _rbf(x: Tensor, scale: float) -> Tensor:
    return torch.from_numpy(rbf_kernel(x.numpy(), gamma=1 / (2 * scale**2)))


def _kernels(model: nn.Module, x: Tensor, setting: Setting) -> dict[str, Callable[[], _Candidates]]:
    """What makes the candidates of every kernel of a network."""
    size: Size = setting.size
    of = {"samples": size.samples, "seed": setting.seed}

    def energy(estimator: str) -> _Candidates:
        return {("gamma", g): nntk.NonlocalNTK(model, gamma=g, estimator=estimator, **of)(x) for g in size.gammas}

    def attention(on: str, temperatures: Sequence[float]) -> _Candidates:
        made = {}
        for temperature in temperatures:
            weights = nntk.Attention(on=on, temperature=temperature)
            kernel = nntk.NonlocalNTK(model, gamma=size.attention_gamma, weights=weights, **of)
            with warnings.catch_warnings():  # few displacements that count are among what is compared
                warnings.simplefilter("ignore", nntk.EffectiveSampleWarning)
                made["temperature", temperature] = kernel(x)
        return made

    return {
        "NTK": lambda: {("gamma", 0.0): nntk.local_ntk(model, x)},
        "NNTK energy": lambda: energy("energy"),
        "NNTK plugin": lambda: energy("plugin"),
        "attention on outputs": lambda: attention("outputs", size.temperatures_outputs),
        "attention on parameters": lambda: attention("parameters", size.temperatures_parameters),
    }


def _regress(kernel: str, units: str, candidates: _Candidates, task: _Task, draw: bool) -> Iterator[Row]:
    """Test errors of every candidate, of the one with the least leave-one-out error, and that one's fit."""
    fits = [ridge.fit(ridge.root(made), task.observed, len(task.observed)) for made in candidates.values()]
    chosen = np.argmin([fit.loo for fit in fits], axis=0)
    for number, target in enumerate(TARGETS):
        errors = [_error(fit.predictions[:, number], task.truth[:, number]) for fit in fits]
        common = {"units": units, "kernel": kernel, "target": target}
        for (name, value), fit, error in zip(candidates, fits, errors, strict=True):
            yield {"table": "errors", **common, name: value, "error": error, "loo": float(fit.loo[number])}
        best = chosen[number]
        name, value = list(candidates)[best]
        yield {"table": "chosen", **common, "setting": f"{name} {value:g}", "error": errors[best]}
        if draw and kernel in _FITTED:
            curve = {"x": task.grid.tolist(), "y": fits[best].predictions[:, number].tolist()}
            yield {"table": "fits", **common, **curve}


def _error(predictions: np.ndarray, truth: np.ndarray) -> float:
    return float(np.sqrt(np.mean((predictions - truth) ** 2)))


def _ratios(rows: Rows, target: str, one: tuple[str, str], other: tuple[str, str]) -> np.ndarray:
    """Test errors of one network and kernel over those of another, one a seed."""
    chosen = rows.where(table="chosen", target=target)
    errors = [chosen.values("error", units=units, kernel=kernel) for units, kernel in (one, other)]
    return np.asarray(errors[0] / errors[1])


def _claims(rows: Rows) -> Sequence[Claim]:
    return [
        Claim(
            f"{units}, {target}: {kernel}",
            f"{units}, {target}: {kernel} over NTK {{}}.",
            _ratios(rows, target, (units, kernel), (units, "NTK") if kernel != "RBF" else (units, "NNTK energy")),
            ratio=True,
        )
        for units in ACTIVATIONS
        for target in TARGETS
        for kernel in _KERNELS[1:-1]
    ] + [
        Claim(
            f"{units}, {target}: RBF",
            f"{units}, {target}: NNTK over RBF {{}}.",
            _ratios(rows, target, (units, "NNTK energy"), ("", "RBF")),
            ratio=True,
        )
        for units in ACTIVATIONS
        for target in TARGETS
    ]


def _figures(rows: Rows) -> Iterator[Drawn]:
    yield _fits(rows.where(table="fits"))
    yield _errors(rows.where(table="chosen"))
    yield _along_gamma(rows.where(table="errors"))


def _fits(rows: Rows) -> Drawn:
    shown, networks = ("sign", "sawtooth", "rough"), ("relu", "sign")
    figure, axes = drawing.panels(len(networks), len(shown), height=2.3)
    for panel, (units, target) in zip(axes, ((u, t) for u in networks for t in shown), strict=True):
        of = {row["kernel"]: row for row in rows.where(target=target, units="")}
        panel.plot(of["truth"]["x"], of["truth"]["y"], color="0.75", linewidth=3, label="target")
        panel.plot(of["samples"]["x"], of["samples"]["y"], ".", color="0.3", markersize=3, label="noisy samples")
        for number, kernel in enumerate(_FITTED):
            row = next(iter(rows.where(target=target, kernel=kernel, units="" if kernel == "RBF" else units)))
            style = {**drawing.look(number), "marker": "", "linestyle": ("--", "-", ":")[number]}
            panel.plot(row["x"], row["y"], **style, label=kernel)
        drawing.entitle(panel, f"{target}, {units} units", "x (input)", "y (standard deviations)")
    drawing.legend(figure, 5)
    return Drawn(
        "fits",
        "Fits of one seed. Kernel ridge regression of 50 noisy samples by the NTK and the NNTK (energy) of the same "
        "untrained network, and by an RBF kernel; ridge, gamma and length scale by leave-one-out.",
        figure,
    )


def _errors(rows: Rows) -> Drawn:
    figure, axes = drawing.panels(2, 3)
    for panel, target in zip(axes, TARGETS, strict=False):
        for number, kernel in enumerate(_KERNELS[:-1]):
            found = [interval(rows.values("error", target=target, kernel=kernel, units=u), True) for u in ACTIVATIONS]
            places = np.arange(len(found)) + 0.14 * (number - 2)
            bars = np.array([(one.mean - one.low, one.high - one.mean) for one in found]).T
            style = {**drawing.look(number), "linestyle": ""}
            panel.errorbar(places, [one.mean for one in found], bars, **style, label=kernel)
        rbf = interval(rows.values("error", target=target, kernel="RBF"), True)
        panel.axhspan(rbf.low, rbf.high, color="0.7", alpha=0.5, linewidth=0, label="RBF")
        drawing.entitle(panel, target, "units of the network", "test error (standard deviations)")
        panel.set_xticks(range(len(ACTIVATIONS)), list(ACTIVATIONS))
        panel.set_ylim(bottom=0)
    axes[-1].set_axis_off()
    handles, labels = axes[0].get_legend_handles_labels()
    axes[-1].legend(handles, labels, loc="center left")
    return Drawn(
        "errors",
        "Test errors against the noiseless targets: root mean squares on [-1, 1], geometric means and 95 % intervals "
        "over seeds. Ridge, gamma, temperature and length scale by leave-one-out, the same way for all.",
        figure,
    )


def _along_gamma(rows: Rows) -> Drawn:
    shown = ("sign", "rough", "smooth")
    figure, axes = drawing.panels(1, len(shown), height=3.2)
    for panel, target in zip(axes, shown, strict=True):
        for number, units in enumerate(ACTIVATIONS):
            of = rows.where(target=target, units=units)
            drawing.draw(panel, of.where(kernel="NNTK energy").band("gamma", "error", True), f"NNTK, {units}", number)
            ntk = interval(of.values("error", kernel="NTK"), True).mean
            panel.axhline(ntk, color=drawing.look(number)["color"], linestyle=":", label=f"NTK, {units}")
        drawing.entitle(panel, target, "gamma (parameter units)", "test error (standard deviations)")
        panel.set_xscale("log")
    drawing.legend(figure, 4)
    return Drawn(
        "gamma",
        "Test error of the NNTK (energy) against gamma, beside the NTK of the same network (dotted). Geometric means "
        "and 95 % intervals over seeds.",
        figure,
    )


STUDY = Study(
    name="targets",
    title="Rough targets: where the nonlocal kernel helps, and where it does not",
    about="Kernel ridge regression, with an intercept, of noisy samples at uniformly random places of [-1, 1]; targets "
    "are sign(x), a sawtooth of period 1/2, relu(x), Weierstrass's sum of 2^-k cos(3^k pi x) for k < 6, and "
    "sin(pi x), each of mean 0 and variance 1, with noise in units of its standard deviation. Kernels are those of "
    "untrained networks (weights of variance 2 / fan-in, biases of standard deviation 0.5; 4 bits are 16 levels from "
    "-1 to 1) and the RBF kernel. Ridge by exact leave-one-out, and by the same error gamma, temperature (attention, "
    "dot scores) and length scale, for each target. A seed is another sample, other networks and displacements.",
    full=Size(),
    quick=Size(seeds=3, samples=256, gammas=(0.01, 0.1, 0.3), test=100, training=40, hidden=(48, 48)),
    replicate=_replicate,
    claims=_claims,
    figures=_figures,
)
