"""Roofline plot: FLOP/s over FLOP/byte under the roofs that the run measured."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from nntk.bench.report.content import Measurement, positive, rate
from nntk.bench.report.plots.axes import (
    DASHES,
    INK,
    add_legend,
    literal_text,
    look_of,
    new_figure,
    set_plain_ticks,
    set_titles,
)
from nntk.bench.report.plots.chart import Chart
from nntk.bench.results.schema import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def roofline(rows: Sequence[Row], measurement: Measurement) -> Iterator[Chart]:
    """Draw FLOP/s over FLOP/byte under the measured roofs."""
    complete_rows = [row for row in rows if all(positive(row.get(name)) for name in ("flops", "bytes", "median_s"))]
    peaks = sorted((roof for roof in measurement.roofs if roof.unit == "flops"), key=lambda roof: roof.per_second)
    memory = max(
        (roof for roof in measurement.roofs if roof.unit == "bytes"), key=lambda roof: roof.per_second, default=None
    )
    if not complete_rows or not peaks or memory is None:
        return
    bandwidth = memory.per_second
    points: dict[str, list[tuple[float, float]]] = {}
    for row in complete_rows:
        name = str(row.get("op") or row["case"])
        points.setdefault(name, []).append((row["flops"] / row["bytes"], row["flops"] / row["median_s"]))
    ridges = [peak.per_second / bandwidth for peak in peaks]
    intensities = [x for group in points.values() for x, _ in group]
    x_max = max([*intensities, ridges[-1]]) * 6
    # The slope takes three tenths of the width or more, and its label a quarter.
    x_min = min(min([*intensities, ridges[0]]) / 6, (ridges[-1] / x_max**0.3) ** (1 / 0.7))
    y_min = min([x_min * bandwidth, *(y for group in points.values() for _, y in group)]) / 2
    y_max = peaks[-1].per_second * 3

    figure, (axes,) = new_figure(height=5.8)
    axes.plot([x_min, ridges[-1]], [x_min * bandwidth, peaks[-1].per_second], color=INK, linewidth=1.4)
    for number, (peak, ridge) in enumerate(zip(peaks, ridges, strict=True)):
        axes.plot(
            [ridge, x_max],
            [peak.per_second] * 2,
            color=INK,
            linewidth=1.4,
            linestyle=DASHES[number % len(DASHES)],
            label=f"roof {literal_text(peak.name)}, {rate(peak.per_second, 'FLOP/s')}",
        )
    for number, (name, group) in enumerate(points.items()):
        axes.plot(*zip(*group, strict=True), **{**look_of(number), "linestyle": "none"}, label=literal_text(name))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(x_min, x_max)
    axes.set_ylim(y_min, y_max)
    set_plain_ticks(axes.xaxis, x_min, x_max)
    set_plain_ticks(axes.yaxis, y_min, y_max)
    _label_roofs(axes, [(peak.name, peak.per_second) for peak in peaks], x_max, math.log10(y_max / y_min))
    anchor = max(math.sqrt(x_min * ridges[-1]), x_min * (x_max / x_min) ** 0.25)
    axes.annotate(
        f"{literal_text(memory.name)} {rate(bandwidth, 'B/s')}",
        (anchor, anchor * bandwidth),
        xytext=(-6, 4),
        textcoords="offset points",
        ha="right",
        va="bottom",
    )
    set_titles(
        axes,
        f"Roofline of {measurement.run.facts['device']['name']}",
        "arithmetic intensity (FLOP/byte)",
        "speed (FLOP/s)",
    )
    figure.set_figheight(figure.get_figheight() + add_legend(axes, columns=3))
    yield Chart(
        "roofline",
        f"Roofline of {measurement.run.facts['device']['name']}",
        "Each point is an op at one shape, by its declared operations and bytes and its median time. Roofs were "
        "measured on the device: the slope by the fastest use of memory, the levels by dense products.",
        figure,
    )


def _label_roofs(axes: "Axes", levels: Sequence[tuple[str, float]], right: float, decades: float) -> None:
    """Write names beside the ends of the levels, from the lowest up, each clear of the one below."""
    gap, last = decades * 0.045, -math.inf
    for name, level in levels:
        last = max(math.log10(level), last + gap)
        axes.annotate(
            literal_text(name),
            (right, 10**last),
            xytext=(5, 0),
            textcoords="offset points",
            ha="left",
            va="center",
            annotation_clip=False,
        )
