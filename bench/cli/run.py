"""``nntk-bench run``: a suite of measurements, recorded row by row."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

import nntk
from nntk.bench import suites
from nntk.bench.cli.options import CPU, CommandError, Threads, one_line_errors, one_of, parse_device, parse_seed
from nntk.bench.cli.ranks import number_of_ranks, ranks_of_command
from nntk.bench.measure import environment, roofline
from nntk.bench.results import store, tables
from nntk.bench.results.schema import ResultsError
from nntk.bench.results.store import Record
from nntk.bench.suites import Section, Setting
from nntk.files.paths import OutputPathError, file_to_replace, folder_to_write

SUMMARY = "run a suite, print its tables, write one JSON"
HELP = "Run a suite of measurements, print its tables and write one JSON.\n\nsuites:\n" + "\n".join(
    f"  {name:12}{about}" for name, about in suites.SUITES.items()
)
EPILOG = """\
examples:
  nntk-bench run                                  the quick suite on this machine
  nntk-bench run --suite digits --seed 3          classification of digits over three seeds, from seed 3
  nntk-bench run --device cuda --output /tmp/out  on a GPU, results under /tmp/out
  nntk-bench run --resume results/x/quick-y.json  continues a run that was stopped
  torchrun --nproc-per-node 2 -m nntk.bench run --suite distributed   kernels over two ranks
  nntk-bench compare A.json B.json                what became faster, slower or less accurate from A to B
  nntk-bench report A.json                        tables and plots, as Markdown and as one page of HTML
  nntk-bench profile energy                       where the time of an op goes, with a trace
  nntk-bench roofline                             the highest rates of this machine
  nntk-bench resources --arch sm_90               machine code of every kernel, without a GPU
  nntk-bench tune                                 the fastest configurations of the kernels on this card
  nntk-bench card --minutes 9                     all that matters on a card, row by row, by one command
  nntk-bench study targets                        a numerical study, with its data, figures and a page

Every run writes one JSON, DIR/<device>/<suite>-<time>.json, row by row: device, versions, commit, seed, raw samples.
Where a file can be written no longer, the rows are kept in the folder for temporary files; the message names the place.
A run that was interrupted, killed or broken by an error can be resumed by the same sources, packages, device and
threads: sections that finished are kept, the others are measured from their start.

Exit status: 0 all rows good, 1 a row missed its tolerance, 2 wrong usage or a file that cannot be written,
130 interrupted, 141 the reader of the output closed it; finished rows are kept.
"""

_TIMEOUT = 3600.0
"""Longest time, in seconds, that ranks wait for another one."""

_Context = tuple[Record, Setting, Mapping[str, Any]]
"""Record of a run, its setting, and the facts that its figures depend on."""


def command(
    suite: Annotated[
        str | None,
        typer.Option(parser=one_of(suites.SUITES), metavar="NAME", help="a suite of the list above (default: quick)"),
    ] = None,
    output: Annotated[Path | None, typer.Option(metavar="DIR", help="folder of the results (default: results)")] = None,
    seed: Annotated[
        int | None,
        typer.Option(parser=parse_seed, metavar="N", help="seed of data, networks, displacements (default: 0)"),
    ] = None,
    device: Annotated[
        torch.device | None,
        typer.Option(parser=parse_device, metavar="NAME", help="cpu, cuda or cuda:N (default: cpu)"),
    ] = None,
    threads: Threads = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="continue the run in this file, with its options: no other is allowed"),
    ] = None,
) -> int:
    """Run a suite, or continue a run; the status is that of the record."""
    if suite not in suites.BY_RANKS:
        return _run(suite, output, seed, device, threads, resume)
    line = f"torchrun --nproc-per-node 2 -m nntk.bench run --suite {suite}"
    if number_of_ranks() < 2:
        raise CommandError(f"argument --suite: {suite} is measured by two processes or more: {line}")
    if resume:
        raise CommandError(f"argument --resume: a run of {suite} is not resumed, but started again: {line}")
    with ranks_of_command("nntk-bench run", device or CPU, _TIMEOUT) as ranks:
        if ranks.rank == 0:
            return _run(suite, output, seed, ranks.device, threads, None)
        if threads:
            torch.set_num_threads(threads)
        for section in suites.catalogue(suite):
            for _ in section.rows(Setting(ranks.device, seed or 0)):
                pass
        return 0


def _run(
    suite: str | None,
    output: Path | None,
    seed: int | None,
    device: torch.device | None,
    threads: int | None,
    resume: Path | None,
) -> int:
    """Measure on this process, which holds the record."""
    options = {"suite": suite, "output": output, "seed": seed, "device": device, "threads": threads}
    if resume:
        with one_line_errors(OutputPathError):
            resume = file_to_replace(resume, "argument --resume:", store.RESUMED)
    with one_line_errors(ResultsError, OSError, prefix=f"argument {'--resume' if resume else '--output'}: "):
        if resume:
            record, setting, facts = _resume(resume, options)
        else:
            record, setting, facts = _start(suite or "quick", output, seed or 0, device, threads)
    console, status = tables.standard_console(), "failed"
    with one_line_errors(OutputPathError):
        try:
            _introduce(setting, facts, bool(resume), console)
            if all([_measure(section, setting, record, console) for section in suites.catalogue(record.suite)]):
                status = "complete"
        except KeyboardInterrupt:
            status = "interrupted"
        except BrokenPipeError:
            status = "interrupted"
            raise
        finally:
            record.close(status)
            console.print(f"{status}: {len(record.rows)} rows in {record.path}", highlight=False, soft_wrap=True)
    return {"complete": 0, "failed": 1, "interrupted": 130}[status]


def _introduce(setting: Setting, facts: Mapping[str, Any], is_resumed: bool, console: Console) -> None:
    """Print what the figures of a run depend on."""
    console.print(
        f"nntk {nntk.__version__} on {facts['device']['name']}, {facts['device']['threads']} threads, "
        f"torch {facts['versions']['torch']}, commit {(facts['commit'] or 'unknown')[:10]}, seed {setting.seed}\n",
        highlight=False,
    )
    if is_resumed and facts["uncommitted_changes"] is not False:
        console.print(
            "These sources belong to no commit. It cannot be checked that they are those of the run so far.\n",
            soft_wrap=True,
        )


def _start(suite: str, output: Path | None, seed: int, device: torch.device | None, threads: int | None) -> _Context:
    """Begin a new run."""
    if threads:
        torch.set_num_threads(threads)
    device = device or torch.device("cpu")
    folder = folder_to_write((output or Path("results")) / environment.slug(device), "")
    facts = _facts(device, seed)
    if any(column.key == "roof" for section in suites.catalogue(suite) for column in section.columns):
        facts["roofs"] = [roof.summary() for roof in roofline.roofs(device)]
    return Record.start(folder, suite, facts, _planned_sections(suite)), Setting(device, seed), facts


def _resume(path: Path, options: Mapping[str, Any]) -> _Context:
    """Continue a run, with the suite, seed, device and threads that its file states."""
    for name, value in options.items():
        if value is not None:
            raise ResultsError(f"not with --{name}, which is that of the run")
    run = store.read(path)
    if run.suite in suites.BY_RANKS:
        raise ResultsError(f"{run.path}: a run of {run.suite} is not resumed, but started again")
    if run.suite not in suites.SUITES:
        raise ResultsError(f"{run.path}: suite: got {run.suite!r}, must be one of {', '.join(suites.SUITES)}")
    try:
        device = parse_device(run.facts["device"].get("selected", "cpu"))
    except typer.BadParameter as error:
        raise ResultsError(f"{run.path}: device.selected: {error.message}") from None
    torch.set_num_threads(run.facts["device"]["threads"])
    facts = _facts(device, run.facts["seed"])
    if "roofs" in run.facts:
        facts["roofs"] = run.facts["roofs"]
    return Record.resume(run.path, facts, _planned_sections(run.suite)), Setting(device, run.facts["seed"]), facts


def _facts(device: torch.device, seed: int) -> dict[str, Any]:
    facts = environment.describe(device)
    return {**facts, "device": {**facts["device"], "selected": str(device)}, "seed": seed}


def _planned_sections(suite: str) -> list[dict[str, Any]]:
    """Describe the sections of a suite as a record holds them."""
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
    """Measure a section row by row, or show the rows of a finished one; return True if no row failed."""
    good, finished = True, record.finished(section.name)
    caption = f"{section.caption} Measured before." if finished else section.caption
    with tables.growing(console, section.title, caption, section.columns) as show:
        items = [row for row in record.rows if row["section"] == section.name] if finished else section.rows(setting)
        for item in items:
            if isinstance(item, str):
                show(None, item)
                continue
            if not finished:
                record.add(section.name, item)
            show(item, "")
            if "failure" in item:
                good = False
                console.print(f"{item['case']}: {item['failure']}", style="red", highlight=False)
    record.finish(section.name)
    return good
