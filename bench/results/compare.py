"""Comparison of two runs, row by row, by their raw samples."""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nntk.bench.results import ranks
from nntk.bench.results.schema import ResultsError, Row, differences
from nntk.bench.results.store import Run
from nntk.bench.results.tables import UNITS
from nntk.files.output import Output

LEVEL = 0.05
"""Probability of any wrong FASTER or SLOWER in a comparison, and of an interval that misses its ratio."""

SCHEMA = 1
"""Version of the layout of the verdicts' JSON, which results/README.md documents."""

WORSE_FACTOR = 2.0
"""Largest growth of an error that does not count as WORSE."""

_ERRORS = {"error": 0.0, "difference": 0.0, "nonlocal_accuracy": 0.01, "local_accuracy": 0.01}
"""Figures of accuracy, and the smallest error that counts; the error of ``*_accuracy`` is 1 minus the figure."""

_STYLES = {"SAME": "dim", "FASTER": "green", "SLOWER": "bold red", "UNCLEAR": "yellow"}


@dataclass(frozen=True)
class Timed:
    """Verdict on the times of a row.

    Attributes:
        key: Key of the row.
        verdict: SAME, FASTER, SLOWER or UNCLEAR.
        why: Reason of UNCLEAR.
        medians: Median times in A and B, in seconds.
        samples: Numbers of samples in A and B.
        ratio: Time in B over time in A: the median over all pairs of samples.
        interval: Interval that covers the ratio with probability 1 - ``LEVEL``; None with too few samples.
        p: p value of a change beyond the margin, adjusted for the number of rows.
    """

    key: str
    verdict: str
    why: str
    medians: tuple[float, float]
    samples: tuple[int, int]
    ratio: float
    interval: tuple[float, float] | None
    p: float


@dataclass(frozen=True)
class Worse:
    """Error that grew by more than ``WORSE_FACTOR``, or row that fails only in B.

    Attributes:
        key: Key of the row.
        figure: Name of the figure.
        before: Value in A.
        after: Value in B, or the failure.
    """

    key: str
    figure: str
    before: float | None
    after: float | str | None


@dataclass(frozen=True)
class Comparison:
    """Result of a comparison.

    Attributes:
        timed: Verdicts on the rows with samples in both runs.
        worse: Figures that became less accurate.
        errors: Number of errors that were compared.
        remarks: Remarks in words: different circumstances, rows that were not compared.
    """

    timed: Sequence[Timed]
    worse: Sequence[Worse]
    errors: int
    remarks: Sequence[str]

    @property
    def slower(self) -> bool:
        """True if any row is SLOWER or WORSE."""
        return bool(self.worse) or any(row.verdict == "SLOWER" for row in self.timed)

    @property
    def summary(self) -> str:
        """Counts of the verdicts, in one line."""
        number = Counter(row.verdict for row in self.timed)
        verdicts = ", ".join(f"{number[verdict]} {verdict}" for verdict in _STYLES)
        return f"{len(self.timed)} timed rows: {verdicts}; {self.errors} errors: {len(self.worse)} WORSE"


def compare(a: Run, b: Run, threshold: float) -> Comparison:
    """Compare two runs of a suite.

    Args:
        a: Run to compare with.
        b: Run to judge.
        threshold: Relative change of a time that matters, above 0.

    Returns:
        Verdicts and remarks.

    Raises:
        ResultsError: If the runs are of different suites, or no row of one can be compared with a row of the other.
    """
    if a.suite != b.suite:
        raise ResultsError(f"{a.path} is a run of suite {a.suite}, {b.path} of {b.suite}: nothing to compare")
    before, after = ({row["key"]: row for row in run.rows} for run in (a, b))
    remarks = [*_circumstances(a, b), *_unmatched(before, after)]
    timed, worse, errors = {}, [], 0
    for name in (name for name in before if name in after):
        old, new = before[name], after[name]
        if "failure" in old:
            remarks.append(f"{name}: failed in {'A and B' if 'failure' in new else 'A'}: {old['failure']}")
        elif "failure" in new:
            errors += 1
            worse.append(Worse(name, "failure", None, new["failure"]))
        else:
            shared = [figure for figure in _ERRORS if _comparable(figure, old, new)]
            errors += len(shared)
            worse += [Worse(name, figure, old[figure], new[figure]) for figure in shared if _grew(figure, old, new)]
            if "samples_s" in old and "samples_s" in new:
                timed[name] = (old["samples_s"], new["samples_s"])
            elif runs_without_samples := [run for run, row in (("A", old), ("B", new)) if _has_time_only(row)]:
                remarks.append(f"{name}: times without samples in {' and '.join(runs_without_samples)}, not compared")
    if not timed and not errors:
        raise ResultsError(f"{a.path} and {b.path} have no row that can be compared; {'; '.join(remarks) or 'no rows'}")
    return Comparison(judge(timed, threshold), worse, errors, remarks)


def judge(pairs: Mapping[str, tuple[Sequence[float], Sequence[float]]], threshold: float) -> list[Timed]:
    """Give the verdicts of all rows together.

    With r the time in B over that in A: SAME if the interval of r is within the threshold, else FASTER or SLOWER if
    the samples reject, at a level for all rows together, that r is within half the threshold, and r exceeds the drift
    within A and within B; else UNCLEAR. Ratios are judged by their logarithm: A against B mirrors B against A.

    Args:
        pairs: Samples in A and in B, by row; all above 0.
        threshold: Relative change that matters, above 0.

    Returns:
        One verdict for each row.
    """
    logs = {name: ([math.log(s) for s in a], [math.log(s) for s in b]) for name, (a, b) in pairs.items()}
    margin = math.log1p(threshold / 2)
    adjusted = ranks.holm([_beyond(a, b, margin) for a, b in logs.values()])
    return [
        _verdict(name, pairs[name], logs[name], p, math.log1p(threshold), LEVEL / len(pairs))
        for name, p in zip(pairs, adjusted, strict=True)
    ]


def _beyond(a: Sequence[float], b: Sequence[float], margin: float) -> float:
    """Return the p value of a shift by more than the margin in either direction."""
    slower = ranks.mann_whitney([value + margin for value in a], b).no_lower
    faster = ranks.mann_whitney([value - margin for value in a], b).no_higher
    return min(1.0, 2 * min(slower, faster))


def _verdict(
    name: str,
    samples: tuple[Sequence[float], Sequence[float]],
    logs: tuple[Sequence[float], Sequence[float]],
    p: float,
    limit: float,
    level: float,
) -> Timed:
    sizes = len(samples[0]), len(samples[1])
    shift = ranks.shift(*logs, LEVEL)
    estimate = shift.estimate if shift else ranks.median_shift(*logs)
    drift, run = max((_drift(values), run) for values, run in zip(logs, "AB", strict=True))
    verdict, why = "UNCLEAR", ""
    if shift and -limit <= shift.low and shift.high <= limit:
        verdict = "SAME"
    elif p <= LEVEL and abs(estimate) > drift:
        verdict = "SLOWER" if estimate > 0 else "FASTER"
    elif p <= LEVEL:
        why = f"{run} drifts by {math.expm1(drift):.0%}"
    elif shift is None or ranks.smallest_p(*sizes) > level:
        why = f"needs {ranks.samples_needed(level)} samples each"
    else:
        why = "within noise"
    return Timed(
        key=name,
        verdict=verdict,
        why=why,
        medians=(statistics.median(samples[0]), statistics.median(samples[1])),
        samples=sizes,
        ratio=math.exp(estimate),
        interval=(math.exp(shift.low), math.exp(shift.high)) if shift else None,
        p=p,
    )


def _drift(values: Sequence[float]) -> float:
    """Estimate the change from the first sample to the last: twice the shift from the first half to the second."""
    half = len(values) // 2
    return 2 * abs(ranks.median_shift(values[:half], values[-half:])) if half else 0.0


def _comparable(figure: str, before: Row, after: Row) -> bool:
    """Return True if both rows have the figure; in A it must be finite (null stands for a value that is not)."""
    return isinstance(before.get(figure), int | float) and isinstance(after.get(figure, ""), int | float | None)


def _grew(figure: str, before: Row, after: Row) -> bool:
    """Return True if an error grew by more than ``WORSE_FACTOR``."""
    if after[figure] is None:
        return True
    old, new = (1 - row[figure] if figure.endswith("_accuracy") else row[figure] for row in (before, after))
    return bool(new > WORSE_FACTOR * max(old, _ERRORS[figure]))


def _has_time_only(row: Row) -> bool:
    return row.get("median_s") is not None and "samples_s" not in row


def _circumstances(a: Run, b: Run) -> list[str]:
    """Describe the differences between the runs besides their figures."""
    remarks = [f"{name}: {old} in A, {new} in B" for name, old, new in differences(a.facts, b.facts)]
    for name, run in (("A", a), ("B", b)):
        if open_sections := [section["name"] for section in run.sections if not section["finished"]]:
            remarks.append(f"{name} is {run.status}; not finished: {', '.join(open_sections)}")
    return remarks


def _unmatched(before: Mapping[str, Row], after: Mapping[str, Row]) -> list[str]:
    """Name the rows that only one run has."""
    return [
        f"only in {name}: {key}"
        for name, rows, others in (("A", before, after), ("B", after, before))
        for key in rows
        if key not in others
    ]


def show(comparison: Comparison, console: Console) -> None:
    """Draw the tables, the remarks and the summary."""
    if comparison.timed:
        table = Table("row", "A", "B", "B / A", "interval", "verdict", "")
        for column in table.columns[1:5]:
            column.justify = "right"
        for row in comparison.timed:
            interval = "{:.3f} to {:.3f}".format(*row.interval) if row.interval else ""
            times = [UNITS["seconds"](median) for median in row.medians]
            verdict = Text(row.verdict, _STYLES[row.verdict])
            table.add_row(Text(row.key), *times, f"{row.ratio:.3f}", interval, verdict, row.why)
        console.print(table)
    if comparison.worse:
        table = Table("row", "figure", "A", "B", "verdict")
        for worse in comparison.worse:
            values = [_figure(worse.before), _figure(worse.after)]
            table.add_row(Text(worse.key), worse.figure, *map(Text, values), Text("WORSE", "bold red"))
        console.print(table)
    for remark in comparison.remarks:
        console.print(remark, markup=False, highlight=False, soft_wrap=True)
    console.print(comparison.summary, highlight=False, soft_wrap=True)


def _figure(value: float | str | None) -> str:
    return format(value, ".3g") if isinstance(value, float | int) else value or ""


def write(comparison: Comparison, a: Run, b: Run, threshold: float, output: Output) -> None:
    """Write the verdicts as JSON: both files, all rows, all remarks.

    Args:
        comparison: The verdicts.
        a: Run that was compared with.
        b: Run that was judged.
        threshold: Threshold of the comparison.
        output: Where they go.

    Raises:
        OSError: If they cannot be written.
    """
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "a": str(a.path),
        "b": str(b.path),
        "threshold": threshold,
        "level": LEVEL,
        "summary": comparison.summary,
        **asdict(comparison),
    }
    output.write_json(content)
