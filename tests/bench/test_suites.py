"""The suites' own referee: wrong ops, ones that do nothing, that remember, or are beyond the roof are caught."""

import json

import pytest
import torch

from nntk.bench import suites
from nntk.bench.cli import app as cli
from nntk.bench.measure import roofline
from nntk.bench.suites import models, op_arguments, ops, ridge, scaling
from nntk.kernels.cost import Cost

CPU = torch.device("cpu")
ROOFS = [
    roofline.Roof(name, unit, 1.0, (1e-15,), "")
    for name, unit in (("copy", "bytes"), ("read", "bytes"), ("fp32", "flops"), ("fp64", "flops"))
]


@pytest.fixture(autouse=True)
def known_roofs(monkeypatch):
    """Roofs out of reach, in place of measured ones."""
    monkeypatch.setattr(roofline, "roofs", lambda device: ROOFS)


def energy(run=None):
    """A small rank update, or what pretends to be one."""
    result = op_arguments.ArgumentMakers(CPU)
    return ops.OpCase("energy", "small", result.energy(8, 6, 1, "trace"), run=run)


def right(*arguments):
    return torch.ops.nntk.energy(*arguments)


def test_a_right_op_shows_its_speed_beside_the_roof():
    """With every sample, the work of the call, and what limits it."""
    row = ops.measure(energy(), CPU, 0)
    assert "failure" not in row and row["error"] < 1e-6 and row["median_s"] > 0 and len(row["samples_s"]) >= 5
    assert row["flops"] == 2 * 8 * 6 * 7 / 2 and row["bytes"] == 4 * (8 * 6 + 36) + 8 * 8
    assert row["roof"] in ("memory", "fp32") and 0 < row["roof_share"] <= 1


def remembering():
    """An op that computes once."""
    kept = []

    def run(*arguments):
        kept.append(kept[0] if kept else right(*arguments))
        return kept[0]

    return run


def tired():
    """An op that is right until it is timed, and then remembers."""
    calls, kept = [], {}

    def run(*arguments):
        calls.append(1)
        return right(*arguments) if len(calls) <= 2 else kept.setdefault("result", right(*arguments))

    return run


@pytest.mark.parametrize(
    "run",
    [
        lambda *arguments: right(*arguments) * 1.001,
        lambda *arguments: torch.zeros_like(right(*arguments)),
        lambda *arguments: torch.full_like(right(*arguments), torch.nan),
        remembering(),
        tired(),
    ],
    ids=["wrong", "does nothing", "not a number", "remembers", "remembers when timed"],
)
def test_a_wrong_op_shows_its_error_and_no_speed(run):
    """Before it is timed, or after."""
    row = ops.measure(energy(run), CPU, 0)
    assert "error" in row["failure"] and "median_s" not in row and "roof_share" not in row


def test_beyond_the_roof_is_an_error(monkeypatch):
    """It names the op; a roof that has risen since it was measured is none."""
    slow, again = [roofline.Roof(roof.name, roof.unit, 1.0, (1.0,), "") for roof in ROOFS], []
    monkeypatch.setattr(roofline, "roofs", lambda device: slow)
    monkeypatch.setattr(roofline, "remeasure", lambda device, only: again.append(only) or slow)
    row = ops.measure(energy(), CPU, 0)
    assert "energy: " in row["failure"] and "% of the roof" in row["failure"] and "median_s" not in row
    assert again in ([("copy", "read")], [("fp32", "tf32")])
    monkeypatch.setattr(roofline, "remeasure", lambda device, only: ROOFS)
    assert "failure" not in ops.measure(energy(), CPU, 0)


def test_float32_may_be_three_products_of_tf32():
    """The higher of the two is the roof; memory is the faster of copies and reads."""
    result = [
        roofline.Roof(name, "flops", work, (1.0,), "")
        for name, work in (("copy", 10.0), ("read", 20.0), ("fp32", 6.0), ("tf32", 30.0))
    ]
    assert roofline.least_seconds(Cost(flops=100.0), "fp32", result) == (10.0, "fp32")
    assert roofline.least_seconds(Cost(flops=1.0, bytes=40.0), "fp32", result) == (2.0, "memory")


def test_every_op_is_measured():
    """At one shape at least; cases have names of their own."""
    from nntk.bench.suites.op_arguments import small_calls

    cases = ops.cases(CPU)
    without = {"multiply_displacements", "inner_product_of_gradients"}
    assert {case.op for case in cases} == {name for name, _ in small_calls()} - without
    assert len({(case.op, case.shape) for case in cases}) == len(cases)


def test_every_suite_has_sections():
    """And every section columns for its rows."""
    for name in suites.SUITES:
        assert all(section.columns and section.title for section in suites.catalogue(name))


def test_exponents_and_the_axes():
    """Powers are found; along an axis only its own size changes."""
    assert scaling.exponent([1, 10, 100], [5, 50, 500]) == pytest.approx(1)
    for axis, place in (("M", 1), ("N", 2)):
        values = scaling.shapes(axis, CPU)
        assert [shape[place] for _, shape in values] == [value for value, _ in values]
        assert len({tuple(part for number, part in enumerate(shape) if number != place) for _, shape in values}) == 1


def test_models_are_checked_and_timed(monkeypatch):
    """Each network's cases beside the same baseline, and differences by rules within their tolerance."""
    small = {name: (make, (2, *shape[1:]), 2) for name, (make, shape, _) in models._NETWORKS.items()}
    for name, value in {"_NETWORKS": small, "_ROUNDS": 2}.items():
        monkeypatch.setattr(models, name, value)
    monkeypatch.setattr(models.memory, "peak", lambda prepare, *arguments, device: prepare(*arguments)().nbytes)
    rows = [row for row in models.MODELS.rows(suites.Setting(CPU, 0)) if isinstance(row, dict)]
    assert len(rows) == 40 and not any("failure" in row for row in rows)
    errors = [row["error"] for row in rows if "error" in row]
    assert len(errors) == 8 and max(errors) < 1e-5 and all(row["num_params"] < 10**6 for row in rows)
    chosen = [row for row in rows if "route" in row]
    assert len(chosen) == 8 and all(row["more_bytes"] == 4 * row["peak_bytes"] for row in chosen)


def test_large_ridge_regression_explains_its_targets(monkeypatch):
    """With the time of an evaluation beside that of inference, and the memory that it took."""
    monkeypatch.setattr(ridge, "SIZES", (2000,))
    monkeypatch.setattr(ridge, "SAMPLES", 64)
    (row,) = [row for row in ridge.RIDGE.rows(suites.Setting(CPU, 0)) if isinstance(row, dict)]
    assert row["evaluation_s"] == row["fit_s"] / (2 * 64 * 2000) and row["inference_s"] > 0 and row["peak_bytes"] >= 0
    assert 0.3 < row["explained"] <= 1


def test_a_profile_names_operators_and_writes_a_trace(monkeypatch, tmp_path, capsys):
    """Beside the least time of the roof; an unknown op lists the known ones, an unknown shape those of the op."""
    monkeypatch.setattr(ops, "cases", lambda device: [energy()])
    table = tmp_path / "tables" / "energy.json"
    assert cli.main(["profile", "energy", "--output", str(tmp_path), "--json", str(table)]) == 0
    printed = capsys.readouterr().out
    assert "aten::" in printed and "least time by the roof" in printed
    (trace,) = tmp_path.glob("energy-small-*.json")
    assert json.loads(trace.read_text())["traceEvents"]
    (profiled,) = json.loads(table.read_text())["profiles"]
    assert profiled["trace"] == str(trace) and sum(row["share"] for row in profiled["operators"]) <= 1 + 1e-9
    for options, message in (
        (["energie"], "OP must be one of energy; got 'energie'"),
        (["energy", "--shape", "x"], "small"),
    ):
        assert cli.main(["profile", *options]) == 2 and message in capsys.readouterr().err
