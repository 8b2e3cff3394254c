"""A report as Markdown, to be read as it is or pasted into a README."""

import re
from collections.abc import Mapping, Sequence

from nntk.bench.report import content
from nntk.bench.report.content import Measurement
from nntk.bench.report.plots import Plot
from nntk.bench.results.store import Run


def page(measurements: Sequence[Measurement], plots: Sequence[Sequence[Plot]], addresses: Mapping[str, str]) -> str:
    """The whole file.

    Args:
        measurements: The runs.
        plots: Their plots.
        addresses: Where a plot lies, by its name, as seen from the file.

    Returns:
        Its text.
    """
    parts = ["# nntk: results"]
    for measurement, drawn in zip(measurements, plots, strict=True):
        run = measurement.run
        parts.append(f"## {_escaped(measurement.title)}")
        parts.extend(f"**{_escaped(warning)}**" for warning in content.warnings(run))
        parts.append(lines(("fact", "value"), content.facts(measurement), (False, False)))
        for section in run.sections:
            made = content.table(run, section["name"])
            parts.append(f"### {_escaped(made.title)}")
            if made.caption:
                parts.append(_escaped(made.caption))
            parts.append(table(run, section["name"]) or "No row is finished.")
            for plot in drawn:
                if plot.section == section["name"]:
                    parts.append(f"![{_escaped(plot.title)}]({addresses[plot.name]})")
                    parts.append(_escaped(plot.caption))
    return "\n\n".join(parts) + "\n"


def table(run: Run, section: str) -> str:
    """The table of one section, for example for a README.

    Args:
        run: The run.
        section: The section's name.

    Returns:
        The table as Markdown, without a newline at its end; empty if no row is finished.

    Raises:
        ValueError: If the run has no such section.
    """
    made = content.table(run, section)
    return lines(made.headers, made.rows, made.numeric) if made.rows else ""


def lines(headers: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool]) -> str:
    """A table; columns of numbers are aligned on the right."""
    marks = ["---:" if number else "---" for number in numeric]
    return "\n".join(
        f"| {' | '.join(line)} |" for line in (map(_escaped, headers), marks, *(map(_escaped, row) for row in rows))
    )


def _escaped(text: str) -> str:
    """Text that means itself, on one line."""
    return re.sub(r"([\\`*_\[\]<|])", r"\\\1", " ".join(text.split()))
