"""The command line: ``nntk-bench`` and its commands."""

import argparse
import importlib.util
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch
from rich.console import Console

import nntk
from nntk.bench import profiling, report, studies, suites, tuning
from nntk.bench.machine_code import resources
from nntk.bench.machine_code.catalogue import MODULES
from nntk.bench.machine_code.machines import MACHINES
from nntk.bench.machine_code.prediction.model import CARDS
from nntk.bench.measure import environment, roofline
from nntk.bench.results import compare, tables
from nntk.bench.results import store as results
from nntk.bench.results.store import Record, ResultsError
from nntk.bench.studies import run as study_runs
from nntk.bench.suites import Section, Setting
from nntk.bench.tuning import spaces
from nntk.kernels.target import Target, target_of
from nntk.kernels.tuning import path_of, tunables

EPILOG = """\
examples:
  nntk-bench run                                  the quick suite on this machine
  nntk-bench run --suite digits --seed 3          classification of digits over three seeds, from seed 3
  nntk-bench run --device cuda --output /tmp/out  on a GPU, results under /tmp/out
  nntk-bench run --resume results/x/quick-y.json  goes on with a run that did not end by itself
  nntk-bench compare A.json B.json                what became faster, slower or less accurate from A to B
  nntk-bench report A.json                        tables and plots, as Markdown and as one page of HTML
  nntk-bench profile energy                       where the time of an op goes, with a trace
  nntk-bench roofline                             what this machine can do at most
  nntk-bench resources --arch sm_90               machine code of every kernel, without a GPU
  nntk-bench tune                                 the fastest configurations of the kernels on this card
  nntk-bench study targets                        a numerical study, with its data, figures and a page

Every run writes one JSON, DIR/<device>/<suite>-<time>.json, row by row: device, versions, commit, seed, raw samples.
A run that was interrupted, killed or broken by an error can be resumed by the same sources, packages, device and
threads: sections that finished are kept, the others are measured from their start.
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


PROFILE = """\
Profile one op at the shapes of the suite ops: a table of the operators and kernels that its time goes to, beside the
least time that the roof of the machine allows, and a trace for chrome://tracing or ui.perfetto.dev. On a GPU every call
is an NVTX range, which external profilers show too, and Triton's proton writes a second profile, of the kernels by name
and with the least work of a call, for proton-viewer.
"""

PROFILE_EPILOG = """\
examples:
  nntk-bench profile attention_weights                      on this CPU, at every shape of the suite
  nntk-bench profile mlp_differences --shape rademacher     one family
  nntk-bench profile energy --device cuda --output /tmp/t   on a GPU, traces under /tmp/t
  nntk-bench profile energy --json energy.json              the table as JSON

An unknown op lists the known ones. Exit status: 0 profiled, 2 wrong usage, 130 interrupted.
"""

ROOFLINE = """\
Measure what a device can do at most: copies and reads of memory, and dense products by precision. The fastest of many
runs is the roof. Suites show each op's share of it; a share above 100 % is an error, since it was measured wrong.
Roofs are kept for each device, driver, version of PyTorch and number of threads. A run of a suite measures them once
more and keeps the best; --again forgets what was kept.
"""

ROOFLINE_EPILOG = """\
examples:
  nntk-bench roofline                       those of this CPU, measured now or before
  nntk-bench roofline --again               measured now: nothing else may work on the machine
  nntk-bench roofline --device cuda --json roofs.json
"""

PREDICT = """\
Compile the kernels that the design's workloads take on an H200 and a B200, and predict from their machine code how fast
these can be: the turns of the main loops and what is outside of them, each as long as its busiest pipe, and the bytes.
Where a multiprocessor holds several programs at a time, one fills the gaps of another. Nothing runs and no GPU is
needed. Latency, bank conflicts, the second-level cache and launches are not seen: predictions are optimistic (an H200
took half as long again, for assembly three times as long), for choosing what to mend first, and no measurement.

how to read it:
  of roof   what the card's rate of products or of copies would take, by the work that is asked for, over the prediction
  products  the matrix pipe in main loops
  issue     what other pipes take beyond it in these: noise, splitting of operands, addresses
  once      outside of the loops: epilogues
  memory    what bytes take beyond all of that
"""

PREDICT_EPILOG = """\
examples:
  nntk-bench predict                             the tables
  nntk-bench predict --card h200                 of one card
  nntk-bench predict --json prediction.json      with seconds by part, the card's rates, versions and commit

Exit status: 0 predicted, 1 a kernel did not compile, 2 wrong usage, 130 interrupted.
"""

TUNE = """\
Measure the configurations of the kernels on this card, choice by choice: the likely ones by a model of what they issue,
multiply and load, each checked against the rule's own, the best of them timed side by side. The fastest goes into
kernels/tuned/<device>.json, with every sample; from then on the kernels take it on such a device. Every choice is on
disk before the next begins: whatever stops the command, the same command goes on. Where the sources of a kernel have
changed since, its entries are not used, and are measured again.

choices:
  layer_step   tiles of a layer of the perturbed network, by family of noise, precision and shape
  layer_path   where a layer's noise is made: for every tile, once and held, or written out and read
  rank_update  tiles of the energy form
  layer_pair   tiles of the structured local NTK
"""

TUNE_EPILOG = """\
examples:
  nntk-bench tune                                    all choices, for ten minutes; again for ten more
  nntk-bench tune rank_update --budget 2             one of them, for two minutes
  nntk-bench tune layer_step --shape "width 256"     at some shapes
  nntk-bench tune --dry-run                          what would be measured on sm_90, without a GPU
  nntk-bench tune --dry-run --arch sm_80 --json plan.json

Exit status: 0 all measured, 1 a choice could not be, 2 wrong usage, 3 the budget was spent before, 130 interrupted.
"""

STUDY = """\
Run numerical studies: what the nonlocal kernel sees that the NTK does not, and where it loses. Each writes under
DIR/<study> its rows (JSON and CSV), its figures (SVG and PNG), and a page, README.md, that states the setting and what
is seen, every number with its interval over seeds. What is computed so far is in <study>.partial.json: a study that was
stopped goes on by the same command, where the sources are those of a commit, and replaces an earlier one at its end.

studies:
"""

STUDY_EPILOG = """\
examples:
  nntk-bench study limit                    one study
  nntk-bench study all --quick              all of them at small sizes, under results/studies/quick
  nntk-bench study targets --redraw         claims, figures and page anew, of the rows that are there
  nntk-bench study --list                   their names

The same seed gives the same values: other numbers of threads change them by rounding alone, and times (keys that end
in _s) are of the machine.
Exit status: 0 no claim contradicted, 1 one was, 2 wrong usage, 130 interrupted; finished seeds are kept.
"""

COMPARE = """\
Compare two runs of a suite row by row, from A to B, by all their samples. Other devices, versions or commits, failed
rows, and rows of one run only are stated in words.

verdicts, r being the time in B over the time in A:
  SAME     the interval that holds r with 95 % probability is within the threshold
  SLOWER   the samples reject that r is within half the threshold, and r exceeds the drift within either run
  FASTER   likewise
  UNCLEAR  none of these. Why is in the last column: noise, drift, or too few samples for a test of so many rows
  WORSE    an error more than twice that in A, or a row that fails its tolerance in B only

The test is that of Mann and Whitney, exact for up to 80 samples, corrected after Holm: the probability of any wrong
FASTER or SLOWER is at most 5 %. r is the median over all pairs of samples, one of each run (Hodges and
Lehmann). A drift is the change from a run's first sample to its last that the shift between its halves suggests.
A threshold of 0.05 is 1.05 times as long or as short; A against B mirrors B against A.
"""

COMPARE_EPILOG = """\
examples:
  nntk-bench compare old.json new.json                      what changed
  nntk-bench compare old.json new.json --fail-on slower     exit status 1 if a row is SLOWER or WORSE, for CI
  nntk-bench compare old.json new.json --threshold 0.1      changes of less than 10 % do not matter
  nntk-bench compare old.json new.json --json verdicts.json the verdicts, with ratios, intervals and p values

For two runs of one machine to be comparable, nothing else may work on it. Samples that no test could tell apart are
UNCLEAR and say how many each run needs: 6 for 12 rows, 8 for 200.
Exit status: 0 compared, 1 --fail-on slower and a row is SLOWER or WORSE, 2 wrong usage or unusable file.
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
    run = _command(
        commands,
        "run",
        "run a suite, print its tables, write one JSON",
        "Run a suite of measurements, print its tables and write one JSON.\n\nsuites:\n"
        + "\n".join(f"  {name:10}{about}" for name, about in suites.SUITES.items()),
        EPILOG,
    )
    run.add_argument("--suite", choices=tuple(suites.SUITES), help="what to measure (default: quick)")
    run.add_argument("--output", type=Path, metavar="DIR", help="folder of the results (default: results)")
    run.add_argument("--seed", type=_seed, metavar="N", help="seed of data, networks, displacements (default: 0)")
    run.add_argument("--device", type=_device, metavar="NAME", help="cpu, cuda or cuda:N (default: cpu)")
    run.add_argument("--threads", type=_threads, metavar="N", help="CPU threads of PyTorch (default: its own choice)")
    run.add_argument("--resume", type=Path, metavar="PATH", help="go on with this run; all other options are its own")
    run.set_defaults(function=_run)
    _add_compare(commands)
    _add_report(commands)
    _add_roofline(commands)
    _add_profile(commands)
    _add_resources(commands)
    _add_predict(commands)
    _add_tune(commands)
    _add_study(commands)
    options = parser.parse_args(arguments)
    status: int = options.function(options)
    return status


def _console() -> Console:
    """The terminal, as wide as it is, or a log, whose lines are as long as tables are."""
    return Console() if sys.stdout.isatty() else Console(width=200)


def _command(
    commands: "argparse._SubParsersAction[_Parser]", name: str, about: str, description: str, epilog: str
) -> _Parser:
    """A command whose help reads like a manual."""
    return commands.add_parser(
        name,
        help=about,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_compare(commands: "argparse._SubParsersAction[_Parser]") -> None:
    parser = _command(commands, "compare", "say what became faster, slower or less accurate", COMPARE, COMPARE_EPILOG)
    parser.add_argument("a", type=Path, metavar="A", help="JSON of the run to compare with")
    parser.add_argument("b", type=Path, metavar="B", help="JSON of the run to judge")
    parser.add_argument("--fail-on", choices=("slower",), help="exit with 1 if a row is SLOWER or WORSE")
    parser.add_argument(
        "--threshold", type=_threshold, default=0.05, metavar="X", help="change that matters, in (0, 1] (default: 0.05)"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the verdicts to this file")
    parser.set_defaults(function=_compare)


def _add_report(commands: "argparse._SubParsersAction[_Parser]") -> None:
    parser = _command(
        commands, "report", "write runs as Markdown and as one HTML page with plots", report.HELP, report.EPILOG
    )
    parser.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="JSON of a run")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the report (default: report)")
    parser.set_defaults(function=_report)


def _add_profile(commands: "argparse._SubParsersAction[_Parser]") -> None:
    parser = _command(commands, "profile", "show where the time of one op goes", PROFILE, PROFILE_EPILOG)
    parser.add_argument("op", metavar="OP", help="name of an op, e.g. energy")
    parser.add_argument("--shape", default="", metavar="TEXT", help="only shapes that contain this text")
    parser.add_argument(
        "--device", type=_device, default=torch.device("cpu"), metavar="NAME", help="cpu, cuda or cuda:N (default: cpu)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("profiles"), metavar="DIR", help="folder of the traces (default: profiles)"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the tables to this file")
    parser.set_defaults(function=_profile)


def _add_roofline(commands: "argparse._SubParsersAction[_Parser]") -> None:
    parser = _command(commands, "roofline", "measure what a device can do at most", ROOFLINE, ROOFLINE_EPILOG)
    parser.add_argument(
        "--device", type=_device, default=torch.device("cpu"), metavar="NAME", help="cpu, cuda or cuda:N (default: cpu)"
    )
    parser.add_argument(
        "--threads", type=_threads, metavar="N", help="CPU threads of PyTorch (default: its own choice)"
    )
    parser.add_argument("--again", action="store_true", help="measure, whatever was measured before")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the roofs, with every sample, to this file")
    parser.set_defaults(function=_roofline)


def _add_resources(commands: "argparse._SubParsersAction[_Parser]") -> None:
    parser = _command(
        commands, "resources", "compile every kernel without a GPU, judge its machine code", RESOURCES, RESOURCES_EPILOG
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


def _add_predict(commands: "argparse._SubParsersAction[_Parser]") -> None:
    parser = _command(
        commands, "predict", "estimate what the kernels do on a card, without it", PREDICT, PREDICT_EPILOG
    )
    parser.add_argument(
        "--card", action="append", choices=tuple(CARDS), default=[], help="which card; may be repeated (default: all)"
    )
    parser.add_argument("--markdown", action="store_true", help="print the tables in Markdown too")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write everything to this file")
    parser.set_defaults(function=_predict)


def _add_tune(commands: "argparse._SubParsersAction[_Parser]") -> None:
    parser = _command(commands, "tune", "measure the kernels' configurations on a card", TUNE, TUNE_EPILOG)
    parser.add_argument(
        "choices", nargs="*", metavar="CHOICE", help=f"of {', '.join(tunables())} (default: all of them)"
    )
    parser.add_argument("--shape", default="", metavar="TEXT", help="only choices with this in their name")
    parser.add_argument("--device", type=_device, metavar="NAME", help="cuda or cuda:N (default: cuda)")
    parser.add_argument("--budget", type=_minutes, default=10.0, metavar="MIN", help="minutes (default: 10)")
    parser.add_argument("--again", action="store_true", help="measure, whatever was measured before")
    parser.add_argument("--output", type=Path, metavar="PATH", help="table (default: the device's in kernels/tuned)")
    parser.add_argument("--dry-run", action="store_true", help="show what would be measured, by the model alone")
    parser.add_argument(
        "--arch", choices=tuple(spaces.PROCESSORS), default="sm_90", help="architecture of --dry-run (default: sm_90)"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write what --dry-run shows to this file")
    parser.set_defaults(function=_tune)


def _add_study(commands: "argparse._SubParsersAction[_Parser]") -> None:
    listed = "".join(f"  {name:10} {about}\n" for name, about in studies.STUDIES.items())
    parser = _command(commands, "study", "run numerical studies", f"{STUDY}{listed}", STUDY_EPILOG)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(studies.STUDIES)}; or all")
    parser.add_argument("--list", action="store_true", help="print what studies there are")
    parser.add_argument("--quick", action="store_true", help="few seeds and small sizes")
    parser.add_argument(
        "--redraw", action="store_true", help="compute nothing: claims, figures, page of the rows there"
    )
    parser.add_argument(
        "--device", type=_device, default=torch.device("cpu"), metavar="NAME", help="cpu, cuda or cuda:N (default: cpu)"
    )
    parser.add_argument("--seed", type=_seed, default=0, metavar="N", help="seed of the first replicate (default: 0)")
    parser.add_argument(
        "--threads", type=_threads, metavar="N", help="CPU threads of PyTorch (default: its own choice)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="default: results/studies; with --quick, quick/ in it"
    )
    parser.set_defaults(function=_study)


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1e5:
        raise argparse.ArgumentTypeError(f"must be a number of minutes above 0, got {text!r}")
    return value


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


def _threshold(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number in (0, 1], got {text!r}")
    return value


def _architectures(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    if unknown := [name for name in names if name not in MACHINES]:
        raise argparse.ArgumentTypeError(f"must be of {','.join(MACHINES)}, got {unknown[0]!r}")
    return names


def _tune(options: argparse.Namespace) -> int:
    console = _console()
    try:
        device = torch.device("cpu") if options.dry_run else options.device or _device("cuda")
        wanted = tuning.wanted(options.choices, options.shape, device)
        if options.dry_run:
            target = Target(options.arch, spaces.PROCESSORS[options.arch])
            return tuning.plan(wanted, target, options.json, console)
        if options.json:
            raise ValueError("--json is for --dry-run; a run writes its table, see --output")
        target = target_of(device)
        path = options.output or path_of(target.device)
        return tuning.run(wanted, target, device, 60 * options.budget, options.again, path, console)
    except (ValueError, OSError, argparse.ArgumentTypeError) as wrong:
        advice = "; --dry-run needs no GPU" if isinstance(wrong, argparse.ArgumentTypeError) else ""
        print(f"nntk-bench tune: error: {wrong}{advice}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _study(options: argparse.Namespace) -> int:
    if options.list:
        print("\n".join(f"{name:10} {about}" for name, about in studies.STUDIES.items()))
        return 0
    names = list(studies.STUDIES) if "all" in options.names else list(dict.fromkeys(options.names))
    known = f"of {', '.join(studies.STUDIES)}, or all"
    if unknown := [name for name in names if name not in studies.STUDIES] or ([] if names else ["none"]):
        print(f"nntk-bench study: error: argument NAME: must be {known}; got {unknown[0]}", file=sys.stderr)
        return 2
    if options.threads:
        torch.set_num_threads(options.threads)
    folder = (options.output or Path("results/studies")) / ("quick" if options.quick else "")
    console, status = _console(), 0
    try:
        for study in [studies.load(name) for name in names]:
            if options.redraw:
                status |= study_runs.redraw(study, folder, console)
            else:
                status |= study_runs.run(study, options.quick, options.device, options.seed, folder, console)
    except (study_runs.StudyError, OSError) as wrong:
        print(f"nntk-bench study: error: {wrong}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return status


def _predict(options: argparse.Namespace) -> int:
    try:
        if importlib.util.find_spec("triton") is None:
            raise resources.CatalogueError("Triton is not installed (pip install triton; it is made for Linux)")
        from nntk.bench.machine_code.prediction import run  # its kernels need Triton

        facts = environment.describe(torch.device("cpu"))
        return run.run(options.json, facts, _console(), options.card, options.markdown)
    except (resources.CatalogueError, OSError) as wrong:
        print(f"nntk-bench predict: error: {wrong}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _resources(options: argparse.Namespace) -> int:
    console = _console()
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


def _report(options: argparse.Namespace) -> int:
    try:
        return report.run(options.paths, options.output, _console())
    except (ValueError, OSError) as wrong:
        print(f"nntk-bench report: error: {wrong}", file=sys.stderr)
        return 2


def _profile(options: argparse.Namespace) -> int:
    try:
        wanted = profiling.cases(options.op, options.shape, options.device)
        return profiling.run(wanted, options.device, options.output, _console(), options.json)
    except (ValueError, OSError) as wrong:
        print(f"nntk-bench profile: error: {wrong}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _roofline(options: argparse.Namespace) -> int:
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        return roofline.run(options.device, options.again, options.json, _console())
    except OSError as wrong:
        print(f"nntk-bench roofline: error: {wrong}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _compare(options: argparse.Namespace) -> int:
    try:
        a, b = results.read(options.a), results.read(options.b)
        comparison = compare.compare(a, b, options.threshold)
        if options.json:
            compare.write(comparison, a, b, options.threshold, options.json)
    except (ResultsError, OSError) as wrong:
        print(f"nntk-bench compare: error: {wrong}", file=sys.stderr)
        return 2
    compare.show(comparison, _console())
    return int(options.fail_on == "slower" and comparison.slower)


def _run(options: argparse.Namespace) -> int:
    try:
        record, setting, facts = _resume(options) if options.resume else _start(options)
    except (ResultsError, OSError) as wrong:
        argument = "--resume" if options.resume else "--output"
        print(f"nntk-bench run: error: argument {argument}: {wrong}", file=sys.stderr)
        return 2
    console = _console()
    console.print(
        f"nntk {nntk.__version__} on {facts['device']['name']}, {facts['device']['threads']} threads, "
        f"torch {facts['versions']['torch']}, commit {(facts['commit'] or 'unknown')[:10]}, seed {setting.seed}\n",
        highlight=False,
    )
    if options.resume and facts["uncommitted_changes"] is not False:
        console.print(
            "These sources are of no commit: that they are those of the run so far cannot be checked.\n", soft_wrap=True
        )
    status = "failed"
    try:
        if all([_measure(section, setting, record, console) for section in suites.catalogue(record.suite)]):
            status = "complete"
    except KeyboardInterrupt:
        status = "interrupted"
    finally:
        record.close(status)
        console.print(f"{status}: {len(record.rows)} rows in {record.path}", highlight=False, soft_wrap=True)
    return {"complete": 0, "failed": 1, "interrupted": 130}[status]


_Start = tuple[Record, Setting, Mapping[str, Any]]


def _start(options: argparse.Namespace) -> _Start:
    """A new run, by the options."""
    if options.threads:
        torch.set_num_threads(options.threads)
    device, suite, seed = options.device or torch.device("cpu"), options.suite or "quick", options.seed or 0
    facts = _facts(device, seed)
    if any(column.key == "roof" for section in suites.catalogue(suite) for column in section.columns):
        facts["roofs"] = [roof.summary() for roof in roofline.roofs(device)]
    folder = (options.output or Path("results")) / environment.slug(device)
    return Record.start(folder, suite, facts, _planned(suite)), Setting(device, seed), facts


def _resume(options: argparse.Namespace) -> _Start:
    """The run of a file, by what the file says."""
    for name in ("suite", "output", "seed", "device", "threads"):
        if getattr(options, name) is not None:
            raise ResultsError(f"not with --{name}, which is that of the run")
    run = results.read(options.resume)
    if run.suite not in suites.SUITES:
        raise ResultsError(f"{run.path}: suite: got {run.suite!r}, must be one of {', '.join(suites.SUITES)}")
    try:
        device = _device(run.facts["device"].get("selected", "cpu"))
    except argparse.ArgumentTypeError as wrong:
        raise ResultsError(f"{run.path}: device.selected: {wrong}") from None
    torch.set_num_threads(run.facts["device"]["threads"])
    facts = _facts(device, run.facts["seed"])
    if "roofs" in run.facts:
        facts["roofs"] = run.facts["roofs"]
    return Record.resume(run.path, facts, _planned(run.suite)), Setting(device, run.facts["seed"]), facts


def _facts(device: torch.device, seed: int) -> dict[str, Any]:
    facts = environment.describe(device)
    return {**facts, "device": {**facts["device"], "selected": str(device)}, "seed": seed}


def _planned(suite: str) -> list[dict[str, Any]]:
    """The sections of a suite, as a record describes them."""
    return [
        {
            "name": section.name,
            "title": section.title,
            "caption": section.caption,
            "columns": [asdict(column) for column in section.columns],
        }
        for section in suites.catalogue(suite)
    ]


def _measure(section: Section, setting: Setting, record: Record, console: Console) -> bool:
    """Measure a section row by row, or show the rows of one that is finished; whether no row failed."""
    good, kept = True, record.finished(section.name)
    caption = f"{section.caption} Measured before." if kept else section.caption
    with tables.growing(console, section.title, caption, section.columns) as show:
        items = [row for row in record.rows if row["section"] == section.name] if kept else section.rows(setting)
        for item in items:
            if isinstance(item, str):
                show(None, item)
                continue
            if not kept:
                record.add(section.name, item)
            show(item, "")
            if "failure" in item:
                good = False
                console.print(f"{item['case']}: {item['failure']}", style="red", highlight=False)
    record.finish(section.name)
    return good


if __name__ == "__main__":
    sys.exit(main())
