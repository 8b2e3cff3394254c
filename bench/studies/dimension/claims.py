"""Dimension: claims that follow from the rows."""

from collections.abc import Sequence

import numpy as np

from nntk.bench.studies.analysis.claims import Claim
from nntk.bench.studies.analysis.rows import Rows
from nntk.bench.studies.dimension.experiment import ESTIMATORS, HEAVY, WIDE, expected_samples


def assemble_claims(rows: Rows) -> Sequence[Claim]:
    """Return the claims of the study with their values, one for each seed."""
    weights, families = rows.where(table="weights"), rows.where(table="families")
    sizes = weights.distinct("parameters")
    small, medium, large = (next(d for d in sizes if d > least) for least in (50, 500, 5000))
    total = round(weights.values("effective", drawn_from="the law itself", parameters=small)[0])
    wide, target, heavy = (weights.where(drawn_from=name) for name in (WIDE, "the law itself", HEAVY))
    expected = {d: float(expected_samples(total, np.array(d))) for d in (small, medium)}
    return [
        Claim(
            "weights: the law",
            f"{total} displacements of a gaussian 1.1 times as wide, weighted, count at d = {small} for {{}} of the "
            f"{expected[small]:.0f} that are expected, M (1.42 / 1.21^2)^(d / 2).",
            wide.values("effective", parameters=small) / expected[small], 0.7, 1.3, ".2f",
        ),
        Claim(
            "weights: flattery",
            f"At d = {medium}, where the law leaves {expected[medium]:.2g}, they report {{}}: displacements that would "
            "have nearly all the weight are not among them, and the number flatters.",
            wide.values("effective", parameters=medium), 2, 60, ".0f", ratio=True,
        ),
        Claim(
            "weights: collapse",
            f"At d = {large} they report {{}}.",
            wide.values("effective", parameters=large), 1, 6, ".1f", ratio=True,
        ),
        Claim(
            "weights: error",
            "There the mean squared error of the kernel is {} times that of as many displacements drawn from the law "
            "itself, whose weights are equal.",
            wide.values("squared_ratio", parameters=large) / target.values("squared_ratio", parameters=large),
            15, 200, ".0f", ratio=True,
        ),
        Claim(
            "weights: heavy tails",
            "A cauchy proposal loses less: its effective samples go as d to the power of {}.",
            heavy.slope("parameters", "effective", medium, sizes[-1]), -0.6, -0.35, ".2f",
        ),
        *_estimators(families.where(directions="gaussian", outputs=1), medium),
        *_prices(rows, families),
    ]  # fmt: skip


def _estimators(gaussian: Rows, medium: int) -> list[Claim]:
    energy, plugin, unbiased = (gaussian.where(estimator=name) for name in ESTIMATORS)
    sizes = energy.distinct("parameters")
    last, samples = sizes[-1], energy.distinct("samples")[0]
    squares = [energy.values("squared_ratio", parameters=d) for d in sizes]
    return [
        Claim(
            "energy: any dimension",
            f"The mean squared error of the energy form with {samples} displacements is, over all d, {{}} of the "
            "predicted one, in which d hardly occurs.",
            np.mean(squares, axis=0), 0.6, 1.5, ".2f",
        ),
        Claim(
            "plugin: bias",
            f"The trace of plugin is {{}} of (1 + (d - 1) / M) times that of the NTK at d = {last}:",
            plugin.values("trace_ratio", parameters=last) / (1 + (last - 1) / samples), 0.8, 1.2, ".2f",
        ),
        Claim(
            "unbiased: along d",
            f"it would need M well above d. The error of unbiased grows from d = {medium} on as d to the power of "
            "{},",
            unbiased.slope("parameters", "error", medium, last), 0.3, 0.65, ".2f",
        ),
        Claim(
            "unbiased: size of its error",
            "its mean square being {} of 4 + d / M times that of energy: M well above the root of d is enough, and "
            "for a smooth network energy is the better estimator at any d.",
            np.mean([unbiased.values("squared_ratio", parameters=d) for d in sizes], axis=0), 0.6, 1.6, ".2f",
        ),
    ]  # fmt: skip


def _prices(rows: Rows, families: Rows) -> list[Claim]:
    energy, times = families.where(estimator="energy"), rows.where(table="times", outputs=1)
    single = energy.where(outputs=1)
    large = [d for d in single.distinct("parameters") if d > 500]
    several = energy.distinct("outputs")[-1]

    def price(family: str) -> np.ndarray:
        ratios = [single.values("squared_ratio", directions=family, parameters=d) for d in large]
        return np.asarray(np.mean(ratios, axis=0))

    def cost(family: str, key: str = "energy_s") -> np.ndarray:
        gaussian = times.values("energy_s", directions="gaussian", parameters=large[-1])
        return np.asarray(times.values(key, directions=family, parameters=large[-1]) / gaussian)

    return [
        Claim(
            "families: signs and bases",
            f"From d = {large[0]} on the mean squared error of rademacher or flipout(8) is {{}} of the predicted,",
            (price("rademacher") + price("flipout(8)")) / 2, 0.7, 1.35, ".2f",
        ),
        Claim(
            "families: low rank",
            "of lowrank(1) {},",
            price("lowrank(1)"), 0.9, 2.4, ".2f",
        ),
        Claim(
            "families: low rank, several outputs",
            f"and with {several} outputs {{}}:",
            energy.values("squared_ratio", directions="lowrank(1)", outputs=several), 2, 8, ".2f",
        ),
        Claim(
            "families: rank 16",
            "rank 16 brings that to {}.",
            energy.values("squared_ratio", directions="lowrank(16)", outputs=several), 0.4, 1.9, ".2f",
        ),
        Claim(
            "families: time",
            f"But lowrank(1) takes at d = {large[-1]} {{}} of the time of gaussian.",
            cost("lowrank(1)"), form=".2g", ratio=True,
        ),
        Claim(
            "the NTK itself: time",
            "The exact NTK of this smooth network takes {} of it, and is to be preferred.",
            cost("gaussian", "exact_s"), form=".2g", ratio=True,
        ),
    ]  # fmt: skip
