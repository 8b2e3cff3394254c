"""Attribution: figures of the rows."""

from collections.abc import Iterator

from nntk.bench.studies import StudyFigure
from nntk.bench.studies.analysis import drawing
from nntk.bench.studies.analysis.claims import interval
from nntk.bench.studies.analysis.rows import Rows
from nntk.bench.studies.attribution.experiment import HEAD, METHODS, NONLOCAL, SURROGATE, TRAK, TWIN

_LABELS = {TRAK: "TRAK", TWIN: "TRAK,\nfloat twin", HEAD: "TRAK,\nautograd", SURROGATE: "TRAK,\nstraight-\nthrough"}


def draw_figures(rows: Rows) -> Iterator[StudyFigure]:
    """Draw the figures of the study."""
    figure, axes = drawing.panels(2, len(METHODS), width=3.3, height=2.8)
    for number, (units, methods) in enumerate(METHODS.items()):
        panel, below = axes[number], axes[len(METHODS) + number]
        for place, method in enumerate(methods):
            bounds = interval(rows.values("lds", table="scores", units=units, method=method))
            ends = [[bounds.mean - bounds.low], [bounds.high - bounds.mean]]
            style = {**drawing.look(_number(method)), "linestyle": ""}
            panel.errorbar([place], [bounds.mean], ends, **style, capsize=4)
            candidates = rows.where(table="choices", units=units, method=method)
            gammas = candidates.distinct("gamma")
            best = max(gammas, key=lambda gamma: candidates.band("ridge", "lds", gamma=gamma).mean.max())
            drawing.draw(below, candidates.band("ridge", "lds", gamma=best), method, _number(method))
        drawing.entitle(panel, f"{units} units", "", "LDS (correlation)")
        panel.set_xticks(range(len(methods)), [_LABELS.get(method, method) for method in methods], fontsize=7)
        panel.set_xlim(-0.5, len(methods) - 0.5)
        panel.set_ylim(bottom=0)
        drawing.entitle(below, f"{units} units, along the ridge", "ridge (mean squared lengths)", "LDS (correlation)")
        below.set_xscale("log")
    drawing.legend(figure, 3, *axes)
    yield StudyFigure(
        "attribution",
        "Linear datamodeling score of training-data attribution. Above: with the ridge, and the gamma of the NNTK, "
        "that half of the held-out digits chose, on the other half. Below: on the half that chooses, along the ridge, "
        "at the best gamma. Means and 95 % intervals over seeds.",
        figure,
    )


def _number(method: str) -> int:
    """Return the number of the look of a method: TRAK and its float twin have the same."""
    return {NONLOCAL: 0, TRAK: 1, TWIN: 1, SURROGATE: 2, HEAD: 3}[method]
