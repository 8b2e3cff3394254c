"""Summary and report of a card: a screen that names the largest gap, tables to publish, and no dry run among them."""

import json

import pytest
from conftest import RUN_FACTS
from rich.console import Console

from nntk.bench.card import journal, report, summary, trace
from nntk.bench.card.journal import Journal
from nntk.bench.card.trace import Span
from nntk.bench.cli import app as cli
from nntk.bench.measure import design
from nntk.bench.results import store
from nntk.bench.results.schema import DRY_RUN, ResultsError
from nntk.kernels import tuning

LONG = "a case whose name is longer than any line of a screen may be, " * 3


def rows_of(step, *rows, unit="unit"):
    """A step's rows with the unit that measured them."""
    return [{"step": step, "unit": unit, "attempt": 1, **row} for row in rows]


def target(case, measured, target=1.0):
    """A row of a target."""
    return {"case": case, "target": target, "design_target": 1.0, "measured": measured, "share": measured / target,
            "time_s": 0.01}  # fmt: skip


ROWS = [
    *rows_of("tests", {"case": "fast", "passed": 30, "failed": 0, "skipped": 1, "time_s": 20.0}),
    *rows_of("sanitizer", {"case": "energy", "errors": 0}),
    *rows_of("roofs", {"case": "copy", "units": "bytes", "per_second": 3.0e12},
             {"case": "bf16", "units": "flops", "per_second": 700e12}),
    *rows_of("targets", target("gaussian", 0.4), target("signs", 0.9), target("memory", 2.0, 1.0)),
    *rows_of("kernels", {"case": "hidden", "predicted_s": 1e-3, "predicted_with_cache_s": 2e-3, "time_s": 3e-3,
                         "ratio": 3.0, "ratio_with_cache": 1.5}),
    *rows_of("experiments", {"case": "gaussian: 2^32", "speed_up": 1.3, "time_s": 0.02}),
    *rows_of("tune", {"case": "layer_step", "speed_up": 1.1}),
    *rows_of("host", {"case": "gaussian", "host_s": 1e-3, "time_s": 2e-2, "host_share": 0.05}),
]  # fmt: skip


def recorded(folder, rows=ROWS, is_dry_run=False):
    """The journal of a folder with these rows, each in a unit that finished."""
    record = Journal.start(folder, RUN_FACTS, is_dry_run)
    record.append("prediction", step="experiments", unit="unit", case="gaussian: 2^32", predicted=1.2, because="chunks")
    for row in rows:
        record.append("row", **row)
    for step in dict.fromkeys(row["step"] for row in rows):
        record.append("end", step=step, unit="unit", status="finished", attempt=1)
    record.close()
    return journal.read(folder)


def test_the_summary_says_what_matters(tmp_path):
    """Counts, roofs, the furthest target first, and the largest gap last."""
    text = "\n".join(summary.lines(recorded(tmp_path)))
    assert "tests fast: 30 passed, 0 failed; sanitizer: 1 calls, 0 wrong" in text
    assert "roofs: copy 3 TB/s, bf16 700 TFLOP/s" in text and "targets: 1 of 3 are met" in text
    assert text.index("  gaussian") < text.index("  signs") < text.index("  memory")
    assert "kernels: up to 1.50x of predicted: hidden" in text and "best 1.30x: gaussian: 2^32" in text
    assert text.splitlines()[-1] == "largest gap: gaussian reaches 40% of its target"


@pytest.mark.parametrize("is_dry_run", [False, True])
def test_the_summary_fits_a_screen(tmp_path, is_dry_run):
    """Whatever is in the journal: 24 lines of 80 columns, and the gap is among them."""
    rows = [{**row, "case": f"{row['case']} {LONG}"} for row in ROWS]
    rows += rows_of("targets", *(target(f"{n} {LONG}", 0.5) for n in range(40)))
    rows += rows_of("sanitizer", {"case": LONG, "failure": LONG}, {"case": "b", "failure": LONG})
    recorded(tmp_path, rows, is_dry_run)
    record = Journal.start(tmp_path, RUN_FACTS, is_dry_run)
    for number in range(9):
        record.append("end", step=f"step {number}", unit=LONG, status="left out", attempt=2, why=LONG, for_time=True)
    lines = summary.lines(journal.read(tmp_path))
    assert len(lines) == summary.LINES and max(map(len, lines)) <= summary.COLUMNS
    for part in ("largest gap: gaussian", "left out for time: 9"):
        assert any(part in line for line in lines)
    assert all(line.startswith(f"[{DRY_RUN}] ") == is_dry_run for line in lines)


def test_where_targets_are_met_the_gap_is_a_kernel(tmp_path):
    """Else there is none."""
    met = [row for row in ROWS if row["step"] != "targets"]
    assert summary.largest_gap(recorded(tmp_path, met)) == "hidden takes 1.50x as long as predicted"
    only = rows_of("targets", target("gaussian", 2.0))
    assert summary.largest_gap(recorded(tmp_path / "b", only)) == "none: targets are met"
    assert summary.largest_gap(recorded(tmp_path / "c", [])) == "unknown: no target was measured"


def test_the_report_is_tables_a_run_and_a_table_of_tune(tmp_path, capsys):
    """The page has the README's table; the run passes the store's check; the command installs the configurations."""
    recorded(tmp_path)
    entry = {"schema": tuning.SCHEMA, "kernels": {}}
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "abacus.json").write_text(json.dumps(entry))
    assert cli.main(["card", "--report", str(tmp_path)]) == 0
    page = (tmp_path / "report" / "README.md").read_text()
    assert page.startswith("# abacus\n") and "commit abc; torch 2.13" in page
    assert "| gaussian | 1.00 | 1.00 | 0.40 | 40.0 % | 10 ms |  |" in page
    assert "| gaussian: 2^32 | 1.20x | 1.30x | 20 ms | chunks |" in page
    assert "Largest gap: gaussian reaches 40% of its target." in page
    (path,) = (tmp_path / "report" / "abacus").glob("card-*.json")
    run = store.read(path)
    assert run.status == "complete" and len(run.rows) == len(ROWS)
    printed = " ".join(capsys.readouterr().out.split())
    installed = tmp_path / "report" / "abacus.json"
    assert json.loads(installed.read_text()) == entry and f"cp {installed} {tuning.path_of('abacus')}" in printed


def test_a_dry_run_is_never_published(tmp_path, capsys):
    """The report refuses it, its rehearsed page is marked in every row, and no store and no kernel takes its files."""
    content = recorded(tmp_path, is_dry_run=True)
    assert cli.main(["card", "--report", str(tmp_path)]) == 2
    assert "is a dry run: nothing was measured" in capsys.readouterr().err and not (tmp_path / "report").exists()
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "dry-run.json").write_text(json.dumps({"schema": tuning.SCHEMA, "kernels": {}}))
    assert report.run(tmp_path, True, Console(quiet=True)) == 0
    page = (tmp_path / "report" / "README.md").read_text()
    cells = [line for line in page.splitlines() if line.startswith("|")]
    bodies = [line for line in cells if not line.startswith(("| ---", "| workload", "| launch", "| exp", "| family"))]
    assert page.startswith("# DRY RUN, NOT A MEASUREMENT") and bodies
    assert all(line.startswith("| dry run: ") for line in bodies)
    with pytest.raises(tuning.TableError, match="schema must be 1"):
        tuning.read(tmp_path / "report" / "dry-run.json")
    record = store.Record.start(tmp_path / "store", "card", RUN_FACTS, [{"name": "targets"}])
    with pytest.raises(ValueError, match="is a dry run"):
        record.add("targets", content.rows("targets")[0])
    record.close("failed")


@pytest.mark.parametrize("place", ["file", "row"])
def test_files_of_results_with_a_mark_of_a_dry_run_are_refused(tmp_path, place):
    """By whatever reads runs: the report, the comparison, and resuming."""
    record = store.Record.start(tmp_path, "card", RUN_FACTS, [{"name": "targets"}])
    record.add("targets", {"case": "gaussian"})
    record.close("complete")
    content = json.loads(record.path.read_text())
    (content if place == "file" else content["rows"][0])[DRY_RUN] = True
    record.path.write_text(json.dumps(content))
    with pytest.raises(ResultsError, match="is a dry run: nothing was measured"):
        store.read(record.path)


def test_measurements_are_no_dry_run(tmp_path, capsys):
    """The option is refused for them."""
    recorded(tmp_path)
    assert cli.main(["card", "--dry-run", "--report", str(tmp_path)]) == 2
    assert "holds measurements of a card; leave --dry-run out" in capsys.readouterr().err


def test_kernels_of_a_trace_are_told_apart_by_their_turn():
    """Layers of one kernel function alternate; a sequence that is cut is no sequence."""
    names = ["noise", "step", "step"]
    spans = [Span(name, 10.0 * number, 1.0 + number % 3) for number, name in enumerate(names * 4)]
    assert trace.by_launch([*spans, Span("copy", 99.0, 5.0)], names) == [4.0, 8.0, 12.0]
    assert trace.by_launch(spans[:-1], names) is None and trace.by_launch([], names) is None


def test_a_trace_has_kernels_in_seconds_and_in_order():
    """Of the categories that keep a card busy alone; other events are left out."""
    event = {"ph": "X", "cat": "kernel", "name": "b", "ts": 2e6, "dur": 1e6}
    events = [
        event,
        {**event, "name": "a", "ts": 1e6, "dur": 5e5},
        {**event, "cat": "cpu_op"},
        {"ph": "M", "cat": "kernel"},
    ]
    spans = trace.parsed({"traceEvents": events})
    assert spans == [Span("a", 1.0, 0.5), Span("b", 2.0, 1.0)] and trace.idle_share(spans) == 0.25


NETWORK = (784, 1024, 1024, 10)
BOUNDS = {
    "evaluations": design.evaluations_of_forwards("gaussian", NETWORK, 1024),
    "low rank": design.evaluations_of_forwards("lowrank(1)", NETWORK, 1024),
    "float32": design.evaluations_of_float32("gaussian", NETWORK, 1024),
    "kernel": design.kernel_of_contraction("gaussian", (256, 832, 832, 1), 4096, 1024),
    "assembly": design.sum_of_product(1024, 4096),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_a_target_is_that_of_the_design_for_the_design_card(name):
    """And for a card that is faster in every respect by the same factor, since targets are ratios of times."""
    bound = BOUNDS[name]
    faster = design.Rates(**{rate: 3 * value for rate, value in vars(design.H200).items()})
    assert design.scaled(0.7, bound, design.H200) == pytest.approx(0.7)
    assert design.scaled(0.7, bound, faster) == pytest.approx(0.7)
    assert design.scaled(0.7, bound, None) == 0.7


def test_targets_follow_what_limits_a_card():
    """Slow memory lowers evaluations, fast float32 lowers what is relative to it; an H100 has the first."""
    h100 = design.Rates(**{**vars(design.H200), "copy": 3.0e12})
    consumer = design.Rates(bf16=165e12, tf32=82.5e12, fp32=82.6e12, copy=0.9e12)
    assert 0.8 < design.scaled(1.0, BOUNDS["evaluations"], h100) < 1.0
    assert design.scaled(1.0, BOUNDS["assembly"], h100) == pytest.approx(1.0)
    for name in ("float32", "kernel", "assembly"):
        assert design.scaled(1.0, BOUNDS[name], consumer) < 0.25


def test_a_cpu_has_no_rates_of_a_card():
    """It has no TF32; its targets stay those of the design."""
    assert design.rates_of([]) is None
