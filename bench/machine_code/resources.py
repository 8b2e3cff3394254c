"""``nntk-bench resources``: compile in worker processes, draw the table, write the JSON."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from rich.console import Console

from nntk.bench.machine_code.catalogue import Report, Task, report, tasks
from nntk.bench.machine_code.machines import MACHINES
from nntk.bench.results import tables
from nntk.bench.results.files import write_json
from nntk.bench.results.schema import Row
from nntk.bench.results.tables import Column

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


@contextmanager
def workers(number: int) -> Iterator[ProcessPoolExecutor]:
    """Fresh processes that can compile, also where this one runs Triton's interpreter.

    Args:
        number: How many.

    Yields:
        A pool; whatever ends the block, or this process, ends the processes.
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
    """In a worker: deaf to Ctrl-C, and gone when the process is that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has one"

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits: processes start deaf to it from their first instruction, and a start is not left half done."""
    waiting: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, frame: waiting.append(number))
    # The mask is for the processes, which inherit it; of this one another thread may get the signal, and main run it.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
    if waiting:
        raise KeyboardInterrupt


def _submitted(pool: ProcessPoolExecutor, function: Callable[..., T], *arguments: Any) -> Future[T]:
    with _uninterrupted():
        return pool.submit(function, *arguments)


@contextmanager
def _stopped() -> Iterator[list[int]]:
    """Remember Ctrl-C: where it is raised in a callback of the garbage collector, Python goes on as if it were not."""
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
    """A module's list of kernels cannot be read."""


def catalogue(modules: Sequence[str], architectures: Sequence[str]) -> list[Task]:
    """List every case of some modules.

    Args:
        modules: Their dotted names.
        architectures: For which architectures.

    Returns:
        One task a case and architecture.

    Raises:
        CatalogueError: If a module cannot be imported or its ``cases`` fails.
    """
    found: list[Task] = []
    with workers(1) as pool:
        for module in modules:
            for arch in architectures:
                try:
                    found += _submitted(pool, tasks, module, arch).result()
                except Exception as wrong:
                    raise CatalogueError(f"{module} lists no kernels: {type(wrong).__name__}: {wrong}") from wrong
    return found


def reports(wanted: Sequence[Task]) -> Iterator[Report]:
    """Compile tasks on every core, in their order; one that brings the compiler down is a failure of that one only."""
    left = list(wanted)
    while left:
        with workers(min(len(os.sched_getaffinity(0)), len(left))) as pool:
            try:
                for future in [_submitted(pool, report, task) for task in left]:
                    done = future.result()
                    left.pop(0)
                    yield done
            except BrokenProcessPool:
                pass
        if left:  # It or one of the next few crashed: judge it alone, and go on with the others.
            yield _alone(left.pop(0))


def _alone(task: Task) -> Report:
    with workers(1) as pool:
        try:
            return _submitted(pool, report, task).result()
        except BrokenProcessPool:
            return Report(task, {}, None, {"compiles": "the compiler crashed; its last words are on the error stream"})


def run(wanted: Sequence[Task], path: Path | None, facts: Mapping[str, Any], console: Console) -> int:
    """Compile, measure and judge tasks; table on the console, JSON to a file.

    Args:
        wanted: What to compile.
        path: Where the JSON goes, if anywhere.
        facts: What the figures depend on: versions, commit.
        console: Where the table goes.

    Returns:
        The exit status: 0 all good, 1 a check failed, 130 interrupted.

    Raises:
        OSError: If the JSON cannot be written; before anything is compiled.
    """
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "status": "running",
        **facts,
        "limits": {arch: asdict(machine) for arch, machine in MACHINES.items()},
        "rows": [],
    }
    if path:
        write_json(path, content)
    status = "failed"
    with _stopped() as stops:
        try:
            if _draw(wanted, content["rows"], console):
                status = "good"
        except KeyboardInterrupt:
            status = "interrupted"
        except Exception:
            # What an interrupt left half done may fail in a way of its own.
            if not stops:
                raise
        finally:
            content["status"] = status = "interrupted" if stops else status
            if path:
                write_json(path, content)
    console.print(f"{status}: {len(content['rows'])} of {len(wanted)} judged" + (f", in {path}" if path else ""))
    return {"good": 0, "failed": 1, "interrupted": 130}[status]


def _draw(wanted: Sequence[Task], rows: list[Row], console: Console) -> bool:
    """Fill the table and the rows; whether no check failed."""
    wrong = []
    with tables.growing(console, "Resources", CAPTION, COLUMNS) as show:
        show(None, f"compiling 1 of {len(wanted)}")
        for number, found in enumerate(reports(wanted), 2):
            rows.append(found.row())
            wrong += [(found.task, check, message) for check, message in found.failures.items()]
            show(_cells(found), f"compiling {number} of {len(wanted)}" if number <= len(wanted) else "")
    for task, check, message in wrong:
        console.print(f"{task.case} on {task.arch}: {check}: {message}", style="red", highlight=False, markup=False)
    return not wrong


def _cells(found: Report) -> Row:
    row: Row = {"case": found.task.case, "arch": found.task.arch, "verdict": ", ".join(found.failures) or "good"}
    if found.failures:
        row["failure"] = row["verdict"]
    if found.measured:
        parts, cycles = found.measured.parts, found.measured.cycles
        row = found.row() | row
        row["matrix"] = sum(count for part in parts for count in part.matrix.values())
        row["cycles"] = f"{cycles['issue']:,.0f} / {cycles['tensor']:,.0f}"
    return row
