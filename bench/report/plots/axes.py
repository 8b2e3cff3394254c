"""Look of the plots: colours, markers, scales, ticks, titles and legends.

Lines and letters are in ``currentColor``: an inlined plot has the colour of the page, and a plot in a separate
file has a light and a dark scheme.
"""

import math
import textwrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's colours that stand out from white and from black. Markers and dashes distinguish series as well."""


MARKERS = "osD^vPX"
"""Markers, one more than colours, so that pairs of colour and marker repeat late."""


DASHES = ("-", "--", "-.", ":")


INK = "#123456"
"""Colour that stands for ``currentColor`` until the SVG is written."""


FONT = "'DejaVu Sans', Verdana, sans-serif"


STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 10.0,
    "axes.titlesize": 12.0,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlepad": 12.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.6,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


AXIS_LABELS = {
    "M": "displacements M (number)",
    "N": "inputs N (number)",
    "d": "parameters d (number)",
    "C": "outputs C (number)",
    "gamma": "size of the displacements γ (relative to the initial weights)",
    "samples": "displacements M (number)",
}


def look_of(number: int) -> dict[str, Any]:
    """Return colour, marker and dashes of a series by its number."""
    return {
        "color": PALETTE[number % len(PALETTE)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": DASHES[number // len(PALETTE) % len(DASHES)],
    }


def new_figure(width: float = 9.0, height: float = 4.8, panels: int = 1) -> tuple["Figure", list["Axes"]]:
    """Return a figure, its size in inches, and its panels from left to right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, [figure.add_subplot(1, panels, number + 1) for number in range(panels)]


def set_titles(axes: "Axes", title: str, x: str, y: str, width: int = 78) -> None:
    """Set the title, wrapped at ``width`` letters, and the labels of both axes."""
    axes.set_title(literal_text(textwrap.fill(title, width)))
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def add_legend(axes: "Axes", columns: int = 2) -> float:
    """Add a legend below the figure, or below its panel if there are several.

    Args:
        axes: Panel.
        columns: Number of columns of a legend below the figure.

    Returns:
        Height in inches that the legend needs beyond two lines.
    """
    figure = axes.figure
    if len(figure.axes) > 1:
        columns = 1
        legend = axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16))
    else:
        legend = figure.legend(loc="outside lower center", ncols=columns)
    lines = sum(text.get_text().count("\n") + 1 for text in legend.get_texts())
    return 0.22 * max(0.0, lines / columns - 2)


def literal_text(label: str) -> str:
    """Return a label that is shown as it is: not read as a formula, and not hidden from the legend."""
    label = label.replace("\\", "\\\\").replace("$", r"\$") if "$" in label else label
    return f" {label}" if label.startswith("_") else label


def set_logarithmic(axes: "Axes", which: str) -> None:
    """Set a logarithmic scale of a decade or more, so that nearly equal values look equal."""
    axes.set(**{f"{which}scale": "log"})
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    if (missing_decades := 1.2 - math.log10(high / low)) > 0:
        low, high = low / 10 ** (missing_decades / 2), high * 10 ** (missing_decades / 2)
        axes.set(**{f"{which}lim": (low, high)})
    set_plain_ticks(axes.xaxis if which == "x" else axes.yaxis, low, high)


def set_plain_ticks(axis: "Axis", low: float, high: float) -> None:
    """Set ticks such as 0.5, 1, 2 and 5 on a short logarithmic axis, powers of ten on others; labels are plain text."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    decades = math.log10(high / low)
    if decades <= 3.5 and 1e-4 < low < high < 1e6:
        fine = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if decades < 1 else (1.0, 2.0, 5.0)
        axis.set_major_locator(LogLocator(subs=fine if decades < 2.5 else (1.0,)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.12g}"))
    else:
        axis.set_major_formatter(FuncFormatter(_power_of_ten))
    axis.set_minor_locator(NullLocator())


def _power_of_ten(value: float, _: object) -> str:
    exponent = str(round(math.log10(value)))
    return "10" + exponent.translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
