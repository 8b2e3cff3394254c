"""Dimension: what importance weights, estimators and families of displacements do from 9 to a million parameters."""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import nntk
from nntk.bench.results.schema import Row
from nntk.bench.studies import Drawn, Setting, Study
from nntk.bench.studies.analysis import drawing
from nntk.bench.studies.analysis.claims import Claim
from nntk.bench.studies.analysis.networks import network
from nntk.bench.studies.analysis.rows import Rows

_FAMILIES = ("gaussian", "rademacher", "flipout(8)", "lowrank(1)", "lowrank(16)")
_ESTIMATORS = ("energy", "plugin", "unbiased")
_WIDER = 1.1
"""How much wider than the gaussian the proposal is."""

_WIDE, _HEAVY = "a gaussian 1.1 times as wide", "cauchy of the same gamma"
_PROPOSALS: dict[str, Callable[[float], nntk.FixedKernel | None]] = {
    _WIDE: lambda gamma: nntk.FixedKernel("gaussian", gamma=_WIDER * gamma),
    _HEAVY: lambda gamma: nntk.FixedKernel("cauchy", gamma=gamma),
    "the law itself": lambda gamma: None,
}
"""What displacements are drawn from, to be weighted as those of a gaussian."""


@dataclass(frozen=True)
class Size:
    """Numbers of the study; a kernel is estimated ``evaluated / d`` times a seed, at most ``repeats`` times."""

    seeds: int = 12
    inputs: int = 8
    hidden: tuple[int, ...] = (1, 7, 28, 97, 313, 997)
    gamma: float = 1e-4
    samples: int = 64
    repeats: int = 8
    evaluated: int = 200_000
    weighed_samples: int = 4096
    outputs: int = 10
    outputs_hidden: int = 97


def _replicate(setting: Setting) -> Iterator[Row | str]:
    size: Size = setting.size
    generator = torch.Generator().manual_seed(setting.seed)
    x = torch.randn(size.inputs, 4, generator=generator, dtype=torch.float64).to(setting.device)
    for hidden in size.hidden:
        model = network("tanh", (4, hidden, hidden, 1), setting.seed, setting.device)
        yield f"{hidden} hidden units"
        yield from _weights(setting, model, x)
        yield from _families(setting, model, x)
    several = (4, size.outputs_hidden, size.outputs_hidden, size.outputs)
    yield from _families(setting, network("tanh", several, setting.seed, setting.device), x)


def _weights(setting: Setting, model: nn.Module, x: Tensor) -> Iterator[Row]:
    """Effective samples by proposal, and the error of the kernel so weighted against that of equal weights."""
    size: Size = setting.size
    ntk = nntk.local_ntk(model, x).cpu()
    for name, proposal in _PROPOSALS.items():
        law = nntk.FixedKernel("gaussian", proposal=proposal(size.gamma))
        # Random signs have one length, so that all lengths are those drawn from the law.
        settings = {"weights": law, "directions": "rademacher"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", nntk.EffectiveSampleWarning)
            many = _kernel(size, model, samples=size.weighed_samples, seed=setting.seed, **settings)
            effective = 1 / float(many.displacement_weights().square().sum())
            seeds = _seeds(setting, many.num_params)
            square = _mean_square([_kernel(size, model, seed=seed, **settings)(x).cpu() for seed in seeds], ntk)
        predicted = nntk.monte_carlo_error(ntk, size.samples, many.num_params) / float(ntk.norm())
        figures = {"effective": effective, "error": square**0.5, "squared_ratio": square / predicted**2}
        yield {"table": "weights", "drawn_from": name, "parameters": many.num_params, **figures}


def _families(setting: Setting, model: nn.Module, x: Tensor) -> Iterator[Row]:
    """Errors of energy by family against the exact NTK, and of the other estimators with gaussian displacements."""
    size: Size = setting.size
    begun = time.perf_counter()
    ntk = nntk.local_ntk(model, x).cpu()
    exact_s = time.perf_counter() - begun
    theta = nntk.local_ntk(model, x, outputs="full")
    for family in _FAMILIES:
        d, outputs = _kernel(size, model).num_params, theta.shape[-1]
        place = {"directions": family, "samples": size.samples, "outputs": outputs, "parameters": d}
        others = outputs == 1 and family == "gaussian"
        made: dict[str, list[Tensor]] = {name: [] for name in (_ESTIMATORS if others else _ESTIMATORS[:1])}
        seconds = []
        for seed in _seeds(setting, d):
            begun = time.perf_counter()
            made["energy"].append(_kernel(size, model, directions=family, seed=seed)(x).cpu())
            seconds.append(time.perf_counter() - begun)
            if others:
                unbiased = _kernel(size, model, seed=seed, estimator="unbiased")(x).cpu()
                # Plugin is both: the terms that unbiased leaves out are those of energy.
                made["plugin"].append((1 - 1 / size.samples) * unbiased + d / size.samples * made["energy"][-1])
                made["unbiased"].append(unbiased)
        predicted = _predicted(nntk.monte_carlo_error(theta, size.samples, d, "trace") / float(ntk.norm()), d, size)
        for estimator, kernels in made.items():
            square, line = _mean_square(kernels, ntk), predicted[estimator]
            figures = {"error": square**0.5, "predicted": line, "squared_ratio": square / line**2}
            trace = float(np.mean([float(one.trace() / ntk.trace()) for one in kernels]))
            yield {"table": "families", **place, "estimator": estimator, **figures, "trace_ratio": trace}
        yield {"table": "times", **place, "energy_s": float(np.median(seconds)), "exact_s": exact_s}


def _predicted(energy: float, d: int, size: Size) -> dict[str, float]:
    """Errors of the estimators for a linear model of one output, from that of energy."""
    # Unbiased is a U-statistic: one part has twice the scatter of energy, the other d / M times its variance. Plugin
    # is the bias (d - 1) / M with unbiased and d / M times energy, which is correlated with the first part.
    times = d / size.samples
    plugin = ((d - 1) / size.samples) ** 2 + energy**2 * (4 + 5 * times + times**2)
    return {"energy": energy, "plugin": plugin**0.5, "unbiased": energy * (4 + times) ** 0.5}


def _kernel(size: Size, model: nn.Module, **settings: Any) -> nntk.NonlocalNTK:
    return nntk.NonlocalNTK(model, gamma=size.gamma, **{"samples": size.samples, **settings})


def _seeds(setting: Setting, d: int) -> range:
    """Seeds of the displacements: several where they are cheap."""
    size: Size = setting.size
    count = max(1, min(size.repeats, size.evaluated // d))
    return range(size.repeats * setting.seed, size.repeats * setting.seed + count)


def _mean_square(kernels: Sequence[Tensor], ntk: Tensor) -> float:
    return float(np.mean([float((kernel - ntk).norm() / ntk.norm()) ** 2 for kernel in kernels]))


def _law(samples: int, parameters: np.ndarray) -> np.ndarray:
    """Effective samples that are expected of a gaussian drawn from a wider one, M (E w)^2 / E w^2."""
    return np.asarray(samples * (np.sqrt(2 * _WIDER**2 - 1) / _WIDER**2) ** parameters)


def _claims(rows: Rows) -> Sequence[Claim]:
    weights, families = rows.where(table="weights"), rows.where(table="families")
    sizes = weights.distinct("parameters")
    few, more, many = (next(d for d in sizes if d > least) for least in (50, 500, 5000))
    total = round(weights.values("effective", drawn_from="the law itself", parameters=few)[0])
    wide, own, heavy = (weights.where(drawn_from=name) for name in (_WIDE, "the law itself", _HEAVY))
    expected = {d: float(_law(total, np.array(d))) for d in (few, more)}
    return [
        Claim(
            "weights: the law",
            f"{total} displacements of a gaussian 1.1 times as wide, weighted, count at d = {few} for {{}} of the "
            f"{expected[few]:.0f} that are expected, M (1.42 / 1.21^2)^(d / 2).",
            wide.values("effective", parameters=few) / expected[few], 0.7, 1.3, ".2f",
        ),
        Claim(
            "weights: flattery",
            f"At d = {more}, where the law leaves {expected[more]:.2g}, they report {{}}: displacements that would "
            "have nearly all the weight are not among them, and the number flatters.",
            wide.values("effective", parameters=more), 2, 60, ".0f", ratio=True,
        ),
        Claim(
            "weights: collapse",
            f"At d = {many} they report {{}}.",
            wide.values("effective", parameters=many), 1, 6, ".1f", ratio=True,
        ),
        Claim(
            "weights: error",
            "There the mean squared error of the kernel is {} times that of as many displacements drawn from the law "
            "itself, whose weights are equal.",
            wide.values("squared_ratio", parameters=many) / own.values("squared_ratio", parameters=many),
            15, 200, ".0f", ratio=True,
        ),
        Claim(
            "weights: heavy tails",
            "A cauchy proposal loses less: its effective samples go as d to the power of {}.",
            heavy.slope("parameters", "effective", more, sizes[-1]), -0.6, -0.35, ".2f",
        ),
        *_estimators(families.where(directions="gaussian", outputs=1), more),
        *_prices(rows, families),
    ]  # fmt: skip


def _estimators(gaussian: Rows, more: int) -> list[Claim]:
    energy, plugin, unbiased = (gaussian.where(estimator=name) for name in _ESTIMATORS)
    sizes = energy.distinct("parameters")
    last, samples = sizes[-1], energy.distinct("samples")[0]
    squares = [energy.values("squared_ratio", parameters=d) for d in sizes]
    return [
        Claim(
            "energy: any dimension",
            f"The mean squared error of the energy form with {samples} displacements is, over all d, {{}} of the "
            "predicted one, in which d hardly occurs.",
            np.mean(squares, axis=0), 0.6, 1.5, ".2f",
        ),
        Claim(
            "plugin: bias",
            f"The trace of plugin is {{}} of (1 + (d - 1) / M) times that of the NTK at d = {last}:",
            plugin.values("trace_ratio", parameters=last) / (1 + (last - 1) / samples), 0.8, 1.2, ".2f",
        ),
        Claim(
            "unbiased: along d",
            f"it would need M well above d. The error of unbiased grows from d = {more} on as d to the power of {{}},",
            unbiased.slope("parameters", "error", more, last), 0.3, 0.65, ".2f",
        ),
        Claim(
            "unbiased: size of its error",
            "its mean square being {} of 4 + d / M times that of energy: M well above the root of d is enough, and "
            "for a smooth network energy is the better estimator at any d.",
            np.mean([unbiased.values("squared_ratio", parameters=d) for d in sizes], axis=0), 0.6, 1.6, ".2f",
        ),
    ]  # fmt: skip


def _prices(rows: Rows, families: Rows) -> list[Claim]:
    energy, times = families.where(estimator="energy"), rows.where(table="times", outputs=1)
    single = energy.where(outputs=1)
    large = [d for d in single.distinct("parameters") if d > 500]
    several = energy.distinct("outputs")[-1]

    def price(family: str) -> np.ndarray:
        ratios = [single.values("squared_ratio", directions=family, parameters=d) for d in large]
        return np.asarray(np.mean(ratios, axis=0))

    def cost(family: str, key: str = "energy_s") -> np.ndarray:
        gaussian = times.values("energy_s", directions="gaussian", parameters=large[-1])
        return np.asarray(times.values(key, directions=family, parameters=large[-1]) / gaussian)

    return [
        Claim(
            "families: signs and bases",
            f"From d = {large[0]} on the mean squared error of rademacher or flipout(8) is {{}} of the predicted,",
            (price("rademacher") + price("flipout(8)")) / 2, 0.7, 1.35, ".2f",
        ),
        Claim(
            "families: low rank",
            "of lowrank(1) {},",
            price("lowrank(1)"), 0.9, 2.4, ".2f",
        ),
        Claim(
            "families: low rank, several outputs",
            f"and with {several} outputs {{}}:",
            energy.values("squared_ratio", directions="lowrank(1)", outputs=several), 2, 8, ".2f",
        ),
        Claim(
            "families: rank 16",
            "rank 16 brings that to {}.",
            energy.values("squared_ratio", directions="lowrank(16)", outputs=several), 0.4, 1.9, ".2f",
        ),
        Claim(
            "families: time",
            f"But lowrank(1) takes at d = {large[-1]} {{}} of the time of gaussian.",
            cost("lowrank(1)"), form=".2g", ratio=True,
        ),
        Claim(
            "the NTK itself: time",
            "The exact NTK of this smooth network takes {} of it, and is to be preferred.",
            cost("gaussian", "exact_s"), form=".2g", ratio=True,
        ),
    ]  # fmt: skip


def _figures(rows: Rows) -> Iterator[Drawn]:
    yield _draw_estimators(rows)
    yield _draw_families(rows)


def _draw_estimators(rows: Rows) -> Drawn:
    figure, (effective, errors) = drawing.panels(1, 2, width=4.9, height=3.9)
    weights = rows.where(table="weights")
    for number, name in enumerate(_PROPOSALS):
        band = weights.where(drawn_from=name).band("parameters", "effective", True)
        drawing.draw(effective, band, f"drawn from {name}", number)
    d = np.geomspace(band.x[0], band.x[-1], 400)
    law = _law(round(band.mean[0]), d)
    effective.plot(d[law > 0.7], law[law > 0.7], color="0.4", linestyle=":", label="expected of the first")
    gaussian = rows.where(table="families", directions="gaussian", outputs=1)
    for number, estimator in enumerate(_ESTIMATORS):
        of = gaussian.where(estimator=estimator)
        drawing.draw(errors, of.band("parameters", "error", True), estimator, number + 3)
        line = of.band("parameters", "predicted", True)
        errors.plot(line.x, line.mean, color="0.4", linestyle=":", label="predicted")
    drawing.draw(
        errors, weights.where(drawn_from=_WIDE).band("parameters", "error", True), "energy, weighted", 0, linestyle="--"
    )
    drawing.entitle(effective, "Importance weights", "parameters d (number)", "effective samples (number)")
    drawing.entitle(errors, "Estimators", "parameters d (number)", "error of K (relative to the NTK)")
    for panel in (effective, errors):
        panel.set(xscale="log", yscale="log")
    drawing.legend(figure, 3, effective, errors)
    return Drawn(
        "dimension",
        "Left: effective samples of displacements weighted as those of a gaussian, by the law that they are drawn "
        "from, and what is expected of the wider gaussian (dotted). Right: error of the kernel by estimator with "
        "gaussian displacements, what is predicted (dotted), and that of energy with the weights of the wider "
        "gaussian. Geometric means and 95 % intervals over seeds.",
        figure,
    )


def _draw_families(rows: Rows) -> Drawn:
    figure, (along, beside, seconds) = drawing.panels(1, 3, width=3.5, height=3.6)
    energy, times = rows.where(table="families", estimator="energy"), rows.where(table="times", outputs=1)
    single, several = energy.distinct("outputs")
    near = max(d for d in energy.where(outputs=single).distinct("parameters") if d < 20_000)
    for number, family in enumerate(_FAMILIES):
        of = energy.where(directions=family)
        drawing.draw(along, of.where(outputs=single).band("parameters", "squared_ratio", True), family, number)
        drawing.draw(seconds, times.where(directions=family).band("parameters", "energy_s", True), family, number)
        for place, band in (
            (0, of.where(parameters=near).band("parameters", "squared_ratio", True)),
            (1, of.where(outputs=several).band("parameters", "squared_ratio", True)),
        ):
            beside.errorbar(
                place + (number - 2) / 8,
                band.mean,
                [band.mean - band.low, band.high - band.mean],
                **{**drawing.look(number), "linestyle": ""},
                capsize=2.5,
            )
    exact = times.where(directions="gaussian").band("parameters", "exact_s", True)
    drawing.draw(seconds, exact, "the exact NTK", len(_FAMILIES), linestyle="--")
    for panel in (along, seconds):
        panel.set(xscale="log", yscale="log")
    for panel in (along, beside):
        panel.axhline(1, color="0.4", linestyle=":", label="predicted")
        panel.set(yscale="log", ylim=(0.3, 8))
        panel.set_yticks((0.5, 1, 2, 4), ("0.5", "1", "2", "4"))
        panel.set_yticks((), minor=True)
    beside.set(xticks=(0, 1), xticklabels=("one output", f"{several} outputs"), xlim=(-0.5, 1.5))
    ratio = "squared error (over the predicted)"
    drawing.entitle(along, "One output", "parameters d (number)", ratio)
    drawing.entitle(beside, "Several outputs", "d about 10,000", ratio)
    drawing.entitle(seconds, "Time", "parameters d (number)", "time of a kernel (s)")
    drawing.legend(figure, 4, seconds, along)
    return Drawn(
        "families",
        "Mean squared error of the energy form by family of displacements, over that predicted for isotropic ones "
        "(left: along d; middle: with one output and with several), and the time of a kernel beside that of the exact "
        "NTK (right). Geometric means and 95 % intervals over seeds.",
        figure,
    )


STUDY = Study(
    name="dimension",
    title="What many parameters do to weights, estimators and families of displacements",
    about="An untrained tanh network 4-w-w-1 (He's initialisation, normal biases of standard deviation 0.5), which has "
    "w^2 + 7 w + 1 parameters, at standard-normal inputs, gamma = 1e-4, antithetic displacements. Errors are relative, "
    "in Frobenius norm, against the exact NTK; where d allows, a seed's squared error is a mean over several sets of "
    "displacements (200,000 / d of them, 1 to 8). Predicted is the error for a linear model: of energy by "
    "nntk.monte_carlo_error; of unbiased sqrt(4 + d / M) times that, by the variance of a U-statistic; of plugin from "
    "both and the bias (d - 1) / M. Plugin is made of energy and unbiased, of which it is a sum: (1 - 1 / M) unbiased "
    "+ d / M energy. Weights: displacements of random signs with lengths of a proposal, weighted as those of a "
    "gaussian; effective samples are 1 / sum alpha^2. Ten outputs: the trace of the kernel, at w = 97. The exact NTK "
    "is nntk.local_ntk, structured. Times are of one call, with the displacements' noise.",
    full=Size(),
    quick=replace(Size(), seeds=4, hidden=(7, 28, 97), repeats=2),
    replicate=_replicate,
    claims=_claims,
    figures=_figures,
)
