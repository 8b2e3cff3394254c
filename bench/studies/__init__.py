"""Numerical studies of the nonlocal kernel beside the NTK, as rows, claims and figures."""

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from nntk.bench.results.schema import Row
from nntk.bench.studies.analysis.claims import Claim
from nntk.bench.studies.analysis.rows import Rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STUDIES = {
    "targets": "regression of jumps, kinks and rough functions by NTK, NNTK and an RBF kernel, on four networks",
    "limit": "convergence of the NNTK to the NTK along gamma and M, beside predictions, and rounding in float32",
    "kernels": "heat maps, eigenvalues, effective rank and alignment of NTK and NNTK, against gamma",
    "attention": "softmax weights, their effect on bias and variance, and when they collapse",
    "dimension": "importance weights, estimators and families of displacements from 10 to a million parameters",
    "training": "gradient flow by the NNTK against training; a sign network trained by four methods",
    "real_data": "digits and diabetes: accuracy and likelihood of NTK, NNTK and RBF, against M and time",
    "nonsmooth": "spikes, signs and hard choices: digits by NTK, surrogate gradients and NNTK of three networks",
    "attribution": "training digits that outputs owe to: TRAK and nonlocal features, by the datamodeling score",
}
"""Descriptions of the studies, by name. The module of this package with that name holds the study."""


@dataclass(frozen=True)
class Setting:
    """Settings of a replicate.

    Attributes:
        size: Numbers of the study: its ``full`` or its ``quick`` ones.
        device: Device of the computation.
        seed: Seed of the data, networks and displacements of the replicate.
        first: True for the first replicate of the study, whose curves and matrices are kept for the figures.
    """

    size: Any
    device: torch.device
    seed: int
    first: bool = True


@dataclass(frozen=True)
class StudyFigure:
    """Figure of a study.

    Attributes:
        name: Name of its files, without the ending.
        caption: Sentences that say what it shows and how to read it.
        figure: Figure of matplotlib.
    """

    name: str
    caption: str
    figure: "Figure"


@dataclass(frozen=True)
class Study:
    """Study: replicates by seed, and claims and figures that follow from their rows alone.

    Attributes:
        name: Name of the study.
        title: Question of the study.
        about: Full description of the setting, from which a reader could repeat the study.
        full: Numbers of the study, a dataclass with ``seeds`` and others.
        quick: Numbers of ``--quick``, whose results must not contradict the full ones.
        replicate: Function that yields the rows of one seed; a string says which part comes next. Each row has
            ``table`` and the settings that distinguish it. Keys that end in ``_s`` are seconds, and keys that end in
            ``_rounding`` are errors of rounding. Everything else depends on the seed alone.
        claims: Function that returns the claims about the rows.
        figures: Function that draws the rows.
    """

    name: str
    title: str
    about: str
    full: Any
    quick: Any
    replicate: Callable[[Setting], Iterator[Row | str]]
    claims: Callable[[Rows], Sequence[Claim]]
    figures: Callable[[Rows], Iterator[StudyFigure]]


def load(name: str) -> Study:
    """Return the study of a name in ``STUDIES``."""
    study: Study = importlib.import_module(f"{__name__}.{name}").STUDY
    return study
