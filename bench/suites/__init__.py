"""Suites: each is a list of sections, and a section yields its rows as they are measured."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from nntk.bench.results.store import Row
from nntk.bench.results.tables import Column

SUITES = {
    "quick": "throughput, accuracy and classification of digits, under two minutes on two cores",
    "digits": "classification of digits by NTK and NNTK over three seeds",
    "ops": "every op at shapes that matter: checked against float64, then timed beside the roof of the machine",
    "ntk": "the nonlocal kernel against every local NTK over inputs, parameters and outputs: time, memory, accuracy",
    "models": "differences of a ResNet and a transformer by rules, beside displaced copies and plain inference",
    "ridge": "ridge regression on 200,000 inputs without a matrix: time an evaluation, and peak memory",
    "scaling": "time and memory of differences along M, N and d, with fitted exponents",
    "accuracy": "differences against float64; kernels against the autograd NTK over gamma, samples and families",
    "targets": "what the design asks of an H200: evaluations, memory, weights and assembly beside their targets",
    "gpu": "all of these, for a card",
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
    from nntk.bench.suites import accuracy, digits, models, ntk, ops, ridge, scaling, targets, throughput

    of_accuracy = (accuracy.DIFFERENCES, accuracy.GAMMA, accuracy.SAMPLES, accuracy.FAMILIES)
    of_throughput = (throughput.DIFFERENCES, throughput.KERNELS)
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
        "ops": (ops.OPS,),
        "ntk": (ntk.NTK,),
        "models": (models.MODELS,),
        "ridge": (ridge.RIDGE,),
        "scaling": (scaling.SCALING,),
        "accuracy": of_accuracy,
        "targets": (targets.TARGETS,),
        "gpu": (
            targets.TARGETS,
            ops.OPS,
            *of_throughput,
            *of_accuracy,
            models.MODELS,
            ntk.NTK,
            scaling.SCALING,
            digits.ONE_SEED,
        ),
    }[suite]
