"""Numerical studies: what the nonlocal kernel sees that the NTK does not, as rows, claims and figures."""

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
    "limit": "the NNTK tends to the NTK: along gamma and M, on the predicted lines, and what float32 makes of it",
    "kernels": "heat maps, eigenvalues, effective rank and alignment of NTK and NNTK, against gamma",
    "attention": "what softmax weights look like, what they do to bias and variance, and when they collapse",
    "dimension": "importance weights, estimators and families of displacements from 10 to a million parameters",
    "training": "gradient flow by the NNTK against training; a sign network trained by four methods",
    "real_data": "digits and diabetes: accuracy and likelihood of NTK, NNTK and RBF, against M and time",
}
"""The studies by name, a line each; a module of this package has the name of each."""


@dataclass(frozen=True)
class Setting:
    """What a replicate is made with.

    Attributes:
        size: Numbers of the study: its ``full`` or its ``quick``.
        device: Where to compute.
        seed: Of the replicate: its data, networks and displacements.
        first: Whether it is the study's first one, of which curves and matrices are kept to be drawn.
    """

    size: Any
    device: torch.device
    seed: int
    first: bool = True


@dataclass(frozen=True)
class Drawn:
    """A figure of a study.

    Attributes:
        name: Its files' name, without the ending.
        caption: What it shows, and how to read it.
        figure: The figure.
    """

    name: str
    caption: str
    figure: "Figure"


@dataclass(frozen=True)
class Study:
    """A study: replicates by seed, and what follows from their rows alone.

    Attributes:
        name: Its name.
        title: What it asks.
        about: The setting, in full: whoever reads it could do the same.
        full: Its numbers, a dataclass with ``seeds`` and whatever else.
        quick: Those of ``--quick``, which must not contradict the full ones.
        replicate: The rows of one seed; a string says what comes next. Each row has ``table`` and the settings that
            set it apart. Keys that end in ``_s`` are seconds, those that end in ``_rounding`` errors of rounding:
            everything else depends on the seed alone.
        claims: What the rows show.
        figures: The rows, drawn.
    """

    name: str
    title: str
    about: str
    full: Any
    quick: Any
    replicate: Callable[[Setting], Iterator[Row | str]]
    claims: Callable[[Rows], Sequence[Claim]]
    figures: Callable[[Rows], Iterator[Drawn]]


def load(name: str) -> Study:
    """The study of a name in ``STUDIES``: its module's ``STUDY``."""
    study: Study = importlib.import_module(f"{__name__}.{name}").STUDY
    return study
