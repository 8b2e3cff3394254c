"""Speed-up plot: bars from the baseline."""

import statistics
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nntk.bench.report.content import positive, significant
from nntk.bench.report.plots.axes import INK, PALETTE, add_legend, literal_text, new_figure, set_plain_ticks, set_titles
from nntk.bench.report.plots.chart import Chart
from nntk.bench.results.schema import Row


def speed_ups(rows: Sequence[Row], section: str) -> Iterator[Chart]:
    """Draw bars from the baseline: faster cases to the right, slower ones to the left."""
    complete_rows = [row for row in rows if "failure" not in row and positive(row.get("speed_up"))]
    if len(complete_rows) < 2:
        return
    baseline = next((row for row in complete_rows if row["speed_up"] == 1), None)
    against = baseline["case"] if baseline else "the baseline"
    values = [float(row["speed_up"]) for row in complete_rows]
    quartiles = [_ratio_quartiles(row, baseline) for row in complete_rows]
    names = [textwrap.fill(str(row["case"]), 34) for row in complete_rows]
    figure, (axes,) = new_figure(
        height=1.9 + len(complete_rows) * (0.25 + 0.17 * max(name.count("\n") + 1 for name in names))
    )
    for slower, name, color in (
        (False, "as fast as the baseline, or faster", PALETTE[0]),
        (True, "slower than the baseline", PALETTE[1]),
    ):
        places = [place for place, value in enumerate(values) if (value < 1) == slower]
        if places:
            axes.barh(
                places,
                [values[place] - 1 for place in places],
                left=1,
                height=0.62,
                color=color,
                label=literal_text(name),
            )
    whiskers = [(place, *pair) for place, pair in enumerate(quartiles) if pair]
    if whiskers:
        axes.hlines(*zip(*whiskers, strict=True), color=INK, linewidth=1.6, label="quartiles of the rounds")
    axes.axvline(
        1, color=INK, linewidth=1.4, linestyle="--", label=literal_text(textwrap.fill(f"baseline: {against}", 44))
    )
    ends = [max([value, 1.0, *(pair or ())]) for value, pair in zip(values, quartiles, strict=True)]
    low = min([1.0, *values, *(first for _, first, _ in whiskers)])
    axes.set_xscale("log")
    axes.set_xlim(low / 1.2, max(ends) * (max(ends) / low) ** 0.16 * 1.1)
    for place, (value, end) in enumerate(zip(values, ends, strict=True)):
        axes.annotate(
            f"{significant(value)}×", (end, place), xytext=(5, 0), textcoords="offset points", ha="left", va="center"
        )
    set_plain_ticks(axes.xaxis, *axes.get_xlim())
    axes.set_yticks(range(len(complete_rows)), [literal_text(name) for name in names])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    title = f"Speed-up over {against}: {section}"
    set_titles(axes, title, "speed-up over the baseline (times, logarithmic)", "case", width=54)
    figure.set_figheight(figure.get_figheight() + add_legend(axes))
    failed = [row["case"] for row in rows if "failure" in row]
    caption = "Median over rounds of the baseline's time over the case's."
    if failed:
        caption += f" Failed, and therefore not shown: {', '.join(failed)}."
    yield Chart("speed-up", title, caption, figure)


def _ratio_quartiles(row: Row, baseline: Mapping[str, Any] | None) -> tuple[float, float] | None:
    """Return the quartiles of the speed-up over rounds if both cases were timed in the same rounds."""
    if baseline is None or row is baseline:
        return None
    case_samples, baseline_samples = row.get("samples_s"), baseline.get("samples_s")
    if not case_samples or not baseline_samples or len(case_samples) != len(baseline_samples) or len(case_samples) < 2:
        return None
    low, _, high = statistics.quantiles(
        [baseline_s / case_s for baseline_s, case_s in zip(baseline_samples, case_samples, strict=True)],
        n=4,
        method="inclusive",
    )
    return low, high
