"""Series of a plot: rows that differ in one figure along an axis, and the power law that fits them."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from nntk.bench.report.content import positive
from nntk.bench.results.schema import SETTINGS, Row


@dataclass(frozen=True)
class Series:
    """Series of a plot.

    Attributes:
        name: Settings that distinguish it from the other series.
        points: Rows in the order of the axis.
    """

    name: str
    points: Sequence[Row]


def group_series(rows: Sequence[Row], x: str, y: str, *key_lists: Sequence[str]) -> list[Series]:
    """Group rows by the settings that differ, each group in the order of ``x``.

    Args:
        rows: Rows. Those that a logarithmic plot cannot show are left out.
        x: Key of the axis.
        y: Key of the figure.
        *key_lists: Lists of keys to group by. The first list that gives a group more than one ``x`` is used.

    Returns:
        The groups with two or more values of ``x``.
    """
    drawable = [row for row in rows if positive(row.get(x)) and positive(row.get(y))]
    for keys in key_lists:
        varying = [key for key in keys if len({str(row.get(key)) for row in drawable}) > 1]
        groups: dict[str, list[Row]] = {}
        for row in drawable:
            parts = [_setting(key, row[key]) for key in varying if row.get(key) is not None]
            groups.setdefault(", ".join(dict.fromkeys(parts)), []).append(row)
        grouped = [
            Series(name, sorted(group, key=lambda row: float(row[x])))
            for name, group in groups.items()
            if len({row[x] for row in group}) > 1
        ]
        if grouped:
            return grouped
    return []


def series_by_settings(rows: Sequence[Row], x: str, y: str) -> list[Series]:
    """Group rows by all settings except the one along the axis."""
    others = [key for key in SETTINGS if key != x]
    return group_series(rows, x, y, ["case", *others], others)


def _setting(name: str, value: object) -> str:
    return str(value) if isinstance(value, str) else f"{name} {value}"


def fit(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Fit a power law to points, by least squares of logarithms.

    Args:
        x: Positions, all above 0 and not all equal.
        y: Values, all above 0.

    Returns:
        Exponent ``a`` and factor ``c`` of ``y = c * x**a``.
    """
    slope, level = statistics.linear_regression([math.log(value) for value in x], [math.log(value) for value in y])
    return slope, math.exp(level)


def value_columns(rows: Sequence[Row], *keys: str) -> list[list[float]]:
    """Return the values of each key over the rows."""
    return [[row[key] for row in rows] for key in keys]
