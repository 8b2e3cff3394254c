"""``nntk-bench report``: runs as Markdown and as one HTML page."""

from pathlib import Path
from typing import Annotated

import typer

from nntk.bench import report
from nntk.bench.cli.options import one_line_errors
from nntk.bench.results import tables

SUMMARY = "write runs as Markdown and as one HTML page with plots"
HELP = report.HELP
EPILOG = report.EPILOG


def command(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH", help="JSON of a run")],
    output: Annotated[Path | None, typer.Option(metavar="DIR", help="folder of the report (default: report)")] = None,
) -> int:
    """Write the report of the runs."""
    with one_line_errors(ValueError, OSError):
        return report.run(paths, output, tables.standard_console())
