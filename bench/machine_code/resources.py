"""``nntk-bench resources``: compiles kernels in worker processes, draws the table, and writes the JSON."""

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from types import FrameType
from typing import Any, TypeVar

from rich.console import Console

from nntk.bench.machine_code.catalogue import Report, Task, report, tasks
from nntk.bench.machine_code.machines import MACHINES
from nntk.bench.results import tables
from nntk.bench.results.schema import Row
from nntk.bench.results.tables import Column
from nntk.files.output import Output

T = TypeVar("T")

SCHEMA = 1
"""Version of the JSON's layout."""

CAPTION = (
    "From the machine code; nothing ran. Cycles: of a multiprocessor for one turn of all main loops, to issue / on the "
    "matrix pipe.\nThe limit is the pipe that is busy longest: no program turns faster."
)
COLUMNS = (
    Column("kernel", "case"),
    Column("arch", "arch"),
    Column("registers", "registers"),
    Column("stack", "stack"),
    Column("shared", "shared", ","),
    Column("tensor memory", "tensor_memory"),
    Column("matrix instr.", "matrix"),
    Column("instr./normal", "instructions_per_normal", ".2f"),
    Column("instr./sign", "instructions_per_sign", ".2f"),
    Column("limit", "limit"),
    Column("cycles", "cycles"),
    Column("verdict", "verdict"),
)

SUMMARY_COLUMNS = (
    "module",
    "arch",
    "case",
    "registers",
    "stack",
    "shared",
    "tensor_memory",
    "instructions_per_normal",
    "instructions_per_sign",
    "issue_cycles",
    "tensor_cycles",
    "limit",
    "verdict",
)
"""Values of a row of the summary, in this order."""


@contextmanager
def workers(number: int) -> Iterator[ProcessPoolExecutor]:
    """Start fresh processes that can compile, even if this process runs Triton's interpreter.

    Args:
        number: Number of processes.

    Yields:
        A pool. Its processes end with the block, or with this process.
    """
    interpreted = os.environ.pop("TRITON_INTERPRET", None)
    pool = ProcessPoolExecutor(
        number,
        multiprocessing.get_context("spawn"),
        initializer=_serve,
    )
    before = set(multiprocessing.active_children())
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        raise
    finally:
        pool.shutdown()
        if interpreted is not None:
            os.environ["TRITON_INTERPRET"] = interpreted


def _serve() -> None:
    """Set up a worker: ignore SIGINT, and exit when the parent process exits."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent process"

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C while a worker starts, so that workers ignore it from the beginning and every start is completed."""
    waiting: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, frame: waiting.append(number))
    # The worker processes inherit the mask. In this process another thread may still receive the signal.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
    if waiting:
        raise KeyboardInterrupt


def _submit(pool: ProcessPoolExecutor, function: Callable[..., T], *arguments: Any) -> Future[T]:
    with _uninterrupted():
        return pool.submit(function, *arguments)


@contextmanager
def _stopped() -> Iterator[list[int]]:
    """Record every Ctrl-C, since Python drops the exception if it is raised in a callback of the garbage collector."""
    stops: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        stops.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stops
    finally:
        signal.signal(signal.SIGINT, before)


class CatalogueError(Exception):
    """Error of a module whose list of kernels cannot be read."""


def catalogue(modules: Sequence[str], architectures: Sequence[str]) -> list[Task]:
    """List every case of modules.

    Args:
        modules: Dotted names of the modules.
        architectures: Architectures to compile for.

    Returns:
        One task for each case and architecture.

    Raises:
        CatalogueError: If a module cannot be imported or its ``cases`` fails.
    """
    listed: list[Task] = []
    with workers(1) as pool:
        for module in modules:
            for arch in architectures:
                try:
                    listed += _submit(pool, tasks, module, arch).result()
                except Exception as error:
                    raise CatalogueError(f"{module} lists no kernels: {type(error).__name__}: {error}") from error
    return listed


def reports(selected: Sequence[Task]) -> Iterator[Report]:
    """Compile tasks on every core, in their order; a task that crashes the compiler is a failure of that task only."""
    remaining = list(selected)
    while remaining:
        with workers(min(len(os.sched_getaffinity(0)), len(remaining))) as pool:
            try:
                for future in [_submit(pool, report, task) for task in remaining]:
                    result = future.result()
                    remaining.pop(0)
                    yield result
            except BrokenProcessPool:
                pass
        if remaining:  # This task or one of the next few crashed: compile it alone, then continue with the others.
            yield _alone(remaining.pop(0))


def _alone(task: Task) -> Report:
    with workers(1) as pool:
        try:
            return _submit(pool, report, task).result()
        except BrokenProcessPool:
            return Report(
                task, {}, None, {"compiles": "the compiler crashed; its last messages are on the error stream"}
            )


def summarize(record: Mapping[str, Any]) -> str:
    """Return a full record of compiled kernels as a short JSON: one line for each kernel and architecture.

    Args:
        record: Content of the JSON that ``nntk-bench resources --json`` writes.

    Returns:
        JSON text: the facts that the figures depend on, and for each row a list of values in the order of ``columns``.
    """
    head = {key: value for key, value in record.items() if key not in {"limits", "rows"}}
    head["columns"] = list(SUMMARY_COLUMNS)
    rows = []
    for row in record["rows"]:
        cycles = row.get("cycles", {})
        values = row | {
            "verdict": ", ".join(row["failures"]) or "good",
            "issue_cycles": cycles.get("issue"),
            "tensor_cycles": cycles.get("tensor"),
        }
        rows.append(json.dumps([_rounded(values.get(column)) for column in SUMMARY_COLUMNS]))
    return f'{json.dumps(head, indent=1)[:-2]},\n "rows": [\n  ' + ",\n  ".join(rows) + "\n ]\n}\n"


def _rounded(value: Any) -> Any:
    """Round a fraction to six significant digits, and leave other values as they are."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def run(
    selected: Sequence[Task],
    output: Output | None,
    facts: Mapping[str, Any],
    console: Console,
    summary: Output | None = None,
) -> int:
    """Compile, measure and check tasks; write a table to the console, and JSON at the end, also of an interrupted run.

    Args:
        selected: Tasks to compile.
        output: Where the full record goes; None for nowhere.
        facts: Facts that the figures depend on: versions, commit.
        console: Console of the table.
        summary: Where the summary goes, see ``summarize``; None for nowhere.

    Returns:
        The exit status: 0 if all checks passed, 1 if a check failed, 130 if interrupted.

    Raises:
        OSError: If the JSON cannot be written.
    """
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "status": "running",
        **facts,
        "limits": {arch: asdict(machine) for arch, machine in MACHINES.items()},
        "rows": [],
    }
    status = "failed"
    with _stopped() as stops:
        try:
            if _draw(selected, content["rows"], console):
                status = "good"
        except KeyboardInterrupt:
            status = "interrupted"
        except Exception:
            # After an interrupt, unfinished work may raise other errors.
            if not stops:
                raise
        finally:
            content["status"] = status = "interrupted" if stops else status
            if output:
                output.write_json(content)
            if summary:
                summary.write(summarize(content))
    where = f", in {output.path}" if output and not output.is_standard else ""
    console.print(f"{status}: {len(content['rows'])} of {len(selected)} judged{where}", highlight=False, soft_wrap=True)
    return {"good": 0, "failed": 1, "interrupted": 130}[status]


def _draw(selected: Sequence[Task], rows: list[Row], console: Console) -> bool:
    """Fill the table and the rows; return True if no check failed."""
    failures = []
    with tables.growing(console, "Resources", CAPTION, COLUMNS) as show:
        show(None, f"compiling 1 of {len(selected)}")
        for number, result in enumerate(reports(selected), 2):
            rows.append(result.row())
            failures += [(result.task, check, message) for check, message in result.failures.items()]
            show(_cells(result), f"compiling {number} of {len(selected)}" if number <= len(selected) else "")
    for task, check, message in failures:
        console.print(f"{task.case} on {task.arch}: {check}: {message}", style="red", highlight=False, markup=False)
    return not failures


def _cells(result: Report) -> Row:
    row: Row = {"case": result.task.case, "arch": result.task.arch, "verdict": ", ".join(result.failures) or "good"}
    if result.failures:
        row["failure"] = row["verdict"]
    if result.measured:
        parts, cycles = result.measured.parts, result.measured.cycles
        row = result.row() | row
        row["matrix"] = sum(count for part in parts for count in part.matrix.values())
        row["cycles"] = f"{cycles['issue']:,.0f} / {cycles['tensor']:,.0f}"
    return row
