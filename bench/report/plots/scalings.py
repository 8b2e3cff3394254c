"""Scaling plot: time and peak memory along one axis, with fitted powers."""

from collections.abc import Iterator, Sequence

from nntk.bench.report.content import positive
from nntk.bench.report.plots.axes import (
    AXIS_LABELS,
    DASHES,
    PALETTE,
    add_legend,
    literal_text,
    look_of,
    new_figure,
    set_logarithmic,
    set_titles,
)
from nntk.bench.report.plots.chart import Chart
from nntk.bench.report.plots.series import fit, group_series
from nntk.bench.results.schema import Row

SCALING_SETTINGS = ("op", "method", "directions", "precision")
"""Settings that distinguish the series of a scaling plot beside the case. The other settings change with the axis."""


def scaling(rows: Sequence[Row], axis: str) -> Iterator[Chart]:
    """Draw time and memory along one axis, with the powers that fit best."""
    panels = [
        (title, y, unit, all_series)
        for title, y, scale, unit in (
            ("Time", "median_s", 1.0, "time (s)"),
            ("Memory", "peak_bytes", 2**-20, "peak memory (MiB)"),
        )
        if (
            all_series := group_series(
                [_scaled(row, y, scale) for row in rows], "value", y, ("case", *SCALING_SETTINGS), SCALING_SETTINGS
            )
        )
    ]
    if not panels:
        return
    label = AXIS_LABELS.get(axis, axis)
    figure, all_axes = new_figure(height=4.4, panels=len(panels))
    growth = 0.0
    for axes, (title, y, unit, all_series) in zip(all_axes, panels, strict=True):
        for number, series in enumerate(all_series):
            x, values = ([float(row[key]) for row in series.points] for key in ("value", y))
            slope, level = fit(x, values)
            look = look_of(number)
            axes.plot(x, values, **{**look, "linestyle": "none"})
            axes.plot(
                x,
                [level * value**slope for value in x],
                **{**look, "marker": "none", "linestyle": DASHES[number // len(PALETTE) % 4]},
            )
            axes.plot([], [], **look, label=literal_text(f"{series.name} ∝ {axis}^{slope:.2f}".strip()))
        set_logarithmic(axes, "x")
        set_logarithmic(axes, "y")
        set_titles(axes, f"{title} against {axis}" if len(panels) > 1 else f"{title} against {label}", label, unit)
        growth = max(growth, add_legend(axes))
    figure.set_figheight(figure.get_figheight() + growth)
    quantities = " and ".join(title.lower() for title, *_ in panels).capitalize()
    yield Chart(
        f"scaling {label.partition(' ')[0]}",
        f"{quantities} against {label}",
        "Points are measured, lines are the powers that fit them best; the legend has their exponents.",
        figure,
    )


def _scaled(row: Row, key: str, scale: float) -> Row:
    return {**row, key: row[key] * scale} if positive(row.get(key)) else row
