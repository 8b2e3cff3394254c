"""Templates of the reports, and the runs as the templates show them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from nntk.bench.report import content
from nntk.bench.report.content import Measurement, Table
from nntk.bench.report.plots import Plot


@dataclass(frozen=True)
class SectionView:
    """Section of a run as a report shows it.

    Attributes:
        table: Table of the section.
        plots: Plots of the section.
    """

    table: Table
    plots: tuple[Plot, ...]


@dataclass(frozen=True)
class RunView:
    """Run as a report shows it.

    Attributes:
        title: Suite and device.
        warnings: Sentences that a reader must know before any figure.
        facts: Names and values of what the figures depend on.
        sections: Sections in their order.
    """

    title: str
    warnings: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    sections: tuple[SectionView, ...]


def run_views(measurements: Sequence[Measurement], plots: Sequence[Sequence[Plot]]) -> list[RunView]:
    """Return the runs as the templates show them.

    Args:
        measurements: Runs.
        plots: Plots of each run.

    Returns:
        One view for each run.
    """
    return [
        RunView(
            measurement.title,
            tuple(content.warnings(measurement.run)),
            tuple(content.facts(measurement)),
            tuple(
                SectionView(
                    content.table(measurement.run, section["name"]),
                    tuple(plot for plot in run_plots if plot.section == section["name"]),
                )
                for section in measurement.run.sections
            ),
        )
        for measurement, run_plots in zip(measurements, plots, strict=True)
    ]


def environment() -> Environment:
    """Return the environment of the templates: HTML is escaped, and an unknown name is an error."""
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=select_autoescape(("html",), default=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
