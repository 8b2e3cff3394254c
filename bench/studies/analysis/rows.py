"""Rows of a study, chosen by their settings, and their means over seeds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nntk.bench.results.schema import Row
from nntk.bench.studies.analysis.claims import interval


@dataclass(frozen=True)
class Band:
    """Curve with its 95 % interval over seeds; a single seed has no interval."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Rows:
    """Rows in the order of their seeds."""

    all: Sequence[Row]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.all)

    def __len__(self) -> int:
        return len(self.all)

    def where(self, **settings: Any) -> "Rows":
        """Return the rows with these settings; None selects rows without the setting."""
        return Rows([row for row in self.all if all(row.get(key) == value for key, value in settings.items())])

    def distinct(self, key: str) -> list[Any]:
        """Return the values of a setting, in order of appearance."""
        return list(dict.fromkeys(row[key] for row in self.all if row.get(key) is not None))

    def values(self, key: str, **settings: Any) -> np.ndarray:
        """Return a figure of the rows with these settings, one value for each seed.

        Args:
            key: Key of the figure.
            **settings: As for :meth:`where`.

        Returns:
            The values, [seeds], in the order of the seeds.

        Raises:
            ValueError: If there are no such rows, or a seed has several.
        """
        selected = self.where(**settings)
        seeds = [row["seed"] for row in selected]
        if not seeds or len(set(seeds)) != len(seeds):
            raise ValueError(f"settings must select one row a seed, got {len(seeds)} rows for {settings}.")
        return np.array([row[key] for row in selected], dtype=float)

    def slope(self, x: str, y: str, low: float, high: float) -> np.ndarray:
        """Return the slopes of a figure between two values of a setting, in a log-log plot.

        Args:
            x: Key of the setting.
            y: Key of the figure.
            low: First value of the setting.
            high: Second value of the setting.

        Returns:
            The slopes, [seeds], in the order of the seeds.
        """
        ends = [np.log(self.values(y, **{x: place})) for place in (low, high)]
        return np.asarray((ends[1] - ends[0]) / np.log(high / low))

    def band(self, x: str, y: str, ratio: bool = False, **settings: Any) -> Band:
        """Return the curve of a figure against a setting.

        Args:
            x: Key of the setting.
            y: Key of the figure.
            ratio: True for geometric means, which suit logarithmic axes.
            **settings: As for :meth:`where`.

        Returns:
            The mean over seeds, and its interval.
        """
        selected = self.where(**settings)
        places = sorted(selected.distinct(x))
        points = []
        for place in places:
            values = selected.values(y, **{x: place})
            bounds = interval(values, ratio) if len(values) > 1 else None
            points.append((bounds.mean, bounds.low, bounds.high) if bounds else (values[0],) * 3)
        return Band(np.array(places, dtype=float), *np.array(points, dtype=float).T)
