"""Error plots: errors of the kernel and of differences over gamma or the number of displacements."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from nntk.bench.report.content import positive
from nntk.bench.report.plots.axes import (
    AXIS_LABELS,
    INK,
    PALETTE,
    add_legend,
    literal_text,
    look_of,
    new_figure,
    set_logarithmic,
    set_titles,
)
from nntk.bench.report.plots.chart import Chart
from nntk.bench.report.plots.series import series_by_settings, value_columns
from nntk.bench.results.schema import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def kernel_error(rows: Sequence[Row], x: str) -> Iterator[Chart]:
    """Draw the error of the kernel over gamma or samples, beside the predicted Monte-Carlo error."""
    all_series = series_by_settings(rows, x, "error")
    if not all_series:
        return
    predictions: dict[tuple[tuple[float, float], ...], list[int]] = {}
    for number, series in enumerate(all_series):
        if all(positive(row.get("predicted")) for row in series.points):
            predictions.setdefault(tuple((row[x], row["predicted"]) for row in series.points), []).append(number)
    figure, (axes,) = new_figure()
    for number, series in enumerate(all_series):
        axes.plot(
            *value_columns(series.points, x, "error"), **look_of(number), label=literal_text(series.name or "measured")
        )
    for line, numbers in predictions.items():
        alone = len(predictions) == 1
        axes.plot(
            *zip(*line, strict=True),
            color=INK if alone else PALETTE[numbers[0] % len(PALETTE)],
            linestyle=":",
            linewidth=2,
            label=literal_text("predicted Monte-Carlo error" + ("" if alone else f", {all_series[numbers[0]].name}")),
        )
    _mark_failures(axes, [row for series in all_series for row in series.points], x, ("error",))
    set_logarithmic(axes, "x")
    set_logarithmic(axes, "y")
    title = {"gamma": "Error of the kernel against γ", "samples": "Error of the kernel against M"}[x]
    set_titles(axes, title, AXIS_LABELS[x], "error relative to the autograd NTK (ratio)")
    figure.set_figheight(figure.get_figheight() + add_legend(axes))
    caption = "Relative error (Frobenius) of the nonlocal kernel against the autograd NTK."
    if predictions:
        caption += " The dotted line is the Monte-Carlo error that theory predicts for γ → 0."
    yield Chart(f"error over {x}", title, caption, figure)


def difference_error(rows: Sequence[Row]) -> Iterator[Chart]:
    """Draw the error of propagated and of subtracted differences over gamma."""
    labels = {"difference": "propagated", "direct": "subtracted"}
    series_by_key = {key: series_by_settings(rows, "gamma", key) for key in labels}
    if not all(series_by_key.values()):
        return
    figure, (axes,) = new_figure()
    names = list(dict.fromkeys(series.name for group in series_by_key.values() for series in group))
    for key, form in labels.items():
        for series in series_by_key[key]:
            look = look_of(names.index(series.name)) | {"linestyle": "-" if key == "difference" else "--"}
            if key == "direct":
                look["markerfacecolor"] = "none"
            label = literal_text(f"{series.name}, {form}".removeprefix(", "))
            axes.plot(*value_columns(series.points, "gamma", key), **look, label=label)
    points = [row for series in series_by_key["difference"] for row in series.points]
    _mark_failures(axes, points, "gamma", ("difference",))
    set_logarithmic(axes, "x")
    set_logarithmic(axes, "y")
    title = "Error of differences against γ: propagated and subtracted"
    set_titles(axes, title, AXIS_LABELS["gamma"], "error relative to float64 (ratio)")
    figure.set_figheight(figure.get_figheight() + add_legend(axes))
    yield Chart(
        "error of differences",
        title,
        "Relative error (Frobenius) against float64 on the same displacements. Propagated: the difference itself goes "
        "through the network. Subtracted: f(θ + δ) and f(θ) do, and their difference is rounded.",
        figure,
    )


def _mark_failures(axes: "Axes", rows: Sequence[Row], x: str, keys: Sequence[str]) -> None:
    points = [(row[x], row[key]) for row in rows if "failure" in row for key in keys if positive(row.get(key))]
    if points:
        axes.plot(
            *zip(*points, strict=True),
            color=INK,
            marker="x",
            markersize=11,
            markeredgewidth=1.8,
            linestyle="none",
            label="failed: missed its tolerance",
        )
