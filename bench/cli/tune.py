"""``nntk-bench tune``: the fastest configurations of the kernels on a card."""

from pathlib import Path
from typing import Annotated

import torch
import typer

from nntk.bench import tuning
from nntk.bench.cli.options import (
    CommandError,
    JsonOutput,
    number_in,
    one_line_errors,
    one_of,
    parse_device,
    printing_beside,
)
from nntk.bench.results import tables
from nntk.bench.tuning import spaces
from nntk.bench.tuning.tasks import TUNABLES
from nntk.files.paths import file_to_replace
from nntk.kernels.target import Target, target_of
from nntk.kernels.tuning import path_of

SUMMARY = "measure the kernels' configurations on a card"
HELP = """\
Measure the configurations of the kernels on this card, choice by choice. A model of the instructions, products and
loads selects the likely ones; each is checked against the rule's configuration, and the best are timed side by side.
The fastest is written to kernels/tuned/<device>.json, with every sample; from then on the kernels use it on such a
device. Every choice is on disk before the next begins: after an interruption the same command continues. Where the
sources of a kernel have changed since, its entries are not used, and are measured again.

choices:
  layer_step   tiles of a layer of the perturbed network, by family of noise, precision and shape
  layer_path   where a layer's noise is generated: for every tile, once and held, or written out and read, there also
               with both products of the layer in one loop
  rank_update  tiles of the energy form
  layer_pair   tiles of the structured local NTK
"""
EPILOG = """\
examples:
  nntk-bench tune                                    all choices, for ten minutes; again for ten more
  nntk-bench tune rank_update --budget 2             one of them, for two minutes
  nntk-bench tune layer_step --shape "width 256"     at the shapes whose name contains the text
  nntk-bench tune --dry-run                          what would be measured on sm_90, without a GPU
  nntk-bench tune --dry-run --arch sm_80 --json plan.json
  nntk-bench tune --dry-run --json - | jq .choices   the same for another program

Exit status: 0 all measured, 1 a choice could not be, 2 wrong usage, 3 the budget was spent before, 130 interrupted.
"""


def command(
    choices: Annotated[
        list[str] | None,
        typer.Argument(metavar="CHOICE", help=f"of {', '.join(TUNABLES)} (default: all of them)"),
    ] = None,
    shape: Annotated[str, typer.Option(metavar="TEXT", help="only choices with this in their name")] = "",
    device: Annotated[
        torch.device | None,
        typer.Option(parser=parse_device, metavar="NAME", help="cuda or cuda:N (default: cuda)"),
    ] = None,
    budget: Annotated[
        float,
        typer.Option(
            parser=number_in(0, 1e5, "a number of minutes above 0"),
            metavar="MIN",
            help="minutes (default: 10)",
            show_default=False,
        ),
    ] = 10.0,
    again: Annotated[bool, typer.Option("--again", help="measure, even if the table has an entry")] = False,
    output: Annotated[
        Path | None, typer.Option(metavar="PATH", help="table, a file (default: the device's in kernels/tuned)")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what would be measured, by the model alone")] = False,
    arch: Annotated[
        str,
        typer.Option(
            parser=one_of(spaces.PROCESSORS),
            metavar="NAME",
            help=f"architecture of --dry-run, one of {', '.join(spaces.PROCESSORS)} (default: sm_90)",
            show_default=False,
        ),
    ] = "sm_90",
    json: JsonOutput = None,
) -> int:
    """Measure the choices on a card, or show the plan."""
    with one_line_errors(ValueError, OSError), printing_beside(json) as planned:
        console = tables.standard_console()
        if output:
            file_to_replace(output, "argument --output:", "since the table is read and written choice by choice")
        selected_device = torch.device("cpu") if dry_run else device or _first_card()
        tasks = tuning.select_tasks(choices or [], shape, selected_device)
        if dry_run:
            return tuning.plan(tasks, Target(arch, spaces.PROCESSORS[arch]), planned, console)
        if json:
            raise ValueError("--json is for --dry-run; a run writes its table, see --output")
        target = target_of(selected_device)
        path = output or path_of(target.device)
        return tuning.run(tasks, target, selected_device, 60 * budget, again, path, console)


def _first_card() -> torch.device:
    try:
        return parse_device("cuda")
    except typer.BadParameter as error:
        raise CommandError(f"{error.message}; --dry-run needs no GPU") from None
