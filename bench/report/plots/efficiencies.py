"""Efficiency plot: the share of the ideal speed-up over one process that ranks reach."""

from collections.abc import Iterator, Sequence

from nntk.bench.report.content import positive
from nntk.bench.report.plots.axes import INK, add_legend, literal_text, look_of, new_figure, set_titles
from nntk.bench.report.plots.chart import Chart
from nntk.bench.results.schema import Row


def efficiency(rows: Sequence[Row]) -> Iterator[Chart]:
    """Draw efficiency against the number of ranks, one line for each kind of scaling."""
    complete = [row for row in rows if positive(row.get("efficiency")) and positive(row.get("ranks"))]
    if not complete:
        return
    figure, (axes,) = new_figure()
    numbers = sorted({int(row["ranks"]) for row in complete})
    axes.axhline(100, color=INK, linewidth=1.2, linestyle="--", label="one process")
    for number, name in enumerate(dict.fromkeys(str(row.get("scaling", "")) for row in complete)):
        points = sorted((row["ranks"], 100 * row["efficiency"]) for row in complete if row.get("scaling", "") == name)
        axes.plot(*zip(*[(1, 100.0), *points], strict=True), **look_of(number), label=literal_text(name))
    axes.set_xticks([1, *numbers], [str(number) for number in (1, *numbers)])
    axes.set_ylim(0, max(110.0, *(105 * row["efficiency"] for row in complete)))
    title = "Efficiency of ranks against one process"
    set_titles(axes, title, "ranks (number)", "efficiency (%)")
    figure.set_figheight(figure.get_figheight() + add_legend(axes))
    yield Chart(
        "efficiency",
        title,
        "Strong scaling: the speed-up over one process by the number of ranks. Weak scaling: the time of one process "
        "with the share of one rank, over that of the ranks with all of it. 100 % is ideal.",
        figure,
    )
