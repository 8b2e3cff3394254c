"""``nntk-bench roofline``: the highest rates of a device."""

from typing import Annotated

import torch
import typer

from nntk.bench.cli.options import CPU, Device, JsonOutput, Threads, one_line_errors, printing_beside
from nntk.bench.measure import roofline
from nntk.bench.results import tables

SUMMARY = "measure the highest rates of a device"
HELP = """\
Measure the highest rates of a device: copies and reads of memory, and dense products by precision. The fastest of many
runs is the roof. Suites show each op's share of its roof; a share above 100 % is an error of measurement. Roofs are
kept for each device, driver, version of PyTorch and number of threads. A run of a suite measures them once more and
keeps the best; --again deletes the stored roofs first.
"""
EPILOG = """\
examples:
  nntk-bench roofline                       roofs of this CPU, measured now or before
  nntk-bench roofline --again               measured now: nothing else may work on the machine
  nntk-bench roofline --device cuda --json roofs.json
  nntk-bench roofline --json - | jq .roofs  for another program

Exit status: 0 measured, 2 wrong usage, 130 interrupted.
"""


def command(
    device: Device = CPU,
    threads: Threads = None,
    again: Annotated[bool, typer.Option("--again", help="measure now, even if roofs are stored")] = False,
    json: JsonOutput = None,
) -> int:
    """Measure the roofs, or show the stored ones."""
    if threads:
        torch.set_num_threads(threads)
    with one_line_errors(OSError), printing_beside(json) as output:
        return roofline.run(device, again, output, tables.standard_console())
