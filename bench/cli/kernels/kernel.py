"""``nntk-bench kernel``: the kernel of a model and data in files, written to a file."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

import nntk
import nntk.distributed
from nntk.bench.cli.kernels.model_file import LoadedModel, load_inputs, load_model
from nntk.bench.cli.options import (
    CPU,
    CommandError,
    Device,
    Threads,
    errors_by_argument,
    number_in,
    one_line_errors,
    one_of,
    parse_bytes,
    parse_seed,
)
from nntk.bench.cli.ranks import number_of_ranks, ranks_of_command
from nntk.estimators.memory import format_bytes
from nntk.files.matrix_file import TILE_BYTES
from nntk.files.paths import OutputPathError, file_to_replace
from nntk.files.storage import MismatchError
from nntk.kernels.assemble import ESTIMATORS
from nntk.kernels.perturb import PRECISIONS, PROPAGATION

SUMMARY = "write the kernel matrix of a model and data to a file"
HELP = """\
Compute the kernel of a model at the inputs of a file, and write it to a NumPy file, tile by tile. The plan comes first:
the route, the memory and the tiles. After a stop the same command continues with the finished tiles.

MODEL is FILE.py:NAME, where NAME is a module, a nntk.BlackBox, or a function without arguments that returns one of
them, with its weights loaded, or a function f(parameters, x) together with its tensors by name. A module is put into
evaluation mode. DATA is an array [N, ...] of a .npy, .npz or .safetensors file; floating inputs are converted to the
model's dtype.
"""
EPILOG = """\
examples:
  nntk-bench kernel net.py:build x.npy --output k.npy
  nntk-bench kernel net.py:build x.npy --columns test.npy --output cross.npy --samples 4096 --gamma 0.05
  nntk-bench kernel net.py:build x.npz --key images --parameters "head.*" --output head.npy --device cuda
  nntk-bench kernel bert.py:build texts.npz --key input_ids --key attention_mask --output k.npy
  nntk-bench kernel net.py:build x.npy --local --output ntk.npy      the ordinary NTK
  nntk-bench kernel net.py:build x.npy --plan                        the plan alone
  torchrun --nproc-per-node 8 -m nntk.bench kernel net.py:build x.npy --output k.npy --device cuda

Under torchrun each rank computes other tiles of the one file, with --device cuda on the GPU of its number. Any number
of ranks continues what others began. An error of one rank ends all of them with one message.

Exit status: 0 the matrix is complete, 2 wrong usage or a model that is refused, 130 interrupted; finished tiles are
kept.
"""

_ERRORS = (ValueError, TypeError, MemoryError, MismatchError, ArithmeticError, OSError)
"""Errors whose messages are written for users."""

_LOCAL_OPTIONS = ("gamma", "samples", "directions", "estimator", "precision", "propagation")

_ARGUMENTS = {"x1": "DATA", "x2": "--columns", "parameters": "--parameters", "max_memory": "--max-memory"}
_ARGUMENTS |= {name: f"--{name}" for name in _LOCAL_OPTIONS}
"""Arguments of the command by the names that the library's errors give them."""


def command(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="FILE.py:NAME", show_default=False)],
    data: Annotated[Path, typer.Argument(metavar="DATA", help="inputs [N, ...]", show_default=False)],
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="the matrix, a .npy file (or --plan)", show_default=False)
    ] = None,
    columns: Annotated[
        Path | None, typer.Option(metavar="DATA", help="inputs of the columns (default: those of the rows)")
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="name of the array in DATA; several are the model's arguments by name"),
    ] = None,
    output_key: Annotated[
        str | None, typer.Option(metavar="NAME", help="key of the output that counts (default: logits, if there are)")
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="the ordinary NTK, by gradients")] = False,
    gamma: Annotated[float, typer.Option(metavar="X", help="length scale of the displacements")] = 0.1,
    samples: Annotated[int, typer.Option(metavar="M", help="number of displacements")] = 1024,
    directions: Annotated[
        str, typer.Option(metavar="FAMILY", help="gaussian, rademacher, flipout(B) or lowrank(R)")
    ] = "gaussian",
    estimator: Annotated[
        str, typer.Option(parser=one_of(ESTIMATORS), metavar="NAME", help=", ".join(ESTIMATORS))
    ] = "energy",
    mean: Annotated[bool, typer.Option("--mean", help="mean over the outputs (default: their sum)")] = False,
    parameters: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help='names of the displaced parameters, such as "head.*"; may be repeated'),
    ] = None,
    precision: Annotated[
        str, typer.Option(parser=one_of(PRECISIONS), metavar="NAME", help=", ".join(PRECISIONS))
    ] = "auto",
    propagation: Annotated[
        str, typer.Option(parser=one_of(PROPAGATION), metavar="NAME", help=", ".join(PROPAGATION))
    ] = "auto",
    seed: Annotated[int, typer.Option(parser=parse_seed, metavar="N", help="seed of the displacements")] = 0,
    max_memory: Annotated[
        int | None,
        typer.Option(parser=parse_bytes, metavar="SIZE", help="budget of temporary memory, such as 2GiB"),
    ] = None,
    tile: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="rows and columns of a tile (default: 256 MiB)")
    ] = None,
    device: Device = CPU,
    threads: Threads = None,
    timeout: Annotated[
        float,
        typer.Option(
            parser=number_in(1, 1e6, "a number of seconds above 1 and up to 1e6"),
            metavar="SECONDS",
            help="under torchrun: longest time that ranks wait for another one, about two tiles",
        ),
    ] = 3600.0,
    plan: Annotated[bool, typer.Option("--plan", help="print the plan, and compute nothing")] = False,
) -> int:
    """Write the matrix, or print the plan."""
    if (output is None) != plan:
        raise CommandError(f"argument --output: {'must not be given with' if plan else 'is required, or'} --plan")
    given = [name for name in _LOCAL_OPTIONS if str(context.get_parameter_source(name)).endswith("COMMANDLINE")]
    if local and given:
        raise CommandError(f"argument --{given[0]}: must not be given with --local, which has no displacements")
    if output is not None:
        with one_line_errors(OutputPathError):
            file_to_replace(output, "argument --output:", "since a matrix is written tile by tile")
    if local and number_of_ranks() > 1:
        raise CommandError("argument --local: must not be given under torchrun: one process computes the ordinary NTK")
    if key and len(key) > 1 and number_of_ranks() > 1:
        raise CommandError("argument --key: must be given once under torchrun, where ranks exchange one tensor")
    if threads:
        torch.set_num_threads(threads)
    with ranks_of_command("nntk-bench kernel", device, timeout) as ranks, one_line_errors(*_ERRORS):
        with ranks.together("loading the model and the data"), errors_by_argument(_ARGUMENTS):
            loaded = load_model(model).to(ranks.device)
            x1 = load_inputs(data, key or (), "DATA")
            x2 = None if columns is None else load_inputs(columns, key or (), "--columns")
            outputs = "mean" if mean else "trace"
            names = loaded.parameters if loaded.parameters is not None else (parameters or None)
            if local:
                kernel: Any = nntk.LocalNTK(
                    loaded.model, parameters=names, outputs=outputs, output=output_key, max_memory=max_memory
                )
            else:
                kernel = nntk.NonlocalNTK(
                    loaded.model, parameters=names, outputs=outputs, gamma=gamma, samples=samples,
                    directions=directions, estimator=estimator, precision=precision, propagation=propagation,
                    seed=seed, max_memory=max_memory, output=output_key,
                )  # fmt: skip
            x1 = _fitted(kernel, loaded, x1, ranks.device)
            x2 = None if x2 is None else _fitted(kernel, loaded, x2, ranks.device)
        console = ranks.console
        with ranks.together("planning"), errors_by_argument(_ARGUMENTS):
            if ranks.rank == 0:
                _print_plan(console, kernel, x1, x2, tile, ranks.size)
        if output is None:
            return 0
        with _progress(console, output) as advance:
            if ranks.agreement is None:
                matrix = nntk.write_kernel(output, kernel, x1, x2, tile=tile, progress=advance)
            else:
                shared = nntk.distributed.Sharded(kernel, timeout=timeout)
                matrix = nntk.distributed.write_kernel(output, shared, x1, x2, tile=tile, progress=advance)
        console.print(f"{output}: {matrix.shape[0]} x {matrix.shape[1]}, {matrix.dtype}, {format_bytes(matrix.nbytes)}")
    return 0


def _fitted(kernel: Any, loaded: LoadedModel, x: Tensor | nntk.Inputs, device: torch.device) -> Any:
    """Return inputs on the device, floating ones in the model's dtype; those that fit already stay on disk."""

    def fitted(tensor: Tensor) -> Tensor:
        tensor = tensor.to(kernel.dtype) if tensor.is_floating_point() else tensor
        return tensor if isinstance(loaded.model, nntk.BlackBox) else tensor.to(device)

    return fitted(x) if isinstance(x, Tensor) else x.map(fitted)


def _print_plan(console: Console, kernel: Any, x1: Any, x2: Any, tile: int | None, ranks: int) -> None:
    """Print the plan of a tile, how many of them there are, and how many ranks compute them."""
    columns = x1 if x2 is None else x2
    side = int((TILE_BYTES / kernel.dtype.itemsize) ** 0.5) if tile is None else tile
    down, across = -(-len(x1) // side), -(-len(columns) // side)
    number = down * (down + 1) // 2 if x2 is None else down * across
    size = format_bytes(len(x1) * len(columns) * kernel.dtype.itemsize)
    console.print(f"{kernel!r}", soft_wrap=True)
    tiles = f"{number} {'tile' if number == 1 else 'tiles'} of {side} x {side}"
    shared = "" if ranks == 1 else f", by {ranks} ranks"
    console.print(f"Matrix: {len(x1)} x {len(columns)}, {size}, in {tiles}{shared}.", soft_wrap=True)
    whole = x2 is None and down == 1
    console.print(f"A tile: {kernel.plan(x1[:side], None if whole else columns[:side])}", soft_wrap=True)


@contextmanager
def _progress(console: Console, output: Path) -> Iterator[Callable[[int, int], None]]:
    """Show finished tiles; after Ctrl-C say how to go on."""
    parts = (TextColumn("tiles"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    finished, total = 0, 0
    with Progress(*parts, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("tiles", total=None)

        def advance(done: int, number: int) -> None:
            nonlocal finished, total
            finished, total = done, number
            progress.update(task, completed=done, total=number)

        try:
            yield advance
        except KeyboardInterrupt:
            console.print(f"{output}: {finished} of {total or '?'} tiles are finished; the same command goes on.")
            raise
