"""Appearance of kernels: heat maps, eigenvalues, effective rank and alignment of NTK and NNTK, against gamma."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.preprocessing import KernelCenterer
from torch import Tensor

import nntk
from nntk.bench.results.schema import Row
from nntk.bench.studies import Setting, Study, StudyFigure
from nntk.bench.studies.analysis import drawing
from nntk.bench.studies.analysis.claims import Claim, interval
from nntk.bench.studies.analysis.networks import ACTIVATIONS, network
from nntk.bench.studies.analysis.rows import Rows
from nntk.linalg.alignment import alignment

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTHS = (1, 64, 64, 1)
_PLACES = (1, 2, 3, 4, 6, 8, 10, 12, 16, 24, 32, 48)
"""Positions of the eigenvalues that are kept, from 1."""
_ROUNDING = 1e-12
"""Smallest eigenvalue relative to the largest; smaller ones are rounding errors and count as this value."""
_MAP_UNITS, _MAP_GAMMAS = ("tanh", "sign"), (None, 0.01, 0.1, 1.0)
"""Units and gammas of heat maps and spectra; None is the NTK."""
_FEW_GAMMAS = {"tanh": 0.01, "sign": 0.03}
"""Gamma of the kernels of few displacements, by units."""


@dataclass(frozen=True)
class Size:
    """Numbers of the study."""

    seeds: int = 10
    inputs: int = 64
    gammas: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    samples: int = 1024
    few_samples: tuple[int, ...] = (8, 32, 128, 512, 2048)


def _replicate(setting: Setting) -> Iterator[Row | str]:
    size: Size = setting.size
    x = torch.linspace(-1, 1, size.inputs, dtype=torch.float64, device=setting.device)[:, None]
    models = {units: network(units, _WIDTHS, setting.seed, setting.device) for units in ACTIVATIONS}
    smooth = nntk.local_ntk(models["tanh"], x)
    for units, model in models.items():
        for gamma in (None, *size.gammas):
            yield f"{units}, {_label(gamma)}"
            kernel = nntk.local_ntk(model, x) if gamma is None else _nonlocal(model, x, gamma, size.samples, setting)
            settings = {"units": units} if gamma is None else {"units": units, "gamma": gamma}
            yield {"table": "kernels", **settings, **_kernel_figures(kernel, x[:, 0], smooth)}
            if setting.first and units in _MAP_UNITS and gamma in _MAP_GAMMAS:
                yield {"table": "heat_maps", **settings, "cosines": _cosines(kernel[::2, ::2])}
    for units, gamma in _FEW_GAMMAS.items():
        for samples in size.few_samples:
            yield f"{units}, M = {samples}"
            rank = _effective_rank(_centred(_nonlocal(models[units], x, gamma, samples, setting)))
            yield {"table": "few", "units": units, "samples": samples, "effective_rank": rank}


def _nonlocal(model: torch.nn.Module, x: Tensor, gamma: float, samples: int, setting: Setting) -> Tensor:
    return nntk.NonlocalNTK(model, gamma=gamma, samples=samples, seed=setting.seed)(x)


def _kernel_figures(kernel: Tensor, x: Tensor, smooth: Tensor) -> Row:
    """Return the figures of a kernel at inputs [N], beside the NTK of the smooth network."""
    centred, jump, sine = _centred(kernel), torch.where(x >= 0, 1.0, -1.0).double(), torch.sin(torch.pi * x)
    spectrum = torch.linalg.eigvalsh(centred).flip(0).cpu()
    spectrum = (spectrum / spectrum[0]).clamp(min=_ROUNDING)
    return {
        "mean_diagonal": float(kernel.trace()) / len(x),
        "effective_rank": _effective_rank(centred),
        "told_apart": len(torch.unique(kernel.round(decimals=9), dim=0)),
        "similarity": alignment(centred, _centred(smooth)),
        "alignment_jump": alignment(centred, torch.outer(jump, jump)),
        "alignment_sine": alignment(centred, torch.outer(sine, sine)),
        "spectrum": [float(spectrum[place - 1]) for place in _PLACES if place < len(x)],
    }


def _centred(kernel: Tensor) -> Tensor:
    return torch.as_tensor(KernelCenterer().fit_transform(kernel.cpu().numpy()))


def _effective_rank(kernel: Tensor) -> float:
    return float(kernel.trace() ** 2 / kernel.square().sum())


def _cosines(kernel: Tensor) -> list[float]:
    """Return a kernel [N, N] divided by the roots of its diagonal, row after row."""
    roots = kernel.diagonal().sqrt()
    return [round(entry, 3) for entry in (kernel / torch.outer(roots, roots)).flatten().tolist()]


def _label(gamma: float | None) -> str:
    return "NTK" if gamma is None else f"gamma = {gamma:g}"


def _slope(rows: Rows, **settings: object) -> np.ndarray:
    """Return the log-log slopes of the eigenvalues from the second to the twelfth, one for each seed."""
    fitted = slice(_PLACES.index(2), _PLACES.index(12) + 1)
    spectra = rows.values("spectrum", table="kernels", **settings)[:, fitted]
    return np.asarray(np.polyfit(np.log(_PLACES[fitted]), np.log(spectra).T, 1)[0])


def _claims(rows: Rows) -> Sequence[Claim]:
    table = rows.where(table="kernels")
    tanh, sign, bits = (table.where(units=units) for units in ("tanh", "sign", "4 bits"))
    first = slice(_PLACES.index(12) + 1)
    estimate, exact = (tanh.values("spectrum", gamma=gamma)[:, first] for gamma in (0.01, None))
    local, best = (sign.values("alignment_jump", gamma=gamma) for gamma in (None, 0.3))
    return [
        Claim(
            "tanh: eigenvalues",
            "At gamma = 0.01 eigenvalues of the tanh network's kernel, over the first of them and down to the twelfth, "
            "differ from the NTK's by {} of each on average,",
            np.abs(estimate / exact - 1).mean(1), 0.01, 0.1, ".3f",
        ),
        Claim(
            "tanh: the twelfth eigenvalue",
            "though the twelfth is only {} of the first: random displacements err by a fraction of every eigenvalue.",
            exact[:, -1], 1e-9, 1e-5, ".1e", ratio=True,
        ),
        Claim(
            "tanh: slope at gamma 1",
            "At gamma = 1, which saturates units, they fall more slowly: the slope from the second to the twelfth, in "
            "log-log, is less steep by {}.",
            _slope(tanh, gamma=1.0) - _slope(tanh, gamma=None), 2.5, 4.5, ".2f",
        ),
        Claim(
            "relu: slope at gamma 0.1",
            "Those of the relu network fall faster where gamma = 0.1, by {} in slope: displacements average over its "
            "kinks.",
            _slope(table, units="relu", gamma=None) - _slope(table, units="relu", gamma=0.1), 1, 2, ".2f",
        ),
        Claim(
            "sign: inputs told apart by the NTK",
            "The sign network's NTK is that of the last layer, and tells apart {} of 64 inputs: those between the same "
            "jumps are one to it.",
            sign.values("told_apart", gamma=None), 28, 38, ".1f",
        ),
        Claim(
            "sign: power of the diagonal",
            "Its nonlocal kernel has no limit: the mean diagonal grows as gamma to the power of {} from 0.1 to 0.01, "
            "since a jump stays as high when displacements shrink,",
            np.log10(sign.values("mean_diagonal", gamma=0.1) / sign.values("mean_diagonal", gamma=0.01)),
            -1.35, -0.85, ".2f",
        ),
        Claim(
            "sign: effective rank",
            "and its effective rank at 0.01 is {} times that at 0.3: each jump is seen from nearby alone.",
            sign.values("effective_rank", gamma=0.01) / sign.values("effective_rank", gamma=0.3),
            3, 6.5, ".2f", ratio=True,
        ),
        Claim(
            "sign: alignment gained",
            "With a jump as target it is aligned best at gamma = 0.3: by {} better than the same network's NTK,",
            best - local, 0, 0.1, ".3f",
        ),
        Claim(
            "sign: alignment beside tanh",
            "but {} less well than the NTK of the tanh network of the same weights.",
            tanh.values("alignment_jump", gamma=None) - best, -0.01, 0.04, ".3f",
        ),
        Claim(
            "sign: alignment lost",
            "At 0.01 it has lost {} against its NTK, which is then the better kernel.",
            local - sign.values("alignment_jump", gamma=0.01), 0.3, 0.6, ".2f",
        ),
        Claim(
            "4 bits: similarity",
            "Units of 4 bits, whose levels are 0.13 apart, have at gamma = 0.1 the smooth network's NTK, with a "
            "similarity of {}.",
            bits.values("similarity", gamma=0.1), 0.99, 1, ".4f",
        ),
        Claim(
            "few displacements: effective rank",
            "The effective rank r of the sign network's kernel at M displacements is {} of 1 / (1 / r + 1 / M), with "
            "the r of many: M bounds it.",
            _over_predicted(rows.where(table="few", units="sign")), 0.85, 1.15, ".2f",
        ),
    ]  # fmt: skip


def _over_predicted(rows: Rows) -> np.ndarray:
    """Return the mean ratio of effective ranks to those predicted from the most displacements, one for each seed."""
    *smaller, largest = rows.distinct("samples")
    ratios = [rows.values("effective_rank", samples=m) / _predicted(rows, m, largest) for m in smaller]
    return np.asarray(np.mean(ratios, axis=0))


def _predicted(rows: Rows, samples: float, largest: int) -> np.ndarray:
    """Return the predicted effective rank.

    The squared norm of a mean of M kernels is the squared norm of the limit plus 1 / M of the squared trace.
    """
    return np.asarray(1 / (1 / rows.values("effective_rank", samples=largest) - 1 / largest + 1 / samples))


def _figures(rows: Rows) -> Iterator[StudyFigure]:
    yield _heat_maps(rows.where(table="heat_maps"))
    figure, axes = drawing.panels(2, 3, width=3.4, height=2.9)
    for panel, units in zip(axes, _MAP_UNITS, strict=False):
        _spectra(panel, rows, units)
    _against_samples(axes[2], rows.where(table="few"))
    figures = (
        ("effective_rank", "Effective rank", "effective rank (number)"),
        ("alignment_jump", "With the target sign(x)", "alignment"),
        ("similarity", "With the NTK of the tanh network", "similarity"),
    )
    for panel, (key, title, label) in zip(axes[3:], figures, strict=True):
        for number, units in enumerate(ACTIVATIONS):
            selected = rows.where(table="kernels", units=units)
            drawing.draw(panel, selected.band("gamma", key), units, number)
            panel.axhline(selected.values(key, gamma=None).mean(), color=drawing.look(number)["color"], linestyle=":")
        drawing.entitle(panel, title, "gamma (parameter units)", label)
        panel.set(xscale="log")
    axes[3].set(yscale="log")
    axes[3].set_yticks((1, 2, 5, 10, 20), labels=("1", "2", "5", "10", "20"))
    axes[3].minorticks_off()
    drawing.legend(figure, 4, axes[3])
    yield StudyFigure(
        "curves",
        "Top: eigenvalues of the centred kernels of the tanh and the sign network, and the effective rank of kernels "
        "of few displacements (tanh at gamma = 0.01, sign at 0.03) beside what is predicted from many. Below: "
        "effective rank, alignment with a jump, and similarity to the NTK of the tanh network of the same weights, "
        "against gamma, for four networks; dotted lines are their NTKs. Means and 95 % intervals over seeds.",
        figure,
    )


def _heat_maps(rows: Rows) -> StudyFigure:
    figure, axes = drawing.panels(len(_MAP_UNITS), len(_MAP_GAMMAS), width=2.4, height=2.4)
    settings = [(units, gamma) for units in _MAP_UNITS for gamma in _MAP_GAMMAS]
    for panel, (units, gamma) in zip(axes, settings, strict=True):
        cosines = rows.values("cosines", units=units, gamma=gamma)[0]
        side = int(len(cosines) ** 0.5)
        image = panel.imshow(
            cosines.reshape(side, side), cmap=drawing.SIGNED_MAP, vmin=-1, vmax=1, extent=(-1, 1, 1, -1)
        )
        drawing.entitle(panel, f"{units}, {_label(gamma)}", "x' (input)", "x (input)")
        panel.set(xticks=(-1, 0, 1), yticks=(-1, 0, 1))
        panel.grid(False)
    figure.colorbar(image, ax=axes, label="K(x, x') / sqrt(K(x, x) K(x', x'))", shrink=0.7, aspect=30)
    return StudyFigure(
        "heat_maps",
        "The NTK and the nonlocal kernel of one network (first seed), with tanh and with sign units, over the roots of "
        "the diagonal. The NTK of the sign network is that of its last layer, made of blocks between jumps. With small "
        "displacements each jump is seen from nearby alone; larger ones see a smooth kernel.",
        figure,
    )


def _spectra(panel: "Axes", rows: Rows, units: str) -> None:
    """Draw the eigenvalues of the NTK in black, and of nonlocal kernels, lighter for larger displacements."""
    for gamma, colour, marker in zip(_MAP_GAMMAS, ("0.0", "0.3", "0.5", "0.7"), "osD^", strict=True):
        spectra = rows.values("spectrum", table="kernels", units=units, gamma=gamma).T
        intervals = [interval(values, ratio=True) for values in spectra]
        places = _PLACES[: len(intervals)]
        panel.plot(places, [bounds.mean for bounds in intervals], color=colour, marker=marker, label=_label(gamma))
        ends = [bounds.low for bounds in intervals], [bounds.high for bounds in intervals]
        panel.fill_between(places, *ends, color=colour, alpha=0.2, linewidth=0)
    drawing.entitle(panel, f"Eigenvalues, {units}", "number of the eigenvalue", "eigenvalue (over the largest)")
    panel.set(xscale="log", yscale="log", ylim=(1e-11, 2))
    panel.legend(fontsize=7.5, loc="lower left")


def _against_samples(panel: "Axes", rows: Rows) -> None:
    samples = rows.distinct("samples")
    for number, units in enumerate(ACTIVATIONS):
        if units in _FEW_GAMMAS:
            selected = rows.where(units=units)
            drawing.draw(panel, selected.band("samples", "effective_rank"), f"{units}, measured", number)
            line = [_predicted(selected, m, samples[-1]).mean() for m in samples]
            panel.plot(samples, line, color="0.3", linestyle="--", label="predicted" if units == "sign" else None)
    panel.plot(samples, samples, color="0.6", linestyle=":", label="M")
    drawing.entitle(panel, "Few displacements", "displacements M (number)", "effective rank (number)")
    panel.set(xscale="log", yscale="log", ylim=(0.9, 40))
    panel.legend(fontsize=7.5, loc="center right")


STUDY = Study(
    name="kernels",
    title="What the kernels look like",
    about="Untrained networks 1-64-64-1 with tanh, relu, sign or 4-bit units (16 levels from -1 to 1), all of the same "
    "weights (He's initialisation, normal biases of standard deviation 0.5), at 64 equidistant inputs from -1 to 1; a "
    "seed is other weights and other displacements. Energy form, gaussian antithetic displacements, float64. NTKs are "
    "by autograd, for which sign and 4-bit units are constant. But for heat maps and mean diagonals kernels are "
    "centred. The effective rank is the squared sum of eigenvalues over the sum of their squares; the alignment with a "
    "target y is <K, y y'> / (|K| |y y'|) in Frobenius norm, the similarity of two kernels <K, L> / (|K| |L|). "
    "Eigenvalues below 1e-12 of the largest count as that.",
    full=Size(),
    quick=replace(Size(), seeds=4, gammas=(0.01, 0.1, 0.3, 1.0), samples=128, few_samples=(8, 32, 512)),
    replicate=_replicate,
    claims=_claims,
    figures=_figures,
)
