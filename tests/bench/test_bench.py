"""The bench: its command line, its records, its timing, and what it does when things go wrong."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import nntk
from nntk.bench import suites
from nntk.bench.cli import app as cli
from nntk.bench.measure import baselines, clocks, data, environment, timing
from nntk.bench.results.tables import Column, cell
from nntk.bench.suites import Section


@pytest.fixture
def suite(monkeypatch):
    """Puts a section of given rows in the place of the quick suite; an exception among them is raised."""

    def install(*rows):
        def measure(setting):
            for row in rows:
                if isinstance(row, BaseException):
                    raise row
                yield row

        section = Section(
            "small", "Small", "", (Column("case", "case"), Column("time", "median_s", "seconds")), measure
        )
        monkeypatch.setattr(suites, "catalogue", lambda name: (section,))

    return install


def run(tmp_path, *options):
    """Exit status and the JSON of one run."""
    status = cli.main(["run", "--output", str(tmp_path), *options])
    (path,) = tmp_path.glob("*/*.json")
    return status, json.loads(path.read_text())


def test_a_run_writes_rows_and_what_they_depend_on(suite, tmp_path, capsys):
    """Device, versions, commit, seed, stream version, and every row."""
    suite("measuring", {"case": "a", "median_s": 0.0021, "samples_s": [0.002, 0.0022]}, {"case": "b", "median_s": 3.0})
    status, content = run(tmp_path, "--seed", "5", "--threads", "1")
    assert status == 0 and content["status"] == "complete" and content["seed"] == 5
    assert content["schema"] == 2 and content["suite"] == "quick" and content["stream_version"] == 1
    assert content["device"]["kind"] == "cpu" and content["device"]["threads"] == 1
    assert content["versions"]["torch"] == torch.__version__ and content["versions"]["nntk"] == nntk.__version__
    assert content["device"]["selected"] == "cpu" and [section["finished"] for section in content["sections"]] == [True]
    assert [row["case"] for row in content["rows"]] == ["a", "b"] and content["rows"][0]["samples_s"] == [0.002, 0.0022]
    printed = capsys.readouterr().out
    assert "2.1 ms" in printed and "3 s" in printed and "complete: 2 rows" in printed


def test_a_failed_row_shows_no_speed_and_fails_the_run(suite, tmp_path, capsys):
    """The reason stands where the speed would."""
    suite({"case": "wrong", "failure": "error 3e-01 > 1e-05"}, {"case": "right", "median_s": 1.0})
    status, content = run(tmp_path)
    assert status == 1 and content["status"] == "failed" and len(content["rows"]) == 2
    assert "error 3e-01 > 1e-05" in capsys.readouterr().out


@pytest.mark.parametrize(("stop", "word"), [(KeyboardInterrupt(), "interrupted"), (RuntimeError("broke"), "failed")])
def test_an_interrupted_run_keeps_the_rows_it_finished(suite, tmp_path, stop, word):
    """Ctrl-C exits 130; an error of the program's own is shown; both leave valid JSON."""
    suite({"case": "done", "median_s": 1.0}, stop, {"case": "never", "median_s": 1.0})
    if isinstance(stop, KeyboardInterrupt):
        assert run(tmp_path)[0] == 130
    else:
        with pytest.raises(RuntimeError, match="broke"):
            run(tmp_path)
    (path,) = tmp_path.glob("*/*.json")
    content = json.loads(path.read_text())
    assert content["status"] == word and [row["case"] for row in content["rows"]] == ["done"]
    assert not list(tmp_path.glob("*/*.tmp"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["run", "--suite", "fast"], "argument --suite: must be one of quick, digits, ops"),
        (["run", "--seed", "-1"], "--seed: must be an integer in [0, 2**32), got '-1'"),
        (["run", "--seed", "x"], "--seed: must be an integer in [0, 2**32), got 'x'"),
        (["run", "--threads", "0"], "--threads: must be an integer from 1 to"),
        (["run", "--device", "tpu"], "--device: must be cpu, cuda or cuda:N, got 'tpu'"),
        (["run", "--device", "cpu:1"], "--device: must be cpu, cuda or cuda:N, got 'cpu:1'"),
        (["run", "--device", "cuda:99"], "--device: 'cuda:99' is not there: PyTorch sees"),
        (["measure"], "No such command 'measure'; the commands are run, compare, "),
        ([], "Missing command; the commands are run, compare, "),
        (["run", "--fast"], "No such option: --fast"),
        (["compare", "a.json"], "argument B: is required"),
        (["tune", "--arch", "sm_75"], "argument --arch: must be one of sm_80, sm_90, sm_100, gfx942; got 'sm_75'"),
        (["tune", "--budget", "0"], "argument --budget: must be a number of minutes above 0, got '0'"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(options, message, capsys):
    """No traceback, no usage text; what is wrong and where to read on."""
    assert cli.main(options) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and message in printed.err


@pytest.mark.parametrize("folder", ["/proc/version/x", "x" * 300])
def test_a_folder_that_cannot_be_written_is_one_line_and_exit_2(folder, capsys):
    """Before any measurement."""
    assert cli.main(["run", "--output", folder]) == 2
    printed = capsys.readouterr()
    assert (
        printed.out == ""
        and printed.err.count("\n") == 1
        and "argument --output: must be a folder that can be written" in printed.err
    )


@pytest.mark.parametrize("command", [["--help"], ["run", "--help"]])
def test_help_has_examples_and_lists_the_suites(command, capsys):
    """The help is the manual."""
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert "nntk-bench run --suite digits" in printed and "Exit status" in printed


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_a_manual(command, capsys, monkeypatch):
    """Examples and the meaning of options, within 120 columns."""
    monkeypatch.setenv("COLUMNS", "120")
    assert cli.main([command, "--help"]) == 0
    printed = capsys.readouterr().out
    assert "examples:" in printed and f"nntk-bench {command} " in printed
    assert max(map(len, printed.splitlines())) <= 120


def test_the_module_is_the_command():
    """``python -m nntk.bench --version``, from another folder."""
    command = [sys.executable, "-m", "nntk.bench", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout == f"nntk {nntk.__version__}\n"


def test_the_digits_suite_runs(monkeypatch, tmp_path, capsys):
    """The real thing, with few displacements: accuracies of both kernels in the JSON and in the table."""
    monkeypatch.setattr("nntk.bench.suites.digits.SAMPLES", 32)
    status, content = run(tmp_path, "--suite", "digits")
    assert status == 0 and len(content["rows"]) == 8
    assert all(0.2 < row["nonlocal_accuracy"] <= 1 for row in content["rows"])
    assert "autograd NTK" in capsys.readouterr().out


def throttling(monkeypatch, slow):
    """A card that throttles at some of its samples, by number; each sample takes as many seconds as its number."""
    numbers = iter(range(1000))
    monkeypatch.setattr(timing, "seconds", lambda run, device: run() or 1.0)
    monkeypatch.setattr(
        timing, "state", lambda device: clocks.State(1980, 1980, 50, ("hot",) if next(numbers) in slow else ())
    )


def test_samples_of_a_throttling_card_are_left_out_and_counted(monkeypatch):
    """One by one, or a round for all; a card that never recovers is measured all the same."""
    cpu = torch.device("cpu")
    throttling(monkeypatch, {0, 3})
    done = timing.repeat(lambda number: None, cpu, max_runs=6, duration=99.0)
    assert len(done.samples) == 6 and done.discarded == 2 and not any(one.throttled for one in done.states)
    assert done.row()["throttled_samples"] == 2 and done.row()["sm_mhz"] == [1980] * 6
    throttling(monkeypatch, {2, 3, 5})
    both = timing.side_by_side({"a": lambda number: None, "b": lambda number: None}, 4, cpu)
    assert all(len(one.samples) == 4 and one.discarded == 2 for one in both.values())
    throttling(monkeypatch, range(1000))
    assert len(timing.repeat(lambda number: None, cpu, max_runs=6).samples) == 5
    always = timing.side_by_side({"a": lambda number: None}, 4, cpu)["a"]
    assert len(always.samples) == 4 and always.discarded == 8


def test_a_low_clock_is_throttling_and_a_power_cap_is_not():
    """Below three quarters of the highest."""
    assert clocks.State(1400, 1980, 50).throttled and not clocks.State(1500, 1980, 50).throttled
    assert clocks.state(torch.device("cpu")) is None


class FakeNvml:
    """Replies of NVML for a card that is hot and capped in power."""

    NVML_CLOCK_SM, NVML_TEMPERATURE_GPU = 1, 0

    def __getattr__(self, name):
        """Its functions, by name."""
        return {
            "nvmlDeviceGetCurrentClocksThrottleReasons": lambda handle: 0x24,
            "nvmlDeviceGetClockInfo": lambda handle, kind: 1700,
            "nvmlDeviceGetMaxClockInfo": lambda handle, kind: 1980,
            "nvmlDeviceGetTemperature": lambda handle, kind: 88,
        }[name]


def test_a_card_is_asked_and_need_not_answer(monkeypatch):
    """Reasons become words, a power cap is none of them; where nothing answers there is no state."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1-2"))
    monkeypatch.setattr(clocks, "_handle", lambda uuid: (FakeNvml(), None))
    assert clocks.state(torch.device("cuda")) == clocks.State(1700, 1980, 88, ("hot",))
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1-2"))
    assert clocks.state(torch.device("cuda")) is None


def test_timing_goes_round_robin_and_compares_within_rounds():
    """Each case once a round after a warm-up; ratios are medians of same-round ratios."""
    calls = []
    cases = {name: lambda number, name=name: calls.append((number, name)) for name in "ab"}
    timings = timing.side_by_side(cases, rounds=3, device=torch.device("cpu"))
    assert calls == [(number, name) for number in range(4) for name in "ab"]
    assert all(len(done.samples) == 3 for done in timings.values())
    slow, fast = timing.Timing((2.0, 4.0, 9.0)), timing.Timing((1.0, 4.0, 3.0))
    assert fast.ratio_to(slow) == 2.0 and slow.median == 4.0 and slow.quartiles == (3.0, 6.5)


@pytest.mark.parametrize(
    ("form", "value", "text"),
    [
        ("seconds", 12.345, "12.3 s"),
        ("seconds", 0.0123, "12.3 ms"),
        ("seconds", 4.5e-5, "45 us"),
        ("times", 2.0, "2.00x"),
        ("percent", 0.9631, "96.3 %"),
        ("per second", 2.5e6, "2.5 M/s"),
        ("per second", 120.0, "120 /s"),
        (".1e", 1e-5, "1.0e-05"),
        ("", None, ""),
    ],
)
def test_cells(form, value, text):
    """Values are written with the digits that a reader needs."""
    assert cell(Column("x", "x", form), {"x": value}) == text


def test_device_folders_are_named_after_the_device(monkeypatch):
    """Lower case, hyphens."""
    cpu = torch.device("cpu")
    monkeypatch.setattr(environment, "device_name", lambda device: "AMD EPYC(TM) 9654")
    assert environment.slug(cpu) == "cpu-amd-epyc-tm-9654"


def test_the_stacked_baseline_estimates_the_same_kernel():
    """The baseline is a fair one: its kernel tends to the NTK as ours does."""
    model = data.he_network((64, 32, 1), torch.nn.Tanh, 0, torch.device("cpu"))
    x = data.load(0, torch.device("cpu")).images[:20]
    ntk = nntk.local_ntk(model, x)
    kernel = baselines.stacked_kernel(model, x, gamma=1e-2, samples=3000, seed=0)
    predicted = nntk.monte_carlo_error(ntk, 3000, nntk.NonlocalNTK(model).num_params)
    assert float((kernel - ntk).norm()) < 4 * predicted


def test_digits_are_shuffled_by_their_seed():
    """1797 images in [0, 1]; another seed, another order; the same seed, the same."""
    cpu = torch.device("cpu")
    first, again, other = data.load(0, cpu), data.load(0, cpu), data.load(1, cpu)
    assert first.images.shape == (1797, 64) and 0 <= first.images.min() and first.images.max() == 1
    assert torch.equal(first.labels, again.labels) and not torch.equal(first.labels, other.labels)
    assert torch.equal(first.labels.bincount(), other.labels.bincount())
