"""Networks that jump: claims that follow from the rows."""

from collections.abc import Sequence

import numpy as np

from nntk.bench.studies.analysis.claims import Claim
from nntk.bench.studies.analysis.rows import Rows
from nntk.bench.studies.nonsmooth.experiment import (
    AUTOGRAD,
    BINARY,
    MIXTURE,
    NETWORKS,
    NONLOCAL,
    RBF,
    SPIKING,
    SURROGATE,
)


def assemble_claims(rows: Rows) -> Sequence[Claim]:
    """Return the claims of the study with their values, one for each seed."""
    kernels = rows.where(table="kernels")
    samples = sorted(kernels.distinct("samples"))
    least, middle, largest = samples[0], samples[len(samples) // 2], samples[-1]

    def accuracy(name: str, method: str, samples: int = largest) -> np.ndarray:
        """Return the accuracies by a kernel of a network, by default at the largest number of displacements."""
        settings = {"samples": samples} if method == NONLOCAL else {}
        return kernels.values("accuracy", network=name, method=method, **settings)

    def gain(name: str, method: str, samples: int = largest) -> np.ndarray:
        """Return the accuracies by the NNTK less those by another kernel of the same network."""
        return np.asarray(accuracy(name, NONLOCAL, samples) - accuracy(name, method))

    def times(samples: int) -> np.ndarray:
        """Return the times of the NNTK in those of surrogate gradients, geometric means of the networks."""
        displaced, surrogate = kernels.where(method=NONLOCAL, samples=samples), kernels.where(method=SURROGATE)
        ratios = [rows.values("kernel_s", network=name) for rows in (displaced, surrogate) for name in NETWORKS]
        logarithms = np.log(ratios).reshape(2, len(NETWORKS), -1).mean(1)
        return np.asarray(np.exp(logarithms[0] - logarithms[1]))

    sizes = [kernels.values("displacement", network=name, samples=largest) for name in NETWORKS]
    more = [accuracy(name, NONLOCAL) - accuracy(name, NONLOCAL, least) for name in NETWORKS]
    best = np.max([accuracy(name, NONLOCAL) for name in NETWORKS], 0)
    return [
        Claim(
            "spiking: autograd",
            "Ridge regression by the NTK of the spiking network as autograd sees it, which is that of the head alone, "
            "classifies {} of the held-out digits;",
            accuracy(SPIKING, AUTOGRAD), 0.3, 0.85, ".3f",
        ),
        Claim(
            "spiking: NNTK",
            f"by its NNTK at M = {largest} it classifies {{}} more,",
            gain(SPIKING, AUTOGRAD), 0.05, 0.7, ".3f",
        ),
        Claim(
            "spiking: surrogate",
            "and {} more than by the NTK of surrogate gradients.",
            gain(SPIKING, SURROGATE), -0.05, 0.05, ".3f",
        ),
        Claim(
            "binary: autograd",
            "With the binary CNN, of which autograd sees the head alone as well, {} are classified;",
            accuracy(BINARY, AUTOGRAD), 0.3, 0.85, ".3f",
        ),
        Claim(
            "binary: NNTK",
            "by its NNTK {} more,",
            gain(BINARY, AUTOGRAD), 0.05, 0.7, ".3f",
        ),
        Claim(
            "binary: surrogate",
            "and {} more than by straight-through gradients.",
            gain(BINARY, SURROGATE), 0.01, 0.2, ".3f",
        ),
        Claim(
            "mixture: autograd",
            "With the mixture of experts autograd sees the experts that got a digit, but not the router: {} are "
            "classified;",
            accuracy(MIXTURE, AUTOGRAD), 0.6, 0.97, ".3f",
        ),
        Claim(
            "mixture: NNTK",
            "by its NNTK {} more,",
            gain(MIXTURE, AUTOGRAD), 0.01, 0.3, ".3f",
        ),
        Claim(
            "mixture: surrogate",
            "and {} more than by the gradient of a softmax in place of the choice.",
            gain(MIXTURE, SURROGATE), 0.005, 0.1, ".3f",
        ),
        Claim(
            "displacements",
            f"With {least} displacements the accuracy of the NNTK is {{}} lower, in the mean of the networks.",
            np.mean(more, 0), 0.0, 0.2, ".3f",
        ),
        Claim(
            "size of the displacements",
            "Leave-one-out chooses displacements of {} times the parameters in root mean square: such a kernel is an "
            "average over many networks, and tells little of the one it is given.",
            np.exp(np.log(sizes).mean(0)), 1.0, 20, ".1f", ratio=True,
        ),
        Claim(
            "time",
            f"In the mean of the networks, the NNTK at M = {largest} takes {{}} times as long to make as the NTK of "
            "surrogate gradients,",
            times(largest), form=".2g", ratio=True,
        ),
        Claim(
            "time of fewer displacements",
            f"and at M = {middle} {{}} times as long;",
            times(middle), form=".2g", ratio=True,
        ),
        Claim(
            "gain of fewer displacements",
            "with these it still classifies {} more.",
            np.mean([gain(name, SURROGATE, middle) for name in NETWORKS], 0), 0.0, 0.3, ".3f",
        ),
        Claim(
            "RBF",
            "An RBF kernel needs no network at all. Its accuracy less that of the best of the three NNTKs is {}.",
            kernels.values("accuracy", method=RBF) - best, -0.02, 0.02, ".3f",
        ),
    ]  # fmt: skip
