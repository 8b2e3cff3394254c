"""Limit: the nonlocal kernel tends to the NTK as gamma falls and M grows, beside predicted errors."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

import nntk
from nntk.bench.results.schema import Row
from nntk.bench.studies import Setting, Study, StudyFigure
from nntk.bench.studies.analysis import drawing
from nntk.bench.studies.analysis.claims import Claim
from nntk.bench.studies.analysis.networks import network
from nntk.bench.studies.analysis.rows import Rows

_UNITS = ("tanh", "relu")
_EVALUATIONS = {
    "subtracted, float32": ("direct", "fp32"),
    "propagated, bfloat16": ("difference", "bf16"),
    "propagated, float32": ("difference", "fp32"),
}
"""Forms of evaluation: propagation and precision. Subtraction in bfloat16 is missing because the library rejects it."""


@dataclass(frozen=True)
class Size:
    """Numbers of the study."""

    seeds: int = 20
    widths: tuple[int, ...] = (16, 32, 32, 1)
    inputs: int = 32
    samples: tuple[int, ...] = (16, 64, 256, 1024, 4096, 16384)
    gammas: tuple[float, ...] = (1.0, 0.3, 0.1, 3e-2, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
    fixed_samples: int = 256
    small_gamma: float = 1e-4


def _replicate(setting: Setting) -> Iterator[Row | str]:
    size: Size = setting.size
    generator = torch.Generator().manual_seed(setting.seed)
    x = torch.randn(size.inputs, size.widths[0], generator=generator, dtype=torch.float64).to(setting.device)
    for units in _UNITS:
        model = network(units, size.widths, setting.seed, setting.device)
        ntk = nntk.local_ntk(model, x)
        for samples in size.samples:
            yield f"{units}, M = {samples}"
            kernel = nntk.NonlocalNTK(model, gamma=size.small_gamma, samples=samples, seed=setting.seed)
            predicted = nntk.monte_carlo_error(ntk, samples, kernel.num_params) / float(ntk.norm())
            figures = {"error": _error(kernel(x), ntk), "predicted": predicted}
            yield {"table": "samples", "units": units, "samples": samples, **figures}
        monte_carlo = nntk.monte_carlo_error(ntk, size.fixed_samples, kernel.num_params) / float(ntk.norm())
        single = network(units, size.widths, setting.seed, setting.device).float()
        limit = _linear(model, x, size.fixed_samples, setting.seed)
        for gamma in size.gammas:
            yield f"{units}, gamma = {gamma:g}"
            kernel_of = partial(nntk.NonlocalNTK, gamma=gamma, samples=size.fixed_samples, seed=setting.seed)
            exact = kernel_of(model)(x)
            yield {
                "table": "gamma",
                "units": units,
                "gamma": gamma,
                "error": _error(exact, limit),
                "monte_carlo": monte_carlo,
            }
            for evaluation, (propagation, precision) in _EVALUATIONS.items():
                rounded = kernel_of(single, propagation=propagation, precision=precision)(x.float())
                error = _error(rounded, exact)
                yield {"table": "rounding", "units": units, "gamma": gamma, "way": evaluation, "error_rounding": error}


def _error(kernel: Tensor, reference: Tensor) -> float:
    return float((kernel.double() - reference).norm() / reference.norm())


def _linear(model: nn.Module, x: Tensor, samples: int, seed: int) -> Tensor:
    """Return the energy form of the first-order differences J delta, with J by autograd, at the same displacements."""
    kernel = nntk.NonlocalNTK(model, samples=samples, seed=seed)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    jacobians = torch.func.jacrev(lambda p: torch.func.functional_call(model, p, (x,))[:, 0])(parameters)
    jacobian = torch.cat([jacobians[name].flatten(1) for name in parameters], 1)
    displacements = [kernel.displacements(m) for m in range(samples)]
    delta = torch.stack([torch.cat([parts[name].flatten() for name in parameters]) for parts in displacements])
    # The energy form does not depend on the lengths of the displacements.
    features: Tensor = jacobian @ (delta / delta.norm(dim=1, keepdim=True)).T
    return features @ features.T * (kernel.num_params / samples)


def _claims(rows: Rows) -> Sequence[Claim]:
    claims = []
    for units in _UNITS:
        along = rows.where(table="samples", units=units)
        sizes = along.distinct("samples")
        # Squares, since it is the mean square that is predicted.
        squares = [(along.values("error", samples=m) / along.values("predicted", samples=m)) ** 2 for m in sizes]
        claims += [
            Claim(
                f"{units}: size of the Monte-Carlo error",
                f"With {units} units the mean squared error at a small gamma is {{}} of the predicted one",
                np.mean(squares, axis=0), 0.7, 1.4, ".2f",
            ),
            Claim(
                f"{units}: slope along M",
                "and falls along M with a slope of {} in log-log.",
                along.slope("samples", "error", sizes[0], sizes[-1]), -0.56, -0.44, ".2f",
            ),
        ]  # fmt: skip
    tanh, relu = (rows.where(table="gamma", units=units) for units in _UNITS)
    lines = {evaluation: rows.where(table="rounding", units="tanh", way=evaluation) for evaluation in _EVALUATIONS}
    subtracted = lines["subtracted, float32"]
    least = min(tanh.distinct("gamma"))
    return [
        *claims,
        Claim(
            "tanh: slope along gamma",
            "At the same displacements the kernel of the tanh network is off its limit by gamma to the power of {}: "
            "odd parts have no term of second order.",
            tanh.slope("gamma", "error", 1e-4, 1e-2), 1.9, 2.1, ".3f",
        ),
        Claim(
            "relu: small at gamma 0.01",
            "That of the relu network, whose kinks are passed one by one, is at gamma = 0.01 off by {} of the "
            "Monte-Carlo error at M = 256.",
            relu.values("error", gamma=0.01) / relu.values("monte_carlo", gamma=0.01), 0, 0.5, ".2f",
        ),
        Claim(
            "float32: slope of subtraction",
            "Subtracting evaluations in float32 errs by gamma to the power of {},",
            subtracted.slope("gamma", "error_rounding", 1e-6, 1e-2), -1.15, -0.85, ".2f",
        ),
        Claim(
            "float32: where it takes over",
            "which on this line becomes as large as the Monte-Carlo error of M = 256 at gamma = {};",
            1e-6 * subtracted.values("error_rounding", gamma=1e-6) / tanh.values("monte_carlo", gamma=1e-6),
            1e-8, 1e-7, ".2g", ratio=True,
        ),
        Claim(
            "float32: propagated",
            f"propagated differences err by {{}} still at gamma = {least:g},",
            lines["propagated, float32"].values("error_rounding", gamma=least), 0, 1e-6, ".1e", ratio=True,
        ),
        Claim(
            "bfloat16: propagated",
            "and by {} with the bfloat16 operands of tensor cores.",
            lines["propagated, bfloat16"].values("error_rounding", gamma=least), 0, 2e-2, ".1e", ratio=True,
        ),
    ]  # fmt: skip


def _figures(rows: Rows) -> Iterator[StudyFigure]:
    figure, axes = drawing.panels(1, 3, width=3.4, height=3.6)
    for number, units in enumerate(_UNITS):
        along = rows.where(table="samples", units=units)
        drawing.draw(axes[0], along.band("samples", "error", True), f"{units}, measured", number)
        line = along.band("samples", "predicted", True)
        axes[0].plot(line.x, line.mean, color=drawing.look(number)["color"], linestyle=":", label=f"{units}, predicted")
        gammas = rows.where(table="gamma", units=units)
        drawing.draw(axes[1], gammas.band("gamma", "error", True), f"{units}, measured", number)
    floor = rows.where(table="gamma", units="tanh").band("gamma", "monte_carlo", True)
    for panel in axes[1:]:
        panel.plot(floor.x, floor.mean, color="0.4", linestyle="--", label="Monte-Carlo error, M = 256 (tanh)")
    for number, evaluation in enumerate(_EVALUATIONS):
        band = rows.where(table="rounding", units="tanh", way=evaluation).band("gamma", "error_rounding", True)
        drawing.draw(axes[2], band, evaluation, number + 2)
    drawing.entitle(axes[0], "More displacements", "displacements M (number)", "error of K (relative to the NTK)")
    drawing.entitle(axes[1], "Smaller ones", "gamma (parameter units)", "what gamma changes in K (relative)")
    drawing.entitle(axes[2], "In few bits", "gamma (parameter units)", "rounding in K (relative)")
    for panel in axes:
        panel.set(xscale="log", yscale="log")
    drawing.legend(figure, 3, *axes)
    yield StudyFigure(
        "limit",
        "The nonlocal kernel becomes the NTK. Left: error at gamma = 1e-4 against the number of displacements, beside "
        "the predicted line. Middle: what is left at a finite gamma, at the displacements of M = 256, against their "
        "linear limit by autograd. Right: rounding in the kernel of a tanh network, with propagated differences and "
        "with differences of two evaluations. Geometric means and 95 % intervals over seeds.",
        figure,
    )


STUDY = Study(
    name="limit",
    title="How the nonlocal kernel becomes the NTK",
    about="An untrained network with tanh or relu units (He's initialisation, normal biases of standard deviation 0.5) "
    "at standard-normal inputs; a seed is another network, other inputs and other displacements. Energy form, gaussian "
    "antithetic displacements. Errors are relative, in Frobenius norm: of the kernel at a small gamma against the "
    "exact NTK; of the kernel at a fixed number of displacements against the same form of J delta, with the Jacobian J "
    "by autograd in float64; of the same kernel in few bits against float64. bfloat16 operands are emulated on a CPU.",
    full=Size(),
    quick=replace(Size(), seeds=4, samples=(16, 64, 256, 1024), gammas=(1.0, 1e-1, 1e-2, 1e-4, 1e-6)),
    replicate=_replicate,
    claims=_claims,
    figures=_figures,
)
