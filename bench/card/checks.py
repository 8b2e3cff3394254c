"""Checks before anything is timed: the environment, the GPU tests, and small calls under the compute sanitizer."""

import importlib.util
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from nntk.bench.card.plan import Context, LeftOutError, Rows, Step, Unit, bound, python_environment
from nntk.bench.measure import clocks, environment
from nntk.bench.results.schema import Row
from nntk.bench.suites.op_arguments import ArgumentMakers
from nntk.bench.suites.ops import OpCase

_TESTS = Path(__file__).resolve().parents[2] / "tests"
FAST = (
    "device/test_kernel_stream.py",
    "device/test_kernel_fixed_weights.py",
    "device/test_kernels.py::test_difference_against_float64",
    "device/test_kernels.py::test_halves_and_scales",
    "device/test_kernels.py::test_a_graph_captures_the_evaluation",
    "device/test_kernels.py::test_peak_memory_on_the_gpu",
    "recordings/test_recordings.py",
    "device/test_kernel_assemble.py",
    "device/test_kernel_local_ntk.py",
)
"""Fast tests: those that time allows, of every kernel."""
_FAST_SECONDS, _CALL_SECONDS, _ALL_SECONDS, _REHEARSAL_SECONDS = 90.0, 120.0, 600.0, 500.0
"""Seconds after which tests and calls are ended; what they printed until then counts."""
_OUTCOME = re.compile(r"\b(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")
_TEST = re.compile(r"\S+\.py::\S+")
_SHOWN_FAILURES = 5


def environment_rows(context: Context) -> Rows:
    """Yield what the figures depend on beside the facts of the journal: card, driver, clocks, tools."""
    device = context.device
    yield {"case": "device", "text": environment.device_name(device)}
    if context.on_card:
        properties = torch.cuda.get_device_properties(device)
        yield {"case": "architecture", "text": f"sm_{properties.major}{properties.minor}"}
        yield {"case": "multiprocessors", "value": properties.multi_processor_count}
        yield {"case": "memory", "value": properties.total_memory, "units": "bytes"}
        yield {"case": "second-level cache", "value": properties.L2_cache_size, "units": "bytes"}
        yield {"case": "CUDA", "text": str(torch.version.cuda)}
        state = clocks.state(device)
        yield {"case": "clock", "text": "unknown: pip install nvidia-ml-py" if state is None else str(state)}
    yield {"case": "driver", "text": environment.driver(device) or "unknown"}
    for tool in ("compute-sanitizer", "ncu"):
        yield {"case": tool, "text": tool_path(tool) or "not installed"}


def tool_path(name: str) -> str | None:
    """Return the path of a tool of CUDA; None if it is not installed."""
    return shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin")


def _deadline(context: Context, seconds: float) -> float:
    """Return the time at which a process is ended: with the minutes, or before."""
    return min(context.deadline, time.monotonic() + (_REHEARSAL_SECONDS if context.is_dry_run else seconds))


def pytest_rows(context: Context, name: str, arguments: Sequence[str], seconds: float) -> Rows:
    """Run tests in a process of their own, and yield how many passed, even if the time ended before the last.

    Args:
        context: The context.
        name: Name of the row.
        arguments: Arguments of pytest, in the folder of the tests.
        seconds: Seconds after which the tests are ended.

    Yields:
        A row with the counts; it has a ``failure`` if a test failed, or if the tests could not be run.

    Raises:
        LeftOutError: If the tests are not installed.
    """
    if not (_TESTS / "device").is_dir() or importlib.util.find_spec("pytest") is None:
        raise LeftOutError("the tests are not there: this is no checkout of the sources with pytest")
    options = ["-v", "--no-header", "--tb=line", "-p", "no:cacheprovider"]
    if context.on_card and importlib.util.find_spec("xdist") is not None:
        options += ["--numprocesses", "4", "--dist", "loadgroup"]
    command = [sys.executable, "-m", "pytest", *options, *arguments]
    counts, failed, last = Counter[str](), [], ""

    def note(line: str) -> None:
        nonlocal last
        outcome, test = _OUTCOME.search(line), _TEST.search(line)
        if outcome and test:
            counts[outcome[1]] += 1
            if outcome[1] in ("FAILED", "ERROR") and test[0] not in failed:
                failed.append(test[0])
        last = line.strip() or last

    begin = time.monotonic()
    # Triton reads this when its language is imported, for which the tests' own settings may come too late.
    changes = {} if context.on_card else {"TRITON_INTERPRET": "1"}
    status = _follow(command, _deadline(context, seconds), note, changes)
    row: Row = {"case": name, "passed": counts["PASSED"], "failed": len(failed), "skipped": counts["SKIPPED"]}
    row["time_s"] = time.monotonic() - begin
    if status is None:
        row["note"] = "the time was over before the last test"
    if failed:
        row |= {"failure": f"{len(failed)} tests failed: {', '.join(failed[:_SHOWN_FAILURES])}", "tests": failed}
    elif status not in (0, None):
        row["failure"] = f"pytest ended with status {status}: {last[:200]}"
    yield row


def _follow(
    command: Sequence[str], deadline: float, receive: Callable[[str], None], changes: Mapping[str, str] | None = None
) -> int | None:
    """Run a command, and hand on its lines; return its status, or None if it was ended at the deadline."""
    ended = threading.Event()
    with subprocess.Popen(
        bound(command), cwd=_TESTS.parent, env=python_environment() | dict(changes or {}), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    ) as process:  # fmt: skip

        def end() -> None:
            ended.set()
            process.kill()

        timer = threading.Timer(max(1.0, min(deadline - time.monotonic(), threading.TIMEOUT_MAX)), end)
        timer.start()
        try:
            assert process.stdout is not None, "the output is a pipe"
            for line in process.stdout:
                receive(line)
            status = process.wait()
        finally:
            timer.cancel()
            if process.poll() is None:
                process.kill()
    return None if ended.is_set() else status


def small_calls(device: torch.device) -> dict[str, Callable[[], object]]:
    """Return a small call of every kernel, in float32: each is a name and a function without arguments."""
    make = ArgumentMakers(device)
    cases = [
        *(OpCase("unit_displacements", name, make.unit(2, name)) for name in ("gaussian", "rademacher")),
        *(OpCase("squared_norms", name, make.stream(2, name)) for name in ("gaussian", "lowrank(2)")),
        *(
            OpCase("mlp_differences", f"{name} {precision} N={n}", make.network(widths, n, 3, name, precision))
            for name in ("gaussian", "rademacher", "flipout(2)", "lowrank(2)")
            for precision in ("bf16", "fp32")
            # One launch for a small network, and the other paths of a layer for a larger one.
            for widths, n in (((17, 20, 3), 20), ((70, 300, 70, 3), 300))
        ),
        OpCase("displacement_products", "gaussian", make.products(2, 8, 33, 20, "gaussian")),
        OpCase("displacement_gram", "gaussian", make.stream(3, "gaussian")),
        OpCase("radii", "cauchy", make.radii(1000)),
        OpCase("radial_weights", "gaussian from cauchy", make.radial(1000)),
        OpCase("attention_scores", "dot", make.scores(5, 7, 3)),
        OpCase("attention_statistics", "dot pairs", make.softmax(5, 7)),
        OpCase("attention_weights", "dot pairs", make.softmax(5, 7, True)),
        OpCase("project_displacements", "gaussian", make.stream(2, "gaussian", 16)),
        OpCase("energy", "trace", make.energy(5, 33, 1, "trace")),
        OpCase("energy", "full", make.energy(5, 17, 3, "full")),
        OpCase("inner_product", "trace", make.inner(5, 7)),
        OpCase("nonlocal_gradients", "gaussian", make.gradients(3, 4)),
        OpCase("structured_ntk", "trace", make.local((17, 20, 3), 33)),
    ]
    return {f"{case.op} {case.shape}": partial(_call, case) for case in cases}


def _call(case: OpCase) -> object:
    return case(*case.arguments(1))


def print_small_calls(device: torch.device) -> None:
    """Make the small calls one after another, and print the name of each before it."""
    for name, call in small_calls(device).items():
        print(f"call {name}", flush=True)
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    print("call end", flush=True)


def sanitizer_rows(context: Context) -> Rows:
    """Make the small calls under the compute sanitizer, and yield a row for each; in a dry run without it.

    Args:
        context: The context.

    Yields:
        A row for each call, with a ``failure`` if the sanitizer reports an error, or the process ended in it.

    Raises:
        LeftOutError: If the sanitizer is not installed.
    """
    tool = tool_path("compute-sanitizer")
    if tool is None and context.on_card:
        raise LeftOutError("compute-sanitizer is not installed; it is part of the CUDA toolkit")
    prefix = [tool, "--tool", "memcheck", "--error-exitcode", "86"] if tool and context.on_card else []
    command = [*prefix, sys.executable, "-m", "nntk.bench.card.worker", "--small-calls", str(context.device)]
    reports: dict[str, list[str]] = {}
    last = ""

    def note(line: str) -> None:
        nonlocal last
        last = line.strip() or last
        if line.startswith("call "):
            reports[line.removeprefix("call ").strip()] = []
        elif reports and line.startswith("=========") and "ERROR SUMMARY" not in line:
            list(reports.values())[-1].append(line.strip("= \n"))

    # Every tensor has memory of its own, so that a read behind its end is seen.
    status = _follow(command, _deadline(context, _CALL_SECONDS), note, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
    finished = reports.pop("end", None) is not None
    names = list(reports)
    for name, messages in reports.items():
        row: Row = {"case": name, "errors": len(messages)}
        if messages:
            row["failure"] = f"compute-sanitizer: {messages[0]}"
        elif not finished and name == names[-1]:
            row["failure"] = "the time was over" if status is None else f"status {status}: {last[:200]}"
        yield row
    if not reports:
        yield {"case": "all calls", "failure": f"no call was made, status {status}: {last[:200]}"}


def steps(is_dry_run: bool) -> tuple[Step, ...]:
    """Return the steps before the measurements."""
    fast = [str(_TESTS / name) for name in FAST]
    if is_dry_run:
        fast = [f"{_TESTS / 'device' / 'test_kernel_fixed_weights.py'}", "-k", "nothing_left or contiguous"]
    return (
        Step("environment", "the card, its driver and tools", (Unit("environment", environment_rows, 5, 1),)),
        Step(
            "tests",
            "fast tests of the kernels",
            (Unit("fast", partial(_fast_tests, fast), 60, 10),),
        ),
        Step("sanitizer", "a small call of every kernel", (Unit("memcheck", sanitizer_rows, 60, 8),)),
    )


def _fast_tests(arguments: Sequence[str], context: Context) -> Rows:
    return pytest_rows(context, "fast", arguments, _FAST_SECONDS)


def remaining_tests() -> Step:
    """Return the step of all tests on the card, which comes last: it is what may be left out."""
    return Step("all tests", "every test of the kernels", (Unit("device", _all_tests, 240, 1),), is_optional=True)


def _all_tests(context: Context) -> Rows:
    if not context.on_card:
        raise LeftOutError("a dry run makes the fast tests alone")
    yield from pytest_rows(context, "device", [str(_TESTS / name) for name in ("device", "recordings")], _ALL_SECONDS)
