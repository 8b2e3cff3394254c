"""Plots as SVG text: made of the rows that have what a plot needs, none of others, and the same bytes each time.

Lines and letters are in ``currentColor``: an inlined plot takes the page's, a file of its own has both schemes.
"""

import io
import math
import re
import statistics
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nntk.bench.report.content import Measurement, positive, rate, significant
from nntk.bench.results.schema import SETTINGS, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's colours that stand out from white and from black; markers and dashes tell series apart as well."""

_MARKERS = "osD^vPX"
"""One more than colours, so that they meet in ever new pairs."""

_DASHES = ("-", "--", "-.", ":")
_INK = "#123456"
"""Stands for ``currentColor`` until the SVG is made."""

_FONT = "'DejaVu Sans', Verdana, sans-serif"

_STYLE: Any = {
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
    "grid.color": _INK,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.6,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
}

_AXES = {
    "M": "displacements M (number)",
    "N": "inputs N (number)",
    "d": "parameters d (number)",
    "C": "outputs C (number)",
    "gamma": "size of the displacements γ (relative to the initial weights)",
    "samples": "displacements M (number)",
}


_WAYS = ("op", "method", "directions", "precision")
"""What sets the series of a scaling plot apart beside the case; the other settings go along with the axis."""


@dataclass(frozen=True)
class Plot:
    """A plot of a section.

    Attributes:
        section: The section's name.
        name: Unique in a report; a file's name without its ending, and what the ids in the SVG begin with.
        title: What it shows.
        caption: How to read it.
        svg: The ``<svg>`` element, without any reference to outside.
    """

    section: str
    name: str
    title: str
    caption: str
    svg: str

    @property
    def file(self) -> str:
        """The SVG as a file of its own, for light and dark surroundings."""
        scheme = "svg { color: #1b1f24 } @media (prefers-color-scheme: dark) { svg { color: #d7dce2 } }"
        return self.svg.replace(">", f"><style>{scheme}</style>", 1) + "\n"


@dataclass(frozen=True)
class _Drawn:
    kind: str
    title: str
    caption: str
    figure: "Figure"


def plots(measurement: Measurement, number: int = 1) -> list[Plot]:
    """Every plot that the rows of a run allow.

    Args:
        measurement: The run.
        number: Number of the run in the report, which sets names and ids apart.

    Returns:
        The plots in the order of the sections.

    Raises:
        ValueError: If matplotlib is not installed.
    """
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise ValueError("plots need matplotlib, which is not installed: pip install 'nntk[bench]'") from None
    made: list[Plot] = []
    for section in measurement.run.sections:
        rows = [row for row in measurement.run.rows if row["section"] == section["name"]]
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_STYLE)
            for drawn in _draw(rows, section["name"], measurement):
                name = re.sub(r"[^a-z0-9]+", "-", f"run {number} {section['name']} {drawn.kind}".lower()).strip("-")
                if any(plot.name == name for plot in made):
                    name = f"{name}-{len(made) + 1}"
                matplotlib.rcParams["svg.hashsalt"] = name
                svg = _svg(drawn.figure, name, drawn.title)
                made.append(Plot(section["name"], name, drawn.title, drawn.caption, svg))
    return made


def _draw(rows: Sequence[Row], section: str, measurement: Measurement) -> Iterator[_Drawn]:
    good = [row for row in rows if "failure" not in row]
    yield from _roofline(good, measurement)
    for axis in dict.fromkeys(row["axis"] for row in good if isinstance(row.get("axis"), str)):
        yield from _scaling([row for row in good if row.get("axis") == axis], axis)
    for x in ("gamma", "samples"):
        yield from _accuracy(rows, x)
    yield from _differences(rows)
    yield from _speed_ups(rows, section)


def _svg(figure: "Figure", name: str, title: str) -> str:
    """The ``<svg>`` element of a figure: scalable, ids of its own, letters in the colour around it."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    FigureCanvasSVG(figure)
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = text.replace("url(#", f"url(#{name}-").replace(_INK, "currentColor").replace("'DejaVu Sans'", _FONT)
    head, rest = text.split(">", 1)
    head = re.sub(r'\s(width|height|version)="[^"]*"', "", head)
    spoken = title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return f'{head} role="img" aria-label="{spoken}" stroke-linejoin="round" stroke-linecap="butt">{rest.strip()}'


def _figure(width: float = 9.0, height: float = 4.8, panels: int = 1) -> tuple["Figure", list["Axes"]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, [figure.add_subplot(1, panels, number + 1) for number in range(panels)]


def _entitle(axes: "Axes", title: str, x: str, y: str, width: int = 78) -> None:
    axes.set_title(_text(textwrap.fill(title, width)))
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def _legend(axes: "Axes", columns: int = 2) -> float:
    """The legend below everything, or below its own panel if there are several; the inches it has above two lines."""
    figure = axes.figure
    if len(figure.axes) > 1:
        columns = 1
        legend = axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16))
    else:
        legend = figure.legend(loc="outside lower center", ncols=columns)
    lines = sum(text.get_text().count("\n") + 1 for text in legend.get_texts())
    return 0.22 * max(0.0, lines / columns - 2)


def _text(label: str) -> str:
    """A label as it is: no formula, and not hidden from the legend."""
    label = label.replace("\\", "\\\\").replace("$", r"\$") if "$" in label else label
    return f" {label}" if label.startswith("_") else label


def _logarithmic(axes: "Axes", which: str) -> None:
    """A logarithmic scale of a decade or more, so that nearly equal values look equal."""
    axes.set(**{f"{which}scale": "log"})
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    if (lacking := 1.2 - math.log10(high / low)) > 0:
        low, high = low / 10 ** (lacking / 2), high * 10 ** (lacking / 2)
        axes.set(**{f"{which}lim": (low, high)})
    _plain_ticks(axes.xaxis if which == "x" else axes.yaxis, low, high)


def _plain_ticks(axis: "Axis", low: float, high: float) -> None:
    """Ticks such as 0.5, 1, 2 and 5 on a short logarithmic axis, powers of ten on others; all labels are plain text."""
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


@dataclass(frozen=True)
class _Series:
    name: str
    points: Sequence[Row]


def _series(rows: Sequence[Row], x: str, y: str, *apart: Sequence[str]) -> list[_Series]:
    """Rows in the order of ``x``, grouped by what else sets them apart.

    Args:
        rows: The rows; what a logarithmic plot cannot show of them is left out.
        x: Key of the axis.
        y: Key of the figure.
        *apart: Keys to group by. The first of them that gives a group more than one ``x`` is used.

    Returns:
        The groups with two or more ``x``.
    """
    able = [row for row in rows if positive(row.get(x)) and positive(row.get(y))]
    for keys in apart:
        varying = [key for key in keys if len({str(row.get(key)) for row in able}) > 1]
        groups: dict[str, list[Row]] = {}
        for row in able:
            parts = [_setting(key, row[key]) for key in varying if row.get(key) is not None]
            groups.setdefault(", ".join(dict.fromkeys(parts)), []).append(row)
        found = [
            _Series(name, sorted(group, key=lambda row: float(row[x])))
            for name, group in groups.items()
            if len({row[x] for row in group}) > 1
        ]
        if found:
            return found
    return []


def _by_settings(rows: Sequence[Row], x: str, y: str) -> list[_Series]:
    """Series over one of the settings."""
    others = [key for key in SETTINGS if key != x]
    return _series(rows, x, y, ["case", *others], others)


def _setting(name: str, value: object) -> str:
    return str(value) if isinstance(value, str) else f"{name} {value}"


def look_of(number: int) -> dict[str, Any]:
    """Colour, marker and dashes of a series by its number."""
    return {
        "color": PALETTE[number % len(PALETTE)],
        "marker": _MARKERS[number % len(_MARKERS)],
        "linestyle": _DASHES[number // len(PALETTE) % len(_DASHES)],
    }


def _roofline(rows: Sequence[Row], measurement: Measurement) -> Iterator[_Drawn]:
    """FLOP/s over FLOP/byte under the measured roofs."""
    able = [row for row in rows if all(positive(row.get(name)) for name in ("flops", "bytes", "median_s"))]
    peaks = sorted((roof for roof in measurement.roofs if roof.unit == "flops"), key=lambda roof: roof.per_second)
    memory = max(
        (roof for roof in measurement.roofs if roof.unit == "bytes"), key=lambda roof: roof.per_second, default=None
    )
    if not able or not peaks or memory is None:
        return
    bandwidth = memory.per_second
    points: dict[str, list[tuple[float, float]]] = {}
    for row in able:
        name = str(row.get("op") or row["case"])
        points.setdefault(name, []).append((row["flops"] / row["bytes"], row["flops"] / row["median_s"]))
    ridges = [peak.per_second / bandwidth for peak in peaks]
    every = [x for group in points.values() for x, _ in group]
    right = max([*every, ridges[-1]]) * 6
    # The slope takes three tenths of the width or more, and its label a quarter.
    left = min(min([*every, ridges[0]]) / 6, (ridges[-1] / right**0.3) ** (1 / 0.7))
    bottom = min([left * bandwidth, *(y for group in points.values() for _, y in group)]) / 2
    top = peaks[-1].per_second * 3

    figure, (axes,) = _figure(height=5.8)
    axes.plot([left, ridges[-1]], [left * bandwidth, peaks[-1].per_second], color=_INK, linewidth=1.4)
    for number, (peak, ridge) in enumerate(zip(peaks, ridges, strict=True)):
        axes.plot(
            [ridge, right],
            [peak.per_second] * 2,
            color=_INK,
            linewidth=1.4,
            linestyle=_DASHES[number % len(_DASHES)],
            label=f"roof {_text(peak.name)}, {rate(peak.per_second, 'FLOP/s')}",
        )
    for number, (name, group) in enumerate(points.items()):
        axes.plot(*zip(*group, strict=True), **{**look_of(number), "linestyle": "none"}, label=_text(name))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    _plain_ticks(axes.xaxis, left, right)
    _plain_ticks(axes.yaxis, bottom, top)
    _label_roofs(axes, [(peak.name, peak.per_second) for peak in peaks], right, math.log10(top / bottom))
    anchor = max(math.sqrt(left * ridges[-1]), left * (right / left) ** 0.25)
    axes.annotate(
        f"{_text(memory.name)} {rate(bandwidth, 'B/s')}",
        (anchor, anchor * bandwidth),
        xytext=(-6, 4),
        textcoords="offset points",
        ha="right",
        va="bottom",
    )
    _entitle(
        axes,
        f"Roofline of {measurement.run.facts['device']['name']}",
        "arithmetic intensity (FLOP/byte)",
        "speed (FLOP/s)",
    )
    figure.set_figheight(figure.get_figheight() + _legend(axes, columns=3))
    yield _Drawn(
        "roofline",
        f"Roofline of {measurement.run.facts['device']['name']}",
        "Each point is an op at one shape, by its declared operations and bytes and its median time. Roofs were "
        "measured on the device: the slope by the fastest use of memory, the levels by dense products.",
        figure,
    )


def _label_roofs(axes: "Axes", levels: Sequence[tuple[str, float]], right: float, decades: float) -> None:
    """Names beside the ends of the levels, from the lowest up, each clear of the one below."""
    gap, last = decades * 0.045, -math.inf
    for name, level in levels:
        last = max(math.log10(level), last + gap)
        axes.annotate(
            _text(name),
            (right, 10**last),
            xytext=(5, 0),
            textcoords="offset points",
            ha="left",
            va="center",
            annotation_clip=False,
        )


def _scaling(rows: Sequence[Row], axis: str) -> Iterator[_Drawn]:
    """Time and memory along one axis, with the power that fits."""
    panels = [
        (title, y, unit, found)
        for title, y, scale, unit in (
            ("Time", "median_s", 1.0, "time (s)"),
            ("Memory", "peak_bytes", 2**-20, "peak memory (MiB)"),
        )
        if (found := _series([_scaled(row, y, scale) for row in rows], "value", y, ("case", *_WAYS), _WAYS))
    ]
    if not panels:
        return
    label = _AXES.get(axis, axis)
    figure, every = _figure(height=4.4, panels=len(panels))
    growth = 0.0
    for axes, (title, y, unit, found) in zip(every, panels, strict=True):
        for number, series in enumerate(found):
            x, values = ([float(row[key]) for row in series.points] for key in ("value", y))
            slope, level = fit(x, values)
            look = look_of(number)
            axes.plot(x, values, **{**look, "linestyle": "none"})
            axes.plot(
                x,
                [level * one**slope for one in x],
                **{**look, "marker": "none", "linestyle": _DASHES[number // len(PALETTE) % 4]},
            )
            axes.plot([], [], **look, label=_text(f"{series.name} ∝ {axis}^{slope:.2f}".strip()))
        _logarithmic(axes, "x")
        _logarithmic(axes, "y")
        _entitle(axes, f"{title} against {axis}" if len(panels) > 1 else f"{title} against {label}", label, unit)
        growth = max(growth, _legend(axes))
    figure.set_figheight(figure.get_figheight() + growth)
    what = " and ".join(title.lower() for title, *_ in panels).capitalize()
    yield _Drawn(
        f"scaling {label.partition(' ')[0]}",
        f"{what} against {label}",
        "Points are measured, lines are the powers that fit them best; the legend has their exponents.",
        figure,
    )


def _scaled(row: Row, key: str, scale: float) -> Row:
    return {**row, key: row[key] * scale} if positive(row.get(key)) else row


def fit(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """The power law through points, by least squares of logarithms.

    Args:
        x: Where, all above 0 and not all the same.
        y: Values, all above 0.

    Returns:
        ``a`` and ``c`` of ``y = c * x**a``.
    """
    slope, level = statistics.linear_regression([math.log(one) for one in x], [math.log(one) for one in y])
    return slope, math.exp(level)


def _accuracy(rows: Sequence[Row], x: str) -> Iterator[_Drawn]:
    """Error of the kernel over gamma or samples, beside the predicted Monte-Carlo error."""
    found = _by_settings(rows, x, "error")
    if not found:
        return
    predictions: dict[tuple[tuple[float, float], ...], list[int]] = {}
    for number, series in enumerate(found):
        if all(positive(row.get("predicted")) for row in series.points):
            predictions.setdefault(tuple((row[x], row["predicted"]) for row in series.points), []).append(number)
    figure, (axes,) = _figure()
    for number, series in enumerate(found):
        axes.plot(*_columns(series.points, x, "error"), **look_of(number), label=_text(series.name or "measured"))
    for line, numbers in predictions.items():
        alone = len(predictions) == 1
        axes.plot(
            *zip(*line, strict=True),
            color=_INK if alone else PALETTE[numbers[0] % len(PALETTE)],
            linestyle=":",
            linewidth=2,
            label=_text("predicted Monte-Carlo error" + ("" if alone else f", {found[numbers[0]].name}")),
        )
    _mark_failures(axes, [row for series in found for row in series.points], x, ("error",))
    _logarithmic(axes, "x")
    _logarithmic(axes, "y")
    title = {"gamma": "Error of the kernel against γ", "samples": "Error of the kernel against M"}[x]
    _entitle(axes, title, _AXES[x], "error relative to the autograd NTK (ratio)")
    figure.set_figheight(figure.get_figheight() + _legend(axes))
    caption = "Relative error (Frobenius) of the nonlocal kernel against the autograd NTK."
    if predictions:
        caption += " The dotted line is the Monte-Carlo error that theory predicts for γ → 0."
    yield _Drawn(f"error over {x}", title, caption, figure)


def _differences(rows: Sequence[Row]) -> Iterator[_Drawn]:
    """Error of propagated and of subtracted differences over gamma."""
    ways = {"difference": "propagated", "direct": "subtracted"}
    found = {key: _by_settings(rows, "gamma", key) for key in ways}
    if not all(found.values()):
        return
    figure, (axes,) = _figure()
    names = list(dict.fromkeys(series.name for group in found.values() for series in group))
    for key, way in ways.items():
        for series in found[key]:
            look = look_of(names.index(series.name)) | {"linestyle": "-" if key == "difference" else "--"}
            if key == "direct":
                look["markerfacecolor"] = "none"
            label = _text(f"{series.name}, {way}".removeprefix(", "))
            axes.plot(*_columns(series.points, "gamma", key), **look, label=label)
    _mark_failures(axes, [row for series in found["difference"] for row in series.points], "gamma", ("difference",))
    _logarithmic(axes, "x")
    _logarithmic(axes, "y")
    title = "Error of differences against γ: propagated and subtracted"
    _entitle(axes, title, _AXES["gamma"], "error relative to float64 (ratio)")
    figure.set_figheight(figure.get_figheight() + _legend(axes))
    yield _Drawn(
        "error of differences",
        title,
        "Relative error (Frobenius) against float64 on the same displacements. Propagated: the difference itself goes "
        "through the network. Subtracted: f(θ + δ) and f(θ) do, and their difference is rounded.",
        figure,
    )


def _columns(rows: Sequence[Row], *keys: str) -> list[list[float]]:
    return [[row[key] for row in rows] for key in keys]


def _mark_failures(axes: "Axes", rows: Sequence[Row], x: str, keys: Sequence[str]) -> None:
    points = [(row[x], row[key]) for row in rows if "failure" in row for key in keys if positive(row.get(key))]
    if points:
        axes.plot(
            *zip(*points, strict=True),
            color=_INK,
            marker="x",
            markersize=11,
            markeredgewidth=1.8,
            linestyle="none",
            label="failed: missed its tolerance",
        )


def _speed_ups(rows: Sequence[Row], section: str) -> Iterator[_Drawn]:
    """Bars from the baseline, faster to the right and slower to the left."""
    able = [row for row in rows if "failure" not in row and positive(row.get("speed_up"))]
    if len(able) < 2:
        return
    baseline = next((row for row in able if row["speed_up"] == 1), None)
    against = baseline["case"] if baseline else "the baseline"
    values = [float(row["speed_up"]) for row in able]
    quartiles = [_ratio_quartiles(row, baseline) for row in able]
    names = [textwrap.fill(str(row["case"]), 34) for row in able]
    figure, (axes,) = _figure(height=1.9 + len(able) * (0.25 + 0.17 * max(name.count("\n") + 1 for name in names)))
    for slower, name, color in (
        (False, "as fast as the baseline, or faster", PALETTE[0]),
        (True, "slower than the baseline", PALETTE[1]),
    ):
        places = [place for place, value in enumerate(values) if (value < 1) == slower]
        if places:
            axes.barh(
                places, [values[place] - 1 for place in places], left=1, height=0.62, color=color, label=_text(name)
            )
    whiskers = [(place, *pair) for place, pair in enumerate(quartiles) if pair]
    if whiskers:
        axes.hlines(*zip(*whiskers, strict=True), color=_INK, linewidth=1.6, label="quartiles of the rounds")
    axes.axvline(1, color=_INK, linewidth=1.4, linestyle="--", label=_text(textwrap.fill(f"baseline: {against}", 44)))
    ends = [max([value, 1.0, *(pair or ())]) for value, pair in zip(values, quartiles, strict=True)]
    low = min([1.0, *values, *(first for _, first, _ in whiskers)])
    axes.set_xscale("log")
    axes.set_xlim(low / 1.2, max(ends) * (max(ends) / low) ** 0.16 * 1.1)
    for place, (value, end) in enumerate(zip(values, ends, strict=True)):
        axes.annotate(
            f"{significant(value)}×", (end, place), xytext=(5, 0), textcoords="offset points", ha="left", va="center"
        )
    _plain_ticks(axes.xaxis, *axes.get_xlim())
    axes.set_yticks(range(len(able)), [_text(name) for name in names])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    title = f"Speed-up over {against}: {section}"
    _entitle(axes, title, "speed-up over the baseline (times, logarithmic)", "case", width=54)
    figure.set_figheight(figure.get_figheight() + _legend(axes))
    failed = [row["case"] for row in rows if "failure" in row]
    caption = "Median over rounds of the baseline's time over the case's."
    if failed:
        caption += f" Failed, and therefore not shown: {', '.join(failed)}."
    yield _Drawn("speed-up", title, caption, figure)


def _ratio_quartiles(row: Row, baseline: Mapping[str, Any] | None) -> tuple[float, float] | None:
    """Quartiles of the speed-up over rounds, where both were timed in the same rounds."""
    if baseline is None or row is baseline:
        return None
    ours, theirs = row.get("samples_s"), baseline.get("samples_s")
    if not ours or not theirs or len(ours) != len(theirs) or len(ours) < 2:
        return None
    low, _, high = statistics.quantiles(
        [one / other for one, other in zip(theirs, ours, strict=True)], n=4, method="inclusive"
    )
    return low, high
