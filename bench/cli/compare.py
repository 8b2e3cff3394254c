"""``nntk-bench compare``: what became faster, slower or less accurate between two runs."""

from pathlib import Path
from typing import Annotated

import typer

from nntk.bench.cli.options import JsonOutput, number_in, one_line_errors, one_of, printing_beside
from nntk.bench.results import compare as comparisons
from nntk.bench.results import store, tables
from nntk.bench.results.schema import ResultsError

SUMMARY = "say what became faster, slower or less accurate"
HELP = """\
Compare two runs of a suite row by row, from A to B, by all their samples. Other devices, versions or commits, failed
rows, and rows of one run only are stated in words.

verdicts, where r is the time in B over the time in A:
  SAME     the interval that holds r with 95 % probability is within the threshold
  SLOWER   the samples reject that r is within half the threshold, and r exceeds the drift within either run
  FASTER   likewise
  UNCLEAR  none of these; the last column says why: noise, drift, or too few samples for a test of so many rows
  WORSE    an error more than twice that in A, or a row that fails its tolerance in B only

The test is that of Mann and Whitney, exact for up to 80 samples, corrected after Holm: the probability of any wrong
FASTER or SLOWER is at most 5 %. r is the median over all pairs of samples, one of each run (Hodges and
Lehmann). A drift is the change from a run's first sample to its last that the shift between its halves suggests.
A threshold of 0.05 is 1.05 times as long or as short; A against B mirrors B against A.
"""
EPILOG = """\
examples:
  nntk-bench compare old.json new.json                      what changed
  nntk-bench compare old.json new.json --fail-on slower     exit status 1 if a row is SLOWER or WORSE, for CI
  nntk-bench compare old.json new.json --threshold 0.1      changes of less than 10 % do not matter
  nntk-bench compare old.json new.json --json verdicts.json the verdicts, with ratios, intervals and p values
  nntk-bench compare old.json new.json --json - | jq .timed the same for another program

For two runs of one machine to be comparable, nothing else may work on it. Where the samples are too few for any test,
the verdict is UNCLEAR and says how many each run needs: 6 for 12 rows, 8 for 200.

Exit status: 0 compared, 1 --fail-on slower and a row is SLOWER or WORSE, 2 wrong usage or unusable file.
"""


def command(
    a: Annotated[Path, typer.Argument(metavar="A", help="JSON of the run to compare with")],
    b: Annotated[Path, typer.Argument(metavar="B", help="JSON of the run to judge")],
    fail_on: Annotated[
        str | None,
        typer.Option(parser=one_of(["slower"]), metavar="slower", help="exit with 1 if a row is SLOWER or WORSE"),
    ] = None,
    threshold: Annotated[
        float,
        typer.Option(
            parser=number_in(0, 1, "a number in (0, 1]"),
            metavar="X",
            help="change that matters, in (0, 1] (default: 0.05)",
            show_default=False,
        ),
    ] = 0.05,
    json: JsonOutput = None,
) -> int:
    """Compare two runs; return 1 if ``fail_on`` requires it, else 0."""
    with one_line_errors(ResultsError, OSError):
        runs = store.read(a), store.read(b)
        comparison = comparisons.compare(*runs, threshold)
        with printing_beside(json) as output:
            if output:
                comparisons.write(comparison, *runs, threshold, output)
            comparisons.show(comparison, tables.standard_console())
    return int(fail_on == "slower" and comparison.slower)
