"""Tables of results: they grow row by row on a terminal, and are printed whole in a log."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table

from nntk.bench.results.schema import Row


@dataclass(frozen=True)
class Column:
    """Column of a table: its header, the key of its values, and their format (a specification or a name in UNITS)."""

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
    "nanoseconds": lambda value: f"{value * 1e9:.2f} ns",
    "times": lambda value: f"{value:.2f}x",
    "bytes": lambda value: f"{value / 2**20:,.0f} MiB",
    "percent": lambda value: f"{100 * value:.1f} %",
    "per second": lambda value: f"{value / 1e6:.3g} M/s" if value >= 1e5 else f"{value:.3g} /s",
}


class _Console(Console):
    """Console that leaves it to the command line how a command ends whose reader is gone."""

    def on_broken_pipe(self) -> None:
        """Print nothing more, and raise the error of the pipe again."""
        self.quiet = True
        raise


def standard_console() -> Console:
    """Return the console of the command line: as wide as the terminal, or 200 columns in a log."""
    return _Console() if sys.stdout and sys.stdout.isatty() else _Console(width=200)


Show = Callable[[Row | None, str], None]
"""Function that adds a finished row and shows which work is next."""


def cell(column: Column, row: Row) -> str:
    """Return the text of one cell; it is empty where the row has no such value."""
    value: Any = row.get(column.key)
    if value is None:
        return ""
    return UNITS[column.form](value) if column.form in UNITS else format(value, column.form)


@contextmanager
def growing(console: Console, title: str, caption: str, columns: Sequence[Column]) -> Iterator[Show]:
    """Draw a table that grows while its rows are measured.

    Args:
        console: Console that shows the table.
        title: Heading of the table.
        caption: Explanation under the heading.
        columns: Columns; the first is text, the others are numbers.

    Yields:
        Function that adds a row, or names the work in progress.
    """
    console.print(f"[bold]{title}[/bold]\n[dim]{caption}[/dim]", highlight=False)
    table = Table()
    for index, column in enumerate(columns):
        table.add_column(column.header, justify="left" if index == 0 else "right", overflow="fold")
    live = Live(table, console=console, auto_refresh=console.is_terminal)
    # The start is outside of the try block: an interrupt during it leaves nothing to stop.
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
