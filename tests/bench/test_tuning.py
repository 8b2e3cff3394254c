"""Tuned configurations: looked up for one device, measured honestly, kept whatever stops the measuring."""

import io
import json

import pytest
import torch
from rich.console import Console
from triton_device import without_kernels

from nntk.bench.cli import app as cli
from nntk.bench.measure import environment
from nntk.bench.measure.timing import Timing
from nntk.bench.suites.ops import OpCase
from nntk.bench.tuning import measure, spaces, tasks
from nntk.bench.tuning.table import run as run_tuning
from nntk.kernels import tuning
from nntk.kernels.perturb.triton import config as tiles
from nntk.kernels.perturb.triton import launch
from nntk.kernels.target import Target

CPU = torch.device("cpu")
CARD = Target("sm_90", device="abacus")
KEY = ("gaussian", "bf16", 1024, 1024, 2048)
SMALL = tiles.Tiles(64, 64, 32, 4, 2, 2)


@pytest.fixture
def table(monkeypatch, tmp_path):
    """The table of a device that is not there, in a folder of its own."""
    monkeypatch.setattr(tuning, "TUNED", tmp_path)
    tuning.forget()
    yield tmp_path / "abacus.json"
    tuning.forget()


def entry(config=SMALL, key=KEY, speed_up=1.5):
    """Return an entry as a measurement of one step writes it."""
    return {
        "key": dict(zip(tiles.LAYER_STEP.axes, key, strict=True)),
        "config": vars(config),
        "rule": vars(config),
        "speed_up": speed_up,
        "triton": environment.package_version("triton"),
        "timings": [],
    }


def write(path, *entries, sources=None):
    kernel = {"sources": sources or tiles.LAYER_STEP.digest(), "entries": list(entries)}
    path.write_text(json.dumps({"schema": 1, "kernels": {"layer_step": kernel}}))


def test_a_device_takes_what_was_measured_on_it(table):
    """For its key and the lengths that are rounded to it; another key, and another device, take the rule."""
    write(table, entry())
    rule = tiles.step_tiles(*KEY, "sm_90")
    assert tiles.step_tiles_on(CARD, *KEY) == SMALL
    assert tiles.step_tiles_on(CARD, "gaussian", "bf16", 784, 1000, 1025) == SMALL
    assert tiles.step_tiles_on(CARD, "gaussian", "bf16", 1024, 1024, 1024) == rule
    assert tiles.step_tiles_on(Target("sm_90"), *KEY) == tiles.step_tiles_on(Target("sm_90", device="x"), *KEY) == rule


def test_changed_sources_make_a_table_stale(table):
    """It is not used, and a warning says what measures again."""
    write(table, entry(), sources="other")
    with pytest.warns(UserWarning, match="layer_step changed since it was measured.*nntk-bench tune layer_step"):
        assert tiles.step_tiles_on(CARD, *KEY) == tiles.step_tiles(*KEY, "sm_90")


def test_a_path_that_cannot_hold_the_noise_is_not_taken(table):
    """A measurement at 256 inputs of a layer serves 200, not those beyond the registers of an older card."""
    with tiles.LAYER_PATH.forced(("gaussian", "bf16", 256, 64, 64, False), tiles.Path("stationary")):
        assert tiles.choose_path_on(CARD, "gaussian", "bf16", 200, 64, 64, False) == "stationary"
        assert tiles.choose_path_on(Target("sm_80"), "gaussian", "bf16", 200, 64, 64, False) != "stationary"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ('{"schema": 9}', "schema must be 1"),
        ('{"schema": 1, "kernels": {"layer_step": {"entries": 5}}}', r"kernels.layer_step.entries: .*list; got 5"),
        ('{"schema": 1}', "kernels: Field required"),
        ('{"schema": 1, "kernels": {"x": {}}}', "kernels must be of layer_pair, .*got 'x'"),
        ('{"schema": 1, "kernels": {"layer_step": {"entries": [{"key": {"source": 1}}]}}}', r"entries\[0\].key: must"),
    ],
)
def test_a_broken_table_is_an_error(table, text, message):
    """It names the file, the place, and what may be there."""
    table.write_text(text)
    with pytest.raises(tuning.TableError, match=f"abacus.json.*{message}"):
        tiles.step_tiles_on(CARD, *KEY)


def test_a_forced_choice_ends_with_its_block(table):
    """And tells for which keys it was taken."""
    with tiles.LAYER_STEP.forced(KEY, SMALL) as taken:
        assert tiles.step_tiles_on(CARD, "gaussian", "bf16", 1000, 1000, 2000) == SMALL
        with tiles.LAYER_STEP.forced(KEY, tiles.step_tiles(*KEY, "sm_80")):
            assert tiles.step_tiles_on(CARD, *KEY) != SMALL
        assert tiles.step_tiles_on(CARD, *KEY) == SMALL
    assert taken == [("gaussian", "bf16", 1000, 1000, 2000), KEY]
    assert tiles.step_tiles_on(CARD, *KEY) != SMALL


@pytest.mark.parametrize("arch", spaces.PROCESSORS)
def test_candidates_fit_and_the_rule_is_among_them(arch):
    """For every task on every architecture: of the likely ones no tile twice, none that a kernel cannot take."""
    target = Target(arch, spaces.PROCESSORS[arch])
    for task in tasks.tasks(CPU):
        result = spaces.candidates(task.tunable.name, task.key, target)
        own = spaces.rule(task.tunable.name, task.key, target)
        likely = spaces.likely(result, own, 12)
        assert own in result and own in likely and len(set(likely)) == len(likely) <= 13
        assert all(isinstance(config, task.tunable.config) for config in result)
        if task.tunable.name == "layer_step":
            assert all(cut.block_h * cut.block_n // (32 * cut.num_warps) <= 185 for cut in result if cut != own)


def test_more_work_takes_more_clocks():
    """The model's clocks grow with every length."""
    for place in (2, 3, 4):
        larger = [(part * 4 if number == place else part) for number, part in enumerate(KEY)]
        assert spaces.predict("layer_step", tuple(larger), SMALL, CARD) > spaces.predict("layer_step", KEY, SMALL, CARD)


def test_the_timed_calls_ask_for_their_choices(table, monkeypatch):
    """Without kernels, with the shapes that a card would see: every task of small networks reaches its own launch."""
    without_kernels(monkeypatch)
    monkeypatch.setattr(tasks, "_MULTIPLY_ADDS", 1.0)
    small = [
        task for task in tasks.select_tasks(["layer_step", "layer_path"], "width 64", CPU) if "N=64" in task.case.shape
    ]
    assert len(small) == 12
    for task in small:
        call = OpCase(task.case.op, task.case.shape, task.case.arguments, run=launch.mlp_differences)
        placed = tasks.Task(task.tunable, task.key, call, task.forced)
        with measure._in_use(placed, spaces.rule(task.tunable.name, task.key, Target("sm_90"))):
            call(*call.arguments(1))


def adding(wrong=None, failing=None):
    """A task whose op adds one, by a configuration that the rule, or what is forced, chooses."""

    def run(x):
        chosen = tiles.step_tiles_on(CARD, *KEY)
        if chosen == failing:
            raise RuntimeError("out of resource: shared memory\nand more")
        return x + (2 if chosen == wrong else 1)

    return tasks.Task(
        tiles.LAYER_STEP, KEY, OpCase("add", "small", lambda seed: (torch.full((3,), 1.0 * seed),), run=run)
    )


@pytest.fixture
def seconds(monkeypatch):
    """Times by configuration, in place of measured ones."""
    durations = {}

    def of(case):
        chosen = tiles.step_tiles_on(CARD, *KEY)
        case(0)
        return Timing((durations.get(chosen, 1.0),) * 10)

    def side_by_side(cases, rounds, device):
        return {name: Timing((durations.get(case.args[0], 1.0),) * rounds) for name, case in cases.items()}

    monkeypatch.setattr(measure, "repeat", lambda case, device, **limits: of(case))
    monkeypatch.setattr(measure, "side_by_side", side_by_side)
    return durations


def test_the_fastest_right_one_is_chosen(table, seconds):
    """A configuration that fails or is wrong is recorded with its reason, and never chosen, however fast."""
    own = spaces.rule("layer_step", KEY, CARD)
    first, second, third = [one for one in spaces.candidates("layer_step", KEY, CARD) if one != own][:6:2]
    seconds |= {first: 0.1, second: 0.2, third: 0.5}
    result = measure.measure(adding(wrong=first, failing=second), CARD, CPU)
    assert result["config"] == vars(third) and result["speed_up"] == 2.0 and result["rule"] == vars(own)
    failures = {json.dumps(one["config"]): one["failure"] for one in result["timings"] if "failure" in one}
    assert "differs from the rule's own" in failures[json.dumps(vars(first))]
    assert failures[json.dumps(vars(second))] == "RuntimeError: out of resource: shared memory"
    assert all(one["predicted_clocks"] > 0 for one in result["timings"])


def test_a_gain_within_the_noise_leaves_the_rule(table, seconds):
    """Two per cent are not enough."""
    own = spaces.rule("layer_step", KEY, CARD)
    seconds[next(one for one in spaces.candidates("layer_step", KEY, CARD) if one != own)] = 0.985
    result = measure.measure(adding(), CARD, CPU)
    assert result["config"] == vars(own) and result["speed_up"] == 1.0


def test_a_call_that_does_not_ask_is_an_error(table):
    """A task that times something else would measure nothing."""
    task = tasks.Task(tiles.LAYER_STEP, KEY, OpCase("add", "small", lambda seed: (torch.ones(3),), run=lambda x: x))
    with pytest.raises(RuntimeError, match="no launch of add small asks for this choice"):
        measure.measure(task, CARD, CPU)


def tune(path, count=4, budget=60.0, again=False, one=None):
    """Tune some steps with a measurement that is given; what was measured, the status, and what was printed."""
    measured, console = [], Console(file=io.StringIO(), width=300)

    def note(task, target, device):
        measured.append(task.key)
        return entry(key=task.key) if one is None else one(task)

    wanted = tasks.select_tasks(["layer_step"], "", CPU)[:count]
    status = run_tuning(wanted, CARD, CPU, budget, again, path, console, note)
    return measured, status, console.file.getvalue()


def test_a_run_goes_on_where_it_stopped(table):
    """An interrupt, or the end of the budget, keeps what is finished; the next run does the rest, and no more."""

    def interrupted(task):
        if len(json.loads(table.read_text())["kernels"].get("layer_step", {}).get("entries", ())) == 2:
            raise KeyboardInterrupt
        return entry(key=task.key)

    with pytest.raises(KeyboardInterrupt):
        tune(table, one=interrupted)
    measured, status, printed = tune(table, budget=-1.0)
    assert measured == [] and status == 3 and "2 choices are left" in printed
    measured, status, printed = tune(table)
    assert len(measured) == 2 and status == 0 and "2 of 4 choices were measured before" in printed
    assert tune(table)[0] == [] and len(tune(table, again=True)[0]) == 4
    key = tasks.select_tasks(["layer_step"], "", CPU)[0].key
    assert tiles.step_tiles_on(CARD, *key) == SMALL


def test_stale_entries_and_those_of_another_triton_are_measured_again(table):
    """The first go, the others are replaced."""
    key = tasks.select_tasks(["layer_step"], "", CPU)[0].key
    write(table, entry(key=key), sources="other")
    measured, _, printed = tune(table, count=1)
    assert measured == [key] and "layer_step changed since it was measured: 1 entries are dropped." in printed
    write(table, {**entry(key=key), "triton": "0.0.0"})
    assert tune(table, count=1)[0] == [key]
    assert len(json.loads(table.read_text())["kernels"]["layer_step"]["entries"]) == 1


def test_a_choice_that_cannot_be_measured_fails_the_run(table):
    """The others are measured."""

    def one(task):
        if task.key[0] == "rademacher":
            raise RuntimeError("the rule's own configuration fails")
        return entry(key=task.key)

    measured, status, printed = tune(table, one=one)
    assert len(measured) == 4 and status == 1 and "the rule's own configuration fails" in printed
    assert len(json.loads(table.read_text())["kernels"]["layer_step"]["entries"]) == 3


def test_the_plan_needs_no_card(tmp_path, capsys):
    """From the command line; what is mistaken is named."""
    assert cli.main(["tune", "rank_update", "--dry-run", "--json", str(tmp_path / "plan.json")]) == 0
    assert "3 choices on sm_90" in capsys.readouterr().out
    planned = json.loads((tmp_path / "plan.json").read_text())["choices"]
    assert [row["candidates"] for row in planned] == [13, 13, 13]
    for options, message in (
        (["energy", "--dry-run"], "CHOICE must be one of layer_pair, layer_path, layer_step, rank_update"),
        (["--shape", "x", "--dry-run"], "--shape must be part of a name such as"),
    ):
        assert cli.main(["tune", *options]) == 2 and message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_nothing_is_measured(capsys):
    """And the message says what can be done."""
    assert cli.main(["tune"]) == 2 and "--dry-run needs no GPU" in capsys.readouterr().err
