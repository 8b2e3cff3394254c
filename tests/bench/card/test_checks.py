"""Checks of a card: tests that are counted while they run, and reports of a sanitizer."""

import sys
import time
from pathlib import Path

import pytest
import torch

from nntk.bench.card import checks, speeds
from nntk.bench.card.plan import Context, LeftOutError
from nntk.kernels.dispatch import REGISTERED

CPU = torch.device("cpu")


def followed(monkeypatch, *printed, status=0):
    """Let a process print these lines and end with this status, whatever its command."""

    def follow(command, deadline, receive, changes=None):
        for line in printed:
            receive(f"{line}\n")
        return status

    monkeypatch.setattr(checks, "_follow", follow)


def test_the_fast_tests_are_there():
    """Each file, and each function that is named."""
    for name in checks.FAST:
        file, _, function = name.partition("::")
        text = (Path(__file__).parents[2] / file).read_text()
        assert f"def {function or 'test_'}" in text


PASSED = "tests/device/test_kernels.py::test_a[x] PASSED [ 10%]"
FAILED = "[gw1] [ 20%] FAILED tests/device/test_kernels.py::test_b[y z] "


@pytest.mark.parametrize(
    ("lines", "status", "expected", "failure"),
    [
        ((PASSED, "== 1 passed =="), 0, (1, 0), ""),
        ((PASSED, FAILED), 1, (1, 1), "1 tests failed: tests/device/test_kernels.py::test_b[y"),
        ((PASSED,), None, (1, 0), ""),
        (("ImportError: no module",), 2, (0, 0), "pytest ended with status 2: ImportError: no module"),
    ],
)
def test_tests_are_counted_line_by_line(monkeypatch, tmp_path, lines, status, expected, failure):
    """So that those that ended before the time was over count, with one process or with several."""
    followed(monkeypatch, *lines, status=status)
    (row,) = checks.pytest_rows(Context(CPU, tmp_path), "fast", [], 60.0)
    assert (row["passed"], row["failed"]) == expected and row.get("failure", "").startswith(failure)
    assert ("failure" in row) == bool(failure) and ("note" in row) == (status is None)


@pytest.mark.parametrize(
    ("lines", "status", "failures"),
    [
        (("call a", "call b", "call end"), 0, [None, None]),
        (("call a", "========= Invalid read of size 4", "call b", "call end", "========= ERROR SUMMARY: 1"), 86,
         ["compute-sanitizer: Invalid read of size 4", None]),
        (("call a", "call b", "aborted"), -6, [None, "status -6: aborted"]),
        (("call a",), None, ["the time was over"]),
        (("no module",), 1, ["no call was made, status 1: no module"]),
    ],
)  # fmt: skip
def test_a_report_of_the_sanitizer_belongs_to_the_call_before_it(monkeypatch, tmp_path, lines, status, failures):
    """And a process that ends in a call fails it."""
    followed(monkeypatch, *lines, status=status)
    rows = list(checks.sanitizer_rows(Context(CPU, tmp_path)))
    assert [row.get("failure") for row in rows] == failures


def test_without_a_sanitizer_a_card_is_told_so(monkeypatch, tmp_path):
    """A clear reason, and no row."""
    monkeypatch.setattr(checks, "tool_path", lambda name: None)
    with pytest.raises(LeftOutError, match="compute-sanitizer is not installed"):
        list(checks.sanitizer_rows(Context(torch.device("cuda"), tmp_path)))


def test_every_op_with_kernels_has_a_small_call():
    """What the sanitizer does not see, it does not check."""
    called = {name.partition(" ")[0] for name in checks.small_calls(CPU)}
    assert called <= REGISTERED.keys()
    with_kernels = {name for name, op in REGISTERED.items() if op.launch}
    # These two launch the kernels of other ops alone: the stream's, and the assembly's.
    assert with_kernels - called <= {"multiply_displacements", "inner_product_of_gradients"}


def test_a_process_is_followed_until_it_ends_or_the_time_is_over():
    """Its lines come one by one, and it is ended at the deadline."""
    lines = []
    command = [sys.executable, "-I", "-S", "-c", "print('one'); print('two')"]
    assert checks._follow(command, time.monotonic() + 60, lines.append) == 0 and lines == ["one\n", "two\n"]
    waiting = [sys.executable, "-I", "-S", "-c", "import signal; print('begun', flush=True); signal.pause()"]
    assert checks._follow(waiting, time.monotonic(), lines.append) is None and lines[-1] == "begun\n"


def test_counters_of_nsight_compute():
    """A line of names, one of units, then one for each kernel; without them what the tool says."""
    metric = next(iter(speeds._COUNTERS))
    text = f'==PROF== ...\n"ID","{metric}"\n"","Tbyte/s"\n"0","5.1"\n'
    assert [row["text"] for row in speeds.counter_rows(text, 0)] == ["5.1 Tbyte/s"]
    (row,) = speeds.counter_rows("==ERROR== ERR_NVGPUCTRPERM no permission\n", 1)
    assert row["failure"] == "ncu ended with status 1: ERROR== ERR_NVGPUCTRPERM no permission"
