"""Report of a card: the README's table, a run for ``nntk-bench report`` and ``compare``, and the table of ``tune``."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from nntk.bench.card import journal, summary
from nntk.bench.card.journal import Content
from nntk.bench.card.tuned import table_in
from nntk.bench.card.worker import STEPS
from nntk.bench.report.markdown import lines
from nntk.bench.results.schema import DRY_RUN, ResultsError, Row
from nntk.bench.results.store import Record
from nntk.bench.results.tables import UNITS, Column, cell
from nntk.files.output import json_text, write_text
from nntk.kernels import tuning
from nntk.kernels.target import slug

_TARGETS = (
    Column("workload", "case"),
    Column("target", "target", ".2f"),
    Column("on an H200", "design_target", ".2f"),
    Column("measured", "measured", ".2f"),
    Column("of the target", "share", "percent"),
    Column("time", "time_s", "seconds"),
    Column("error", "error", ".1e"),
)
_KERNELS = (
    Column("launch", "case"),
    Column("predicted", "predicted_s", "seconds"),
    Column("with cache", "predicted_with_cache_s", "seconds"),
    Column("measured", "time_s", "seconds"),
    Column("of predicted", "ratio", "times"),
    Column("of it with cache", "ratio_with_cache", "times"),
)
_EXPERIMENTS = (
    Column("experiment", "case"),
    Column("expected", "predicted", "times"),
    Column("measured", "speed_up", "times"),
    Column("time", "time_s", "seconds"),
    Column("expected since", "because"),
)
_HOST = (
    Column("family", "case"),
    Column("host", "host_s", "seconds"),
    Column("with the card", "time_s", "seconds"),
    Column("share", "host_share", "percent"),
)
_BOOKKEEPING = ("kind", "step", "unit", "attempt")


def run(folder: Path, is_dry_run: bool, console: Console) -> int:
    """Write the report of a folder: ``report/README.md``, the run as JSON, and the table of tuned configurations.

    Args:
        folder: Folder that ``nntk-bench card`` has written.
        is_dry_run: True to report a rehearsal, which every line and file says.
        console: Told what was written, and how to install the table.

    Returns:
        The exit status, 0.

    Raises:
        ResultsError: If there is no journal, or it is one of a rehearsal and ``is_dry_run`` is False, or the other way
            round.
        TableError: If the table of tuned configurations is broken.
        OSError: If a file cannot be written.
    """
    content = journal.read(folder)
    if content.is_dry_run and not is_dry_run:
        raise ResultsError(
            f"{content.path}: is a {DRY_RUN}: nothing was measured, and there is nothing to publish; "
            "--dry-run shows what the report would look like"
        )
    if is_dry_run and not content.is_dry_run:
        raise ResultsError(f"{content.path}: holds measurements of a card; leave --dry-run out")
    target = folder / "report"
    write_text(target / "README.md", page(content))
    written = [target / "README.md"]
    if not content.is_dry_run:
        written.append(_store(content, target))
    for path in written:
        console.print(f"  {path}", highlight=False, soft_wrap=True)
    _install(content, folder, target, console)
    for line in summary.lines(content):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return 0


def page(content: Content) -> str:
    """Return the report in Markdown, with the README's table of targets first.

    Args:
        content: The journal.

    Returns:
        The page; each line of a rehearsal's tables is marked.
    """
    facts = content.facts
    commit, versions = (facts["commit"] or "unknown")[:10], facts["versions"]
    name = facts["device"]["name"]
    software = ", ".join(f"{package} {versions[package]}" for package in ("torch", "triton") if versions.get(package))
    title = f"{DRY_RUN.upper()}, NOT A MEASUREMENT: " if content.is_dry_run else ""
    parts = [
        f"# {title}{name}",
        f"Command: `nntk-bench card`; commit {commit}; {software}; driver {facts['device']['driver'] or 'unknown'}. "
        "A target is the design's, scaled by the measured roofs of this card. Evaluations are those of relu "
        "784-1024-1024-10, N = M = 1024, noise included, beside as many dense forwards.",
    ]
    predictions = content.predictions
    expected = [
        {**row, **{name: value for name, value in predictions.get(_case(row), {}).items() if name not in row}}
        for row in content.rows("experiments")
    ]
    sections: Sequence[tuple[str, Sequence[Column], Sequence[Row]]] = (
        ("Targets", _TARGETS, content.rows("targets")),
        (
            "Launches of the evaluations",
            _KERNELS,
            [row for row in content.rows("kernels") if "ratio_with_cache" in row],
        ),
        ("Experiments", _EXPERIMENTS, expected),
        ("Time of the host", _HOST, content.rows("host")),
    )
    for heading, columns, rows in sections:
        if rows:
            parts += [f"## {heading}", _table(columns, rows, content.is_dry_run)]
    others = [f"* {summary.line_of(row)}" for row in _others(content)]
    if calls := content.rows("sanitizer"):
        others.append(f"* {summary.sanitized(calls)}")
    ends = [f"* {text}" for end in content.ends.values() if (text := summary.line_of(end))]
    parts += ["## Checks and roofs", "\n".join(others)] if others else []
    parts += ["## Left out or failed", "\n".join(ends)] if ends else []
    parts.append(f"Largest gap: {summary.largest_gap(content)}.")
    return "\n\n".join(parts) + "\n"


def _others(content: Content) -> list[Row]:
    rows = [row for step in ("environment", "tests", "roofs", "all tests") for row in content.rows(step)]
    return [*rows, *(row for row in content.rows("sanitizer") if "failure" in row)]


def _case(row: Row) -> tuple[str, str, str]:
    return row["step"], row["unit"], row["case"]


def _table(columns: Sequence[Column], rows: Sequence[Row], is_dry_run: bool) -> str:
    shown = [{**row, "case": f"{DRY_RUN}: {row['case']}"} if is_dry_run else row for row in rows]
    cells = [[_text(column, row) for column in columns] for row in shown]
    return lines(
        [column.header for column in columns], cells, [column.key not in ("case", "because") for column in columns]
    )


def _text(column: Column, row: Row) -> str:
    if "failure" in row and column.key != "case":
        return row["failure"] if column.key in ("measured", "time_s", "speed_up") else ""
    if row.get("form") == "percent" and column.key in ("predicted", "speed_up"):
        share = row.get("predicted" if column.key == "predicted" else "idle_share")
        return "" if share is None else UNITS["percent"](share)
    return cell(column, row)


def _store(content: Content, target: Path) -> Path:
    """Write the rows as a run, which ``nntk-bench report`` and ``compare`` read; return its path."""
    steps = [name for name in STEPS if content.rows(name)]
    columns = {"targets": _TARGETS, "kernels": _KERNELS, "experiments": _EXPERIMENTS, "host": _HOST}
    sections = [
        {
            "name": name, "title": name.capitalize(), "caption": STEPS[name],
            "columns": [asdict(column) for column in columns.get(name, ())],
        }
        for name in steps
    ]  # fmt: skip
    record = Record.start(target / slug(content.facts["device"]["name"]), "card", content.facts, sections)
    for name in steps:
        for row in content.rows(name):
            kept = {key: value for key, value in row.items() if key not in _BOOKKEEPING}
            record.add(name, {**kept, "case": f"{row['unit']}: {row['case']}"})
        record.finish(name)
    record.close("failed" if summary.has_failures(content) else "complete")
    return record.path


def _install(content: Content, folder: Path, target: Path, console: Console) -> None:
    """Write the table of tuned configurations, and show the command that installs it."""
    device = "dry-run" if content.is_dry_run else slug(content.facts["device"]["name"])
    source = table_in(folder, device)
    if not source.exists():
        console.print("  no table of tuned configurations: no choice was measured", highlight=False)
        return
    table: dict[str, Any] = tuning.read(source)
    if content.is_dry_run:
        # A layout that no version knows: the kernels refuse the file wherever it is put.
        table = {**table, "schema": DRY_RUN, DRY_RUN: True}
    path = target / f"{device}.json"
    write_text(path, json_text(table))
    console.print(f"  {path}", highlight=False, soft_wrap=True)
    if not content.is_dry_run:
        command = f"cp {shlex.quote(str(path))} {shlex.quote(str(tuning.path_of(device)))}"
        console.print(f"install the tuned configurations by\n  {command}", highlight=False, soft_wrap=True)
