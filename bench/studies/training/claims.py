"""Training: claims that follow from the rows."""

from collections.abc import Sequence

import numpy as np

from nntk.bench.studies.analysis.claims import Claim
from nntk.bench.studies.analysis.rows import Rows
from nntk.bench.studies.training.experiment import EASY, EVOLUTION, LAST, METHODS, NONLOCAL, THROUGH


def assemble_claims(rows: Rows) -> Sequence[Claim]:
    """Return the claims of the study with their values, one for each seed."""
    return [*_claims_of_flow(rows.where(table="flow")), *_claims_of_signs(rows.where(table="signs"))]


def _claims_of_flow(rows: Rows) -> list[Claim]:
    widths, names = rows.distinct("width"), rows.distinct("by")
    narrow, wide = min(widths), max(widths)
    exact, small, large = (rows.where(by=name) for name in (names[1], names[2], names[-1]))
    training = rows.where(by="training", width=wide)
    errors = [exact.values("error", width=width) for width in (narrow, wide)]
    return [
        Claim(
            "flow: the NTK",
            f"The flow by the NTK predicts what gradient descent makes of {wide} tanh units with an error of {{}} of "
            "the change of the function,",
            errors[1], 0, 0.02, ".1e", ratio=True,
        ),
        Claim(
            "flow: width",
            "which goes as the width to the power of {}.",
            np.log(errors[1] / errors[0]) / np.log(wide / narrow), -2.2, -0.7, ".2f",
        ),
        Claim(
            "flow: a small gamma",
            f"By the {names[2]}, it is {{}}, what the kernel's Monte-Carlo error makes of it;",
            small.values("error", width=wide), 0.001, 0.1, ".2g", ratio=True,
        ),
        Claim(
            "flow: a large gamma",
            f"by the {names[-1]}, it is {{}}.",
            large.values("error", width=wide), 0.02, 0.2, ".2g", ratio=True,
        ),
        Claim(
            "flow: a smoothed kernel is slow",
            "That kernel is of a smoothed network: the loss that it predicts at the end is {} times the one reached. "
            "Where there is a gradient, training follows it, and the NTK predicts it best.",
            large.values("loss", width=wide) / training.values("loss"), 1.1, 3, ".2f", ratio=True,
        ),
    ]  # fmt: skip


def _claims_of_signs(rows: Rows) -> list[Claim]:
    last = {name: rows.where(method=name).distinct("evaluations")[-1] for name in METHODS}
    ends = {name: rows.values("accuracy", method=name, evaluations=last[name]) for name in METHODS}
    return [
        Claim(
            "signs: nonlocal descent",
            f"On digits nonlocal descent brings the sign network in {last[NONLOCAL]:,} evaluations to {{}} of those "
            "held out,",
            ends[NONLOCAL], 0.5, 1, ".3f",
        ),
        Claim(
            "signs: autograd",
            "which is {} more than autograd does, which sees the last layer alone.",
            ends[NONLOCAL] - ends[LAST], 0.02, 0.6, ".3f",
        ),
        Claim(
            "signs: evolution strategies",
            "The accuracy of evolution strategies less its own is {}: they see losses of the same kind, and differ by "
            "ranks and by the division by |delta|^2.",
            ends[EVOLUTION] - ends[NONLOCAL], -0.04, 0.08, ".3f",
        ),
        Claim(
            "signs: straight-through",
            f"The straight-through estimator is after {last[THROUGH]:,} evaluations more accurate than both, by {{}},",
            ends[THROUGH] - np.maximum(ends[NONLOCAL], ends[EVOLUTION]), 0.01, 0.45, ".3f",
        ),
        Claim(
            "signs: evaluations",
            f"and takes {{}} of the evaluations to reach {EASY:.0%}: for the price of three it has a "
            "surrogate gradient by every parameter, where M pairs tell of M directions. It needs a network whose "
            "layers it can replace.",
            _evaluations(rows, THROUGH) / _evaluations(rows, NONLOCAL), 1e-3, 0.1, ".2g", ratio=True,
        ),
    ]  # fmt: skip


def _evaluations(rows: Rows, method: str) -> np.ndarray:
    """Return the evaluations after which half of the digits are right, or all of a run that never gets there.

    There is one value for each seed.
    """
    selected = rows.where(method=method)
    places = np.array(selected.distinct("evaluations"), dtype=float)
    accuracies = np.array([selected.values("accuracy", evaluations=place) for place in places])
    reached = accuracies >= EASY
    return np.asarray(np.where(reached.any(0), places[reached.argmax(0)], places[-1]))
