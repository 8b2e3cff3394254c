"""Attention over displacements: figures of the rows."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from nntk.bench.studies import StudyFigure
from nntk.bench.studies.analysis import drawing
from nntk.bench.studies.analysis.claims import interval
from nntk.bench.studies.analysis.rows import Band, Rows
from nntk.bench.studies.attention.experiment import FORMS, ranks

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_figures(rows: Rows) -> Iterator[StudyFigure]:
    """Draw the figures of the study."""
    yield _sorted_weights(rows.where(table="shapes"))
    figure, axes = drawing.panels(2, 3, width=3.4, height=3.0)
    table = rows.where(table="temperatures")
    for number, (on, score) in enumerate(FORMS):
        selected, label = table.where(on=on, score=score), f"{score} on {on}"
        drawing.draw(axes[0], selected.band("temperature", "effective"), label, number)
        line, colour = selected.band("temperature", "predicted_effective"), drawing.look(number)["color"]
        axes[0].plot(line.x, line.mean, color=colour, linestyle=":")
        widths = rows.where(table="dimensions", on=on, score=score)
        drawing.draw(axes[1], widths.band("num_params", "effective"), label, number)
        _against_effective(axes[2], selected, "diagonal", np.ones(1), number)
        _against_effective(axes[3], selected, "scatter", table.values("scatter", on="equal"), number)
    share = np.geomspace(0.004, 1, 20)
    axes[3].plot(share, share**-0.5, color="0.4", linestyle="--", label="of as many samples")
    _regression_panel(axes[4], rows.where(table="regression", units="relu", law="cauchy"), 0.9)
    _regression_panel(axes[5], rows.where(table="regression", units="sign"), 1.0)
    wide = rows.where(table="regression", units="relu", law="gaussian", gamma=1.0)
    axes[4].axhline(wide.values("error").mean(), color="0.4", linestyle=":", label="gaussian, gamma = 1, equal weights")
    drawing.entitle(axes[0], "Effective samples", "temperature", "effective samples (share of M)")
    drawing.entitle(axes[1], "At a fixed temperature", "parameters d (number)", "effective samples (share of M)")
    drawing.entitle(axes[2], "Bias", "effective samples (share of M)", "diagonal (of equal weights')")
    drawing.entitle(axes[3], "Scatter", "effective samples (share of M)", "scatter (of equal weights')")
    drawing.entitle(axes[4], "Regression: relu, cauchy", "temperature", "error (standard deviations)")
    drawing.entitle(axes[5], "Regression: sign, gaussian", "temperature", "error (standard deviations)")
    for panel in axes:
        panel.set(xscale="log")
    for panel in axes[2:4]:
        panel.set(yscale="log")
    drawing.legend(figure, 4, axes[0], axes[3], axes[4])
    yield StudyFigure(
        "attention",
        "Four scores. Top: effective samples against the temperature (dotted: predicted for gaussian scores) and, at a "
        "temperature of each, against the number of parameters; the mean diagonal of the kernel against effective "
        "samples. Below: scatter over displacements, beside that of equal weights of as many samples; held-out error "
        "of ridge regression with a cauchy kernel and a relu network, and with a gaussian kernel and a sign network, "
        "both of gamma = 0.1. Means and 95 % intervals over seeds.",
        figure,
    )


def _against_effective(panel: "Axes", rows: Rows, key: str, unit: np.ndarray, number: int) -> None:
    """Draw a figure relative to equal weights, against the mean share of effective samples, by temperature."""
    points = []
    for temperature in rows.distinct("temperature"):
        relative = interval(rows.values(key, temperature=temperature) / unit, ratio=True)
        effective = rows.values("effective", temperature=temperature).mean()
        points.append((effective, relative.mean, relative.low, relative.high))
    drawing.draw(panel, Band(*np.array(sorted(points)).T), "", number)


def _regression_panel(panel: "Axes", rows: Rows, top: float) -> None:
    for number, (on, score) in enumerate(FORMS):
        drawing.draw(panel, rows.where(on=on, score=score).band("temperature", "error"), f"{score} on {on}", number)
    panel.axhline(rows.values("error", on="equal").mean(), color="0.2", linestyle="--", label="equal weights")


def _sorted_weights(rows: Rows) -> StudyFigure:
    figure, axes = drawing.panels(1, 4, width=2.6, height=2.7)
    for panel, (on, score) in zip(axes, FORMS, strict=True):
        selected = rows.where(on=on, score=score)
        for colour, temperature in zip(("0.75", "0.45", "0.0"), selected.distinct("temperature"), strict=True):
            weights = selected.values("weights", temperature=temperature)[0]
            panel.plot(ranks(selected.distinct("samples")[0]) + 1, weights, color=colour, label=f"{temperature:g}")
        drawing.entitle(panel, f"{score} on {on}", "rank of the displacement", "")
        panel.set(xscale="log", yscale="log", ylim=(1e-4, 400))
        panel.legend(title="temperature", fontsize=7.5, title_fontsize=7.5, loc="lower left")
    axes[0].set_ylabel("weight (of equal weights)")
    return StudyFigure(
        "weights",
        "The weights of M displacements at one input, sorted, over equal weights, at three temperatures of each score "
        "(first seed; tanh network, gamma = 0.03). Equal weights are 1, and one that takes all is M.",
        figure,
    )
