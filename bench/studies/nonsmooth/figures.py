"""Networks that jump: figures of the rows."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from nntk.bench.studies import StudyFigure
from nntk.bench.studies.analysis import drawing
from nntk.bench.studies.analysis.claims import interval
from nntk.bench.studies.analysis.rows import Rows
from nntk.bench.studies.nonsmooth.experiment import AUTOGRAD, NETWORKS, NONLOCAL, RBF, SURROGATE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEVELS = {SURROGATE: "--", AUTOGRAD: ":", RBF: "-."}
"""Dashes of the kernels without displacements."""


def draw_figures(rows: Rows) -> Iterator[StudyFigure]:
    """Draw the figures of the study."""
    yield _draw_accuracy(rows.where(table="kernels"))
    yield _draw_choices(rows.where(table="choices"))


def _draw_accuracy(rows: Rows) -> StudyFigure:
    figure, axes = drawing.panels(1, len(NETWORKS), width=3.4, height=3.4)
    for panel, name in zip(axes, NETWORKS, strict=True):
        selected = rows.where(network=name)
        drawing.draw(panel, selected.where(method=NONLOCAL).band("samples", "accuracy"), NONLOCAL, 0)
        samples = rows.distinct("samples")
        for number, method in enumerate(_LEVELS, 1):
            values = (rows if method == RBF else selected).values("accuracy", method=method)
            _draw_level(panel, values.tolist(), method, number, samples[0] / 1.4**number)
        _scale(panel, samples)
        drawing.entitle(panel, name, "displacements M (number)", "accuracy (fraction held out)")
    drawing.legend(figure, 4)
    return StudyFigure(
        "accuracy",
        "Accuracy on held-out digits of ridge regression by each kernel of three untrained networks. The NNTK is drawn "
        "against the number of displacements; kernels without displacements are level lines, with their intervals at "
        "the left. Means and 95 % intervals over seeds.",
        figure,
    )


def _draw_level(panel: "Axes", values: list[float], label: str, number: int, place: float) -> None:
    """Draw a level line, and its interval as a bar at a place of the horizontal axis."""
    bounds, colour = interval(values), drawing.look(number)["color"]
    panel.axhline(bounds.mean, color=colour, linestyle=_LEVELS[label], label=label)
    ends = [[bounds.mean - bounds.low], [bounds.high - bounds.mean]]
    panel.errorbar([place], [bounds.mean], ends, color=colour, marker="o", capsize=3)


def _scale(panel: "Axes", places: list[float]) -> None:
    """Make the horizontal axis logarithmic, with ticks at these places alone."""
    panel.set_xscale("log")
    panel.set_xticks(places, [f"{place:g}" for place in places])
    panel.set_xticks((), minor=True)


def _draw_choices(rows: Rows) -> StudyFigure:
    figure, axes = drawing.panels(1, 2, width=4.4, height=3.3)
    labels = {NONLOCAL: "gamma (parameter units)", SURROGATE: "width of the surrogate (its units)"}
    for panel, (method, label) in zip(axes, labels.items(), strict=True):
        for number, name in enumerate(NETWORKS):
            selected = rows.where(method=method, network=name)
            drawing.draw(panel, selected.band("choice", "loo"), name, number)
        _scale(panel, sorted(rows.where(method=method).distinct("choice")))
        panel.set_ylim(bottom=0)
        drawing.entitle(panel, method, label, "leave-one-out error (mean square)")
    drawing.legend(figure, 3)
    return StudyFigure(
        "choices",
        "Leave-one-out error on the training digits, by which gamma and the width of the surrogate are chosen. Left: "
        "gamma of the NNTK, at few displacements. Right: width of the surrogate gradients. Means and 95 % intervals "
        "over seeds.",
        figure,
    )
