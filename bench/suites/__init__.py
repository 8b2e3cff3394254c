"""Suites: each is a list of sections, and a section yields its rows as they are measured."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from nntk.bench.results import Row
from nntk.bench.tables import Column

SUITES = {
    "quick": "throughput, accuracy and classification of digits, about two minutes on two cores",
    "digits": "classification of digits by NTK and NNTK over three seeds",
}


@dataclass(frozen=True)
class Setting:
    """What a run was asked for."""

    device: torch.device
    seed: int


@dataclass(frozen=True)
class Section:
    """One table of a suite.

    Attributes:
        name: Its name in the results.
        title: Its heading.
        caption: How to read it.
        columns: Its columns.
        rows: Measures. A string says what comes next, a row is a finished one; a row with a ``failure`` shows no
            speed and makes the run fail.
    """

    name: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: Callable[[Setting], Iterator[Row | str]]


def catalogue(suite: str) -> Sequence[Section]:
    """The sections of a suite, by its name in ``SUITES``."""
    from nntk.bench.suites import accuracy, digits, throughput

    return {
        "quick": (
            accuracy.DIFFERENCES,
            throughput.DIFFERENCES,
            throughput.KERNELS,
            accuracy.GAMMA,
            accuracy.SAMPLES,
            accuracy.FAMILIES,
            digits.ONE_SEED,
        ),
        "digits": (digits.THREE_SEEDS,),
    }[suite]
