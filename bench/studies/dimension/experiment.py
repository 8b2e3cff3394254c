"""Dimension: sizes of the study, and the rows of one seed."""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import nntk
from nntk.bench.results.schema import Row
from nntk.bench.studies import Setting
from nntk.bench.studies.analysis.networks import network

FAMILIES = ("gaussian", "rademacher", "flipout(8)", "lowrank(1)", "lowrank(16)")
ESTIMATORS = ("energy", "plugin", "unbiased")
_WIDER = 1.1
"""Scale of the wide proposal relative to the gaussian."""
WIDE, HEAVY = "a gaussian 1.1 times as wide", "cauchy of the same gamma"
PROPOSALS: dict[str, Callable[[float], nntk.FixedKernel | None]] = {
    WIDE: lambda gamma: nntk.FixedKernel("gaussian", gamma=_WIDER * gamma),
    HEAVY: lambda gamma: nntk.FixedKernel("cauchy", gamma=gamma),
    "the law itself": lambda gamma: None,
}
"""Proposals: distributions whose displacements are weighted as those of a gaussian."""


@dataclass(frozen=True)
class Size:
    """Numbers of the study; a kernel is estimated ``evaluated / d`` times for each seed, at most ``repeats`` times."""

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


def replicate(setting: Setting) -> Iterator[Row | str]:
    """Compute the rows of one seed; a string says which part comes next."""
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
    """Yield, for each proposal, the effective samples and the error of the kernel with importance weights."""
    size: Size = setting.size
    ntk = nntk.local_ntk(model, x).cpu()
    for name, proposal in PROPOSALS.items():
        law = nntk.FixedKernel("gaussian", proposal=proposal(size.gamma))
        # All directions of random signs have the same length, so that only the law varies the lengths.
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
    """Yield errors against the exact NTK: of energy for each family, of the other estimators for the gaussian."""
    size: Size = setting.size
    start = time.perf_counter()
    ntk = nntk.local_ntk(model, x).cpu()
    exact_s = time.perf_counter() - start
    theta = nntk.local_ntk(model, x, outputs="full")
    for family in FAMILIES:
        d, outputs = _kernel(size, model).num_params, theta.shape[-1]
        place = {"directions": family, "samples": size.samples, "outputs": outputs, "parameters": d}
        others = outputs == 1 and family == "gaussian"
        estimates: dict[str, list[Tensor]] = {name: [] for name in (ESTIMATORS if others else ESTIMATORS[:1])}
        seconds = []
        for seed in _seeds(setting, d):
            start = time.perf_counter()
            estimates["energy"].append(_kernel(size, model, directions=family, seed=seed)(x).cpu())
            seconds.append(time.perf_counter() - start)
            if others:
                unbiased = _kernel(size, model, seed=seed, estimator="unbiased")(x).cpu()
                # Plugin is a weighted sum of both: the terms that unbiased leaves out are those of energy.
                energy = estimates["energy"][-1]
                estimates["plugin"].append((1 - 1 / size.samples) * unbiased + d / size.samples * energy)
                estimates["unbiased"].append(unbiased)
        predicted = _predicted(nntk.monte_carlo_error(theta, size.samples, d, "trace") / float(ntk.norm()), d, size)
        for estimator, kernels in estimates.items():
            square, line = _mean_square(kernels, ntk), predicted[estimator]
            figures = {"error": square**0.5, "predicted": line, "squared_ratio": square / line**2}
            trace = float(np.mean([float(kernel.trace() / ntk.trace()) for kernel in kernels]))
            yield {"table": "families", **place, "estimator": estimator, **figures, "trace_ratio": trace}
        yield {"table": "times", **place, "energy_s": float(np.median(seconds)), "exact_s": exact_s}


def _predicted(energy: float, d: int, size: Size) -> dict[str, float]:
    """Return the errors of the estimators for a linear model of one output, from that of energy."""
    # Unbiased is a U-statistic: one part has twice the scatter of energy, the other d / M times its variance. Plugin
    # is the bias (d - 1) / M with unbiased and d / M times energy, which is correlated with the first part.
    times = d / size.samples
    plugin = ((d - 1) / size.samples) ** 2 + energy**2 * (4 + 5 * times + times**2)
    return {"energy": energy, "plugin": plugin**0.5, "unbiased": energy * (4 + times) ** 0.5}


def _kernel(size: Size, model: nn.Module, **settings: Any) -> nntk.NonlocalNTK:
    return nntk.NonlocalNTK(model, gamma=size.gamma, **{"samples": size.samples, **settings})


def _seeds(setting: Setting, d: int) -> range:
    """Return the seeds of the displacements: several if the network is small."""
    size: Size = setting.size
    count = max(1, min(size.repeats, size.evaluated // d))
    return range(size.repeats * setting.seed, size.repeats * setting.seed + count)


def _mean_square(kernels: Sequence[Tensor], ntk: Tensor) -> float:
    return float(np.mean([float((kernel - ntk).norm() / ntk.norm()) ** 2 for kernel in kernels]))


def expected_samples(samples: int, parameters: np.ndarray) -> np.ndarray:
    """Return the expected effective samples of a gaussian drawn from a wider one, M (E w)^2 / E w^2."""
    return np.asarray(samples * (np.sqrt(2 * _WIDER**2 - 1) / _WIDER**2) ** parameters)
