"""Attention over displacements: sizes of the study, and the rows of one seed."""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import make_friedman1
from sklearn.linear_model import RidgeCV
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

import nntk
from nntk.bench.results.schema import Row
from nntk.bench.studies import Setting
from nntk.bench.studies.analysis.networks import network
from nntk.linalg.alignment import alignment

TEMPERATURES = {
    ("outputs", "dot"): (1.0, 0.3, 0.1, 0.03, 0.01, 1e-4),
    ("outputs", "distance"): (0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4),
    ("parameters", "dot"): (0.03, 0.01, 5e-3, 3e-3, 1e-3, 1e-4),
    ("parameters", "distance"): (0.01, 3e-3, 1e-3, 5e-4, 2e-4, 1e-5),
}
"""Temperatures of the four scores, from equal weights to collapse at the small gamma."""
FORMS = tuple(TEMPERATURES)
_WIDTH_TEMPERATURES = {
    ("outputs", "dot"): 0.1,
    ("outputs", "distance"): 0.01,
    ("parameters", "dot"): 0.01,
    ("parameters", "distance"): 1e-3,
}
"""Temperature of each score for networks of several widths."""
_SHAPE_POSITIONS = (0, 2, 4)
"""Positions of the temperatures whose sorted weights are kept."""
_TRIALS = (("relu", "gaussian"), ("relu", "cauchy"), ("sign", "gaussian"))
"""Units and fixed kernels of the regressions."""
_FEATURES = 8
"""Number of inputs of the networks."""


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


def replicate(setting: Setting) -> Iterator[Row | str]:
    """Compute the rows of one seed; a string says which part comes next."""
    # Collapse is the subject of the study, so a warning of few effective samples is expected.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nntk.EffectiveSampleWarning)
        yield from _weights(setting)
        yield from _dimensions(setting)
        yield from _regressions(setting)


def _weights(setting: Setting) -> Iterator[Row | str]:
    """Compute weights at each temperature, and the kernels of several sets of displacements."""
    size: Size = setting.size
    x = _inputs(setting)
    model = _network("tanh", size.width, setting)
    yield "equal weights"
    equal = _kernels(model, x, None, setting)
    reference = equal.mean(0)
    yield {"table": "temperatures", "on": "equal", "scatter": _scatter(equal)}
    for (on, score), temperatures in TEMPERATURES.items():
        for place, temperature in enumerate(temperatures):
            yield f"{on}, {score}, temperature {temperature:g}"
            form: Row = {"on": on, "score": score, "temperature": temperature}
            alpha, predicted = _alpha(model, x, form, setting), _predicted(model, x, form, size.small_gamma)
            kernels = _kernels(model, x, nntk.Attention(**form), setting)
            mean = kernels.mean(0)
            yield {
                "table": "temperatures",
                **form,
                **_weight_figures(alpha),
                **predicted,
                "diagonal": float(mean.trace() / reference.trace()),
                "bias": float((mean - reference).norm() / reference.norm()),
                "scatter": _scatter(kernels),
            }
            if setting.first and place in _SHAPE_POSITIONS:
                sorted_weights = alpha[:, 0].sort(descending=True).values * len(alpha)
                yield {
                    "table": "shapes",
                    **form,
                    "samples": len(alpha),
                    "weights": sorted_weights[ranks(len(alpha))].tolist(),
                }


def _dimensions(setting: Setting) -> Iterator[Row | str]:
    """Compute weights of networks of several widths at one temperature."""
    x = _inputs(setting)
    for width in setting.size.widths:
        model = _network("tanh", width, setting)
        num_params = sum(parameter.numel() for parameter in model.parameters())
        for (on, score), temperature in _WIDTH_TEMPERATURES.items():
            yield f"{on}, {score}, d = {num_params}"
            form: Row = {"on": on, "score": score, "temperature": temperature}
            effective = _weight_figures(_alpha(model, x, form, setting))["effective"]
            yield {"table": "dimensions", **form, "num_params": num_params, "effective": effective}


def _regressions(setting: Setting) -> Iterator[Row | str]:
    """Fit Friedman's function by ridge regression, and compare the training kernels with the NTK."""
    size: Size = setting.size
    trials = [(units, law, gamma) for units, law in _TRIALS for gamma in size.gammas[:1]]
    # Wider gaussians without attention, for comparison.
    trials += [("relu", "gaussian", gamma) for gamma in size.gammas[1:]]
    for units, law, gamma in trials:
        forms: list[Row] = [{"on": "equal"}]
        if gamma == size.gammas[0]:
            forms += [{"on": on, "score": score, "temperature": t} for on, score in FORMS for t in size.temperatures]
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
    """Return kernels of several sets of displacements, [repeats, N, N]."""
    size: Size = setting.size
    settings: Row = {"gamma": size.small_gamma, "samples": size.samples, "weights": weights}
    seeds = range(setting.seed * size.repeats, (setting.seed + 1) * size.repeats)
    return torch.stack([nntk.NonlocalNTK(model, seed=seed, **settings)(x) for seed in seeds])


def _scatter(kernels: Tensor) -> float:
    """Return the standard deviation over kernels, relative to their mean."""
    return float(kernels.var(0).sum().sqrt() / kernels.mean(0).norm())


def _alpha(model: nn.Module, x: Tensor, form: Row, setting: Setting) -> Tensor:
    """Return the weights, [M, N], or [M, 1] if all inputs share them."""
    size: Size = setting.size
    attention = nntk.Attention(**form)
    kernel = nntk.NonlocalNTK(model, gamma=size.small_gamma, samples=size.samples, seed=setting.seed, weights=attention)
    return kernel.displacement_weights(x) if form["on"] == "outputs" else kernel.displacement_weights()[:, None]


def _weight_figures(alpha: Tensor) -> Row:
    """Return effective samples and entropy relative to equal weights, and the largest weight, as means over inputs."""
    return {
        "effective": float((1 / alpha.square().sum(0)).mean()) / len(alpha),
        "entropy": float(torch.special.entr(alpha).sum(0).mean()) / math.log(len(alpha)),
        "largest": float(alpha.amax(0).mean()),
    }


def _predicted(model: nn.Module, x: Tensor, form: Row, gamma: float) -> Row:
    """Return effective samples and the change of the diagonal for linear differences and many displacements."""
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


def ranks(count: int) -> np.ndarray:
    """Return the ranks, from 0, at which sorted weights are kept: about evenly spaced on a logarithmic scale."""
    return np.unique(np.geomspace(1, count, 24).round().astype(int)) - 1


def _error(features: np.ndarray, y: np.ndarray, training: int) -> float:
    """Return the root mean squared held-out error, in standard deviations, of the ridge that leave-one-out chooses."""
    # Down to very small ridges: heavy tails make some features larger than the others by orders of magnitude.
    model = RidgeCV(alphas=np.logspace(-14, 2, 49), gcv_mode="svd").fit(features[:training], y[:training])
    residuals = model.predict(features[training:]) - y[training:]
    return float(np.sqrt(np.mean(residuals**2)) / y[:training].std())
