"""Tables on the terminal: they grow row by row there, and are printed whole in a log."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table

from nntk.bench.results.store import Row


@dataclass(frozen=True)
class Column:
    """A column: its header, the row's key, and how a value is written (a format specification, or one of UNITS)."""

    header: str
    key: str
    form: str = ""


def _seconds(value: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3)):
        if value * scale >= 1:
            return f"{value * scale:.3g} {unit}"
    return f"{value * 1e6:.3g} us"


UNITS: dict[str, Callable[[float], str]] = {
    "seconds": _seconds,
    "times": lambda value: f"{value:.2f}x",
    "bytes": lambda value: f"{value / 2**20:,.0f} MiB",
    "percent": lambda value: f"{100 * value:.1f} %",
    "per second": lambda value: f"{value / 1e6:.3g} M/s" if value >= 1e5 else f"{value:.3g} /s",
}


Show = Callable[[Row | None, str], None]
"""Adds a finished row, and says what is being worked on next."""


def cell(column: Column, row: Row) -> str:
    """The text of one cell; empty where the row has no such value."""
    value: Any = row.get(column.key)
    if value is None:
        return ""
    return UNITS[column.form](value) if column.form in UNITS else format(value, column.form)


@contextmanager
def growing(console: Console, title: str, caption: str, columns: Sequence[Column]) -> Iterator[Show]:
    """A table that grows while its rows are measured.

    Args:
        console: Where to draw.
        title: What the table shows.
        caption: How to read it.
        columns: Its columns; the first is text, the others numbers.

    Yields:
        A function that adds a row, or names the work in progress.
    """
    console.print(f"[bold]{title}[/bold]\n[dim]{caption}[/dim]", highlight=False)
    table = Table()
    for number, column in enumerate(columns):
        table.add_column(column.header, justify="left" if number == 0 else "right", overflow="fold")
    live = Live(table, console=console, auto_refresh=console.is_terminal)
    # What interrupts the start finds nothing to stop.
    live.start()
    try:

        def show(row: Row | None, working_on: str) -> None:
            if row is not None:
                table.add_row(*[cell(column, row) for column in columns], style="red" if "failure" in row else None)
            live.update(Group(table, Spinner("dots", working_on)) if working_on and console.is_terminal else table)

        yield show
    finally:
        live.update(table)
        live.stop()
        console.print()
