"""Attention over displacements: claims that follow from the rows."""

from collections.abc import Sequence

import numpy as np

from nntk.bench.studies.analysis.claims import Claim
from nntk.bench.studies.analysis.rows import Rows
from nntk.bench.studies.attention.experiment import FORMS, TEMPERATURES


def assemble_claims(rows: Rows) -> Sequence[Claim]:
    """Return the claims of the study with their values, one for each seed."""
    return [*_claims_of_weights(rows), *_claims_of_kernels(rows), *_claims_of_regression(rows)]


def _claims_of_weights(rows: Rows) -> Sequence[Claim]:
    temperatures, dimensions = rows.where(table="temperatures"), rows.where(table="dimensions")
    least = min(TEMPERATURES["outputs", "dot"])
    outputs, parameters = (dimensions.where(on=on, score="distance") for on in ("outputs", "parameters"))
    small, large = 153, 17793
    return [
        Claim(
            "effective samples: predicted",
            "Where more than 0.4 of the samples should be effective, their share is within {}, on average, of what "
            "gaussian scores would have.",
            _off_prediction(temperatures), 0, 0.05, ".3f",
        ),
        Claim(
            "outputs, dot: collapse",
            f"At a temperature of {least:g}, far below the spread of scores, the dot score on outputs gives one "
            "displacement a weight of {},",
            temperatures.values("largest", on="outputs", score="dot", temperature=least), 0.9, form=".3f",
        ),
        Claim(
            "outputs, distance: no collapse",
            "while the distance on outputs keeps {} of the samples: its score is bounded above, and many displacements "
            "change an output little.",
            temperatures.values("effective", on="outputs", score="distance", temperature=least), 0.08, 0.25, ".2f",
        ),
        Claim(
            "outputs: dimension",
            f"At a fixed temperature weights on outputs grow more unequal with width, as differences grow: from d = "
            f"{small} to {large} the distance loses {{}} of its share of samples.",
            outputs.values("effective", num_params=small) - outputs.values("effective", num_params=large),
            0.2, 0.5, ".2f",
        ),
        Claim(
            "parameters: dimension",
            "The distance on parameters, of projections to 16 dimensions, has at the larger d {} of the share that it "
            "has at the smaller.",
            parameters.values("effective", num_params=large) / parameters.values("effective", num_params=small),
            0.8, 1.3, ".2f", ratio=True,
        ),
    ]  # fmt: skip


def _claims_of_kernels(rows: Rows) -> Sequence[Claim]:
    table = rows.where(table="temperatures")
    equal = table.values("scatter", on="equal")
    far = table.where(on="parameters", score="distance", temperature=1e-3)
    return [
        Claim(
            "outputs: bias",
            "Weights on outputs change the kernel itself: at 0.01, with most samples effective, the distance "
            "multiplies its diagonal by {}: it prefers displacements that change the output little.",
            table.values("diagonal", on="outputs", score="distance", temperature=0.01), 0.3, 0.5, ".2f", ratio=True,
        ),
        Claim(
            "parameters: scatter",
            "Weights on parameters cost samples alone: half of them lost, the distance scatters {} times as much as "
            "equal weights of as many effective samples,",
            far.values("scatter") * np.sqrt(far.values("effective")) / equal, 0.85, 1.2, ".2f", ratio=True,
        ),
        Claim(
            "outputs: scatter",
            "and no score scatters much less than equal weights: the distance on outputs at 0.1 has {} of theirs.",
            table.values("scatter", on="outputs", score="distance", temperature=0.1) / equal, 0.9, 1.05, ".3f",
            ratio=True,
        ),
    ]  # fmt: skip


def _claims_of_regression(rows: Rows) -> Sequence[Claim]:
    table = rows.where(table="regression")
    narrow, wide = min(table.distinct("gamma")), max(table.distinct("gamma"))
    gaussian, heavy = (table.where(units="relu", law=law) for law in ("gaussian", "cauchy"))
    near = heavy.where(on="parameters", score="distance")
    return [
        Claim(
            "regression: gaussian displacements",
            "In regression with gaussian displacements the best of all scores and temperatures, chosen by the held-out "
            "error itself, changes the error of sign networks by {} standard deviations.",
            _best(table.where(units="sign")) - table.where(units="sign").values("error", on="equal"),
            -0.03, 0.01, ".3f",
        ),
        Claim(
            "cauchy: similarity",
            "Where displacements have heavy tails and the network is not bounded they mend the kernel: of cauchy "
            "displacements and a relu network its similarity to the NTK rises by {} with the distance on parameters at "
            "temperature 1, which leaves out long displacements.",
            near.values("similarity", temperature=1.0) - heavy.values("similarity", on="equal"), 0.3, 0.8, ".2f",
        ),
        Claim(
            "gaussian: similarity",
            "Gaussian displacements of equal weights are still more similar, by {}.",
            gaussian.values("similarity", on="equal", gamma=narrow) - near.values("similarity", temperature=1.0),
            0, 0.03, ".3f",
        ),
        Claim(
            "cauchy: error",
            "The error hardly changes: at temperature 10, the best of that distance, it is {} of that with equal "
            "weights.",
            near.values("error", temperature=10.0) / heavy.values("error", on="equal"), 0.9, 1.1, ".3f", ratio=True,
        ),
        Claim(
            "gaussian: error",
            "Gaussian displacements of equal weights have {} of what is left at the same gamma of 0.1, and lose,",
            gaussian.values("error", on="equal", gamma=narrow) / near.values("error", temperature=10.0),
            0.95, 1.25, ".2f", ratio=True,
        ),
        Claim(
            "gaussian: error at gamma 1",
            "but {} at gamma = 1, which the cauchy kernel was not tried at.",
            gaussian.values("error", on="equal", gamma=wide) / near.values("error", temperature=10.0),
            0.8, 1.1, ".2f", ratio=True,
        ),
    ]  # fmt: skip


def _off_prediction(rows: Rows) -> np.ndarray:
    """Return the mean error of predicted shares of effective samples above 0.4, one value for each seed."""
    groups = [rows.where(on=on, score=score, temperature=t) for (on, score), ts in TEMPERATURES.items() for t in ts]
    pairs = [(group.values("effective"), group.values("predicted_effective")) for group in groups]
    off = [np.abs(effective - predicted) for effective, predicted in pairs if predicted.mean() > 0.4]
    return np.asarray(np.mean(off, axis=0))


def _best(rows: Rows) -> np.ndarray:
    """Return the least error of all forms of attention, one value for each seed."""
    forms = [(on, score, t) for on, score in FORMS for t in rows.distinct("temperature")]
    errors = [rows.values("error", on=on, score=score, temperature=t) for on, score, t in forms]
    return np.asarray(np.min(errors, axis=0))
