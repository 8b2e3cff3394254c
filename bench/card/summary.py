"""Summary of a card: one line for each row as it comes, and at the end a page that fits a screen."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from nntk.bench.card.journal import Content
from nntk.bench.results.schema import DRY_RUN, Row
from nntk.bench.results.tables import UNITS

LINES, COLUMNS = 24, 80
"""Size of a screen."""
_SECONDS, _TIMES = UNITS["seconds"], UNITS["times"]
_GAIN = 1.02
"""Speed-up from which an experiment is named."""


def line_of(line: Mapping[str, Any]) -> str:
    """Return one line for a line of the journal; empty where there is nothing to show."""
    mark = f"[{DRY_RUN}] " if DRY_RUN in line else ""
    place = f"{mark}{line.get('step', '')}: "
    if line["kind"] == "row":
        return f"{place}{line['case']}: {_figures(line)}"
    if line["kind"] == "prediction":
        expected = UNITS[line.get("form", "times")](line["predicted"])
        return f"{place}{line['case']}: {expected} expected, since {line['because']}"
    if line["kind"] == "end" and line["status"] != "finished":
        return f"{place}{line['unit']}: {line['status']}: {line.get('why', '')}"
    return ""


def _figures(row: Mapping[str, Any]) -> str:
    """Return the figures of a row as text."""
    if "failure" in row:
        return f"FAILED: {row['failure']}"
    if "target" in row and row.get("measured") is not None:
        return f"{row['measured']:.2f}, target {row['target']:.2f}"
    parts = []
    if row.get("speed_up") is not None:
        parts.append(_TIMES(row["speed_up"]))
    if row.get("per_second") is not None:
        parts.append(f"{row['per_second'] / 1e12:.4g} T{'B' if row['units'] == 'bytes' else 'FLOP'}/s")
    if row.get("time_s") is not None:
        parts.append(_SECONDS(row["time_s"]))
    if row.get("predicted_s") is not None:
        parts.append(f"{_SECONDS(row['predicted_s'])} predicted")
    if row.get("ratio") is not None:
        parts.append(f"{_TIMES(row['ratio'])} of it")
    if row.get("idle_share") is not None:
        parts.append(UNITS["percent"](row["idle_share"]))
    if row.get("host_share") is not None:
        parts.append(f"host {_SECONDS(row['host_s'])}, {UNITS['percent'](row['host_share'])}")
    if "passed" in row:
        parts.append(f"{row['passed']} passed, {row['failed']} failed, {row['skipped']} skipped")
    if "errors" in row:
        parts.append(f"{row['errors']} errors")
    for name in ("value", "text", "note"):
        if row.get(name) is not None:
            parts.append(f"{row[name]:,} {row.get('units', '')}".rstrip() if name == "value" else str(row[name]))
    return ", ".join(parts) or "done"


def has_failures(content: Content) -> bool:
    """Return True if a unit failed, or a row has a failure."""
    return any(end["status"] == "failed" for end in content.ends.values()) or any(
        "failure" in row for row in content.rows()
    )


def lines(content: Content) -> list[str]:
    """Return the summary: at most 24 lines of 80 columns, of which the last names the largest gap.

    Args:
        content: The journal.

    Returns:
        The lines.
    """
    head = _head(content)
    parts = [_checks(content), _roofs(content), _kernels(content), _experiments(content), _tuning(content)]
    mark = f"[{DRY_RUN}] " if content.is_dry_run else ""
    width = COLUMNS - len(mark)
    gap = textwrap.wrap(f"largest gap: {largest_gap(content)}", width, subsequent_indent="  ")
    tail = [*_troubles(content), _left_out(content), *gap[:2]]
    fixed = [line for line in (head, *parts, *tail) if line]
    targets = _targets(content, LINES - len(fixed))
    chosen = [head, *parts[:2], *targets, *parts[2:], *tail]
    return [f"{mark}{_shortened(line, width)}" for line in chosen if line]


def _shortened(line: str, width: int) -> str:
    return line if len(line) <= width else f"{line[: width - 3].rstrip()}..."


def _head(content: Content) -> str:
    facts = content.facts
    dirty = "" if facts["uncommitted_changes"] is False else ", with changes"
    return f"{facts['device']['name']}, commit {(facts['commit'] or 'unknown')[:10]}{dirty}"


def _checks(content: Content) -> str:
    parts = []
    for row in [*content.rows("tests"), *content.rows("all tests")]:
        parts.append(f"tests {row['case']}: {row['passed']} passed, {row['failed']} failed")
    calls = content.rows("sanitizer")
    if calls:
        parts.append(sanitized(calls))
    return "; ".join(parts)


def sanitized(calls: Sequence[Row]) -> str:
    """Return how many calls the sanitizer saw, and in how many it found an error."""
    return f"sanitizer: {len(calls)} calls, {sum('failure' in row for row in calls)} wrong"


def _roofs(content: Content) -> str:
    names = ("copy", "bf16", "tf32", "fp32")
    rates = {row["case"]: row for row in content.rows("roofs")}
    shown = [f"{name} {_figures(rates[name])}" for name in names if name in rates]
    return f"roofs: {', '.join(shown)}" if shown else ""


def _judged(content: Content) -> list[Row]:
    """Return the rows of targets that were measured, the furthest from its target first."""
    rows = [row for row in content.rows("targets") if "failure" not in row and row.get("share") is not None]
    return sorted(rows, key=lambda row: float(row["share"]))


def _targets(content: Content, room: int) -> list[str]:
    rows = _judged(content)
    if not rows:
        return []
    met = sum(row["share"] >= 1 for row in rows)
    shown = rows[: max(0, room - 1)]
    hidden = f"; the {len(shown)} furthest" if len(shown) < len(rows) else ""
    return [
        f"targets: {met} of {len(rows)} are met{hidden}",
        *(f"  {row['measured']:8.2f} of {row['target']:6.2f}  {row['case']}" for row in shown),
    ]


def _compared(content: Content) -> list[Row]:
    """Return single kernels that have a prediction, the furthest beyond it first."""
    rows = [row for row in content.rows("kernels") if row.get("ratio_with_cache") is not None]
    return sorted(rows, key=lambda row: -float(row["ratio_with_cache"]))


def _kernels(content: Content) -> str:
    rows = _compared(content)
    if not rows:
        return ""
    worst = rows[0]
    return f"kernels: up to {_TIMES(worst['ratio_with_cache'])} of predicted: {worst['case']}"


def _experiments(content: Content) -> str:
    rows = [row for row in content.rows("experiments") if row.get("speed_up") is not None]
    if not rows:
        return ""
    best = max(rows, key=lambda row: float(row["speed_up"]))
    gains = f"; best {_TIMES(best['speed_up'])}: {best['case']}" if best["speed_up"] > _GAIN else "; none is faster"
    return f"experiments: {len(rows)}{gains}"


def _tuning(content: Content) -> str:
    rows = [row for row in content.rows("tune") if row.get("speed_up") is not None]
    if not rows:
        return ""
    faster = sum(row["speed_up"] > _GAIN for row in rows)
    host = max((row["host_share"] for row in content.rows("host") if row.get("host_share")), default=None)
    text = f"tune: {len(rows)} choices, {faster} faster than the rule"
    return text if host is None else f"{text}; host at most {UNITS['percent'](host)} of the time"


def _troubles(content: Content) -> list[str]:
    """Return at most two lines about what failed."""
    units = [f"{step}: {unit}: {end['why']}" for (step, unit), end in content.ends.items() if end["status"] == "failed"]
    rows = [f"{row['step']}: {row['case']}: {row['failure']}" for row in content.rows() if "failure" in row]
    found = [*units, *rows]
    more = [f"FAILED: and {len(found) - 1} more, see the journal"] if len(found) > 1 else []
    return [*(f"FAILED: {text}" for text in found[:1]), *more]


def _left_out(content: Content) -> str:
    ends = [(key, end) for key, end in content.ends.items() if end["status"] == "left out"]
    for_time = [f"{step}/{unit}" for (step, unit), end in ends if end.get("for_time")]
    parts = []
    if for_time:
        parts.append(f"left out for time: {len(for_time)} ({', '.join(for_time[:3])}); run again")
    if others := len(ends) - len(for_time):
        parts.append(f"not possible here: {others}")
    return "; ".join(parts)


def largest_gap(content: Content) -> str:
    """Say what is furthest from what it should be: a target that is missed, else a kernel beyond its prediction.

    Args:
        content: The journal.

    Returns:
        A sentence without its full stop.
    """
    missed: Sequence[Row] = [row for row in _judged(content) if row["share"] < 1]
    if missed:
        return f"{missed[0]['case']} reaches {missed[0]['share']:.0%} of its target"
    beyond = [row for row in _compared(content) if row["ratio_with_cache"] > 1]
    if beyond:
        return f"{beyond[0]['case']} takes {_TIMES(beyond[0]['ratio_with_cache'])} as long as predicted"
    return "none: targets are met" if _judged(content) else "unknown: no target was measured"
