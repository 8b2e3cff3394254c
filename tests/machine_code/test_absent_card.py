"""Triton's own launches on a driver that launches nothing, which holds them to a card's rules."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def seen():
    """What calls on a card that is not there did, in a process of their own."""
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": f"{TESTS}:{TESTS.parent}", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(TESTS / "machine_code" / "calls_on_absent_card.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.machine_code
def test_repeated_launches_get_the_addresses_of_their_parts(seen):
    """Every chunk of every path reads and writes its own displacements; and a second call binds nothing again."""
    for launches, by_triton, wrong, checked in seen["routes"].values():
        assert launches and by_triton == 0 and wrong == []
        # The fused network has no chunks: one launch for each of two groups, and for each of two layers without them.
        assert checked or launches == 4


@pytest.mark.machine_code
def test_repeated_calls_launch_with_the_addresses_of_their_tensors(seen):
    """As many launches as the call itself, each of them direct, with the addresses that Triton would find."""
    for launches, repeated, checked, wrong in seen["recorded"].values():
        assert launches == repeated == checked and wrong == []


@pytest.mark.machine_code
def test_repeated_calls_keep_tensor_maps_of_the_same_addresses(seen):
    """The fourth call launches as often as the first, and encodes none."""
    for first, _, third, fourth in seen["kept"]:
        assert first[0] == third[0] == fourth[0] and first[1] == third[1] > fourth[1] == 0


@pytest.mark.machine_code
def test_planned_paths_are_taken(seen):
    """For every family, at the sizes of the design's targets, of a small network, and of one that is fused."""
    for planned, taken in seen["paths"]:
        assert taken and all(paths == planned for paths in taken)
    assert {path for planned, _ in seen["paths"] for path in planned} == {"step", "stationary", "staged", "fused"}


@pytest.mark.machine_code
def test_compiling_ahead_launches_nothing(seen):
    """Kernels that are compiled already are not launched either."""
    assert seen["ahead"] == 0


@pytest.mark.machine_code
def test_the_card_that_is_not_there_refuses_what_cards_refuse(seen):
    """Grids beyond 65,535 programs in y and z, and tensor maps that break a rule of the driver."""
    good, largest, *refused = seen["grids"]
    assert good == largest == "" and all("refuses a grid of so many programs" in text for text in refused)
    good, *bad = seen["maps"]
    assert good == 0 and all(bad)
