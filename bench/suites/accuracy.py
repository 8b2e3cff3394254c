"""Accuracy: differences against float64 on the same displacements, kernels against the autograd NTK."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

import nntk
from nntk.bench.measure import data, reference
from nntk.bench.results.schema import Row
from nntk.bench.results.tables import Column
from nntk.bench.suites.section import Section, Setting

_WIDTHS = (64, 256, 256, 1)
_GAMMAS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
_TOLERANCE = 1e-5


def _differences(setting: Setting) -> Iterator[Row | str]:
    x = data.load(setting.seed, setting.device).images[:64]
    for name, activation in (("relu", nn.ReLU), ("sign", nntk.activations.Sign)):
        model = data.he_network(_WIDTHS, activation, setting.seed, setting.device)
        for gamma in _GAMMAS:
            yield f"{name}, gamma {gamma:g}"
            row: Row = {"case": name, "gamma": gamma, "samples": 32, "inputs": len(x)}
            for propagation in ("difference", "direct"):
                kernel = nntk.NonlocalNTK(
                    model, gamma=gamma, samples=32, propagation=propagation, precision="fp32", seed=setting.seed
                )
                actual, expected = kernel.differences(x), reference.float64_differences(kernel, x)
                row[propagation] = reference.relative_error(actual, expected)
                if propagation == "difference":
                    row["failure"] = _failure(actual, expected, jumps=name == "sign")
            yield {key: value for key, value in row.items() if value is not None}


def _failure(actual: Tensor, expected: Tensor, jumps: bool) -> str | None:
    """Describe an error of propagated differences; at a jump one activation in 10^6 may flip."""
    flips = reference.flipped(actual, expected) & jumps
    allowed = max(1, 1e-6 * 2 * flips.numel() * sum(_WIDTHS[1:-1]))
    if not int(flips.sum()) <= allowed:
        return f"{int(flips.sum())} of {flips.numel()} entries fell across a jump"
    error = reference.relative_error(actual[~flips], expected[~flips])
    return None if error <= _TOLERANCE else f"error {error:.1e} > {_TOLERANCE:.0e}"


DIFFERENCES = Section(
    name="difference accuracy",
    title="Differences in float32 against float64 on the same displacements (64-256-256-1, digits)",
    caption="Relative error (Frobenius). 'direct' evaluates f(theta + delta) and subtracts.",
    columns=(
        Column("network", "case"),
        Column("gamma", "gamma", "g"),
        Column("propagated", "difference", ".1e"),
        Column("direct", "direct", ".1e"),
    ),
    rows=_differences,
)


def _kernel_row(setting: Setting, gamma: float, samples: int, seeds: int) -> Row:
    """Measure the error of the NNTK of a tanh network against its NTK, root mean square over seeds."""
    x = data.load(setting.seed, setting.device).images[:64]
    model = data.he_network(_WIDTHS, nn.Tanh, setting.seed, setting.device)
    ntk = nntk.local_ntk(model, x).double()
    squared, num_params = 0.0, 0
    for seed in range(seeds):
        kernel = nntk.NonlocalNTK(model, gamma=gamma, samples=samples, seed=setting.seed + seed)
        squared += float((kernel(x).double() - ntk).square().sum()) / seeds
        num_params = kernel.num_params
    norm = float(ntk.norm())
    error, predicted = math.sqrt(squared) / norm, nntk.monte_carlo_error(ntk, samples, num_params) / norm
    row: Row = {
        "case": "tanh",
        "gamma": gamma,
        "samples": samples,
        "inputs": len(x),
        "seeds": seeds,
        "error": error,
        "predicted": predicted,
    }
    # At a larger gamma the kernel differs from the NTK.
    if gamma <= 1e-4 and not error <= 4 * predicted:
        row["failure"] = f"error {error:.1e} > four times the predicted {predicted:.1e}"
    return row


def _over_gamma(setting: Setting) -> Iterator[Row | str]:
    for gamma in (1.0, 1e-1, 1e-2, 1e-4, 1e-6):
        yield f"gamma {gamma:g}"
        yield _kernel_row(setting, gamma, samples=512, seeds=4)


def _over_samples(setting: Setting) -> Iterator[Row | str]:
    for samples in (32, 128, 512, 2048):
        yield f"{samples} samples"
        yield _kernel_row(setting, 1e-4, samples, seeds=4)


_KERNEL_COLUMNS = (
    Column("network", "case"),
    Column("gamma", "gamma", "g"),
    Column("samples", "samples"),
    Column("error", "error", ".4f"),
    Column("predicted", "predicted", ".4f"),
)
_KERNEL_CAPTION = (
    "Relative error (Frobenius), root mean square over four seeds; predicted: Monte-Carlo error for gamma -> 0."
)

GAMMA = Section(
    name="kernel accuracy over gamma",
    title="NNTK against autograd NTK as gamma falls (tanh 64-256-256-1, 64 digits)",
    caption=_KERNEL_CAPTION,
    columns=_KERNEL_COLUMNS,
    rows=_over_gamma,
)
SAMPLES = Section(
    name="kernel accuracy over samples",
    title="NNTK against autograd NTK as samples grow (tanh 64-256-256-1, 64 digits)",
    caption=_KERNEL_CAPTION,
    columns=_KERNEL_COLUMNS,
    rows=_over_samples,
)

_DIRECTIONS = ("gaussian", "rademacher", "flipout(8)", "lowrank(1)", "lowrank(16)")


def _excess(setting: Setting, directions: str, outputs: int) -> tuple[float, float]:
    """Return the mean squared error over that of isotropic displacements, and its standard error, of 256 kernels."""
    # Many kernels of few displacements are used: the largest eigenvalue dominates the squared error of each.
    samples, group, ratios = 1024, 16, []
    x = data.load(setting.seed, setting.device).images[:16]
    model = data.he_network((64, 64, 64, outputs), nn.Tanh, setting.seed, setting.device)
    full = nntk.local_ntk(model, x, outputs="full").double()
    for seed in range(setting.seed, setting.seed + 4):
        kernel = nntk.NonlocalNTK(model, gamma=1e-4, samples=samples, directions=directions, seed=seed)
        scale = (kernel.num_params / (group * kernel.squared_norms())).sqrt()
        d = (kernel.differences(x).double() * scale[:, None, None]).unflatten(0, (-1, group))
        errors = torch.einsum("gmic,gmjc->gij", d, d) - torch.einsum("ijcc->ij", full)
        predicted = nntk.monte_carlo_error(full, group, kernel.num_params, "trace")
        ratios.append(errors.square().sum((1, 2)) / predicted**2)
    all_ratios = torch.cat(ratios)
    return float(all_ratios.mean()), float(all_ratios.std()) / math.sqrt(len(all_ratios))


def _over_families(setting: Setting) -> Iterator[Row | str]:
    for directions in _DIRECTIONS:
        row: Row = {"case": directions, "gamma": 1e-4, "samples": 4096, "inputs": 16}
        for outputs in (1, 10):
            yield f"{directions}, {outputs} outputs"
            ratio, uncertainty = _excess(setting, directions, outputs)
            row[f"ratio_{outputs}"], row[f"uncertainty_{outputs}"] = ratio, uncertainty
            if not directions.startswith("lowrank") and not abs(ratio - 1) <= 0.1 + 5 * uncertainty:
                row["failure"] = f"{outputs} outputs: {ratio:.2f} times the prediction for isotropic displacements"
        yield row


FAMILIES = Section(
    name="families",
    title="Squared Monte-Carlo error of the families of displacements (tanh 64-64-64-C, 16 digits, gamma 1e-4)",
    caption="M times the mean squared error of the kernel against the autograd NTK, relative to the prediction for "
    "isotropic displacements, with its standard error; 4096 displacements of four seeds.",
    columns=(
        Column("directions", "case"),
        Column("C = 1", "ratio_1", ".2f"),
        Column("+-", "uncertainty_1", ".2f"),
        Column("C = 10", "ratio_10", ".2f"),
        Column("+-", "uncertainty_10", ".2f"),
    ),
    rows=_over_families,
)
