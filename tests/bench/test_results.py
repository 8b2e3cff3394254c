"""The file of a run: valid at every moment, checked on reading, resumed after whatever stopped it."""

import copy
import json
import multiprocessing
import os
import random
import signal
from pathlib import Path

import pytest
from conftest import RUN_FACTS as FACTS

from nntk.bench import suites
from nntk.bench.cli import app as cli
from nntk.bench.measure import environment
from nntk.bench.results import store as results
from nntk.bench.results.schema import ResultsError, key
from nntk.bench.results.store import Record
from nntk.bench.results.tables import Column
from nntk.bench.suites import Section

SECTION = {"name": "s", "title": "S", "caption": "", "columns": []}


@pytest.fixture
def record(tmp_path):
    """A record with one row."""
    result = Record.start(tmp_path, "quick", FACTS, [SECTION])
    result.add("s", {"case": "a", "samples_s": [1.0, 2.0]})
    yield result
    result.close("interrupted")


def install(monkeypatch, *sections, facts=FACTS):
    """Make the quick suite one of these sections, each a name and a function of no arguments that yields rows."""
    columns = (Column("case", "case"),)
    result = tuple(
        Section(name, name, "", columns, lambda setting, measure=measure: measure()) for name, measure in sections
    )
    monkeypatch.setattr(suites, "catalogue", lambda suite: result)
    monkeypatch.setattr(environment, "describe", lambda device: {k: v for k, v in facts.items() if k != "seed"})
    monkeypatch.setattr(environment, "slug", lambda device: "abacus")


def resume(path, *options):
    """Exit status of the command."""
    return cli.main(["run", "--resume", str(path), *options])


def test_records_are_replaced_atomically(record):
    """Whenever it is read, the file is whole."""
    for number in range(3):
        record.add("s", {"case": str(number)})
        assert len(results.read(record.path).rows) == number + 2
    record.finish("s")
    assert results.read(record.path).sections[0]["finished"]
    record.close("complete")
    assert results.read(record.path).status == "complete" and not list(record.path.parent.glob("*.tmp"))


def test_a_failed_write_leaves_the_last_file_and_nothing_else(record, monkeypatch):
    """As on a full disk."""

    def full(descriptor):
        raise OSError("No space left on device")

    with monkeypatch.context() as broken, pytest.raises(OSError, match="No space"):
        broken.setattr(os, "fsync", full)
        record.add("s", {"case": "b"})
    assert len(results.read(record.path).rows) == 1 and not list(record.path.parent.glob("*.tmp"))


def test_figures_that_are_not_finite_become_null(record):
    """JSON has no NaN, and the rows around it are kept."""
    record.add("s", {"case": "b", "error": float("nan")})
    record.add("s", {"case": "c", "error": 1.0})
    assert [row.get("error") for row in results.read(record.path).rows] == [None, None, 1.0]


def test_keys_tell_what_was_measured_and_not_what_came_out(record):
    """Settings are in, figures are not; the same row twice is an error of the suite."""
    assert key("s", {"case": "relu", "samples": 32, "gamma": 0.1, "error": 3.0}) == ("s / relu / gamma=0.1, samples=32")
    with pytest.raises(ValueError, match="two rows are 's / a'"):
        record.add("s", {"case": "a"})


def test_shipped_runs_can_be_read():
    """Also those of schema 1, whose rows are given keys."""
    paths = sorted(Path(__file__).parents[2].glob("results/*/*-*-*-*.json"))
    runs = [results.read(path) for path in paths]
    assert any(run.schema == 1 and any("samples_s" in row for row in run.rows) for run in runs)


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ((), [], ": must hold one object, the record of a run; got []"),
        (("schema",), 3, ": schema: got 3, must be 1 or 2"),
        (("schema",), None, ": schema: got null, must be 1 or 2"),
        (("status",), "done", ': status: got "done", must be one of running, complete, interrupted, failed'),
        (("seed",), True, ": seed: got true, must be an integer from 0"),
        (("device", "threads"), 0, ": device.threads: got 0, must be an integer from 1"),
        (("rows",), {}, ": rows: got {}, must be a list of rows"),
        (("rows", 0), 5, ": rows[0]: must be an object, got 5"),
        (("rows", 0, "case"), 5, ": rows[0].case: got 5, must be text"),
        (("rows", 0, "samples_s"), [], ": rows[0].samples_s: got [], must be a list of seconds, from 1e-12 to 1e9"),
        (("rows", 0, "samples_s"), [1, "2"], ': rows[0].samples_s: got [1, "2"], must be'),
        (("rows", 0, "samples_s"), [1, 0], ": rows[0].samples_s: got [1, 0], must be"),
        (("rows", 0, "section"), "t", ': rows[0].section: got "t", must be one of s'),
        (("sections", 0, "finished"), 1, ": sections[0].finished: got 1, must be true or false"),
    ],
)
def test_a_file_that_the_schema_does_not_allow_is_refused(record, where, value, message):
    """The message names the file, the place in it, its content there, and what is allowed."""
    content = json.loads(record.path.read_text())
    if where:
        inner = content
        for step in where[:-1]:
            inner = inner[step]
        inner[where[-1]] = value
    else:
        content = value
    path = record.path.with_name("wrong.json")
    path.write_text(json.dumps(content))
    with pytest.raises(ResultsError) as refused:
        results.read(path)
    assert str(refused.value).startswith(f"{path}{message}")


def test_every_missing_key_is_named(record):
    """The keys of the run, its device, its sections and its rows are all checked."""
    whole, path = json.loads(record.path.read_text()), record.path.with_name("wrong.json")
    places = [(), ("device",), ("sections", 0), ("rows", 0)]
    optional = {"title", "caption", "columns", "samples_s", "driver"}
    for steps in places:
        inner = whole
        for step in steps:
            inner = inner[step]
        for name in inner.keys() - optional:
            content = inner_copy = copy.deepcopy(whole)
            for step in steps:
                inner_copy = inner_copy[step]
            del inner_copy[name]
            path.write_text(json.dumps(content))
            with pytest.raises(ResultsError, match=rf"{name}: is missing, must be"):
                results.read(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON: Expecting value"),
        ('{"schema": 2', "not JSON"),
        ('{"schema": NaN}', "not JSON: NaN is not finite"),
        ('{"schema": 1e999}', "not JSON: 1e999 is not finite"),
        ("[" * 10**5, "not JSON"),
        ("\udcff", "not JSON: 'utf-8'"),
    ],
)
def test_what_is_no_json_is_refused(tmp_path, text, message):
    """Also a file cut in half, a hostile one and a binary one."""
    path = tmp_path / "x.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ResultsError, match=message):
        results.read(path)
    with pytest.raises(ResultsError, match="No such file"):
        results.read(tmp_path / "y.json")
    with pytest.raises(ResultsError, match="Is a directory"):
        results.read(tmp_path)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_a_resumed_run_keeps_finished_sections_and_measures_the_others_anew(monkeypatch, tmp_path, stop, capsys):
    """Rows of one section are measured side by side: never some of one attempt and some of another."""
    measured = []

    def section(name, cases, fails_at=None):
        def rows():
            for case in cases:
                if case == fails_at:
                    raise stop
                measured.append(case)
                yield {"case": case, "median_s": float(len(measured))}

        return name, rows

    first, last = section("first", "ab"), section("last", "f")
    install(monkeypatch, first, section("second", "cde", fails_at="e"), last)
    try:
        cli.main(["run", "--output", str(tmp_path), "--seed", "7"])
    except RuntimeError:
        pass
    (path,) = tmp_path.glob("*/*.json")
    assert [row["case"] for row in results.read(path).rows] == list("abcd")
    # The second section has lost a case: its row of the first attempt must go.
    install(monkeypatch, first, section("second", "ce"), last)
    assert resume(path) == 0
    run, content = results.read(path), json.loads(path.read_text())
    assert run.status == "complete" and run.facts["seed"] == 7 and len(content["resumed"]) == 1
    assert {row["case"]: row["attempt"] for row in run.rows} == {"a": 1, "b": 1, "c": 2, "e": 2, "f": 2}
    assert measured == list("abcdcef")
    assert [row["elapsed_s"] for row in run.rows] == sorted(row["elapsed_s"] for row in run.rows)
    assert "Measured before." in capsys.readouterr().out


def test_a_row_that_failed_still_fails_the_resumed_run(monkeypatch, tmp_path):
    """A finished section is not measured again, whatever its rows are."""

    def broken():
        raise KeyboardInterrupt
        yield

    def wrong():
        yield {"case": "a", "failure": "error 3e-1 > 1e-5"}

    install(monkeypatch, ("wrong", wrong), ("broken", broken))
    assert cli.main(["run", "--output", str(tmp_path)]) == 130
    (path,) = tmp_path.glob("*/*.json")
    install(monkeypatch, ("wrong", broken), ("broken", lambda: iter([{"case": "b"}])))
    assert resume(path) == 1 and results.read(path).status == "failed"


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"commit": "def"}, 'commit was "abc", is "def"'),
        ({"versions": {"python": "3.11", "torch": "2.14"}}, 'versions.torch was "2.13", is "2.14"'),
        ({"device": FACTS["device"] | {"name": "loom"}}, 'device.name was "abacus", is "loom"'),
        ({"uncommitted_changes": True, "stream_version": 2}, "uncommitted_changes was false, is true; stream_version"),
    ],
)
def test_figures_that_do_not_belong_together_are_not_mixed(record, monkeypatch, capsys, facts, message):
    """The message names the difference, and the file stays as it is."""
    record.close("interrupted")
    before = record.path.read_bytes()
    install(monkeypatch, ("s", lambda: iter([])), facts=FACTS | facts)
    assert resume(record.path) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and printed.out == ""
    assert record.path.read_bytes() == before


def test_what_cannot_be_resumed_is_one_line_and_exit_2(record, monkeypatch, capsys, tmp_path):
    """A run in progress, a complete one, one of an unknown suite or device, an old one; options of another run."""
    install(monkeypatch, ("s", lambda: iter([{"case": "a"}])))
    whole = json.loads(record.path.read_text())

    def refused(path, *options):
        assert resume(path, *options) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.count("\n") == 1
        return printed.err

    def written(**changes):
        path = tmp_path / "changed.json"
        path.write_text(json.dumps(whole | changes))
        return path

    assert "still running: another process writes it" in refused(record.path)
    record.finish("s")
    record.close("complete")
    assert "nothing to resume: all 1 sections are finished" in refused(record.path)
    assert "suite: got 'fast', must be one of quick" in refused(written(suite="fast"))
    assert "device.selected: 'cuda:9' is not there" in refused(
        written(device=FACTS["device"] | {"selected": "cuda:9999"})
    ).replace("9999", "9")
    assert "schema 1 does not say which sections finished" in refused(written(schema=1))
    assert "No such file" in refused(tmp_path / "absent.json")
    for option in (["--suite", "quick"], ["--seed", "0"], ["--threads", "1"], ["--device", "cpu"], ["--output", "x"]):
        assert f"not with {option[0]}, which is that of the run" in refused(record.path, *option)


def test_sources_without_a_commit_are_resumed_with_a_word_of_warning(monkeypatch, tmp_path, capsys):
    """Nobody can tell whether they are the same; but what their sections are is checked."""
    facts = FACTS | {"uncommitted_changes": True}
    record = Record.start(tmp_path, "quick", facts, [SECTION])
    record.close("interrupted")
    for title, status in (("T", 2), ("S", 0)):
        section = Section("s", title, "", (), lambda setting: iter([{"case": "a"}]))
        install(monkeypatch, facts=facts)
        monkeypatch.setattr(suites, "catalogue", lambda suite, section=section: (section,))
        assert resume(record.path) == status
        printed = capsys.readouterr()
        assert ('sections.s.title was "S", is "T"' in printed.err) == (status == 2)
        assert ("cannot be checked" in printed.out) == (status == 0)


def endless(folder, marks):
    """A run of 120 fast rows that then waits to be killed; every row that was recorded is marked."""
    add = Record.add

    def marked(record, section, row):
        add(record, section, row)
        marks.send(row["case"])

    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Record, "add", marked)
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)
        install(monkeypatch, *fast_sections(at_end=signal.pause))
        cli.main(["run", "--output", str(folder)])


def fast_sections(at_end=lambda: None):
    """Three sections of forty rows with samples."""

    def section(name):
        def rows():
            for number in range(40):
                yield {"case": f"{name}{number}", "samples_s": [1.0 + number] * 10}
            if name == "third":
                at_end()

        return name, rows

    return [section(name) for name in ("first", "second", "third")]


def test_a_run_killed_at_any_moment_is_valid_and_can_be_resumed(monkeypatch, tmp_path):
    """Twenty kills: every row that was recorded is there, and what was finished is not measured again.

    What a killed process has written is not lost, on disk or not: without fsync more of the time is at risk.
    """
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["pytest", "nntk.bench.cli.app"])
    moments, stages = random.Random(5), set()
    for attempt in range(20):
        folder, (received, marks) = tmp_path / str(attempt), processes.Pipe(duplex=False)
        process = processes.Process(target=endless, args=(folder, marks))
        process.start()
        marks.close()
        marked = [received.recv() for _ in range(moments.randrange(120))]
        process.kill()
        process.join()
        while received.poll():
            try:
                marked.append(received.recv())
            except EOFError:
                break
        paths = list(folder.glob("*/*.json"))
        assert paths or not marked
        for path in paths:
            killed = results.read(path)
            cases = [row["case"] for row in killed.rows]
            assert killed.status == "running" and cases[: len(marked)] == marked and len(cases) <= len(marked) + 1
            finished = [section["name"] for section in killed.sections if section["finished"]]
            stages.add((len(finished), len(cases)))
            install(monkeypatch, *fast_sections())
            assert resume(path) == 0
            run = results.read(path)
            assert run.status == "complete" and len(run.rows) == 120 and not list(path.parent.glob("*.tmp"))
            for before, after in zip(killed.rows, run.rows, strict=False):
                assert (after == before) == (before["section"] in finished)
    assert len(stages) > 1
