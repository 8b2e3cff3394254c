"""``nntk-bench warm-up``: compiles what the calls of a program will need, before it runs."""

import re
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from torch import Tensor

import nntk
from nntk.bench.cli.kernels.model_file import load_name
from nntk.bench.cli.options import CommandError
from nntk.bench.results import tables

SUMMARY = "compile the kernels of a program's calls ahead, in parallel"
HELP = """\
Compile what the calls of a program will need, so that its first call does not wait for compilers. A first call on a GPU
compiles 5 to 20 Triton kernels, each for seconds; this compiles them in parallel, launches none, and leaves them on
disk for every later process (TRITON_CACHE_DIR). FILE.py:FUNCTION names a function without arguments that returns a
NonlocalNTK and inputs for it, as the program makes them; the values of the inputs do not matter. On a CPU the kernels
that Numba compiles are compiled or loaded.
"""
EPILOG = """\
examples:
  nntk-bench warm-up train.py:kernel_and_inputs                  for a call with the inputs that are returned
  nntk-bench warm-up train.py:kernel_and_inputs --inputs 4096    for a call with 4096 such inputs
  nntk-bench warm-up train.py:kernel_and_inputs --inputs 256 --inputs 4096 --threads 8

The function may look like this:
  def kernel_and_inputs():
      model = torch.nn.Sequential(torch.nn.Linear(784, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 10)).cuda()
      return nntk.NonlocalNTK(model, samples=1024), torch.zeros(1, 784, device="cuda")

Numbers of inputs with the same tiles need the same kernels, so that a few numbers serve all.

Exit status: 0 all compiled, 2 wrong usage, 130 interrupted.
"""


@dataclass(frozen=True)
class Source:
    """Function of a file."""

    path: Path
    function: str


def _parse_source(value: Any) -> Source:
    file, _, function = str(value).rpartition(":")
    if not file.endswith(".py") or not function.isidentifier():
        raise typer.BadParameter(f"must be FILE.py:FUNCTION, got {str(value)!r}")
    if not Path(file).is_file():
        raise typer.BadParameter(f"{file} is no file")
    return Source(Path(file), function)


def _parse_count(value: Any) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,8}", str(value)):
        raise typer.BadParameter(f"must be an integer from 1 on, got {str(value)!r}")
    return int(value)


def command(
    source: Annotated[
        Source,
        typer.Argument(parser=_parse_source, metavar="FILE.py:FUNCTION", help="returns a NonlocalNTK and its inputs"),
    ],
    inputs: Annotated[
        list[int] | None,
        typer.Option(
            parser=_parse_count, metavar="N", help="number of inputs of a call; may be repeated (default: as returned)"
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(parser=_parse_count, metavar="N", help="kernels compiled at a time (default: by the cores)"),
    ] = None,
) -> int:
    """Compile the kernels of calls with each number of inputs, and say how many there were."""
    kernel, x = _call(source.path, source.function)
    console = tables.standard_console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    for count in inputs or [len(x)]:
        begin = time.perf_counter()
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task(f"{count:,} inputs: compiling", total=None)
            compiled = nntk.warm_up(
                kernel,
                x[torch.arange(count, device=x.device) % len(x)],
                threads=threads,
                progress=partial(_show, progress, task),
            )
        kind = "Triton kernels compiled" if x.device.type == "cuda" or compiled else "Triton kernels needed on a CPU"
        seconds = time.perf_counter() - begin
        console.print(f"{count:,} inputs: {compiled} {kind}, {seconds:.1f} s", highlight=False, soft_wrap=True)
    return 0


def _show(progress: Progress, task: TaskID, done: int, total: int) -> None:
    """Show how many kernels are compiled."""
    progress.update(task, completed=done, total=total)


def _call(path: Path, name: str) -> tuple[nntk.NonlocalNTK, Tensor]:
    """Import a file as a program would, and call its function."""
    function = load_name(path.resolve(), name)
    try:
        result = function()
    except Exception as error:  # The user's code may raise anything.
        raise CommandError(f"{path}:{name} failed: {type(error).__name__}: {error}") from error
    if isinstance(result, tuple) and len(result) == 2:
        kernel, x = result
        if isinstance(kernel, nntk.NonlocalNTK) and isinstance(x, Tensor) and x.dim() > 0 and len(x):
            return kernel, x
    found = ", ".join(type(part).__name__ for part in result) if isinstance(result, tuple) else type(result).__name__
    raise CommandError(f"{path}:{name} must return a NonlocalNTK and at least one input of it, got {found}")
