"""Attention over displacements: what weights look like, what they do to bias and scatter, and when they collapse."""

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.datasets import make_friedman1
from sklearn.linear_model import RidgeCV
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

import nntk
from nntk.bench.results.schema import Row
from nntk.bench.studies import Drawn, Setting, Study
from nntk.bench.studies.analysis import drawing
from nntk.bench.studies.analysis.claims import Claim, interval
from nntk.bench.studies.analysis.networks import network
from nntk.bench.studies.analysis.rows import Band, Rows
from nntk.linalg.alignment import alignment

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TEMPERATURES = {
    ("outputs", "dot"): (1.0, 0.3, 0.1, 0.03, 0.01, 1e-4),
    ("outputs", "distance"): (0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4),
    ("parameters", "dot"): (0.03, 0.01, 5e-3, 3e-3, 1e-3, 1e-4),
    ("parameters", "distance"): (0.01, 3e-3, 1e-3, 5e-4, 2e-4, 1e-5),
}
"""The four scores, with temperatures from equal weights to collapse at the small gamma."""
_FORMS = tuple(_TEMPERATURES)
_AT_WIDTHS = {
    ("outputs", "dot"): 0.1,
    ("outputs", "distance"): 0.01,
    ("parameters", "dot"): 0.01,
    ("parameters", "distance"): 1e-3,
}
_SHAPED = (0, 2, 4)
"""Which of the temperatures sorted weights are kept of."""
_TRIALS = (("relu", "gaussian"), ("relu", "cauchy"), ("sign", "gaussian"))
"""Units and fixed kernels of the regressions."""
_FEATURES = 8


@dataclass(frozen=True)
class Size:
    """Numbers of the study."""

    seeds: int = 16
    small_gamma: float = 0.03
    samples: int = 256
    inputs: int = 16
    repeats: int = 8
    width: int = 32
    widths: tuple[int, ...] = (8, 32, 128, 256)
    gammas: tuple[float, ...] = (0.1, 0.3, 1.0)
    training: int = 128
    held_out: int = 256
    temperatures: tuple[float, ...] = (100.0, 10.0, 1.0, 0.1)


def _replicate(setting: Setting) -> Iterator[Row | str]:
    # Collapse is the subject: the warning of few effective samples is what is looked for.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nntk.EffectiveSampleWarning)
        yield from _weights(setting)
        yield from _dimensions(setting)
        yield from _regressions(setting)


def _weights(setting: Setting) -> Iterator[Row | str]:
    """Weights at each temperature, and the kernels of several sets of displacements."""
    size: Size = setting.size
    x = _inputs(setting)
    model = _network("tanh", size.width, setting)
    yield "equal weights"
    equal = _kernels(model, x, None, setting)
    reference = equal.mean(0)
    yield {"table": "temperatures", "on": "equal", "scatter": _scatter(equal)}
    for (on, score), temperatures in _TEMPERATURES.items():
        for place, temperature in enumerate(temperatures):
            yield f"{on}, {score}, temperature {temperature:g}"
            form: Row = {"on": on, "score": score, "temperature": temperature}
            alpha, predicted = _alpha(model, x, form, setting), _predicted(model, x, form, size.small_gamma)
            kernels = _kernels(model, x, nntk.Attention(**form), setting)
            mean = kernels.mean(0)
            yield {
                "table": "temperatures",
                **form,
                **_figures_of(alpha),
                **predicted,
                "diagonal": float(mean.trace() / reference.trace()),
                "bias": float((mean - reference).norm() / reference.norm()),
                "scatter": _scatter(kernels),
            }
            if setting.first and place in _SHAPED:
                sorted_weights = alpha[:, 0].sort(descending=True).values * len(alpha)
                yield {
                    "table": "shapes",
                    **form,
                    "samples": len(alpha),
                    "weights": sorted_weights[_ranks(len(alpha))].tolist(),
                }


def _dimensions(setting: Setting) -> Iterator[Row | str]:
    """Weights of networks of several widths at one temperature."""
    x = _inputs(setting)
    for width in setting.size.widths:
        model = _network("tanh", width, setting)
        num_params = sum(parameter.numel() for parameter in model.parameters())
        for (on, score), temperature in _AT_WIDTHS.items():
            yield f"{on}, {score}, d = {num_params}"
            form: Row = {"on": on, "score": score, "temperature": temperature}
            effective = _figures_of(_alpha(model, x, form, setting))["effective"]
            yield {"table": "dimensions", **form, "num_params": num_params, "effective": effective}


def _regressions(setting: Setting) -> Iterator[Row | str]:
    """Ridge regression of Friedman's function, and the similarity of training kernels to the NTK."""
    size: Size = setting.size
    trials = [(units, law, gamma) for units, law in _TRIALS for gamma in size.gammas[:1]]
    # What a wider gaussian does without attention, for comparison.
    trials += [("relu", "gaussian", gamma) for gamma in size.gammas[1:]]
    for units, law, gamma in trials:
        forms: list[Row] = [{"on": "equal"}]
        if gamma == size.gammas[0]:
            forms += [{"on": on, "score": score, "temperature": t} for on, score in _FORMS for t in size.temperatures]
        for form in forms:
            yield f"{units}, {law}, gamma {gamma:g}, {' '.join(map(str, form.values()))}"
            figures = _regression(units, nntk.FixedKernel(law), gamma, form, setting)
            yield {"table": "regression", "units": units, "law": law, "gamma": gamma, **form, **figures}


def _regression(units: str, law: nntk.FixedKernel, gamma: float, form: Row, setting: Setting) -> Row:
    size: Size = setting.size
    count = size.training + size.held_out
    x, y = make_friedman1(count, n_features=_FEATURES, noise=0.5, random_state=setting.seed)
    inputs = torch.as_tensor((2 * x - 1) * math.sqrt(3), device=setting.device)
    model = _network(units, size.width, setting)
    weights = law if form["on"] == "equal" else nntk.Attention(**form, kernel=law)
    kernel = nntk.NonlocalNTK(model, gamma=gamma, samples=size.samples, seed=setting.seed, weights=weights)
    features = kernel.features(inputs)
    first = features[: size.training]
    return {
        "error": _error((features / first.square().sum(1).mean().sqrt()).cpu().numpy(), y, size.training),
        "similarity": alignment(first @ first.T, nntk.local_ntk(model, inputs[: size.training])),
    }


def _network(units: str, width: int, setting: Setting) -> nn.Sequential:
    return network(units, (_FEATURES, width, width, 1), setting.seed, setting.device)


def _inputs(setting: Setting) -> Tensor:
    generator = torch.Generator().manual_seed(setting.seed)
    x = torch.randn(setting.size.inputs, _FEATURES, generator=generator, dtype=torch.float64)
    return x.to(setting.device)


def _kernels(model: nn.Module, x: Tensor, weights: nntk.Attention | None, setting: Setting) -> Tensor:
    """Kernels of several sets of displacements, [repeats, N, N]."""
    size: Size = setting.size
    settings: Row = {"gamma": size.small_gamma, "samples": size.samples, "weights": weights}
    seeds = range(setting.seed * size.repeats, (setting.seed + 1) * size.repeats)
    return torch.stack([nntk.NonlocalNTK(model, seed=seed, **settings)(x) for seed in seeds])


def _scatter(kernels: Tensor) -> float:
    """Standard deviation over kernels, relative to their mean."""
    return float(kernels.var(0).sum().sqrt() / kernels.mean(0).norm())


def _alpha(model: nn.Module, x: Tensor, form: Row, setting: Setting) -> Tensor:
    """Weights, [M, N], or [M, 1] where they are those of all inputs."""
    size: Size = setting.size
    attention = nntk.Attention(**form)
    kernel = nntk.NonlocalNTK(model, gamma=size.small_gamma, samples=size.samples, seed=setting.seed, weights=attention)
    return kernel.displacement_weights(x) if form["on"] == "outputs" else kernel.displacement_weights()[:, None]


def _figures_of(alpha: Tensor) -> Row:
    """Effective samples and entropy over those of equal weights, and the largest weight: means over inputs."""
    return {
        "effective": float((1 / alpha.square().sum(0)).mean()) / len(alpha),
        "entropy": float(torch.special.entr(alpha).sum(0).mean()) / math.log(len(alpha)),
        "largest": float(alpha.amax(0).mean()),
    }


def _predicted(model: nn.Module, x: Tensor, form: Row, gamma: float) -> Row:
    """Effective samples, and what becomes of the diagonal, where differences are linear and displacements many."""
    variance = gamma**2 / 2
    if form["on"] == "outputs":
        spread, query = variance * nntk.local_ntk(model, x).diagonal(), model(x)[:, 0].detach().square()
    else:
        spread = torch.full((1,), variance, dtype=torch.float64)
        query = parameters_to_vector(model.parameters()).detach().square().mean()
    if form["score"] == "dot":
        ratio = spread * query / form["temperature"] ** 2
        effective, factor = 1 / torch.cosh(ratio), 1 + ratio
    else:
        ratio = spread / form["temperature"]
        effective, factor = (1 + 2 * ratio).sqrt() / (1 + ratio), 1 / (1 + ratio)
        effective = effective if form["on"] == "outputs" else effective ** (nntk.Attention(**form).dim or 1)
    diagonal = float((spread * factor).sum() / spread.sum()) if form["on"] == "outputs" else 1.0
    return {"predicted_effective": float(effective.mean()), "predicted_diagonal": diagonal}


def _ranks(count: int) -> np.ndarray:
    return np.unique(np.geomspace(1, count, 24).round().astype(int)) - 1


def _error(features: np.ndarray, y: np.ndarray, training: int) -> float:
    """Root mean squared error at held-out inputs, in standard deviations, of the ridge that leave-one-out chooses."""
    # Down to very small ridges: heavy tails make some features larger than the others by orders of magnitude.
    model = RidgeCV(alphas=np.logspace(-14, 2, 49), gcv_mode="svd").fit(features[:training], y[:training])
    residuals = model.predict(features[training:]) - y[training:]
    return float(np.sqrt(np.mean(residuals**2)) / y[:training].std())


def _claims(rows: Rows) -> Sequence[Claim]:
    return [*_claims_of_weights(rows), *_claims_of_kernels(rows), *_claims_of_regression(rows)]


def _claims_of_weights(rows: Rows) -> Sequence[Claim]:
    temperatures, dimensions = rows.where(table="temperatures"), rows.where(table="dimensions")
    least = min(_TEMPERATURES["outputs", "dot"])
    outputs, parameters = (dimensions.where(on=on, score="distance") for on in ("outputs", "parameters"))
    few, many = 153, 17793
    return [
        Claim(
            "effective samples: predicted",
            "Where more than 0.4 of the samples should be effective, their share is within {}, on average, of what "
            "gaussian scores would have.",
            _off_prediction(temperatures), 0, 0.05, ".3f",
        ),
        Claim(
            "outputs, dot: collapse",
            f"At a temperature of {least:g}, far below the spread of scores, the dot score on outputs gives one "
            "displacement a weight of {},",
            temperatures.values("largest", on="outputs", score="dot", temperature=least), 0.9, form=".3f",
        ),
        Claim(
            "outputs, distance: no collapse",
            "while the distance on outputs keeps {} of the samples: its score is bounded above, and many displacements "
            "change an output little.",
            temperatures.values("effective", on="outputs", score="distance", temperature=least), 0.08, 0.25, ".2f",
        ),
        Claim(
            "outputs: dimension",
            f"At a fixed temperature weights on outputs grow more unequal with width, as differences grow: from d = "
            f"{few} to {many} the distance loses {{}} of its share of samples.",
            outputs.values("effective", num_params=few) - outputs.values("effective", num_params=many),
            0.2, 0.5, ".2f",
        ),
        Claim(
            "parameters: dimension",
            "The distance on parameters, of projections to 16 dimensions, has at the larger d {} of the share that it "
            "has at the smaller.",
            parameters.values("effective", num_params=many) / parameters.values("effective", num_params=few),
            0.8, 1.3, ".2f", ratio=True,
        ),
    ]  # fmt: skip


def _claims_of_kernels(rows: Rows) -> Sequence[Claim]:
    table = rows.where(table="temperatures")
    equal = table.values("scatter", on="equal")
    far = table.where(on="parameters", score="distance", temperature=1e-3)
    return [
        Claim(
            "outputs: bias",
            "Weights on outputs change the kernel itself: at 0.01, with most samples effective, the distance "
            "multiplies its diagonal by {}: it prefers displacements that change the output little.",
            table.values("diagonal", on="outputs", score="distance", temperature=0.01), 0.3, 0.5, ".2f", ratio=True,
        ),
        Claim(
            "parameters: scatter",
            "Weights on parameters cost samples alone: half of them lost, the distance scatters {} times as much as "
            "equal weights of as many effective samples,",
            far.values("scatter") * np.sqrt(far.values("effective")) / equal, 0.85, 1.2, ".2f", ratio=True,
        ),
        Claim(
            "outputs: scatter",
            "and no score scatters much less than equal weights: the distance on outputs at 0.1 has {} of theirs.",
            table.values("scatter", on="outputs", score="distance", temperature=0.1) / equal, 0.9, 1.05, ".3f",
            ratio=True,
        ),
    ]  # fmt: skip


def _claims_of_regression(rows: Rows) -> Sequence[Claim]:
    table = rows.where(table="regression")
    narrow, wide = min(table.distinct("gamma")), max(table.distinct("gamma"))
    gaussian, heavy = (table.where(units="relu", law=law) for law in ("gaussian", "cauchy"))
    near = heavy.where(on="parameters", score="distance")
    return [
        Claim(
            "regression: gaussian displacements",
            "In regression with gaussian displacements the best of all scores and temperatures, chosen by the held-out "
            "error itself, changes the error of sign networks by {} standard deviations.",
            _best(table.where(units="sign")) - table.where(units="sign").values("error", on="equal"),
            -0.03, 0.01, ".3f",
        ),
        Claim(
            "cauchy: similarity",
            "Where displacements have heavy tails and the network is not bounded they mend the kernel: of cauchy "
            "displacements and a relu network its similarity to the NTK rises by {} with the distance on parameters at "
            "temperature 1, which leaves out long displacements.",
            near.values("similarity", temperature=1.0) - heavy.values("similarity", on="equal"), 0.3, 0.8, ".2f",
        ),
        Claim(
            "gaussian: similarity",
            "Gaussian displacements of equal weights are still more similar, by {}.",
            gaussian.values("similarity", on="equal", gamma=narrow) - near.values("similarity", temperature=1.0),
            0, 0.03, ".3f",
        ),
        Claim(
            "cauchy: error",
            "The error hardly changes: at temperature 10, the best of that distance, it is {} of that with equal "
            "weights.",
            near.values("error", temperature=10.0) / heavy.values("error", on="equal"), 0.9, 1.1, ".3f", ratio=True,
        ),
        Claim(
            "gaussian: error",
            "Gaussian displacements of equal weights have {} of what is left at the same gamma of 0.1, and lose,",
            gaussian.values("error", on="equal", gamma=narrow) / near.values("error", temperature=10.0),
            0.95, 1.25, ".2f", ratio=True,
        ),
        Claim(
            "gaussian: error at gamma 1",
            "but {} at gamma = 1, which the cauchy kernel was not tried at.",
            gaussian.values("error", on="equal", gamma=wide) / near.values("error", temperature=10.0),
            0.8, 1.1, ".2f", ratio=True,
        ),
    ]  # fmt: skip


def _off_prediction(rows: Rows) -> np.ndarray:
    """How far shares of effective samples are off, where more than 0.4 are predicted: means, one a seed."""
    found = [rows.where(on=on, score=score, temperature=t) for (on, score), ts in _TEMPERATURES.items() for t in ts]
    pairs = [(one.values("effective"), one.values("predicted_effective")) for one in found]
    off = [np.abs(effective - predicted) for effective, predicted in pairs if predicted.mean() > 0.4]
    return np.asarray(np.mean(off, axis=0))


def _best(rows: Rows) -> np.ndarray:
    """The least error of all forms of attention, one a seed."""
    forms = [(on, score, t) for on, score in _FORMS for t in rows.distinct("temperature")]
    errors = [rows.values("error", on=on, score=score, temperature=t) for on, score, t in forms]
    return np.asarray(np.min(errors, axis=0))


def _figures(rows: Rows) -> Iterator[Drawn]:
    yield _sorted_weights(rows.where(table="shapes"))
    figure, axes = drawing.panels(2, 3, width=3.4, height=3.0)
    table = rows.where(table="temperatures")
    for number, (on, score) in enumerate(_FORMS):
        found, label = table.where(on=on, score=score), f"{score} on {on}"
        drawing.draw(axes[0], found.band("temperature", "effective"), label, number)
        line, colour = found.band("temperature", "predicted_effective"), drawing.look(number)["color"]
        axes[0].plot(line.x, line.mean, color=colour, linestyle=":")
        widths = rows.where(table="dimensions", on=on, score=score)
        drawing.draw(axes[1], widths.band("num_params", "effective"), label, number)
        _against_effective(axes[2], found, "diagonal", np.ones(1), number)
        _against_effective(axes[3], found, "scatter", table.values("scatter", on="equal"), number)
    share = np.geomspace(0.004, 1, 20)
    axes[3].plot(share, share**-0.5, color="0.4", linestyle="--", label="of as many samples")
    _regression_panel(axes[4], rows.where(table="regression", units="relu", law="cauchy"), 0.9)
    _regression_panel(axes[5], rows.where(table="regression", units="sign"), 1.0)
    wide = rows.where(table="regression", units="relu", law="gaussian", gamma=1.0)
    axes[4].axhline(wide.values("error").mean(), color="0.4", linestyle=":", label="gaussian, gamma = 1, equal weights")
    drawing.entitle(axes[0], "Effective samples", "temperature", "effective samples (share of M)")
    drawing.entitle(axes[1], "At a fixed temperature", "parameters d (number)", "effective samples (share of M)")
    drawing.entitle(axes[2], "Bias", "effective samples (share of M)", "diagonal (of equal weights')")
    drawing.entitle(axes[3], "Scatter", "effective samples (share of M)", "scatter (of equal weights')")
    drawing.entitle(axes[4], "Regression: relu, cauchy", "temperature", "error (standard deviations)")
    drawing.entitle(axes[5], "Regression: sign, gaussian", "temperature", "error (standard deviations)")
    for panel in axes:
        panel.set(xscale="log")
    for panel in axes[2:4]:
        panel.set(yscale="log")
    drawing.legend(figure, 4, axes[0], axes[3], axes[4])
    yield Drawn(
        "attention",
        "Four scores. Top: effective samples against the temperature (dotted: predicted for gaussian scores) and, at a "
        "temperature of each, against the number of parameters; the mean diagonal of the kernel against effective "
        "samples. Below: scatter over displacements, beside that of equal weights of as many samples; held-out error "
        "of ridge regression with a cauchy kernel and a relu network, and with a gaussian kernel and a sign network, "
        "both of gamma = 0.1. Means and 95 % intervals over seeds.",
        figure,
    )


def _against_effective(panel: "Axes", rows: Rows, key: str, unit: np.ndarray, number: int) -> None:
    """A figure over that of equal weights, against the mean share of effective samples, one point a temperature."""
    points = []
    for temperature in rows.distinct("temperature"):
        found = interval(rows.values(key, temperature=temperature) / unit, ratio=True)
        effective = rows.values("effective", temperature=temperature).mean()
        points.append((effective, found.mean, found.low, found.high))
    drawing.draw(panel, Band(*np.array(sorted(points)).T), "", number)


def _regression_panel(panel: "Axes", rows: Rows, top: float) -> None:
    for number, (on, score) in enumerate(_FORMS):
        drawing.draw(panel, rows.where(on=on, score=score).band("temperature", "error"), f"{score} on {on}", number)
    panel.axhline(rows.values("error", on="equal").mean(), color="0.2", linestyle="--", label="equal weights")


def _sorted_weights(rows: Rows) -> Drawn:
    figure, axes = drawing.panels(1, 4, width=2.6, height=2.7)
    for panel, (on, score) in zip(axes, _FORMS, strict=True):
        found = rows.where(on=on, score=score)
        for colour, temperature in zip(("0.75", "0.45", "0.0"), found.distinct("temperature"), strict=True):
            weights = found.values("weights", temperature=temperature)[0]
            panel.plot(_ranks(found.distinct("samples")[0]) + 1, weights, color=colour, label=f"{temperature:g}")
        drawing.entitle(panel, f"{score} on {on}", "rank of the displacement", "")
        panel.set(xscale="log", yscale="log", ylim=(1e-4, 400))
        panel.legend(title="temperature", fontsize=7.5, title_fontsize=7.5, loc="lower left")
    axes[0].set_ylabel("weight (of equal weights)")
    return Drawn(
        "weights",
        "The weights of M displacements at one input, sorted, over equal weights, at three temperatures of each score "
        "(first seed; tanh network, gamma = 0.03). Equal weights are 1, and one that takes all is M.",
        figure,
    )


STUDY = Study(
    name="attention",
    title="What attention over displacements does",
    about="Untrained networks 8-h-h-1 with tanh, relu or sign units (He's initialisation, normal biases of standard "
    "deviation 0.5), h = 32 where nothing else is said; a seed is another network, other inputs and other "
    "displacements. Energy form, gaussian antithetic displacements, float64. Weights, bias and scatter are of "
    "a tanh network at standard-normal inputs, of gamma = 0.03: there differences are nearly linear, and the share "
    "of effective samples, 1 / sum(alpha^2) over M, should be 1 / cosh(a) for dot scores and "
    "sqrt(1 + 2 b) / (1 + b) for distances on outputs, to the power of 16 on parameters, with a the "
    "variance of the scores over the squared temperature and b the variance of a difference (of a projected "
    "displacement) over the temperature; the diagonal becomes 1 + a and 1 / (1 + b) times as large. Kernels of several "
    "sets of displacements are compared with the mean of those with equal weights at the same displacements; scatter "
    "is their standard deviation over the norm of their mean. Networks of other widths have one temperature for each "
    "score. Regression is of scikit-learn's Friedman function of 8 inputs with noise 0.5, on the "
    "features, with the ridge by leave-one-out, from 1e-14 to 100 of the mean squared length of the features; gamma is "
    "0.1, but 0.3 and 1 too for relu networks with gaussian displacements of equal weights.",
    full=Size(),
    quick=replace(
        Size(), seeds=3, samples=128, inputs=8, repeats=4, widths=(8, 128), held_out=128, temperatures=(10.0, 1.0)
    ),
    replicate=_replicate,
    claims=_claims,
    figures=_figures,
)
