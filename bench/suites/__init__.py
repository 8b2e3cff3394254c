"""Suites: lists of sections, which yield their rows as they are measured."""

from collections.abc import Sequence

from nntk.bench.suites.section import Section, Setting

__all__ = ["BY_RANKS", "SUITES", "Section", "Setting", "catalogue"]

SUITES = {
    "quick": "throughput, accuracy and classification of digits, under two minutes on two cores",
    "digits": "classification of digits by NTK and NNTK over three seeds",
    "ops": "every op at typical shapes: checked against float64, then timed beside the roof of the machine",
    "ntk": "the nonlocal kernel against every local NTK over inputs, parameters and outputs: time, memory, accuracy",
    "models": "differences of a ResNet and a transformer by rules, beside displaced copies and plain inference",
    "ridge": "ridge regression on 200,000 inputs without a matrix: time an evaluation, and peak memory",
    "scaling": "time and memory of differences along M, N and d, with fitted exponents",
    "accuracy": "differences against float64; kernels against the autograd NTK over gamma, samples and families",
    "targets": "the targets of the design, for the card at hand: evaluations, memory, weights and assembly",
    "distributed": "kernels over ranks: scaling, efficiency and communication; started by torchrun",
    "gpu": "the suites of a GPU together",
}
"""Descriptions of the suites, by name."""

BY_RANKS = ("distributed",)
"""Suites that a group of ranks measures together, which torchrun starts."""


def catalogue(suite: str) -> Sequence[Section]:
    """Return the sections of a suite, by its name in ``SUITES``."""
    from nntk.bench.suites import accuracy, digits, distributed, models, ntk, ops, ridge, scaling, targets, throughput

    accuracy_sections = (accuracy.DIFFERENCES, accuracy.GAMMA, accuracy.SAMPLES, accuracy.FAMILIES)
    throughput_sections = (throughput.DIFFERENCES, throughput.KERNELS)
    return {
        "quick": (
            accuracy.DIFFERENCES,
            throughput.DIFFERENCES,
            throughput.KERNELS,
            throughput.NOISE,
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
        "accuracy": accuracy_sections,
        "targets": (targets.TARGETS,),
        "distributed": (distributed.DISTRIBUTED,),
        "gpu": (
            targets.TARGETS,
            ops.OPS,
            *throughput_sections,
            *accuracy_sections,
            models.MODELS,
            ntk.NTK,
            scaling.SCALING,
            digits.ONE_SEED,
        ),
    }[suite]
