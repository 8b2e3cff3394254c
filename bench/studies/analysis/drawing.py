"""Style of the figures: colours that colour-blind readers can distinguish, and reproducible files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nntk.bench.report.plots.axes import look_of as look
from nntk.bench.studies.analysis.rows import Band
from nntk.files.output import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAP = "cividis"
"""Colours of heat maps of one sign."""

SIGNED_MAP = "PuOr"
"""Colours of heat maps around zero."""

__all__ = ["MAP", "SIGNED_MAP", "draw", "entitle", "legend", "look", "panels", "save", "styled"]

_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "figure.dpi": 100,
    "savefig.dpi": 140,
    "svg.fonttype": "none",
    "image.interpolation": "nearest",
}


@contextmanager
def styled(name: str) -> Iterator[None]:
    """Apply the style to the figures of a block; the ids in their SVGs depend on the name alone."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**_STYLE, "svg.hashsalt": name})
        yield


def panels(rows: int, columns: int, width: float = 3.2, height: float = 2.7) -> tuple["Figure", list["Axes"]]:
    """Return a figure and its panels, row by row; width and height of a panel are in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, number + 1) for number in range(rows * columns)]


def entitle(axes: "Axes", title: str, x: str, y: str) -> None:
    """Set the title of a panel and the labels of its axes, which name the units."""
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def draw(axes: "Axes", band: Band, label: str, number: int, **style: Any) -> None:
    """Draw a curve with the band of its intervals; ``number`` chooses the colour, ``style`` overrides the rest."""
    axes.plot(band.x, band.mean, label=label, **{**look(number), **style})
    axes.fill_between(band.x, band.low, band.high, color=look(number)["color"], alpha=0.2, linewidth=0)


def legend(figure: "Figure", columns: int, *axes: "Axes") -> None:
    """Draw one legend below all panels, with each series of the given panels (by default of the first) once."""
    series = {}
    for panel in axes or figure.axes[:1]:
        handles, labels = panel.get_legend_handles_labels()
        series.update(dict(zip(labels, handles, strict=True)))
    figure.legend(list(series.values()), list(series), loc="outside lower center", ncols=columns)


def save(figure: "Figure", path: Path) -> None:
    """Write a figure as SVG and as PNG, without the time and the machine: equal figures are equal files."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    for form, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
        with replacing(path.with_suffix(f".{form}")) as partial:
            figure.savefig(partial, format=form, metadata=metadata)
