"""The command line: ``nntk-bench run`` and ``nntk-bench resources``."""

import argparse
import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch
from rich.console import Console

import nntk
from nntk.bench import environment, suites, tables
from nntk.bench.resources import run as resources
from nntk.bench.resources.catalogue import MODULES
from nntk.bench.resources.machines import MACHINES
from nntk.bench.results import Record
from nntk.bench.suites import Section, Setting

EPILOG = """\
examples:
  nntk-bench run                                  the quick suite on this machine
  nntk-bench run --suite digits --seed 3          classification of digits over three seeds, from seed 3
  nntk-bench run --device cuda --output /tmp/out  on a GPU, results under /tmp/out
  nntk-bench resources --arch sm_90               machine code of every kernel, without a GPU

Every run writes one JSON, DIR/<device>/<suite>-<time>.json, row by row: device, versions, commit, seed, raw samples.
Exit status: 0 all rows good, 1 a row missed its tolerance, 2 wrong usage, 130 interrupted; finished rows are kept.
"""

RESOURCES = """\
Compile every kernel at every shipped configuration, for architectures that need not be at hand, and read the machine
code: registers, stack, shared and tensor memory, matrix instructions, and the instructions of the main loops by pipe.
No GPU is used. Each row is judged; a failed check is named in the last column and explained below the table.

checks:
  stack, spills         none
  shared_memory         no more than a program may have: sm_80 166,912 bytes, sm_90 and sm_100 232,448, gfx942 65,536
  tensor_memory, trap   no more than 512 columns on sm_100, where Triton otherwise compiles to a trap
  main_loops            the loops that the case states are in the code
  matrix_instructions   they do the whole of every product that is meant for tensor cores
  wgmma                 on sm_90 every such product uses it
  normal_budget, sign_budget, register_budget
                        on sm_90 no more than the case states: instructions a random number (products included),
                        registers a thread
  tensor_bound          on sm_90, where stated, the main loops issue for no longer than their products take
"""

RESOURCES_EPILOG = """\
examples:
  nntk-bench resources                                    everything, on all four architectures
  nntk-bench resources --arch sm_90 --kernel "hidden"     the kernels with hidden in their name, for one architecture
  nntk-bench resources --json resources.json              all counts, by pipe and loop, with versions and commit
  nntk-bench resources --module my_package.my_kernels     other kernels: a module with cases(arch) -> list[Case]
  nntk-bench resources --list                             what there is, without compiling it

How to read it: instr./normal and instr./sign are instructions of one thread for each random number over the main loops,
products and addresses included. Cycles are those of a multiprocessor for one turn of all main loops of one program, to
issue and on the matrix pipe. The limit is the pipe that is busy longest. Both sides of a condition count half, waits
succeed at once, and bank conflicts and latencies are not seen: these are lower bounds of the time.
Exit status: 0 all good, 1 a check failed or a kernel did not compile, 2 wrong usage, 130 interrupted.
"""


class _Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with status 2."""
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Words after the program's name; those of the process by default.

    Returns:
        The exit status.
    """
    parser = _Parser(
        prog="nntk-bench",
        description="Throughput and accuracy of nonlocal neural tangent kernels, side by side with autograd.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"nntk {nntk.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    run = commands.add_parser(
        "run",
        help="run a suite, print its tables, write one JSON",
        description="Run a suite of measurements, print its tables and write one JSON.\n\nsuites:\n"
        + "\n".join(f"  {name:8}{about}" for name, about in suites.SUITES.items()),
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument("--suite", default="quick", choices=tuple(suites.SUITES), help="what to measure (default: quick)")
    run.add_argument(
        "--output",
        type=Path,
        default=Path("results"),
        metavar="DIR",
        help="folder of the results (default: results)",
    )
    run.add_argument("--seed", type=_seed, default=0, metavar="N", help="seed of data, networks, displacements (0)")
    run.add_argument("--device", type=_device, default="cpu", metavar="NAME", help="cpu, cuda or cuda:N (default: cpu)")
    run.add_argument("--threads", type=_threads, metavar="N", help="CPU threads of PyTorch (default: its own choice)")
    run.set_defaults(function=_run)
    _add_resources(commands)
    options = parser.parse_args(arguments)
    status: int = options.function(options)
    return status


def _add_resources(commands: "argparse._SubParsersAction[_Parser]") -> None:
    parser = commands.add_parser(
        "resources",
        help="compile every kernel without a GPU, judge its machine code",
        description=RESOURCES,
        epilog=RESOURCES_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--arch",
        type=_architectures,
        default=tuple(MACHINES),
        metavar="LIST",
        help=f"comma-separated, of {','.join(MACHINES)} (default: all)",
    )
    parser.add_argument("--kernel", default="", metavar="TEXT", help="only kernels with this in their name")
    parser.add_argument(
        "--module",
        action="append",
        metavar="NAME",
        help="modules with kernels, instead of the shipped; may be repeated",
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write everything to this file")
    parser.add_argument("--list", action="store_true", help="print architecture, module and name of what there is")
    parser.set_defaults(function=_resources)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"must be an integer in [0, 2**32), got {text!r}")
    return int(text)


def _threads(text: str) -> int:
    cores = len(os.sched_getaffinity(0))
    if not text.isdecimal() or not 1 <= int(text) <= cores:
        raise argparse.ArgumentTypeError(f"must be an integer from 1 to {cores}, the cores at hand; got {text!r}")
    return int(text)


def _device(text: str) -> torch.device:
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,4})?", text):
        raise argparse.ArgumentTypeError(f"must be cpu, cuda or cuda:N, got {text!r}")
    if text != "cpu" and int(text.partition(":")[2] or 0) >= torch.cuda.device_count():
        raise argparse.ArgumentTypeError(
            f"{text!r} is not there: PyTorch sees {torch.cuda.device_count()} CUDA devices"
        )
    return torch.device(text)


def _architectures(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    if unknown := [name for name in names if name not in MACHINES]:
        raise argparse.ArgumentTypeError(f"must be of {','.join(MACHINES)}, got {unknown[0]!r}")
    return names


def _resources(options: argparse.Namespace) -> int:
    console = Console() if sys.stdout.isatty() else Console(width=200)
    try:
        if importlib.util.find_spec("triton") is None:
            raise resources.CatalogueError("Triton is not installed (pip install triton; it is made for Linux)")
        found = resources.catalogue(options.module or MODULES, options.arch)
        wanted = [task for task in found if options.kernel in task.case]
        if not wanted:
            raise resources.CatalogueError(
                f"none of {len(found)} kernels has {options.kernel!r} in its name; see --list"
            )
        if options.list:
            print("\n".join(f"{task.arch:7} {task.module}  {task.case}" for task in wanted))
            return 0
        return resources.run(wanted, options.json, environment.describe(torch.device("cpu")), console)
    except (resources.CatalogueError, OSError) as wrong:
        print(f"nntk-bench resources: error: {wrong}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _run(options: argparse.Namespace) -> int:
    if options.threads:
        torch.set_num_threads(options.threads)
    facts = {**environment.describe(options.device), "seed": options.seed}
    try:
        record = Record(options.output / environment.slug(options.device), options.suite, facts)
    except OSError as wrong:
        print(f"nntk-bench run: error: argument --output: {wrong}", file=sys.stderr)
        return 2
    console = Console()
    console.print(
        f"nntk {nntk.__version__} on {facts['device']['name']}, {facts['device']['threads']} threads, "
        f"torch {facts['versions']['torch']}, commit {(facts['commit'] or 'unknown')[:10]}, seed {options.seed}\n",
        highlight=False,
    )
    status = "failed"
    try:
        setting = Setting(options.device, options.seed)
        if all([_measure(section, setting, record, console) for section in suites.catalogue(options.suite)]):
            status = "complete"
    except KeyboardInterrupt:
        status = "interrupted"
    finally:
        record.close(status)
        console.print(f"{status}: {len(record.rows)} rows in {record.path}", highlight=False, soft_wrap=True)
    return {"complete": 0, "failed": 1, "interrupted": 130}[status]


def _measure(section: Section, setting: Setting, record: Record, console: Console) -> bool:
    """Measure a section row by row; whether no row failed."""
    good = True
    with tables.growing(console, section.title, section.caption, section.columns) as show:
        for item in section.rows(setting):
            if isinstance(item, str):
                show(None, item)
                continue
            record.add(section.name, item)
            show(item, "")
            if "failure" in item:
                good = False
                console.print(f"{item['case']}: {item['failure']}", style="red", highlight=False)
    return good


if __name__ == "__main__":
    sys.exit(main())
