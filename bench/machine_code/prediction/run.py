"""Prediction for each card: compiles the kernels of the workloads, and draws a table of their predicted time."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console

from nntk.bench.machine_code.catalogue import Task
from nntk.bench.machine_code.measure import Measured
from nntk.bench.machine_code.prediction import host, workloads
from nntk.bench.machine_code.prediction.model import CARDS, Card
from nntk.bench.machine_code.resources import reports
from nntk.bench.report.markdown import lines
from nntk.bench.results import tables
from nntk.bench.results.schema import Row
from nntk.bench.results.tables import UNITS, Column, Show
from nntk.files.output import Output

SCHEMA = 4
"""Version of the JSON's layout."""

CAPTION = (
    "Evaluations: differences of relu 784-1024-1024-10, N = M = 1024, antithetic, bf16, beside as many dense forwards; "
    "fp32 forwards are the least that torch.func.vmap does.\nKernel: 256-832-832-1, N = 4096, M = 1024, beside the "
    "contraction of Jacobians alone. Assembly: the energy form of the same.\nWeights: 2^24 fixed ones; attention of "
    "4096 pairs over 4096 inputs. Optimistic: latency and launches are not seen.\nWith cache: if that of the "
    "second level has its supposed rate. Of measured: of the forwards as the card took them, without and "
    "with the cache."
)
COLUMNS = (
    Column("workload", "case"),
    Column("target", "target"),
    Column("predicted", "predicted"),
    Column("with cache", "predicted_with_cache", "times"),
    Column("of measured", "measured_forwards"),
    Column("verdict", "verdict"),
    Column("of roof", "of_roof", "percent"),
    Column("time", "time_s", "seconds"),
    Column("with cache", "time_with_cache_s", "seconds"),
    Column("goes to", "goes_to"),
)


def _shown(row: Row) -> Row:
    """Return a row whose target and prediction are texts with their unit."""
    texts = {name: UNITS[row["form"]](row[name]) for name in ("target", "predicted")}
    if "of_measured_forwards" in row:
        shares = (row["of_measured_forwards"], row["of_measured_forwards_with_cache"])
        texts["measured_forwards"] = ", ".join(map(UNITS["times"], shares))
    return row | texts


def markdown(rows: Sequence[Row]) -> str:
    """Return the table in Markdown, as the READMEs show it."""
    shown = [_shown(row) for row in rows]
    left_out = {"verdict"} | ({"measured_forwards"} if not any("measured_forwards" in row for row in shown) else set())
    columns = [column for column in COLUMNS if column.key not in left_out]
    cells = [[tables.cell(column, row) for column in columns] for row in shown]
    return lines(
        [column.header for column in columns], cells, [column.key not in ("case", "goes_to") for column in columns]
    )


def run(
    output: Output | None,
    facts: Mapping[str, Any],
    console: Console,
    names: Sequence[str] = (),
    in_markdown: bool = False,
) -> int:
    """Compile the kernels of the workloads, predict their time, draw the tables, and write the JSON.

    Args:
        output: Where the JSON goes; None for nowhere.
        facts: Facts that predictions depend on: versions, commit.
        console: Console of the tables.
        names: Names of the cards, keys of ``CARDS``; empty for all.
        in_markdown: True to print the tables in Markdown too.

    Returns:
        The exit status: 0, or 1 if a kernel did not compile or the host's time was not measured.

    Raises:
        OSError: If the JSON cannot be written.
    """
    cards: dict[str, Any] = {}
    for name in names or CARDS:
        measured: dict[str, Measured] = {}
        rows = _predicted(CARDS[name], console, measured)
        host_rows = None if rows is None else _host(name, console, measured)
        if rows is None or host_rows is None:
            return 1
        cards[name] = {**asdict(CARDS[name]), "rows": rows, "host": host_rows}
        if in_markdown:
            print(markdown(rows))
            print(host.markdown(host_rows))
    if output:
        output.write_json({"schema": SCHEMA, **facts, "cards": cards})
    return 0


def _compile(
    module: str, names: Sequence[str], arch: str, console: Console, show: Show, measured: dict[str, Measured]
) -> bool:
    """Compile kernels of a module that are not in ``measured`` yet; False if one did not compile."""
    names = [name for name in names if name not in measured]
    show(None, f"compiling 1 of {len(names)}")
    for number, result in enumerate(reports([Task(module, arch, name) for name in names]), 2):
        if result.measured is None:
            console.print(f"{result.task.case}: {result.failures}", style="red", highlight=False, markup=False)
            return False
        measured[result.task.case] = result.measured
        show(None, f"compiling {number} of {len(names)}" if number <= len(names) else "")
    return True


def _predicted(card: Card, console: Console, measured: dict[str, Measured]) -> list[Row] | None:
    """Return the rows of one card; None if a kernel did not compile."""
    names = [case.name for case in workloads.cases(card.arch)]
    title = f"Predicted for an {card.name}, from machine code: nothing ran"
    with tables.growing(console, title, f"{CAPTION}\nRates: {card.source}.", COLUMNS) as show:
        if not _compile(workloads.__name__, names, card.arch, console, show, measured):
            return None
        rows = list(workloads.rows(measured, card))
        for row in rows:
            show(_shown(row), "")
    return rows


def _host(name: str, console: Console, measured: dict[str, Measured]) -> list[Row] | None:
    """Return the host's rows of one card; None if a kernel did not compile, or the time was not measured."""
    card = CARDS[name]
    names = [case.name for case in host.cases(card.arch)]
    title = f"The host of an {card.name}, on a driver that launches nothing"
    with tables.growing(console, title, host.CAPTION, host.COLUMNS) as show:
        if not _compile(host.__name__, names, card.arch, console, show, measured):
            return None
        show(None, "measuring the host")
        try:
            rows = list(host.rows(name, card, measured))
        except host.HostError as error:
            console.print(str(error), style="red", highlight=False, markup=False)
            return None
        for row in rows:
            show(row, "")
    return rows
