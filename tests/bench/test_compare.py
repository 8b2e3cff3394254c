"""Comparison of runs: the statistics, the verdicts, and what is said in words."""

import json
import os

import numpy as np
import pytest
from conftest import RUN_FACTS as FACTS
from scipy import stats

from nntk.bench.cli import app as cli
from nntk.bench.results import compare, ranks
from nntk.bench.results import store as results
from nntk.bench.results.compare import judge
from nntk.bench.results.schema import ResultsError
from nntk.bench.results.store import Record

STEADY = [1.0, 1.001, 0.999, 1.002, 0.998, 1.003, 0.997, 1.0005]


@pytest.fixture
def written(tmp_path):
    """Writes the file of a complete run of one section with these rows."""

    def write(*rows, suite="quick", facts=FACTS, finish=True):
        record = Record.start(tmp_path, suite, facts, [{"name": "s", "title": "", "caption": "", "columns": []}])
        for row in rows:
            record.add("s", row)
        if finish:
            record.finish("s")
        record.close("complete" if finish else "interrupted")
        return record.path

    return write


@pytest.fixture
def command(capsys):
    """Runs ``nntk-bench compare``: exit status, standard output, standard error."""

    def run(*arguments):
        status = cli.main(["compare", *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


def samples(random, size, deviation, drift=0.0):
    """Lognormal times whose mean drifts in a straight line, by ``drift`` from first to last."""
    return random.lognormal(0, deviation, size) * (1 + drift * np.linspace(0, 1, size))


def rows(seed, number, change=1.0, drift=0.0):
    """Pairs of 11 to 30 samples with noise of 2 to 5 %; the second run is changed by a factor, and drifts."""
    random, result = np.random.default_rng(seed), {}
    for name in range(number):
        size, deviation = int(random.integers(11, 31)), random.uniform(0.02, 0.05)
        result[str(name)] = samples(random, size, deviation), change * samples(random, size, deviation, drift)
    return result


def share(pairs, *verdicts):
    """Share of the rows that get one of these verdicts."""
    return np.mean([row.verdict in verdicts for row in judge(pairs, 0.05)])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("drift", [0.0, 0.04, 0.08, 0.15])
def test_two_runs_of_one_code_are_same_or_unclear(seed, drift):
    """In 95 % of 200 rows, also if one run drifts slowly."""
    assert share(rows(seed, 200, drift=drift), "SAME", "UNCLEAR") >= 0.95


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("drift", [0.0, 0.04])
def test_a_fifth_more_time_is_slower(seed, drift):
    """In 90 % of 200 rows; and a fifth less is faster, for comparison is symmetric."""
    slow = rows(seed, 200, change=1.2, drift=drift)
    assert share(slow, "SLOWER") >= 0.9
    forward, backward = judge(slow, 0.05), judge({name: (b, a) for name, (a, b) in slow.items()}, 0.05)
    mirror = {"SLOWER": "FASTER", "FASTER": "SLOWER", "SAME": "SAME", "UNCLEAR": "UNCLEAR"}
    assert [row.verdict for row in forward] == [mirror[row.verdict] for row in backward]
    assert all(one.ratio * other.ratio == pytest.approx(1) for one, other in zip(forward, backward, strict=True))


def test_steady_rows_of_one_code_are_same():
    """UNCLEAR is no way out where the samples suffice."""
    random = np.random.default_rng(0)
    pairs = {str(name): (samples(random, 20, 0.02), samples(random, 20, 0.02)) for name in range(200)}
    assert share(pairs, "SAME") >= 0.95


def test_a_change_must_exceed_the_drift_of_either_run():
    """A run that became slower by 30 % while it ran shows nothing about 15 %."""
    steady, drifting = np.linspace(1, 1.01, 20), np.linspace(1, 1.3, 20)
    (row,) = judge({"a": (steady, drifting)}, 0.05)
    assert row.verdict == "UNCLEAR" and row.why == "B drifts by 32%"
    (row,) = judge({"a": (drifting, steady)}, 0.05)
    assert row.verdict == "UNCLEAR" and row.why == "A drifts by 32%"


@pytest.mark.parametrize(("number", "needed"), [(1, 4), (6, 5), (12, 6), (200, 8)])
def test_too_few_samples_say_how_many_are_needed(number, needed):
    """Twice as slow is UNCLEAR with one sample less, and SLOWER with as many."""
    for size, verdict in ((needed - 1, "UNCLEAR"), (needed, "SLOWER")):
        wide = np.linspace(1, 1.1, size)
        result = judge({str(name): (np.roll(wide, 1), 2 * wide) for name in range(number)}, 0.05)
        assert {row.verdict for row in result} == {verdict}
        assert verdict == "SLOWER" or {row.why for row in result} == {f"needs {needed} samples each"}


@pytest.mark.parametrize("sizes", [(1, 1), (5, 7), (11, 11), (3, 30), (40, 40), (60, 50), (100, 20)])
@pytest.mark.parametrize("digits", [9, 1])
def test_the_rank_test_is_that_of_scipy(sizes, digits):
    """Exact without ties; the normal approximation for many; with ties and few, exact among all exchanges."""
    random = np.random.default_rng(sizes)
    for change in (0.0, 0.3, -1.0):
        first, second = (random.normal(size=size).round(digits) for size in sizes)
        second = (second + change).round(digits)
        if sum(sizes) > ranks.EXACT:
            method = "asymptotic"
        elif digits == 9:
            method = "exact"
        elif 1 < min(sizes) and sum(sizes) <= 12:
            method = stats.PermutationMethod(n_resamples=10**6)
        else:
            continue
        result = ranks.mann_whitney(first, second)
        expected = [
            stats.mannwhitneyu(second, first, alternative=side, method=method).pvalue for side in ("less", "greater")
        ]
        assert [*result] == pytest.approx(expected, rel=1e-9, abs=1e-300)
        assert result.two_sided == min(1, 2 * min(result))


def test_equal_values_are_alike():
    """Nothing but ties."""
    for size in (4, 100):
        assert ranks.mann_whitney([1.0] * size, [1.0] * size).two_sided == 1
    (row,) = judge({"a": ([1.0] * 9, [1.0] * 9)}, 0.05)
    assert row.verdict == "SAME" and row.interval == (1, 1)


@pytest.mark.parametrize("sizes", [(4, 4), (5, 9), (20, 20), (41, 41)])
def test_the_interval_is_what_the_test_does_not_reject(sizes):
    """Just inside its ends a shift is allowed, just outside it is not."""
    random = np.random.default_rng(1)
    first, second = (random.normal(size=size) for size in sizes)
    shift = ranks.shift(first, second, 0.05)
    assert shift.low <= shift.estimate <= shift.high
    assert shift.estimate == np.median(np.subtract.outer(second, first))
    for end, out in ((shift.low, -1e-9), (shift.high, 1e-9)):
        assert ranks.mann_whitney(first + end + out, second).two_sided <= 0.05
        assert ranks.mann_whitney(first + end - out, second).two_sided > 0.05
    assert ranks.shift([1, 2, 3], [1, 2, 3], 0.05) is None


def test_no_test_of_these_sizes_has_a_smaller_p():
    """The smallest p belongs to samples that do not overlap; the number needed is the smallest that suffices."""
    assert ranks.smallest_p(4, 6) == pytest.approx(ranks.mann_whitney(range(4), range(10, 16)).two_sided)
    for level in (0.5, 0.05, 0.05 / 12, 1e-6):
        number = ranks.samples_needed(level)
        assert ranks.smallest_p(number, number) <= level < ranks.smallest_p(number - 1, number - 1)


def test_holm():
    """The smallest is multiplied by the number of tests, the next by one less; never falling, never above 1."""
    assert ranks.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert ranks.holm([0.5, 0.9]) == [1, 1] and ranks.holm([]) == []


def test_the_command_tells_what_changed(written, command, tmp_path):
    """A table, remarks in words, a summary; the verdicts as JSON; the exit status."""
    slow = [2 * value for value in STEADY]
    a = written(
        {"case": "[same]", "samples_s": STEADY, "error": 1e-3},
        {"case": "slower", "samples_s": STEADY},
        {"case": "wrong", "error": 1e-3},
        {"case": "gone"},
        {"case": "failed", "failure": "error 1"},
        {"case": "mended", "failure": "error 2"},
        {"case": "median", "median_s": 1.0, "samples_s": STEADY},
    )
    b = written(
        {"case": "[same]", "samples_s": STEADY, "error": 1.9e-3},
        {"case": "slower", "samples_s": slow},
        {"case": "wrong", "error": 3e-3},
        {"case": "failed", "failure": "error 1"},
        {"case": "mended"},
        {"case": "median", "median_s": 1.0},
        {"case": "new"},
        facts=FACTS | {"commit": "def", "versions": {"python": "3.11", "torch": "2.14"}},
        finish=False,
    )
    status, printed, _ = command(a, b, "--json", tmp_path / "verdicts.json")
    assert status == 0 and "2 timed rows: 1 SAME, 0 FASTER, 1 SLOWER, 0 UNCLEAR; 2 errors: 1 WORSE" in printed
    for remark in (
        "commit: abc in A, def in B",
        "versions.torch: 2.13 in A, 2.14 in B",
        "B is interrupted; not finished: s",
        "only in A: s / gone",
        "only in B: s / new",
        "s / failed: failed in A and B: error 1",
        "s / mended: failed in A: error 2",
        "s / median: times without samples in B, not compared",
        "s / [same]",
    ):
        assert remark in printed
    verdicts = json.loads((tmp_path / "verdicts.json").read_text())
    assert [row["verdict"] for row in verdicts["timed"]] == ["SAME", "SLOWER"] and verdicts["threshold"] == 0.05
    assert verdicts["timed"][1]["ratio"] == pytest.approx(2, rel=0.01) and len(verdicts["remarks"]) == 8
    assert [row["key"] for row in verdicts["worse"]] == ["s / wrong"]
    assert command(a, b, "--fail-on", "slower")[0] == 1 and command(a, a, "--fail-on", "slower")[0] == 0


@pytest.mark.parametrize(
    ("figure", "before", "after", "worse"),
    [
        ("error", 1e-3, 2e-3, False),
        ("error", 1e-3, 2.1e-3, True),
        ("error", 0.0, 1e-9, True),
        ("error", 0.0, 0.0, False),
        ("error", 1.0, float("nan"), True),
        ("difference", 1e-7, 3e-7, True),
        ("direct", 1e-7, 3e-7, None),
        ("nonlocal_accuracy", 0.98, 0.97, False),
        ("nonlocal_accuracy", 0.98, 0.95, True),
        ("nonlocal_accuracy", 1.0, 0.985, False),
        ("failure", None, "error 1", True),
    ],
)
def test_errors_may_double(written, figure, before, after, worse):
    """For an accuracy the share of mistakes counts; a row that fails in B only is worse."""
    other = {"case": "b", "error": 1.0}
    rows = [{"case": "a"} if value is None else {"case": "a", figure: value} for value in (before, after)]
    a, b = (results.read(written(row, other)) for row in rows)
    result = compare.compare(a, b, 0.05)
    assert result.slower == bool(worse) and result.errors == 1 + (worse is not None)


def test_what_cannot_be_compared_is_one_line_and_exit_2(written, command, tmp_path):
    """Files that are no runs, runs of other suites, runs without a common row, a file that cannot be written."""
    a, other = written({"case": "a", "error": 1.0}), written({"case": "a", "error": 1.0}, suite="digits")
    (tmp_path / "text.json").write_text("text")
    for arguments, message in (
        ((a, tmp_path / "absent.json"), "absent.json: No such file or directory"),
        ((tmp_path / "text.json", a), "text.json: not JSON"),
        ((a, other), "of digits: nothing to compare"),
        ((a, written({"case": "b"})), "have no row that can be compared; only in A: s / a; only in B: s / b"),
        ((a, a, "--json", tmp_path), "which is a folder"),
    ):
        status, printed, wrong = command(*arguments)
        assert status == 2 and printed == "" and wrong.count("\n") == 1 and message in wrong
    with pytest.raises(ResultsError):
        compare.compare(results.read(a), results.read(other), 0.05)


@pytest.mark.parametrize("threshold", ["0", "-1", "nan", "x", "1.1"])
def test_a_threshold_is_a_share(threshold, capsys):
    """In (0, 1]."""
    assert cli.main(["compare", "a", "b", "--threshold", threshold]) == 2
    assert "must be a number in (0, 1], got" in capsys.readouterr().err


def test_the_help_is_the_manual(capsys):
    """Every verdict is explained, with examples, within 120 columns."""
    assert cli.main(["compare", "--help"]) == 0
    printed = capsys.readouterr().out
    for word in ("SAME", "FASTER", "SLOWER", "UNCLEAR", "WORSE", "examples:", "--fail-on slower", "Exit status"):
        assert word in printed
    assert max(map(len, printed.splitlines())) <= 120


def test_no_colour_where_none_is_wanted(written, command, monkeypatch):
    """As NO_COLOR asks; a log has none anyway."""
    monkeypatch.setitem(os.environ, "NO_COLOR", "1")
    a = written({"case": "a", "samples_s": STEADY})
    assert "\x1b" not in command(a, a)[1]
