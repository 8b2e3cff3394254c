"""Commands write to what a user named: every command with --json, and every other writer of the bench."""

import errno
import importlib.util
import io
import json
import os
import pty
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import RUN_FACTS as FACTS
from places import OLD, PIPE, REFUSED, REPLACED, Place, snapshot
from rich.console import Console

from nntk.bench import profiling, studies, suites
from nntk.bench.cli import app as cli
from nntk.bench.machine_code import resources
from nntk.bench.machine_code.catalogue import Task
from nntk.bench.measure import environment, roofline
from nntk.bench.report.plots import Plot
from nntk.bench.results import store, tables
from nntk.bench.results.store import Record
from nntk.bench.results.tables import Column
from nntk.bench.studies import Study
from nntk.bench.suites import Section, op_arguments, ops
from nntk.bench.tuning import table as tuning_table
from nntk.files.paths import OutputPathError
from nntk.kernels import tuning
from nntk.kernels.dispatch import cost_of
from nntk.kernels.target import Target

CPU = torch.device("cpu")
needs_triton = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="there is no Triton on this system")
ROOF = roofline.Roof("copy", "bytes", 4e9, (0.5, 0.25, 1.0), "2026-01-01 00:00")


@dataclass(frozen=True)
class Size:
    """Numbers of a study."""

    seeds: int = 1


class Profile:
    """Profile of nothing."""

    def key_averages(self):
        """No operators."""
        return []

    def export_chrome_trace(self, path):
        """Write a trace."""
        Path(path).write_text("{}")


def run_file(folder, name="a"):
    """File of a run with one row."""
    record = Record.start(folder, name, FACTS, [{"name": "s", "title": "", "caption": "", "columns": []}])
    record.add("s", {"case": "a", "samples_s": [1.0, 2.0]})
    record.close("interrupted")
    return record.path


@pytest.fixture
def files(tmp_path):
    """Folder of what commands read, outside of the places where they write."""
    (tmp_path / "files").mkdir()
    return tmp_path / "files"


@pytest.fixture
def arguments(monkeypatch, files):
    """Arguments of every command, by the option that names its output; costly work is replaced, as ``work`` counts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(files / "cache"))
    monkeypatch.chdir(files)
    work = []

    def counting(value):
        def call(*arguments, **options):
            work.append(value)
            return iter(value) if isinstance(value, list) else value

        return call

    monkeypatch.setattr(roofline, "measure", counting([ROOF]))
    monkeypatch.setattr(
        roofline,
        "roofs",
        lambda device: [
            ROOF,
            roofline.Roof("read", "bytes", 4e9, (1.0,), ""),
            roofline.Roof("fp32", "flops", 4e9, (1.0,), ""),
        ],
    )
    monkeypatch.setattr(environment, "describe", lambda device: {k: v for k, v in FACTS.items() if k != "seed"})
    monkeypatch.setattr(profiling, "_profile", counting(Profile()))
    case = ops.OpCase("energy", "small", op_arguments.ArgumentMakers(CPU).energy(8, 6, 1, "trace"), run=None)
    monkeypatch.setattr(ops, "cases", lambda device: [case])
    monkeypatch.setattr(resources, "catalogue", lambda modules, architectures: [Task("m", "sm_90", "kernel")])
    monkeypatch.setattr(resources, "reports", counting([]))
    monkeypatch.setattr(tuning_table, "_planned", counting({"case": "a"}))
    run = run_file(files)
    result = {
        "compare": ["compare", run, run, "--json"],
        "roofline": ["roofline", "--again", "--json"],
        "profile": ["profile", "energy", "--output", files / "traces", "--json"],
        "resources": ["resources", "--json"],
        "summary": ["resources", "--summary"],
        "predict": ["predict", "--card", "h200", "--markdown", "--json"],
        "tune": ["tune", "rank_update", "--dry-run", "--json"],
    }
    if importlib.util.find_spec("triton"):
        from nntk.bench.machine_code.prediction import run as predictions

        monkeypatch.setattr(predictions, "_predicted", lambda card, console, measured: work.append(card) or [])
        monkeypatch.setattr(predictions, "_host", lambda name, console, measured: [])
    result["work"] = work
    return result


def call(arguments, command, *more):
    """Exit status of a command."""
    return cli.main([*map(str, arguments[command]), *map(str, more)])


COMMANDS = [
    "compare",
    "roofline",
    "profile",
    pytest.param("resources", marks=needs_triton),
    pytest.param("summary", marks=needs_triton),
    pytest.param("predict", marks=needs_triton),
    "tune",
]
every_command = pytest.mark.parametrize("command", COMMANDS)


@every_command
@pytest.mark.parametrize("kind", [*REPLACED, PIPE])
def test_json_goes_where_it_was_named(command, kind, arguments, tmp_path, monkeypatch, capfd):
    """One document in the file, or out of the pipe; the tables are printed."""
    place = Place(kind, tmp_path, monkeypatch)
    if kind == PIPE:
        place.read()
    assert call(arguments, command, place.path) == 0
    assert isinstance(json.loads(place.text()), dict)
    printed = capfd.readouterr()
    assert printed.out and not printed.err


@every_command
@pytest.mark.parametrize("kind", REFUSED)
def test_json_that_has_no_place_is_an_error_before_any_work(command, kind, arguments, tmp_path, monkeypatch, capfd):
    """One line with the option and the path, and status 2."""
    place = Place(kind, tmp_path, monkeypatch)
    assert call(arguments, command, place.path) == 2 and not arguments["work"]
    printed = capfd.readouterr()
    option = "--summary" if command == "summary" else "--json"
    assert printed.out == "" and printed.err.count("\n") == 1 and place.is_unchanged()
    assert f"error: argument {option}: must be a file, a new path, a pipe, a terminal, or - for" in printed.err
    assert repr(str(place.path)) in printed.err


@every_command
@pytest.mark.parametrize("capture", ["capfd", "capsys"])
def test_standard_output_is_one_document(command, capture, arguments, files, request):
    """Tables are on standard error, also those in Markdown; a file gets the same text."""
    captured = request.getfixturevalue(capture)
    assert call(arguments, command, "-") == 0
    printed = captured.readouterr()
    assert isinstance(json.loads(printed.out), dict) and printed.err
    assert command != "predict" or "| workload |" in printed.err
    assert call(arguments, command, files / "same.json") == 0
    assert (files / "same.json").read_text() == printed.out
    assert captured.readouterr().out and not Path("-").exists()


@every_command
def test_json_that_cannot_be_written_in_the_end_is_kept(command, arguments, tmp_path, monkeypatch, capfd):
    """A disk that is full by then: one sentence says where the document is; the old file is as it was."""
    place = Place("regular", tmp_path, monkeypatch)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    original = Path.replace

    def full(self, target):
        if Path(target) == place.path:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(self, target)

    monkeypatch.setattr(Path, "replace", full)
    assert call(arguments, command, place.path) == 2
    (kept,) = (tmp_path / "temporary").iterdir()
    assert isinstance(json.loads(kept.read_text()), dict) and place.is_unchanged()
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert f"{str(place.path)!r} could not be written (No space left on device); what was computed is kept" in error
    assert str(kept) in error


@needs_triton
def test_two_documents_do_not_go_to_one_place(arguments, capfd):
    """Nor do names and a document."""
    assert call(arguments, "resources", "-", "--summary", "-") == 2
    assert "argument --summary: must be a file where --json is standard output" in capfd.readouterr().err
    assert call(arguments, "resources", "-", "--list") == 2
    assert "argument --list: prints names alone" in capfd.readouterr().err


SCRIPT = """
import os, subprocess, sys
from nntk.bench.cli import app
from nntk.bench.measure import roofline

def measure(device):
    print("of Python", flush=True)
    os.write(1, b"of a library")
    subprocess.run([sys.executable, "-c", "print('of a process')"], check=True)
    yield roofline.Roof("copy", "bytes", 4e9, (0.5, 0.25, 1.0), "2026-01-01 00:00")

roofline.measure = measure
sys.exit(app.main(["roofline", "--again", "--json", "-"]))
"""


def test_whatever_else_is_printed_goes_to_standard_error(tmp_path):
    """By Python, a library or another process."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)},
    )
    assert json.loads(done.stdout)["roofs"][0]["name"] == "copy"
    assert all(f"of {what}" in done.stderr for what in ("Python", "a library", "a process"))


@pytest.fixture
def process(files):
    """Words of a real ``nntk-bench compare``, but for its options."""
    run = str(run_file(files))
    return [sys.executable, "-m", "nntk.bench", "compare", run, run]


def test_a_document_can_be_piped(process):
    """Into a program that reads JSON, with nothing but JSON to read."""
    with subprocess.Popen([*process, "--json", "-"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as writer:
        done = subprocess.run([sys.executable, "-m", "json.tool"], stdin=writer.stdout, capture_output=True, check=True)
        assert b"1 timed rows" in writer.stderr.read()
    assert writer.returncode == 0 and json.loads(done.stdout)["schema"] == 1


@pytest.mark.parametrize("closed", [1, 2])
def test_a_closed_stream_is_no_error(process, closed, tmp_path):
    """Tables without a place are not printed; the document is written, to a file or to standard output."""
    options = ["--json", tmp_path / "out.json"] if closed == 1 else ["--json", "-"]
    script = "import os, sys; os.close(int(sys.argv[1])); os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
    done = subprocess.run(
        [sys.executable, "-c", script, str(closed), *process[1:], *options], capture_output=True, check=True
    )
    text = (tmp_path / "out.json").read_bytes() if closed == 1 else done.stdout
    assert json.loads(text)["schema"] == 1 and done.stderr == b""


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="this system names no descriptors")
def test_the_name_of_standard_output_is_standard_output(process, tmp_path):
    """A link as that of the system: into a pipe, and into a file, which has the same bytes and is not replaced."""
    place = tmp_path / "place"
    place.mkdir()
    (place / "stdout").symlink_to("/proc/self/fd/1")
    before = snapshot(place)
    piped = subprocess.run([*process, "--json", place / "stdout"], capture_output=True, check=True)
    with open(tmp_path / "file", "w+b") as file:
        subprocess.run([*process, "--json", place / "stdout"], stdout=file, stderr=subprocess.PIPE, check=True)
        assert os.path.samefile(tmp_path / "file", file.fileno())
    dash = subprocess.run([*process, "--json", "-"], capture_output=True, check=True)
    assert piped.stdout == dash.stdout == (tmp_path / "file").read_bytes() and json.loads(dash.stdout)
    assert b"1 timed rows" in piped.stderr and snapshot(place) == before


def test_a_terminal_gets_the_document(process):
    """As standard output of a pseudo-terminal, which no test names."""
    master, slave = pty.openpty()
    kind = os.fstat(slave).st_mode
    done = subprocess.run([*process, "--json", "-"], stdout=slave, stderr=subprocess.PIPE, check=True)
    assert os.fstat(slave).st_mode == kind and b"1 timed rows" in done.stderr
    os.close(slave)
    received = b""
    # The system raises an error at the end of what was written to a terminal.
    try:
        while part := os.read(master, 4096):
            received += part
    except OSError:
        pass
    os.close(master)
    assert json.loads(received)["schema"] == 1


def test_a_run_without_a_reader_is_interrupted(tmp_path):
    """At its first line; its record says so, and can be resumed."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "nntk.bench", "run", "--suite", "digits", "--output", tmp_path]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    (path,) = tmp_path.glob("*/*.json")
    assert (done.returncode, done.stderr) == (141, "") and store.read(path).status == "interrupted"


@pytest.mark.parametrize("options", [["--json", "-"], []])
def test_a_reader_that_is_gone_ends_the_command_quietly(process, options):
    """With the status of programs that SIGPIPE ends, whether tables or a document are left over."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*process, *options], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.returncode == 141
    assert "Error" not in done.stderr and "error" not in done.stderr.replace("errors", "")


def test_a_run_whose_reader_is_gone_keeps_its_rows(monkeypatch, tmp_path, capfd):
    """It is interrupted, not failed."""
    install(monkeypatch, [{"case": "a"}])

    class Closed(tables._Console):
        """Console whose reader goes after the first lines."""

        def print(self, *arguments, **options):
            """Print the head of the run only."""
            if arguments and "nntk " in str(arguments[0]):
                return super().print(*arguments, **options)
            if not self.quiet:
                self.quiet = True
                raise BrokenPipeError
            return None

    monkeypatch.setattr(tables, "standard_console", Closed)
    assert cli.main(["run", "--output", str(tmp_path)]) == 141
    (path,) = tmp_path.glob("*/*.json")
    assert store.read(path).status == "interrupted" and capfd.readouterr().err == ""


def install(monkeypatch, rows):
    """Make the quick suite one section of these rows."""

    def measure(setting):
        yield from rows

    section = Section("s", "", "", (Column("case", "case"),), measure)
    monkeypatch.setattr(suites, "catalogue", lambda suite: (section,))
    monkeypatch.setattr(environment, "describe", lambda device: {k: v for k, v in FACTS.items() if k != "seed"})
    monkeypatch.setattr(environment, "slug", lambda device: "abacus")


@pytest.mark.parametrize("kind", ["regular", "link", "chain of links"])
def test_a_run_is_resumed_where_its_file_is(kind, tmp_path, files, monkeypatch):
    """Its links stay links."""
    install(monkeypatch, [{"case": "a", "median_s": 1.0}])
    place = Place(kind, tmp_path, monkeypatch)
    place.target.write_text(run_file(files, "quick").read_text())
    content = json.loads(place.target.read_text())
    content["sections"][0]["columns"] = [{"header": "case", "key": "case", "form": ""}]
    place.target.write_text(json.dumps(content))
    assert cli.main(["run", "--resume", str(place.path)]) == 0
    assert json.loads(place.text())["status"] == "complete"


@pytest.mark.parametrize("kind", [*REFUSED, PIPE])
def test_a_run_is_resumed_from_a_file_alone(kind, tmp_path, monkeypatch, capfd):
    """A pipe is refused by its name, before anybody waits for what it has."""
    place = Place(kind, tmp_path, monkeypatch)
    assert cli.main(["run", "--resume", str(place.path)]) == 2
    printed = capfd.readouterr()
    allowed = "must be a regular file or a new path, since a run is resumed from the rows in its file"
    assert f"argument --resume: {allowed}; got {str(place.path)!r}, " in printed.err
    assert printed.err.count("\n") == 1 and printed.out == "" and place.is_unchanged()


FOLDER_COMMANDS = {
    "run": lambda files: ["run"],
    "report": lambda files: ["report", next(files.glob("*.json"))],
    "profile": lambda files: ["profile", "energy"],
    "study": lambda files: ["study", "seeds"],
}
"""Commands that write into a folder."""


@pytest.fixture
def study(monkeypatch):
    """A study of one row and no figures."""
    result = Study("seeds", "Seeds", "", Size(), Size(), lambda setting: iter([{"table": "t", "y": 1.0}]),
                   lambda rows: [], lambda rows: [])  # fmt: skip
    monkeypatch.setattr(studies, "STUDIES", {"seeds": ""})
    monkeypatch.setattr(studies, "load", lambda name: result)
    return result


@pytest.mark.parametrize("command", FOLDER_COMMANDS)
@pytest.mark.parametrize(
    "kind", ["regular", "socket", PIPE, "file for a folder", "link into no folder", "link to itself"]
)
def test_a_folder_that_cannot_be_is_an_error_before_any_work(
    command, kind, arguments, study, files, tmp_path, monkeypatch, capfd
):
    """One line that names the option."""
    install(monkeypatch, [])
    place = Place(kind, tmp_path, monkeypatch)
    words = [*map(str, FOLDER_COMMANDS[command](files)), "--output", str(place.path)]
    assert cli.main(words) == 2 and not arguments["work"]
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and "error: argument --output: must be " in printed.err
    assert place.is_unchanged()


@pytest.mark.parametrize("command", FOLDER_COMMANDS)
def test_a_link_to_a_folder_stays(command, arguments, study, files, tmp_path, monkeypatch):
    """Its files are where it leads to."""
    install(monkeypatch, [{"case": "a"}])
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    words = [*map(str, FOLDER_COMMANDS[command](files)), "--output", str(tmp_path / "link")]
    assert cli.main(words) == 0
    assert (tmp_path / "link").is_symlink() and any(path.is_file() for path in (tmp_path / "real").rglob("*"))
    assert not list((tmp_path / "real").rglob("*.tmp"))


def named_file(command, place, files):
    """Words of a command whose file of a known name is to be at a place."""
    words, folder = list(map(str, FOLDER_COMMANDS[command](files))), place.path.parent / "output"
    name = {
        "report": "report.md",
        "profile": f"energy-small-{environment.slug(CPU)}.json",
        "study": "seeds/seeds.json",
    }[command]
    (folder / name).parent.mkdir(parents=True)
    return [*words, "--output", str(folder)], folder / name


@pytest.mark.parametrize("command", ["report", "profile", "study"])
@pytest.mark.parametrize("kind", ["regular", "link", "link to nowhere"])
def test_files_in_a_folder_are_replaced_where_links_lead_to(
    command, kind, arguments, study, files, tmp_path, monkeypatch
):
    """Pages, traces and studies."""
    place = Place(kind, tmp_path, monkeypatch)
    words, name = named_file(command, place, files)
    name.symlink_to(place.path)
    assert cli.main(words) == 0
    assert name.is_symlink() and place.target.read_text() != OLD
    assert place.path.is_symlink() == (kind != "regular") and not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("command", ["report", "profile", "study"])
@pytest.mark.parametrize("kind", [PIPE, "folder", "link into no folder"])
def test_files_in_a_folder_that_cannot_be_are_errors(
    command, kind, arguments, study, files, tmp_path, monkeypatch, capfd
):
    """Before any work, and nobody waits for the reader of a pipe."""
    place = Place(kind, tmp_path, monkeypatch)
    words, name = named_file(command, place, files)
    name.symlink_to(place.path)
    assert cli.main(words) == 2 and not arguments["work"]
    printed = capfd.readouterr()
    assert printed.err.count("\n") == 1 and printed.out == "" and name.is_symlink()
    assert "argument --output: must be a regular file or a new path" in printed.err and repr(str(name)) in printed.err


@pytest.mark.parametrize("kind", [*REPLACED, *REFUSED, PIPE])
def test_a_table_of_configurations_is_a_file(kind, tmp_path, monkeypatch, capfd):
    """It is replaced where a link leads to; what is no file is refused before anything is measured."""
    monkeypatch.setattr(environment, "describe", lambda device: {"device": FACTS["device"]})
    place = Place(kind, tmp_path, monkeypatch)
    if kind in REPLACED:
        if place.target.exists():
            place.target.write_text('{"schema": 1, "kernels": {}}')
        tuning_table.run([], Target("sm_90", device="abacus"), CPU, 60.0, False, place.path, Console(quiet=True))
        assert json.loads(place.text())["kernels"] == {}
    else:
        with pytest.raises(OutputPathError, match="argument --output: must be a regular file or a new path, since the"):
            tuning_table.run([], Target("sm_90"), CPU, 60.0, False, place.path, Console(quiet=True))
        assert cli.main(["tune", "--output", str(place.path)]) == 2
        assert "argument --output: must be a regular file or a new path, since the" in capfd.readouterr().err
        assert place.is_unchanged()
    tuning.forget()


def full_disk(monkeypatch, tmp_path):
    """Fill the disk of all but temporary files."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))

    def full(self, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)


def test_a_run_on_a_disk_that_fills_up_loses_no_row(monkeypatch, tmp_path, capfd):
    """All rows are in a file for temporary files, which can be resumed."""

    def rows():
        yield {"case": "a"}
        full_disk(monkeypatch, tmp_path)
        yield {"case": "b"}

    with monkeypatch.context() as patch:
        install(patch, rows())
        assert cli.main(["run", "--output", str(tmp_path / "out")]) == 2
        error = capfd.readouterr().err
    (kept,) = (tmp_path / "temporary").iterdir()
    assert (
        error.count("\n") == 1
        and f"could not be written (No space left on device); what was computed is kept in {kept}" in error
    )
    monkeypatch.undo()
    assert [row["case"] for row in store.read(kept).rows] == ["a", "b"] and store.read(kept).status == "failed"
    (first,) = (tmp_path / "out").glob("*/*.json")
    assert [row["case"] for row in store.read(first).rows] == ["a"]
    install(monkeypatch, [{"case": "a"}, {"case": "b"}])
    assert cli.main(["run", "--resume", str(kept)]) == 0


def test_a_run_whose_disk_is_full_for_a_moment_loses_no_row(monkeypatch, tmp_path, capfd):
    """The record is written at the end of the run."""
    original, calls = Path.replace, []

    def full_once(self, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(self, target)

    def rows():
        yield {"case": "a"}

    monkeypatch.setattr(Path, "replace", full_once)
    install(monkeypatch, rows())
    assert cli.main(["run", "--output", str(tmp_path / "out")]) == 2
    printed = capfd.readouterr()
    (path,) = (tmp_path / "out").glob("*/*.json")
    assert printed.err.count("\n") == 1 and f"{str(path)!r} could not be written (No space left" in printed.err
    assert [row["case"] for row in store.read(path).rows] == ["a"] and "failed: 1 rows" in printed.out


def test_a_study_on_a_disk_that_fills_up_loses_no_seed(monkeypatch, study, tmp_path, capfd):
    """Its rows are kept in a file for temporary files."""
    monkeypatch.setattr(environment, "describe", lambda device: {k: v for k, v in FACTS.items() if k != "seed"})

    def rows(setting):
        full_disk(monkeypatch, tmp_path)
        yield {"table": "t", "y": 1.0}

    monkeypatch.setattr(studies, "load", lambda name: replace(study, replicate=rows))
    assert cli.main(["study", "seeds", "--output", str(tmp_path / "out")]) == 2
    (kept,) = (tmp_path / "temporary").iterdir()
    assert f"what was computed is kept in {kept}" in capfd.readouterr().err
    assert json.loads(kept.read_text())["finished"] == [0]


def test_a_table_on_a_disk_that_fills_up_loses_no_entry(monkeypatch, tmp_path):
    """Nor does a table of tuned configurations."""
    monkeypatch.setattr(environment, "describe", lambda device: {"device": FACTS["device"]})
    from nntk.bench.tuning.tasks import select_tasks

    def measure(task, target, device):
        full_disk(monkeypatch, tmp_path)
        return {"key": {}, "config": {"a": 1}, "rule": {}, "speed_up": 1.0, "timings": []}

    tasks = select_tasks(["rank_update"], "", CPU)[:1]
    arguments = (
        tasks,
        Target("sm_90", device="x"),
        CPU,
        60.0,
        False,
        tmp_path / "x.json",
        Console(quiet=True),
        measure,
    )
    with pytest.raises(OutputPathError, match="what was computed is kept in"):
        tuning_table.run(*arguments)
    (kept,) = (tmp_path / "temporary").iterdir()
    assert len(json.loads(kept.read_text())["kernels"]["rank_update"]["entries"]) == 1


def test_a_trace_that_cannot_be_written_loses_no_table(arguments, monkeypatch, files, capfd):
    """The tables so far are in the JSON."""

    def full(self, path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Profile, "export_chrome_trace", full)
    assert call(arguments, "profile", files / "table.json") == 2 and "No space left" in capfd.readouterr().err
    assert len(json.loads((files / "table.json").read_text())["profiles"]) == 1


@needs_triton
@pytest.mark.parametrize("kind", ["new", "regular", "link"])
def test_the_profile_of_a_card_is_replaced_where_a_link_leads_to(kind, arguments, tmp_path, monkeypatch):
    """By stand-ins for the card and for its profiler, which appends an ending to the name that it is given."""
    place = Place(kind, tmp_path, monkeypatch)
    started = []
    profiler = SimpleNamespace(
        start=lambda name, hook: started.append(name),
        scope=lambda name, metrics: nullcontext(),
        finalize=lambda session: Path(f"{started[0]}.hatchet").write_text("profile"),
    )
    monkeypatch.setitem(sys.modules, "triton.profiler", profiler)
    monkeypatch.setattr("triton.profiler", profiler, raising=False)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    (case,), console = ops.cases(CPU), Console(file=io.StringIO(), width=400)
    profiling._by_proton(case, case.arguments(1), cost_of(case.op, case.arguments(1)), place.path, CPU, console)
    assert place.text() == "profile" and f"proton-viewer -m time/ms,flop/s {place.path}" in console.file.getvalue()


def test_plots_are_replaced_where_links_lead_to(arguments, monkeypatch, files, tmp_path):
    """As all files of a report."""
    monkeypatch.setattr(
        "nntk.bench.report.plots.plots", lambda measurement, number: [Plot("s", "p", "P", "", "<svg></svg>")]
    )
    folder = tmp_path / "report"
    (folder / "plots").mkdir(parents=True)
    (folder / "plots" / "p.svg").symlink_to(tmp_path / "p.svg")
    assert cli.main(["report", str(next(files.glob("*.json"))), "--output", str(folder)]) == 0
    assert (folder / "plots" / "p.svg").is_symlink() and "<svg" in (tmp_path / "p.svg").read_text()
