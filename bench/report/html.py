"""Report as one HTML page that needs nothing else: no script, no font and no image from elsewhere."""

from collections.abc import Sequence

from markupsafe import Markup

from nntk.bench.report import content
from nntk.bench.report.content import Measurement, Table
from nntk.bench.report.plots import Plot
from nntk.bench.report.templating import environment, run_views


def page(measurements: Sequence[Measurement], plots: Sequence[Sequence[Plot]]) -> str:
    """Return the text of the whole page.

    Args:
        measurements: Runs.
        plots: Plots of each run.

    Returns:
        The page, the same bytes for the same runs and plots.
    """
    title = measurements[0].title if len(measurements) == 1 else f"{len(measurements)} runs"
    template = environment().get_template("report.html")
    return template.render(title=title, runs=run_views(measurements, plots), column_class=_column_class)


def _column_class(table: Table, column: int) -> Markup:
    """Return the class attribute of the cells of a column, with a space before it; empty for a column of text."""
    if table.headers[column] == content.FAILURE:
        return Markup(' class="failure"')
    return Markup(' class="number"' if table.numeric[column] else "")
