"""Summary of compiled kernels: short, complete, and with what the figures depend on."""

import json
from pathlib import Path

from nntk.bench.machine_code.resources import SUMMARY_COLUMNS, summarize

PUBLISHED = Path(__file__).parents[2] / "results" / "resources" / "resources-20261128.json"


def test_the_summary_has_a_row_for_each_row_of_the_record():
    """A kernel that did not compile has its verdict and no figures."""
    task = {"module": "a", "arch": "sm_90", "stated": {}}
    good = {"case": "x", "failures": {}, "registers": 44, "instructions_per_normal": 1 / 3, "limit": "issue"}
    bad = {"case": "y", "failures": {"compiles": "no"}}
    record = {
        "schema": 1,
        "commit": "abc",
        "limits": {"sm_90": {}},
        "rows": [task | good | {"cycles": {"issue": 5.0, "tensor": 0.0}, "loops": [{}]}, task | bad],
    }
    summary = json.loads(summarize(record))
    first, second = (dict(zip(summary["columns"], row, strict=True)) for row in summary["rows"])
    assert summary["commit"] == "abc" and "limits" not in summary
    assert (first["registers"], first["instructions_per_normal"], first["issue_cycles"]) == (44, 0.333333, 5.0)
    assert (first["verdict"], second["verdict"], second["registers"]) == ("good", "compiles", None)


def test_the_published_summary_has_every_case_good():
    """The file is small, and holds as many cases as MEASURED.md says."""
    summary = json.loads(PUBLISHED.read_text())
    rows = [dict(zip(summary["columns"], row, strict=True)) for row in summary["rows"]]
    assert tuple(summary["columns"]) == SUMMARY_COLUMNS and PUBLISHED.stat().st_size < 160 * len(rows)
    assert len(rows) == 1015 and all(row["verdict"] == "good" and row["stack"] == 0 for row in rows)
    assert summary["versions"]["triton"] and summary["commit"]
