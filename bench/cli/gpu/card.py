"""``nntk-bench card``: everything that must be measured on a card, by one command."""

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from nntk.bench.card import report, run, worker
from nntk.bench.cli.options import CommandError, number_in, one_line_errors, one_of, parse_device, parse_seed
from nntk.bench.cli.resources import require_triton
from nntk.bench.machine_code.resources import CatalogueError
from nntk.bench.results import tables

SUMMARY = "measure everything that matters on a card, within the minutes at hand"
HELP = """\
Measure a card: checks, roofs, the targets of the design, single kernels beside their prediction, experiments, and the
fastest configurations, in this order and within the given minutes. Every row is on disk before the next begins. After
Ctrl-C, a crash or the end of the minutes the same command goes on with what is left. A unit that is too long for the
time left is recorded as left out for time. Units run in a process of their own: one that crashes ends no other. The
last lines are a summary that fits a screen and names the largest gap.

steps:
""" + "".join(f"  {name:12} {about}\n" for name, about in worker.STEPS.items())
EPILOG = """\
examples:
  nntk-bench card --minutes 9 --output card          nine minutes; once more for nine more
  nntk-bench card --step targets --step kernels      two of the steps
  nntk-bench card --report card                      the README's table, and the table for kernels/tuned
  nntk-bench card --dry-run --output rehearsal       the same without a card, at tiny sizes, in about a minute
  nntk-bench card --dry-run --report rehearsal       how its report would look

DIR/card.jsonl holds the rows, one on a line; DIR/card.log what the processes print. What is expected of an experiment
is recorded before it is measured. A unit that failed is not tried again: after a change of the sources choose another
folder. The rows of a dry run are marked, and nothing publishes them.

Exit status: 0 all good, 1 a test, a check or a unit failed, 2 wrong usage, 130 interrupted; what is finished is kept.
"""
_DEFAULT_OUTPUT = Path("card")


def command(
    minutes: Annotated[
        float,
        typer.Option(
            parser=number_in(0, 1e5, "a number of minutes above 0"),
            metavar="MIN",
            help="minutes that this run may take (default: 9)",
            show_default=False,
        ),
    ] = 9.0,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="folder of the rows, begun or continued (default: card)")
    ] = None,
    step: Annotated[
        list[str] | None,
        typer.Option(
            parser=one_of(worker.STEPS), metavar="NAME", help="only this step; may be repeated (default: all)"
        ),
    ] = None,
    device: Annotated[
        torch.device | None,
        typer.Option(parser=parse_device, metavar="NAME", help="cuda or cuda:N (default: cuda)"),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            parser=parse_seed,
            metavar="N",
            help="seed of data, networks, displacements (default: 0)",
            show_default=False,
        ),
    ] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="the same on the CPU, tiny; its rows are marked")] = False,
    report_on: Annotated[
        Path | None, typer.Option("--report", metavar="DIR", help="measure nothing: write DIR/report from the rows")
    ] = None,
) -> int:
    """Measure a card, rehearse it, or write the report."""
    console = tables.standard_console()
    with one_line_errors(ValueError, OSError, run.CardError, CatalogueError):
        if report_on is not None:
            if output is not None or step or device is not None:
                raise CommandError("argument --report: reads the rows of DIR; leave --output, --step and --device out")
            return report.run(report_on, dry_run, console)
        require_triton()
        folder = output or _DEFAULT_OUTPUT
        return run.run(folder, _selected(device, dry_run), seed, minutes, dry_run, step or (), console)


def _selected(device: Any, is_dry_run: bool) -> torch.device:
    if is_dry_run:
        if device is not None:
            raise CommandError("argument --device: a dry run uses the CPU; leave --device or --dry-run out")
        return torch.device("cpu")
    try:
        selected = device or parse_device("cuda")
    except typer.BadParameter as error:
        raise CommandError(f"{error.message}; --dry-run needs no GPU") from None
    if selected.type != "cuda":
        raise CommandError(f"argument --device: must be cuda or cuda:N, got {str(selected)!r}; --dry-run needs no GPU")
    return torch.device(selected)
