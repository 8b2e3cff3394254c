"""Predictions from machine code: by hand for small cases, and as the pages state them."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from nntk.bench.machine_code.measure import Measured, Part
from nntk.bench.machine_code.prediction import model
from nntk.kernels.ahead_of_time import Work

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "results" / "resources" / "prediction.json"
TIMES = ("host_s", "moved_s", "share", "call_s", "moved_call_s", "operator_s")
# Two multiprocessors of sm_90 at a clock of one.
CARD = model.Card("", "sm_90", processors=2, bf16=2.0 * 2048 * 2, fp32=1.0, bandwidth=1.0, source="")


def part(**cycles):
    """A loop, or what is outside of them, that keeps pipes busy for so long."""
    return Part(Work(), {}, {}, {}, 1.0, {"issue": 0.0, "tensor": 0.0, **cycles})


def measured(loop, once, registers=168, shared=150_000, num_warps=8):
    """A kernel with one main loop, of which a multiprocessor holds one program unless told otherwise."""
    return Measured(registers, 0, 0, shared, 0, num_warps, False, 1, False, (loop,), once)


@pytest.mark.parametrize(
    ("registers", "shared", "num_warps", "programs"),
    [(128, 0, 8, 2), (129, 0, 8, 1), (255, 0, 4, 2), (168, 0, 4, 3), (32, 0, 4, 16), (32, 115_712, 4, 2),
     (32, 115_713, 4, 1), (255, 232_448, 8, 1), (24, 0, 32, 2)],
)  # fmt: skip
def test_programs_that_a_multiprocessor_holds(registers, shared, num_warps, programs):
    """As sm_90 has it: 65,536 registers, 228 KB of which one is reserved for each program, 64 warps."""
    assert model.resident(measured(part(), part(), registers, shared, num_warps), "sm_90") == programs


def test_a_launch_alone_takes_its_busiest_pipes_one_after_the_other():
    """Products hide what issues beside them; epilogues do not, and bytes only what is shorter than they."""
    assert CARD.clock == 1.0
    launch = model.Launch("", programs=4, turns=10, bytes=0.0)
    kernel = measured(part(issue=3.0, tensor=2.0), part(issue=5.0))
    assert model.time_of(launch, kernel, CARD) == model.Time(40.0, 20.0, 10.0, 0.0)
    kernel = measured(part(issue=1.0, tensor=2.0), part(issue=5.0))
    result = model.time_of(replace(launch, bytes=80.0), kernel, CARD)
    assert result == model.Time(40.0, 0.0, 10.0, 30.0, roof=80.0) and result.total == 80.0
    assert result.shares == "products 50%, memory 38%, once 12%"


def test_programs_that_share_a_multiprocessor_fill_each_others_gaps():
    """The busiest pipe of all decides: an epilogue costs what the products leave of its own pipe."""
    launch = model.Launch("", programs=4, turns=10, bytes=0.0)
    hidden = measured(part(issue=1.0, tensor=2.0), part(issue=5.0), registers=128, shared=0)
    assert model.time_of(launch, hidden, CARD) == model.Time(40.0, 0.0, 0.0, 0.0)
    longer = measured(part(issue=1.0, tensor=2.0), part(issue=15.0), registers=128, shared=0)
    assert model.time_of(launch, longer, CARD) == model.Time(40.0, 0.0, 10.0, 0.0)


def test_the_roof_is_products_or_bytes():
    """The roof is the longer of the times for products and for bytes, at the card's rates."""
    launch = model.Launch("", programs=4, turns=10, bytes=30.0, flops=20.0 * CARD.bf16)
    assert model.time_of(launch, measured(part(tensor=2.0), part()), CARD).roof == 30.0
    assert model.time_of(replace(launch, bytes=1.0), measured(part(tensor=2.0), part()), CARD).roof == 20.0


def test_the_second_level_cache_adds_what_exceeds_all_else():
    """It is no part of the total; a launch that takes longer for another reason takes no longer for it."""
    card = replace(CARD, cache=4.0)
    launch = model.Launch("", programs=4, turns=10, bytes=0.0, fetched=400.0)
    kernel = measured(part(issue=1.0, tensor=2.0), part(issue=5.0))
    result = model.time_of(launch, kernel, card)
    assert (result.total, result.cache, result.with_cache) == (50.0, 50.0, 100.0)
    assert model.time_of(replace(launch, fetched=200.0), kernel, card).with_cache == 50.0
    waiting = model.time_of(replace(launch, bytes=90.0), kernel, card)
    assert (waiting.memory, waiting.cache, waiting.with_cache) == (40.0, 10.0, 100.0)


@pytest.mark.parametrize("name", model.CARDS)
def test_a_card_has_the_clock_of_its_peak(name):
    """The rate of products over what all multiprocessors multiply in a clock: between one and three gigahertz."""
    card = model.CARDS[name]
    assert 1e9 < card.clock < 3e9 and card.cache > card.bandwidth
    assert card.cache == pytest.approx(model.with_cache(card).cache, rel=0.01)


@pytest.mark.machine_code
def test_what_is_predicted_is_what_is_published(tmp_path):
    """The command makes the committed rows again, and the pages have their tables."""
    pytest.importorskip("triton")
    from nntk.bench.machine_code.prediction.run import markdown  # its kernels need Triton

    result = tmp_path / "prediction.json"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    cards = ["--card", "h200", "--card", "b200"]  # The pages have the tables of these.
    command = [sys.executable, "-m", "nntk.bench", "predict", *cards, "--json", str(result)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, now = (json.loads(path.read_text()) for path in (COMMITTED, result))
    for name, page in (
        ("h200", ROOT / "results" / "MEASURED.md"),
        ("b200", ROOT / "kernels" / "perturb" / "HISTORY.md"),
    ):
        old, new = before["cards"][name], now["cards"][name]
        assert [row["case"] for row in new["rows"]] == [row["case"] for row in old["rows"]]
        # The host's time depends on the machine that predicts; its counts do not.
        for card in (old, new):
            card["host"] = [{key: value for key, value in row.items() if key not in TIMES} for row in card["host"]]
        assert [row["copies"] for row in new["host"]] == [0] * 8
        # Another version of the compiler makes other machine code.
        if now["versions"]["triton"] == before["versions"]["triton"]:
            assert new == old
        assert markdown(old["rows"]) in page.read_text()
