"""Sections: the tables that a suite consists of."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from nntk.bench.results.schema import Row
from nntk.bench.results.tables import Column


@dataclass(frozen=True)
class Setting:
    """Device and seed of a run."""

    device: torch.device
    seed: int


@dataclass(frozen=True)
class Section:
    """Table of a suite.

    Attributes:
        name: Name in the results.
        title: Heading.
        caption: Explanation under the heading.
        columns: Columns of the table.
        rows: Function that measures. It yields a string for the work that comes next, and a row for finished work; a
            row with a ``failure`` shows no speed and makes the run fail.
    """

    name: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: Callable[[Setting], Iterator[Row | str]]
