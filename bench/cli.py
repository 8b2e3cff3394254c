"""The command line: ``nntk-bench run``."""

import argparse
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
from nntk.bench.results import Record
from nntk.bench.suites import Section, Setting

EPILOG = """\
examples:
  nntk-bench run                                  the quick suite on this machine
  nntk-bench run --suite digits --seed 3          classification of digits over three seeds, from seed 3
  nntk-bench run --device cuda --output /tmp/out  on a GPU, results under /tmp/out

Every run writes one JSON, DIR/<device>/<suite>-<time>.json, row by row: device, versions, commit, seed, raw samples.
Exit status: 0 all rows good, 1 a row missed its tolerance, 2 wrong usage, 130 interrupted; finished rows are kept.
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
    return _run(parser.parse_args(arguments))


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
