"""A card's units: recorded one by one, within the time, whatever one of them does."""

import io
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import RUN_FACTS
from rich.console import Console

from nntk.bench.card import experiments, journal, run, worker
from nntk.bench.card.journal import Journal
from nntk.bench.card.plan import Context, LeftOutError, Step, Unit, reserved

CPU = torch.device("cpu")


def unit(name, *rows, error=None, **settings):
    """A unit that yields rows, and then raises an error if there is one."""

    def measure(context):
        yield from rows
        if error:
            raise error

    return Unit(name, measure, **{"estimate": 1.0, **settings})


def worked(monkeypatch, folder, *units, seconds=1000.0, is_dry_run=False):
    """The journal after a worker has gone through these units, in an attempt of its own."""
    monkeypatch.setattr(worker, "steps", lambda is_dry_run, only: (Step("step", "", units), Step("last", "", ())))
    Journal.start(folder, RUN_FACTS, is_dry_run).close()
    status = worker.work(Context(CPU, folder, 0, is_dry_run, time.monotonic() + seconds), ())
    assert status == 0
    return journal.read(folder)


def kinds(content):
    """Kinds of the lines, with their case or status."""
    return [(line["kind"], line.get("case", line.get("status"))) for line in content.lines if line["kind"] != "start"]


def test_an_error_of_one_unit_ends_no_other(monkeypatch, tmp_path, capsys):
    """Its rows stay, and its end says what was wrong."""
    broken = unit("broken", {"case": "first"}, error=RuntimeError("an illegal access\nwas encountered"))
    content = worked(monkeypatch, tmp_path, broken, unit("good", {"case": "second"}))
    assert [row["case"] for row in content.rows()] == ["first", "second"]
    assert content.ends["step", "broken"]["why"] == "RuntimeError: an illegal access"
    assert content.ends["step", "good"]["status"] == "finished"


def test_what_is_finished_or_failed_is_not_measured_again(monkeypatch, tmp_path, capsys):
    """What was left out is."""
    units = (
        unit("done", {"case": "a"}),
        unit("failed", error=ValueError("wrong")),
        unit("absent", error=LeftOutError("x")),
    )
    first = worked(monkeypatch, tmp_path, *units)
    second = worked(monkeypatch, tmp_path, *units)
    assert kinds(second)[len(kinds(first)) :] == [("begin", None), ("end", "left out")]


def test_a_unit_that_does_not_fit_is_left_out_for_time(monkeypatch, tmp_path):
    """A shorter one behind it is measured, and with more time it is measured itself."""
    units = (unit("long", {"case": "a"}, estimate=500.0), unit("short", {"case": "b"}))
    content = worked(monkeypatch, tmp_path, *units, seconds=100.0)
    end = content.ends["step", "long"]
    assert end["status"] == "left out" and end["for_time"] and "needs about 500 s" in end["why"]
    assert [row["case"] for row in content.rows()] == ["b"]
    content = worked(monkeypatch, tmp_path, *units, seconds=1000.0)
    assert [row["case"] for row in content.rows()] == ["b", "a"]


def test_a_unit_that_fills_the_time_leaves_some_for_those_behind_it(monkeypatch, tmp_path):
    """It is told how long it may take: what is left without the units that follow."""
    told = []

    def fill(context):
        told.append(context.remaining)
        yield {"case": "choices"}

    units = (Unit("fill", fill, 5.0, fills_time=True), unit("behind", {"case": "b"}, estimate=60.0))
    worked(monkeypatch, tmp_path, *units, seconds=100.0)
    assert 30.0 < told[0] <= 40.0
    plan = (Step("step", "", units), Step("last", "", (unit("late", estimate=7.0),), is_optional=True))
    assert reserved(plan, ("step", "fill"), False) == 60.0


def test_a_prediction_is_recorded_before_the_unit_measures(monkeypatch, tmp_path):
    """On disk: the unit itself finds it there."""

    def measure(context):
        assert [line["predicted"] for line in journal.read(tmp_path).predictions.values()] == [2.0]
        yield {"case": "a", "speed_up": 1.9}

    def predict(context):
        return [{"case": "a", "predicted": 2.0, "because": "half the work"}]

    content = worked(monkeypatch, tmp_path, Unit("asked", measure, 1.0, predict=predict))
    assert [kind for kind, _ in kinds(content)] == ["begin", "prediction", "row", "end"]
    assert content.ends["step", "asked"]["status"] == "finished"


def test_a_unit_during_which_the_process_ended_twice_is_not_tried_again(monkeypatch, tmp_path):
    """It may stop the machine: the others come first."""
    for _ in range(journal.MOST_ATTEMPTS):
        record = Journal.start(tmp_path, RUN_FACTS, False)
        record.append("begin", step="step", unit="deadly", limit_s=1.0)
        record.close()
    content = worked(monkeypatch, tmp_path, unit("deadly", {"case": "a"}), unit("good", {"case": "b"}))
    assert content.ends["step", "deadly"]["why"] == "the process ended during 2 attempts at it"
    assert [row["case"] for row in content.rows()] == ["b"]


WRITER = """
import json, os, sys
def write(kind, **entries):
    with open(sys.argv[1], "a") as file:
        file.write(json.dumps({"kind": kind, "step": "step", "attempt": 1, **entries}) + "\\n")
"""
CRASH = 'write("begin", unit="crash", limit_s=60.0)\nwrite("row", unit="crash", case="before")\nos.abort()'
HANG = 'write("begin", unit="hang", limit_s=0.2)\nsys.stdin.read()'
GOOD = 'write("begin", unit="good", limit_s=60.0)\nwrite("row", unit="good", case="a")\n'
GOOD += 'write("end", unit="good", status="finished")'


@pytest.fixture
def scripted(monkeypatch):
    """Processes that stand for the workers: each is a text of Python, in the order in which they are started."""
    started = []

    def set_scripts(*scripts):
        waiting = list(scripts)

        def start(record, told, deadline):
            command = [sys.executable, "-I", "-S", "-c", WRITER + waiting.pop(0), str(record.path)]
            # Its standard input is a pipe that nobody writes to: reading it waits.
            started.append(
                subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
            )
            return started[-1]

        monkeypatch.setattr(run, "_start", start)
        return started

    yield set_scripts
    for process in started:
        process.stdin.close()


def measured(folder, minutes=1.0):
    """Exit status of a run in this folder, and its journal."""
    status = run.run(folder, CPU, 0, minutes, False, (), Console(file=io.StringIO(), width=200))
    return status, journal.read(folder)


@pytest.mark.parametrize(
    ("script", "name", "why"),
    [(CRASH, "crash", "the process was ended by SIGABRT"), (HANG, "hang", "it took longer than 0 s")],
    ids=["crashes", "hangs"],
)
def test_a_process_that_crashes_or_hangs_fails_its_unit_and_another_goes_on(scripted, tmp_path, script, name, why):
    """What it had recorded stays."""
    processes = scripted(script, GOOD)
    status, content = measured(tmp_path)
    assert status == 1 and content.ends["step", name]["status"] == "failed" and content.ends["step", name]["why"] == why
    assert content.ends["step", "good"]["status"] == "finished"
    assert [row["case"] for row in content.rows()] == (["before"] if script is CRASH else []) + ["a"]
    assert all(process.poll() is not None for process in processes) and content.lines[-1]["status"] == "complete"


def test_a_worker_that_cannot_start_is_an_error(scripted, tmp_path):
    """Twice; the journal is closed all the same, and free."""
    scripted("sys.exit(3)", "sys.exit(3)")
    with pytest.raises(run.CardError, match="status 3; see .*card.log"):
        measured(tmp_path)
    assert journal.read(tmp_path).lines[-1] == {"kind": "stop", "status": "failed"}


def test_ctrl_c_ends_the_worker_and_keeps_what_is_finished(scripted, monkeypatch, tmp_path):
    """Exit status 130, and a journal that can be continued."""
    (processes,) = [scripted(GOOD + "\n" + HANG.replace("0.2", "60.0"))]
    show = run._show

    def interrupted(watch, progress):
        show(watch, progress)
        if watch.unit is not None and watch.unit["unit"] == "hang" and processes[0].poll() is None:
            raise KeyboardInterrupt

    monkeypatch.setattr(run, "_show", interrupted)
    status, content = measured(tmp_path)
    assert status == 130 and processes[0].poll() is not None
    assert content.lines[-1]["status"] == "interrupted" and content.is_finished(("step", "good"))
    assert not content.is_finished(("step", "hang")) and content.broken_attempts(("step", "hang")) == 0


def test_names_of_units_are_unique():
    """A unit is found again by step and name."""
    for is_dry_run in (False, True):
        keys = [(step.name, unit.name) for step in worker.steps(is_dry_run) for unit in step.units]
        assert len(set(keys)) == len(keys)
        estimates = [unit.seconds(is_dry_run) for step in worker.steps(is_dry_run) for unit in step.units]
        assert all(0 < seconds < 300 for seconds in estimates)


def test_nine_minutes_are_enough_for_all_but_the_last_step():
    """By the estimates; tuning has some of them too."""
    plan = worker.steps(False)
    assert [step.name for step in plan if step.is_optional] == ["all tests"]
    assert sum(unit.estimate for step in plan if not step.is_optional for unit in step.units) < 9 * 60


def test_the_steps_come_in_the_order_that_finds_errors_first():
    """Checks before speeds, roofs before what is judged by them, and predictions before what they predict."""
    names = [step.name for step in worker.steps(False)]
    assert names == [
        "environment", "tests", "sanitizer", "roofs", "predictions", "targets", "kernels", "experiments", "tune",
        "host", "all tests",
    ]  # fmt: skip


@pytest.mark.parametrize("name", experiments.EXPERIMENTS)
def test_every_experiment_states_what_it_expects(name):
    """A speed-up and its reason, or why the experiment is not possible."""
    pytest.importorskip("triton")
    for unit in experiments.EXPERIMENTS[name].units():
        try:
            expected = unit.predict(Context(CPU, Path()))
        except LeftOutError as error:
            assert str(error).startswith("this version")
            continue
        assert expected and all(0 <= row["predicted"] < 10 and row["because"] for row in expected)
        shares = [row["predicted"] for row in expected if row.get("form") == "percent"]
        assert all(0 <= share < 1 for share in shares) and (name == "idle") == bool(shares)


def test_chunks_are_as_large_as_the_experiment_says(monkeypatch):
    """For as long as it lasts, whatever the budget allows."""
    launch = pytest.importorskip("nntk.kernels.perturb.triton.launch")
    plan = experiments._plan("gaussian", 2**32)
    monkeypatch.setattr(launch, "plan_chunks", lambda: plan)
    with experiments._chunks_of(9):
        changed = launch.plan_chunks()
    assert changed == replace(plan, chunk_samples=9, group_samples=9 * (plan.group_samples // 9))
    assert launch.plan_chunks() is plan


def test_a_run_of_the_command_is_refused_before_any_work(tmp_path, capsys, monkeypatch):
    """Without a card, and with options that contradict each other."""
    from nntk.bench.cli import app as cli

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for options, message in (
        (["--output", str(tmp_path / "x")], "--dry-run needs no GPU"),
        (["--dry-run", "--device", "cpu"], "argument --device: a dry run uses the CPU"),
        (["--step", "everything"], "argument --step: must be one of environment, tests"),
        (["--minutes", "0"], "argument --minutes: must be a number of minutes above 0"),
        (["--report", str(tmp_path), "--step", "tests"], "leave --output, --step and --device out"),
        (["--report", str(tmp_path)], "card.jsonl: No such file"),
        (["--dry-run", "--output", "/proc/version/x"], "argument --output: must be a folder that can be written"),
    ):
        assert cli.main(["card", *options]) == 2
        assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_one_step_by_the_command_twice(tmp_path, capsys):
    """A real worker measures it; the second time there is nothing left to do."""
    from nntk.bench.cli import app as cli

    command = ["card", "--dry-run", "--step", "environment", "--output", str(tmp_path), "--minutes", "30"]
    assert cli.main(command) == 0
    first = journal.read(tmp_path)
    assert first.is_finished(("environment", "environment")) and first.rows("environment")
    printed = capsys.readouterr().out
    assert "[dry run] environment: ncu: " in printed and printed.count("largest gap: ") == 1
    assert cli.main(command) == 0
    second = journal.read(tmp_path)
    assert [line["kind"] for line in second.lines[len(first.lines) :]] == ["start", "stop"]
    assert "1 units were finished before" in capsys.readouterr().out


def test_lines_of_json_are_whole(tmp_path):
    """Figures that are not finite become null, and each line is one object."""
    record = Journal.start(tmp_path, RUN_FACTS, False)
    record.append("row", step="a", unit="b", case="c", samples=[1.0, float("nan")], nested={"x": float("inf")})
    last = json.loads(journal.path_in(tmp_path).read_text().splitlines()[-1])
    assert last["samples"] == [1.0, None] and last["nested"] == {"x": None}
