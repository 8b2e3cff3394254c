"""``nntk-bench profile``: where the time of one op goes."""

from pathlib import Path
from typing import Annotated

import typer

from nntk.bench import profiling
from nntk.bench.cli.options import CPU, Device, JsonOutput, one_line_errors, printing_beside
from nntk.bench.results import tables

SUMMARY = "show where the time of one op goes"
HELP = """\
Profile one op at the shapes of the suite ops. The table lists the operators and kernels that take the time, beside the
least time that the roof of the machine allows; a trace is written for chrome://tracing or ui.perfetto.dev. On a GPU
every call is an NVTX range, which external profilers show too, and Triton's proton writes a second profile, of the
kernels by name and with the least work of a call, for proton-viewer.
"""
EPILOG = """\
examples:
  nntk-bench profile attention_weights                      on this CPU, at every shape of the suite
  nntk-bench profile mlp_differences --shape rademacher     one family
  nntk-bench profile energy --device cuda --output /tmp/t   on a GPU, traces under /tmp/t
  nntk-bench profile energy --json energy.json              the table as JSON
  nntk-bench profile energy --json - | jq .profiles         the same for another program

For an unknown op the message lists the known ones. Exit status: 0 profiled, 2 wrong usage, 130 interrupted.
"""


def command(
    op: Annotated[str, typer.Argument(metavar="OP", help="name of an op, e.g. energy")],
    shape: Annotated[str, typer.Option(metavar="TEXT", help="only shapes that contain this text")] = "",
    device: Device = CPU,
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="folder of the traces (default: profiles)", show_default=False)
    ] = Path("profiles"),
    json: JsonOutput = None,
) -> int:
    """Profile one op."""
    with one_line_errors(ValueError, OSError):
        selected = profiling.cases(op, shape, device)
        with printing_beside(json) as table:
            return profiling.run(selected, device, output, tables.standard_console(), table)
