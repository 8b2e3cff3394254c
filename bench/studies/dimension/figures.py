"""Dimension: figures of the rows."""

from collections.abc import Iterator

import numpy as np

from nntk.bench.studies import StudyFigure
from nntk.bench.studies.analysis import drawing
from nntk.bench.studies.analysis.rows import Rows
from nntk.bench.studies.dimension.experiment import ESTIMATORS, FAMILIES, PROPOSALS, WIDE, expected_samples


def draw_figures(rows: Rows) -> Iterator[StudyFigure]:
    """Draw the figures of the study."""
    yield _draw_estimators(rows)
    yield _draw_families(rows)


def _draw_estimators(rows: Rows) -> StudyFigure:
    figure, (effective, errors) = drawing.panels(1, 2, width=4.9, height=3.9)
    weights = rows.where(table="weights")
    for number, name in enumerate(PROPOSALS):
        band = weights.where(drawn_from=name).band("parameters", "effective", True)
        drawing.draw(effective, band, f"drawn from {name}", number)
    d = np.geomspace(band.x[0], band.x[-1], 400)
    law = expected_samples(round(band.mean[0]), d)
    effective.plot(d[law > 0.7], law[law > 0.7], color="0.4", linestyle=":", label="expected of the first")
    gaussian = rows.where(table="families", directions="gaussian", outputs=1)
    for number, estimator in enumerate(ESTIMATORS):
        selected = gaussian.where(estimator=estimator)
        drawing.draw(errors, selected.band("parameters", "error", True), estimator, number + 3)
        line = selected.band("parameters", "predicted", True)
        errors.plot(line.x, line.mean, color="0.4", linestyle=":", label="predicted")
    drawing.draw(
        errors, weights.where(drawn_from=WIDE).band("parameters", "error", True), "energy, weighted", 0, linestyle="--"
    )
    drawing.entitle(effective, "Importance weights", "parameters d (number)", "effective samples (number)")
    drawing.entitle(errors, "Estimators", "parameters d (number)", "error of K (relative to the NTK)")
    for panel in (effective, errors):
        panel.set(xscale="log", yscale="log")
    drawing.legend(figure, 3, effective, errors)
    return StudyFigure(
        "dimension",
        "Left: effective samples of displacements weighted as those of a gaussian, by the law that they are drawn "
        "from, and what is expected of the wider gaussian (dotted). Right: error of the kernel by estimator with "
        "gaussian displacements, what is predicted (dotted), and that of energy with the weights of the wider "
        "gaussian. Geometric means and 95 % intervals over seeds.",
        figure,
    )


def _draw_families(rows: Rows) -> StudyFigure:
    figure, (along, beside, seconds) = drawing.panels(1, 3, width=3.5, height=3.6)
    energy, times = rows.where(table="families", estimator="energy"), rows.where(table="times", outputs=1)
    single, several = energy.distinct("outputs")
    near = max(d for d in energy.where(outputs=single).distinct("parameters") if d < 20_000)
    for number, family in enumerate(FAMILIES):
        selected = energy.where(directions=family)
        drawing.draw(along, selected.where(outputs=single).band("parameters", "squared_ratio", True), family, number)
        drawing.draw(seconds, times.where(directions=family).band("parameters", "energy_s", True), family, number)
        for place, band in (
            (0, selected.where(parameters=near).band("parameters", "squared_ratio", True)),
            (1, selected.where(outputs=several).band("parameters", "squared_ratio", True)),
        ):
            beside.errorbar(
                place + (number - 2) / 8,
                band.mean,
                [band.mean - band.low, band.high - band.mean],
                **{**drawing.look(number), "linestyle": ""},
                capsize=2.5,
            )
    exact = times.where(directions="gaussian").band("parameters", "exact_s", True)
    drawing.draw(seconds, exact, "the exact NTK", len(FAMILIES), linestyle="--")
    for panel in (along, seconds):
        panel.set(xscale="log", yscale="log")
    for panel in (along, beside):
        panel.axhline(1, color="0.4", linestyle=":", label="predicted")
        panel.set(yscale="log", ylim=(0.3, 8))
        panel.set_yticks((0.5, 1, 2, 4), ("0.5", "1", "2", "4"))
        panel.set_yticks((), minor=True)
    beside.set(xticks=(0, 1), xticklabels=("one output", f"{several} outputs"), xlim=(-0.5, 1.5))
    ratio = "squared error (over the predicted)"
    drawing.entitle(along, "One output", "parameters d (number)", ratio)
    drawing.entitle(beside, "Several outputs", "d about 10,000", ratio)
    drawing.entitle(seconds, "Time", "parameters d (number)", "time of a kernel (s)")
    drawing.legend(figure, 4, seconds, along)
    return StudyFigure(
        "families",
        "Mean squared error of the energy form by family of displacements, over that predicted for isotropic ones "
        "(left: along d; middle: with one output and with several), and the time of a kernel beside that of the exact "
        "NTK (right). Geometric means and 95 % intervals over seeds.",
        figure,
    )
