"""Plots as SVG text, drawn from the rows that hold what a plot needs: the same rows give the same bytes."""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from nntk import KernelComparison
from nntk.bench.report.content import Measurement
from nntk.bench.report.plots.axes import FONT, INK, STYLE
from nntk.bench.report.plots.chart import Chart
from nntk.bench.report.plots.comparisons import kernel_comparison
from nntk.bench.report.plots.efficiencies import efficiency
from nntk.bench.report.plots.errors import difference_error, kernel_error
from nntk.bench.report.plots.rooflines import roofline
from nntk.bench.report.plots.scalings import scaling
from nntk.bench.report.plots.series import fit
from nntk.bench.report.plots.speed_ups import speed_ups
from nntk.bench.results.schema import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure


__all__ = ["Plot", "comparison_plot", "fit", "plots"]


@dataclass(frozen=True)
class Plot:
    """Plot of a section.

    Attributes:
        section: Name of the section.
        name: Name, unique in a report: the file name without its ending, and the prefix of the ids in the SVG.
        title: Title.
        caption: Sentences that say how to read it.
        svg: ``<svg>`` element without any reference to other files.
    """

    section: str
    name: str
    title: str
    caption: str
    svg: str

    @property
    def file(self) -> str:
        """Text of a separate SVG file, for light and dark surroundings."""
        scheme = "svg { color: #1b1f24 } @media (prefers-color-scheme: dark) { svg { color: #d7dce2 } }"
        return self.svg.replace(">", f"><style>{scheme}</style>", 1) + "\n"


def plots(measurement: Measurement, number: int = 1) -> list[Plot]:
    """Draw every plot that the rows of a run allow.

    Args:
        measurement: Run.
        number: Number of the run in the report, which keeps names and ids unique.

    Returns:
        The plots in the order of the sections.

    Raises:
        ValueError: If matplotlib is not installed.
    """
    drawn_plots: list[Plot] = []
    for section in measurement.run.sections:
        rows = [row for row in measurement.run.rows if row["section"] == section["name"]]
        with _styled() as matplotlib:
            for chart in _charts(rows, section["name"], measurement):
                name = re.sub(r"[^a-z0-9]+", "-", f"run {number} {section['name']} {chart.kind}".lower()).strip("-")
                if any(plot.name == name for plot in drawn_plots):
                    name = f"{name}-{len(drawn_plots) + 1}"
                matplotlib.rcParams["svg.hashsalt"] = name
                svg = _svg(chart.figure, name, chart.title)
                drawn_plots.append(Plot(section["name"], name, chart.title, chart.caption, svg))
    return drawn_plots


def comparison_plot(comparison: KernelComparison, names: tuple[str, str]) -> Plot:
    """Draw a comparison of two kernels: their spectra, and the angles between their leading eigenvectors.

    Args:
        comparison: Comparison by :func:`nntk.compare`.
        names: Names of the two kernels.

    Returns:
        The plot; the same comparison gives the same bytes.

    Raises:
        ValueError: If matplotlib is not installed.
    """
    with _styled() as matplotlib:
        chart = kernel_comparison(comparison, names)
        matplotlib.rcParams["svg.hashsalt"] = chart.kind
        return Plot("kernels", chart.kind, chart.title, chart.caption, _svg(chart.figure, chart.kind, chart.title))


@contextmanager
def _styled() -> Iterator[ModuleType]:
    """Set the style of the plots within a block, and yield matplotlib."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise ValueError("plots need matplotlib, which is not installed: pip install 'nntk[bench]'") from None
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield matplotlib


def _charts(rows: Sequence[Row], section: str, measurement: Measurement) -> Iterator[Chart]:
    good = [row for row in rows if "failure" not in row]
    yield from roofline(good, measurement)
    for axis in dict.fromkeys(row["axis"] for row in good if isinstance(row.get("axis"), str)):
        yield from scaling([row for row in good if row.get("axis") == axis], axis)
    for x in ("gamma", "samples"):
        yield from kernel_error(rows, x)
    yield from difference_error(rows)
    yield from speed_ups(rows, section)
    yield from efficiency(good)


def _svg(figure: "Figure", name: str, title: str) -> str:
    """Return the ``<svg>`` element of a figure: scalable, with unique ids, in the colour of the page."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    FigureCanvasSVG(figure)
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = text.replace("url(#", f"url(#{name}-").replace(INK, "currentColor").replace("'DejaVu Sans'", FONT)
    head, rest = text.split(">", 1)
    head = re.sub(r'\s(width|height|version)="[^"]*"', "", head)
    spoken = title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return f'{head} role="img" aria-label="{spoken}" stroke-linejoin="round" stroke-linecap="butt">{rest.strip()}'
