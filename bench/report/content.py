"""Content of a report before it is Markdown or HTML: facts of a run, and a table of text for each section."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nntk.bench.results import store as results
from nntk.bench.results.schema import SETTINGS, ResultsError, Row
from nntk.bench.results.store import Run
from nntk.bench.results.tables import UNITS, Column

SPEEDS = frozenset({"median_s", "low_s", "high_s", "speed_up", "evaluations_per_s", "roof_share", "peak_bytes"})
"""Figures that a failed row does not show."""

FAILURE = "failure"
"""Header of the column that says why rows failed; a table has it only if a row failed."""

_BOOKKEEPING = frozenset({"section", "key", "attempt", "elapsed_s", "failure"})

_COLUMNS = {
    column.key: column
    for column in (
        Column("case", "case"),
        Column("op", "op"),
        Column("shape", "shape"),
        Column("axis", "axis"),
        Column("value", "value", "g"),
        Column("gamma", "gamma", "g"),
        Column("time", "median_s", "seconds"),
        Column("25 %", "low_s", "seconds"),
        Column("75 %", "high_s", "seconds"),
        Column("evaluations", "evaluations_per_s", "per second"),
        Column("speed-up", "speed_up", "times"),
        Column("peak memory", "peak_bytes", "bytes"),
        Column("exponent", "exponent", ".2f"),
        Column("work", "flops", "flops"),
        Column("traffic", "bytes", "bytes"),
        Column("roof", "roof"),
        Column("share of roof", "roof_share", "percent"),
        Column("error", "error", "#.2g"),
        Column("predicted error", "predicted", "#.2g"),
        Column("error, propagated", "difference", ".1e"),
        Column("error, subtracted", "direct", ".1e"),
        Column("NNTK, right", "nonlocal_accuracy", "percent"),
        Column("autograd NTK, right", "local_accuracy", "percent"),
    )
}
"""Columns of a section that names none, in this order."""

_SCALES: Mapping[str, Sequence[tuple[float, str]]] = {
    "seconds": ((1, "s"), (1e-3, "ms"), (1e-6, "µs")),
    "bytes": ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "bytes")),
    "flops": ((1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"), (1, "FLOP")),
    "per second": ((1e9, "G/s"), (1e6, "M/s"), (1e3, "k/s"), (1, "1/s")),
    "times": ((1, "×"),),
    "percent": ((0.01, "%"),),
}
"""Units of a form, the largest first."""


@dataclass(frozen=True)
class Roof:
    """Upper bound of a rate, measured in the run; ``unit`` is ``"bytes"`` or ``"flops"``."""

    name: str
    unit: str
    per_second: float


@dataclass(frozen=True)
class Measurement:
    """Run with what only reports use: when it started, and the roofs of its device."""

    run: Run
    started: str
    roofs: tuple[Roof, ...]

    @property
    def title(self) -> str:
        """Suite and device, for headings."""
        return f"{self.run.suite} on {self.run.facts['device']['name']}"


@dataclass(frozen=True)
class Table:
    """Table of a section as text.

    Attributes:
        title: Title.
        caption: Sentences that say how to read it, what all rows share and what is missing; may be empty.
        headers: Headers, units included.
        rows: Cells of each row.
        numeric: For each column, True if it holds numbers.
        failed: For each row, True if it failed.
    """

    title: str
    caption: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[bool, ...]
    failed: tuple[bool, ...]


def read(path: Path) -> Measurement:
    """Read and check the file of a run.

    Args:
        path: A JSON that ``nntk-bench run`` wrote.

    Returns:
        The run with its start time and roofs.

    Raises:
        ResultsError: If the file cannot be used.
    """
    run = results.read(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    roofs = content.get("roofs", [])
    if not isinstance(roofs, list):
        raise ResultsError(f"{path}: roofs: must be a list, got {json.dumps(roofs)[:60]}")
    for number, roof in enumerate(roofs):
        valid = (
            isinstance(roof, dict)
            and isinstance(roof.get("name"), str)
            and roof.get("unit") in {"bytes", "flops"}
            and positive(roof.get("per_second"))
        )
        if not valid:
            raise ResultsError(
                f"{path}: roofs[{number}]: must have a name, a unit (bytes or flops) and per_second above 0, "
                f"got {json.dumps(roof)[:80]}"
            )
    return Measurement(
        run, content["started"], tuple(Roof(roof["name"], roof["unit"], roof["per_second"]) for roof in roofs)
    )


def positive(value: object) -> bool:
    """Return True for a number that a logarithmic axis can show."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def facts(measurement: Measurement) -> list[tuple[str, str]]:
    """Return names and values of what the figures of a run depend on."""
    run = measurement.run
    device, versions = run.facts["device"], run.facts["versions"]
    commit = (run.facts["commit"] or "unknown")[:10]
    if run.facts["uncommitted_changes"]:
        commit += ", with uncommitted changes"
    status = "complete" if run.status == "complete" else f"{run.status}: not every row is there and good"
    named = [
        ("device", f"{device['name']} ({device['kind']})"),
        ("driver", device.get("driver") or ""),
        ("CPU threads", f"{device['threads']} of {device['processors']} processors"),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version)),
        ("commit", commit),
        ("started", measurement.started.replace("T", " ").replace("+00:00", " UTC")),
        ("seed", f"{run.facts['seed']}, random stream version {run.facts['stream_version']}"),
        ("status", status),
        *(
            (f"roof: {roof.name}", rate(roof.per_second, {"bytes": "B/s", "flops": "FLOP/s"}[roof.unit]))
            for roof in measurement.roofs
        ),
    ]
    return [(name, value) for name, value in named if value]


def warnings(run: Run) -> list[str]:
    """Return the sentences that a reader must know before any figure."""
    sentences = []
    if run.status != "complete":
        sentences.append(f"This run is {run.status}: not every row is there and good.")
    if run.facts["uncommitted_changes"]:
        sentences.append("The sources had uncommitted changes: the commit alone does not reproduce these figures.")
    return sentences


def table(run: Run, name: str) -> Table:
    """Return the table of one section.

    Args:
        run: Run that holds the section.
        name: Name of the section.

    Returns:
        The table, without rows if none is finished.

    Raises:
        ValueError: If the run has no such section.
    """
    section = next((section for section in run.sections if section["name"] == name), None)
    if section is None:
        known = ", ".join(repr(section["name"]) for section in run.sections)
        raise ValueError(f"{run.path}: no section {name!r}, it has {known or 'none'}")
    rows = [row for row in run.rows if row["section"] == name]
    columns, shared = _columns(section, rows)
    units = {form: _unit(form, columns, rows) for form in _SCALES}
    headers = [
        f"{column.header} ({units[column.form][1]})" if column.form in units else column.header for column in columns
    ]
    numeric = [_numeric(column, rows) for column in columns]
    cells = [[_cell(column, row, units) for column in columns] for row in rows]
    failed = tuple("failure" in row for row in rows)
    if any(failed):  # Second, where even a wide table shows it.
        headers.insert(1, FAILURE)
        numeric.insert(1, False)
        for line, row in zip(cells, rows, strict=True):
            line.insert(1, row.get("failure", ""))
    parts = [section.get("caption", ""), f"All rows: {shared}." if shared else ""]
    if not section["finished"] and run.schema > 1:
        parts.append(f"Unfinished: {len(rows)} rows.")
    if any(failed):
        parts.append("A failed row shows what is wrong with it, and no speed.")
    return Table(
        title=section.get("title") or name[:1].upper() + name[1:],
        caption=" ".join(part for part in parts if part),
        headers=tuple(headers),
        rows=tuple(map(tuple, cells)),
        numeric=tuple(numeric),
        failed=failed,
    )


def _columns(section: Mapping[str, Any], rows: Sequence[Row]) -> tuple[list[Column], str]:
    """Return the columns of a section, and in words the settings that all rows share, which need no column."""
    if isinstance(stored := section.get("columns"), list) and stored:
        return [Column(str(column["header"]), str(column["key"]), str(column.get("form", ""))) for column in stored], ""
    keys = dict.fromkeys(
        key
        for row in rows
        for key, value in row.items()
        if key not in _BOOKKEEPING and isinstance(value, str | int | float)
    )
    shared = {
        key: rows[0][key]
        for key in keys
        if key in SETTINGS and len(rows) > 1 and len({str(row.get(key)) for row in rows}) == 1
    }
    names = [key for key in _COLUMNS if key in keys] + [key for key in keys if key not in _COLUMNS]
    columns = [_COLUMNS.get(key) or Column(key.replace("_", " "), key, "") for key in names if key not in shared]
    settings = [column for column in columns if column.key in SETTINGS]
    others = [column for column in columns if column not in settings]
    ordered = [*others[:1], *settings, *others[1:]]
    return ordered, ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in shared.items())


def _unit(form: str, columns: Sequence[Column], rows: Sequence[Row]) -> tuple[float, str]:
    """Return the largest unit in which the median of the values of a form is 1 or more."""
    keys = [column.key for column in columns if column.form == form]
    values = [abs(row[key]) for row in rows for key in keys if positive(row.get(key)) and _shows(key, row)]
    middle = statistics.median(values) if values else 1.0
    return next(((scale, unit) for scale, unit in _SCALES[form] if middle >= scale), _SCALES[form][-1])


def _shows(key: str, row: Row) -> bool:
    return "failure" not in row or key not in SPEEDS


def _numeric(column: Column, rows: Sequence[Row]) -> bool:
    values = [row[column.key] for row in rows if row.get(column.key) is not None]
    return bool(values) and all(isinstance(value, int | float) for value in values)


def _cell(column: Column, row: Row, units: Mapping[str, tuple[float, str]]) -> str:
    value = row.get(column.key)
    if value is None or not _shows(column.key, row):
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if column.form in units:
        scaled = value / units[column.form][0]
        return f"{scaled:.1f}" if column.form == "percent" else significant(scaled)
    if column.form in UNITS:
        return UNITS[column.form](value)
    return format(value, column.form or ("" if isinstance(value, int) else ".4g"))


def significant(value: float) -> str:
    """Return a number with three significant digits; only a tiny one has an exponent, and thousands are separated."""
    if value == 0 or not math.isfinite(value) or abs(value) < 1e-3:
        return f"{value:.3g}"
    digits = max(0, 2 - math.floor(math.log10(abs(float(f"{value:.3g}")))))
    return f"{value:,.{digits}f}"


def rate(per_second: float, unit: str) -> str:
    """Return a rate in its unit with a prefix, such as 3.9 TB/s."""
    scale, prefix = next(
        ((scale, prefix) for scale, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M")) if per_second >= scale), (1.0, "")
    )
    return f"{significant(per_second / scale)} {prefix}{unit}"
