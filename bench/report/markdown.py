"""Report as Markdown, to be read as it is or pasted into a README."""

import re
from collections.abc import Mapping, Sequence

from nntk.bench.report import content
from nntk.bench.report.content import Measurement
from nntk.bench.report.plots import Plot
from nntk.bench.report.templating import environment, run_views
from nntk.bench.results.store import Run


def page(measurements: Sequence[Measurement], plots: Sequence[Sequence[Plot]], addresses: Mapping[str, str]) -> str:
    """Return the text of the whole file.

    Args:
        measurements: Runs.
        plots: Plots of each run.
        addresses: Path of each plot by its name, relative to the file.

    Returns:
        The file, the same bytes for the same runs and plots.
    """
    template_environment = environment()
    template_environment.filters["markdown"] = _escape
    template = template_environment.get_template("report.md")
    return template.render(runs=run_views(measurements, plots), addresses=addresses, lines=lines)


def table(run: Run, section: str) -> str:
    """Return the table of one section, for example for a README.

    Args:
        run: Run that holds the section.
        section: Name of the section.

    Returns:
        The table as Markdown, without a newline at its end; empty if no row is finished.

    Raises:
        ValueError: If the run has no such section.
    """
    section_table = content.table(run, section)
    return lines(section_table.headers, section_table.rows, section_table.numeric) if section_table.rows else ""


def lines(headers: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool]) -> str:
    """Return a table as Markdown. Columns of numbers are aligned on the right.

    Args:
        headers: Header of each column.
        rows: Cells of each row.
        numeric: For each column, True if it holds numbers.

    Returns:
        The table, without a newline at its end.
    """
    marks = ["---:" if number else "---" for number in numeric]
    return "\n".join(
        f"| {' | '.join(line)} |" for line in (map(_escape, headers), marks, *(map(_escape, row) for row in rows))
    )


def _escape(text: str) -> str:
    """Return the text on one line, with every character that Markdown would interpret escaped."""
    return re.sub(r"([\\`*_\[\]<|])", r"\\\1", " ".join(text.split()))
