"""``nntk-bench study``: numerical studies."""

from pathlib import Path
from typing import Annotated

import torch
import typer

from nntk.bench import studies
from nntk.bench.cli.options import CPU, CommandError, Device, Seed, Threads, one_line_errors
from nntk.bench.results import tables
from nntk.bench.studies import run as study_runs

SUMMARY = "run numerical studies"
HELP = """\
Run numerical studies: what the nonlocal kernel sees that the NTK does not, and where it loses. Each writes under
DIR/<study> its rows (JSON and CSV), its figures (SVG and PNG), and a page, README.md, that states the setting and the
observations, every number with its interval over seeds. Rows computed so far are in <study>.partial.json: the same
command continues a study that was stopped, if the sources are those of a commit, and replaces an earlier one at the
end.

studies:
""" + "".join(f"  {name:10} {about}\n" for name, about in studies.STUDIES.items())
EPILOG = """\
examples:
  nntk-bench study limit                    one study
  nntk-bench study all --quick              all of them at small sizes, under results/studies/quick
  nntk-bench study targets --redraw         claims, figures and page from the existing rows
  nntk-bench study --list                   their names

The same seed gives the same values: another number of threads changes them by rounding alone. Times (keys that end in
_s) depend on the machine.

Exit status: 0 no claim contradicted, 1 one was, 2 wrong usage, 130 interrupted; finished seeds are kept.
"""


def command(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help=f"of {', '.join(studies.STUDIES)}; or all", show_default=False),
    ] = None,
    list_only: Annotated[bool, typer.Option("--list", help="print the names of the studies")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="few seeds and small sizes")] = False,
    redraw: Annotated[
        bool, typer.Option("--redraw", help="compute nothing: claims, figures and page from the existing rows")
    ] = False,
    device: Device = CPU,
    seed: Seed = 0,
    threads: Threads = None,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="default: results/studies; with --quick, quick/ in it")
    ] = None,
) -> int:
    """Run the studies one after another, or list them."""
    if list_only:
        typer.echo("\n".join(f"{name:10} {about}" for name, about in studies.STUDIES.items()))
        return 0
    selected = list(studies.STUDIES) if names and "all" in names else list(dict.fromkeys(names or []))
    if unknown := [name for name in selected if name not in studies.STUDIES] or ([] if selected else ["none"]):
        raise CommandError(f"argument NAME: must be of {', '.join(studies.STUDIES)}, or all; got {unknown[0]}")
    if threads:
        torch.set_num_threads(threads)
    folder = (output or Path("results/studies")) / ("quick" if quick else "")
    console, status = tables.standard_console(), 0
    with one_line_errors(study_runs.StudyError, OSError):
        loaded = [studies.load(name) for name in selected]
        for study in loaded:
            study_runs.check_output(study, folder)
        for study in loaded:
            if redraw:
                status |= study_runs.redraw(study, folder, console)
            else:
                status |= study_runs.run(study, quick, device, seed, folder, console)
    return status
