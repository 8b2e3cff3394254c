"""The whole of ``nntk-bench card --dry-run``: killed while it works, resumed, and its output looked at."""

import fcntl
import json
import os
import signal
import subprocess
import sys

import pytest

from nntk.bench.card import journal, summary, worker
from nntk.bench.results.schema import DRY_RUN

pytestmark = pytest.mark.machine_code

ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


def command(folder):
    """The command, with minutes enough for a busy machine."""
    return [sys.executable, "-m", "nntk.bench", "card", "--dry-run", "--output", str(folder), "--minutes", "30"]


def test_a_dry_run_that_is_killed_goes_on_and_loses_nothing(tmp_path):
    """Its rows stay as they were, no finished unit is measured again, and every unit of the plan has its end."""
    pytest.importorskip("triton")
    process = subprocess.Popen(command(tmp_path), env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("[dry run] targets: ") and "kernel" in line:
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    # The worker has the lock until it has ended too, which the system does for it.
    with open(tmp_path / f"{journal.NAME}.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
    before, content = journal.path_in(tmp_path).read_bytes(), journal.read(tmp_path)
    finished = {key for key in content.ends if content.is_finished(key)}
    assert {("roofs", "roofs"), ("targets", "evaluations")} <= finished and ("tune", "choices") not in finished

    done = subprocess.run(command(tmp_path), env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:] + (tmp_path / "card.log").read_text()[-2000:]
    whole = before[: before.rfind(b"\n") + 1]
    assert journal.path_in(tmp_path).read_bytes().startswith(whole)
    content = journal.read(tmp_path)
    second = content.lines[len(whole.splitlines()) :]
    assert not finished & {(line["step"], line["unit"]) for line in second if line["kind"] == "begin"}
    assert content.attempts == 2 and content.lines[-1]["status"] == "complete"
    planned = {(step.name, unit.name) for step in worker.steps(True) for unit in step.units}
    assert content.ends.keys() == planned
    assert {end["status"] for end in content.ends.values()} <= {"finished", "left out"}

    assert all(line[DRY_RUN] is True for line in content.lines)
    measured = [row for row in content.rows("experiments") if "speed_up" in row]
    assert measured and all((row["step"], row["unit"], row["case"]) in content.predictions for row in measured)
    for row in measured:
        prediction = content.predictions[row["step"], row["unit"], row["case"]]
        assert content.lines.index(prediction) < content.lines.index(row)

    shown = done.stdout.rstrip().splitlines()[-len(summary.lines(content)) :]
    assert shown == summary.lines(content) and len(shown) <= 24 and max(map(len, shown)) <= 80
    assert any("largest gap: " in line for line in shown)

    reported = subprocess.run(
        [sys.executable, "-m", "nntk.bench", "card", "--dry-run", "--report", str(tmp_path)],
        env=ENVIRONMENT, capture_output=True, text=True,
    )  # fmt: skip
    page = (tmp_path / "report" / "README.md").read_text()
    assert reported.returncode == 0 and page.startswith("# DRY RUN, NOT A MEASUREMENT")
    for heading in ("Targets", "Experiments", "Time of the host", "Checks and roofs"):
        assert f"\n## {heading}\n" in page
    assert json.loads((tmp_path / "report" / "dry-run.json").read_text())["schema"] == DRY_RUN
