"""``nntk-bench resources``: machine code of every kernel, without a GPU."""

import importlib.util
from typing import Annotated, Any

import torch
import typer

from nntk.bench.cli.options import CommandError, JsonOutput, one_line_errors, parse_output, printing_beside
from nntk.bench.machine_code import resources
from nntk.bench.machine_code.catalogue import MODULES
from nntk.bench.machine_code.machines import MACHINES
from nntk.bench.machine_code.sample import sampled
from nntk.bench.measure import environment
from nntk.bench.results import tables
from nntk.files.output import Output

SUMMARY = "compile every kernel without a GPU, judge its machine code"
HELP = """\
Compile every kernel at every shipped configuration and read the machine code: registers, stack, shared and tensor
memory, matrix instructions, and the instructions of the main loops by pipe. No GPU is used, and the architectures need
not be present. Each row is judged; a failed check is named in the last column and explained below the table.

checks:
  stack, spills         none
  shared_memory         at most what a program may have: sm_80 166,912 bytes, sm_90 and sm_100 232,448,
                        sm_86, sm_89 and sm_120 101,376, gfx942 65,536
  tensor_memory, trap   at most 512 columns on sm_100, where Triton otherwise compiles to a trap
  main_loops            the loops that the case states are in the code
  matrix_instructions   they compute every product that is meant for tensor cores completely
  wgmma                 on sm_90 every such product uses it
  normal_budget, sign_budget, register_budget
                        on sm_90 at most what the case states: instructions a random number (products included),
                        registers a thread
  tensor_bound          on sm_90, where stated, the main loops issue for no longer than their products take
"""
EPILOG = """\
examples:
  nntk-bench resources                                    everything, on every architecture
  nntk-bench resources --arch sm_90 --kernel "hidden"     the kernels with hidden in their name, for one architecture
  nntk-bench resources --sample                           a tenth of them in a minute, to try a version of Triton
  nntk-bench resources --json resources.json              all counts, by pipe and loop, with versions and commit
  nntk-bench resources --json - | jq .rows                the same for another program
  nntk-bench resources --summary summary.json             registers, memory and instructions, one row for each kernel
  nntk-bench resources --module my_package.my_kernels     other kernels: a module with cases(arch) -> list[Case]
  nntk-bench resources --list                             the kernels' names, without compiling them

How to read it: instr./normal and instr./sign are instructions of one thread for each random number over the main loops,
products and addresses included. Cycles are those of a multiprocessor for one turn of all main loops of one program, to
issue and on the matrix pipe. The limit is the pipe that is busy longest. Each side of a condition counts half, waits
succeed at once, and bank conflicts and latencies are not seen: these are lower bounds of the time.

Exit status: 0 all good, 1 a check failed or a kernel did not compile, 2 wrong usage, 130 interrupted.
"""


def require_triton() -> None:
    """Raise an error if Triton, which compiles the kernels, is not installed.

    Raises:
        CatalogueError: If there is no Triton.
    """
    if importlib.util.find_spec("triton") is None:
        raise resources.CatalogueError("Triton is not installed (pip install triton; it is made for Linux)")


def _parse_architectures(value: Any) -> str:
    names = list(dict.fromkeys(str(value).split(",")))
    if unknown := [name for name in names if name not in MACHINES]:
        raise typer.BadParameter(f"must be of {','.join(MACHINES)}, got {unknown[0]!r}")
    return ",".join(names)


def command(
    arch: Annotated[
        str,
        typer.Option(
            parser=_parse_architectures,
            metavar="LIST",
            help=f"comma-separated, of {','.join(MACHINES)} (default: all)",
            show_default=False,
        ),
    ] = ",".join(MACHINES),
    kernel: Annotated[str, typer.Option(metavar="TEXT", help="only kernels with this in their name")] = "",
    module: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="module with kernels, instead of the shipped ones; may be repeated"),
    ] = None,
    json: JsonOutput = None,
    summary: Annotated[
        Output | None,
        typer.Option(
            parser=parse_output("--summary"),
            metavar="PATH",
            help="write a row for each kernel and architecture as JSON, where --json may go too",
        ),
    ] = None,
    sample: Annotated[
        bool, typer.Option("--sample", help="each kernel at least once, where it is nearest to a limit")
    ] = False,
    list_only: Annotated[
        bool, typer.Option("--list", help="print architecture, module and name of every kernel")
    ] = False,
) -> int:
    """Compile and judge the kernels, or list them."""
    if list_only and (json or summary):
        raise CommandError("argument --list: prints names alone; leave --json and --summary out")
    if json and summary and json.is_standard and summary.is_standard:
        raise CommandError(
            "argument --summary: must be a file where --json is standard output, which holds one document"
        )
    with one_line_errors(resources.CatalogueError, OSError):
        require_triton()
        tasks = resources.catalogue(module or MODULES, arch.split(","))
        selected = [task for task in (sampled(tasks) if sample else tasks) if kernel in task.case]
        if not selected:
            raise resources.CatalogueError(f"none of {len(tasks)} kernels has {kernel!r} in its name; see --list")
        if list_only:
            typer.echo("\n".join(f"{task.arch:7} {task.module}  {task.case}" for task in selected))
            return 0
        facts = environment.describe(torch.device("cpu"))
        with printing_beside(json) as record, printing_beside(summary) as short:
            return resources.run(selected, record, facts, tables.standard_console(), short)
