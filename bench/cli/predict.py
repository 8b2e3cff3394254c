"""``nntk-bench predict``: estimated speed of the kernels on a card, without the card."""

from typing import Annotated

import torch
import typer

from nntk.bench.cli.options import JsonOutput, one_line_errors, one_of, printing_beside
from nntk.bench.cli.resources import require_triton
from nntk.bench.machine_code import resources
from nntk.bench.machine_code.prediction.model import CARDS
from nntk.bench.measure import environment
from nntk.bench.results import tables

SUMMARY = "estimate the speed of the kernels on a card, without the card"
HELP = """\
Compile the kernels that the design's workloads use on an H200, H100, B200, A100 and RTX 4090, and predict their speed
from the machine code: the turns of the main loops and the instructions outside of them, each as long as its busiest
pipe, and the bytes. Where a multiprocessor holds several programs at a time, one runs while another waits. No kernel is
executed, and no GPU is needed. The model ignores latency, bank conflicts and launches, so predictions are optimistic:
an H200 needed 1.5 times as long, and three times for assembly. They show what to improve first; they do not replace
measurements.

The second-level cache is shown apart, since no data sheet has its rate: 6.8 TB/s would explain what an H200 took beyond
the prediction for two kernels. Other cards are given the same rate in a clock.

how to read it:
  target      that of the design, which is for an H200, scaled by what the card's rates allow
  with cache  the figure before it, if operands come through the second-level cache at its supposed rate
  of measured evaluations, of bf16 forwards as they were measured on such a card, without and with the cache; the
              column "predicted" divides by the rate of products that the card can reach
  of roof   time of the work at the card's rate of products or of copies, over the predicted time
  products  time of the matrix pipe in main loops
  issue     time that other pipes add in these: noise, splitting of operands, addresses
  once      time outside of the loops: epilogues
  memory    time that bytes add to all of that

A second table shows the host's work for evaluations at the default budget, on a driver that launches nothing. It needs
a C compiler, as Triton does on any card. Chunks, launches, operators, tensor maps and waits are counted. The time of
the host is measured on this machine, and is longer if that is busy.
  host      processor time of one thread, and 3 us of a real driver for each launch and operator
  share     of the card's predicted time; at most a tenth, or the card may wait for the host
"""
EPILOG = """\
examples:
  nntk-bench predict                             the tables
  nntk-bench predict --machine h200              of one card; --card is the same option
  nntk-bench predict --json prediction.json      with seconds by part, the card's rates, versions and commit
  nntk-bench predict --json - | jq .cards        the same for another program

Exit status: 0 predicted, 1 a kernel did not compile or the host was not measured, 2 wrong usage, 130 interrupted.
"""


def command(
    card: Annotated[
        list[str] | None,
        typer.Option(
            "--machine",
            "--card",
            parser=one_of(CARDS),
            metavar="NAME",
            help=f"one of {', '.join(CARDS)}; may be repeated (default: all)",
        ),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="print the tables in Markdown too")] = False,
    json: JsonOutput = None,
) -> int:
    """Predict the speed of the design's workloads."""
    with one_line_errors(resources.CatalogueError, OSError):
        require_triton()
        from nntk.bench.machine_code.prediction import run  # its kernels need Triton

        facts = environment.describe(torch.device("cpu"))
        with printing_beside(json) as output:
            return run.run(output, facts, tables.standard_console(), card or [], markdown)
