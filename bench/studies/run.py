"""Run of a study: its replicates, seed by seed, then its claims, tables, figures and page, all in one folder."""

import csv
import io
import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from nntk.bench.measure import environment
from nntk.bench.results.schema import Row, differences
from nntk.bench.studies import Setting, Study
from nntk.bench.studies.analysis import drawing
from nntk.bench.studies.analysis.claims import Claim
from nntk.bench.studies.analysis.rows import Rows
from nntk.files.output import keeping, write_text
from nntk.files.paths import file_to_replace

SCHEMA = 1
"""Version of the layout of a study's JSON that results/README.md documents."""

_FACTS = (
    "schema",
    "device",
    "versions",
    "commit",
    "uncommitted_changes",
    "stream_version",
    "seed",
    "quick",
    "settings",
)
"""Facts that all rows of a study depend on."""


_PLAIN: Any = {"highlight": False, "markup": False, "soft_wrap": True}
"""Options for printing lines with paths or numbers."""


class StudyError(ValueError):
    """Error of a file of a study that cannot be used; the message names the file and the reason."""


def run(study: Study, quick: bool, device: torch.device, seed: int, folder: Path, console: Console) -> int:
    """Run a study, or continue a stopped one of the same sources and settings.

    Args:
        study: Study to run.
        quick: True to use its quick numbers.
        device: Device of the computation.
        seed: Seed of the first replicate.
        folder: Folder of the studies; the files are written to its subfolder with the study's name.
        console: Console of the progress and the claims.

    Returns:
        The exit status: 0, or 1 if a claim is contradicted.

    Raises:
        OSError: If a file cannot be written; where the rows cannot, the message says where they are kept.
    """
    path = check_output(study, folder)
    partial = path.with_name(f"{study.name}.partial.json")
    content = _initial_content(partial, _facts(study, quick, device, seed), console)
    _write(partial, content)
    try:
        _replicate(study, quick, device, content, partial, console)
    except BaseException:
        anew = "begins anew, since these sources are of no commit"
        then = "goes on" if content["uncommitted_changes"] is False else anew
        console.print(f"stopped: {len(content['finished'])} seeds are in {partial}; the same command {then}", **_PLAIN)
        raise
    content["status"] = "complete"
    _write(path, content)
    partial.unlink()
    try:
        return finish(study, path, content, console)
    except Exception:
        console.print(f"All rows are in {path}: --redraw makes the rest of them", **_PLAIN)
        raise


def redraw(study: Study, folder: Path, console: Console) -> int:
    """Make claims, tables, figures and page again from the rows of a study's file.

    Args:
        study: Study of the file.
        folder: Folder of the studies.
        console: Console of the claims.

    Returns:
        The exit status: 0, or 1 if a claim is contradicted.

    Raises:
        StudyError: If the file does not exist, or is not of this study.
        OSError: If a file cannot be written; where the rows cannot, the message says where they are kept.
    """
    path = check_output(study, folder)
    return finish(study, path, read(path), console)


def check_output(study: Study, folder: Path) -> Path:
    """Check, before any work, that the files of a study can be written.

    Args:
        study: The study.
        folder: Folder of the studies.

    Returns:
        The path of the study's file.

    Raises:
        OutputPathError: If one of them can neither be replaced nor be made.
    """
    path = folder / study.name / f"{study.name}.json"
    for name in (path.name, f"{study.name}.partial.json", "README.md"):
        file_to_replace(path.with_name(name), "argument --output:", "since a study is read and written seed by seed")
    return path


def read(path: Path) -> dict[str, Any]:
    """Read the file of a study.

    Args:
        path: Path of the file.

    Returns:
        The content of the file.

    Raises:
        StudyError: If the file does not exist, or is no study of this schema.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StudyError(f"{path}: there is no such file") from None
    except ValueError as error:
        raise StudyError(f"{path}: no JSON: {error}") from None
    name = path.name.partition(".")[0]
    if not isinstance(content, dict) or content.get("schema") != SCHEMA or content.get("study") != name:
        raise StudyError(f"{path}: no study {name!r} of schema {SCHEMA}")
    return content


def finish(study: Study, path: Path, content: dict[str, Any], console: Console) -> int:
    """Write claims, tables, figures and the page, and print the claims."""
    rows = Rows(content["rows"])
    claims = study.claims(rows)
    seeds = content["settings"]["seeds"]
    if wrong := [claim.name for claim in claims if len(claim.values) != seeds]:
        raise ValueError(f"claims must have {seeds} values, one a seed; {', '.join(map(repr, wrong))} have not.")
    content["claims"] = [claim.summary() for claim in claims]
    _write(path, content)
    for table in rows.distinct("table"):
        write_text(path.with_name(f"{table}.csv"), _csv(rows.where(table=table)))
    figures = []
    with drawing.styled(study.name):
        for study_figure in study.figures(rows):
            drawing.save(study_figure.figure, path.with_name(study_figure.name))
            figures.append((study_figure.name, study_figure.caption))
    write_text(path.with_name("README.md"), page(study, content, claims, figures))
    colours = {"supported": "green", "open": "yellow", "contradicted": "red"}
    for claim in claims:
        console.print(
            f"[{colours[claim.verdict]}]{claim.verdict:12}[/] {escape(claim.sentence)}", highlight=False, soft_wrap=True
        )
    console.print(f"{study.name}: {len(rows)} rows, {len(figures)} figures in {path.parent}", **_PLAIN)
    return int(any(claim.verdict == "contradicted" for claim in claims))


def page(study: Study, content: Mapping[str, Any], claims: Sequence[Claim], figures: Sequence[tuple[str, str]]) -> str:
    """Return the page of a study, in Markdown."""
    quick = " --quick" if content["quick"] else ""
    seed = f" --seed {content['seed']}" if content["seed"] else ""
    settings = ", ".join(f"{name.replace('_', ' ')} {_written(value)}" for name, value in content["settings"].items())
    seen = " ".join(claim.sentence + _reservation(claim) for claim in claims)
    device, versions = content["device"], content["versions"]
    changes = " with uncommitted changes" if content["uncommitted_changes"] else ""
    return "\n\n".join([
        f"# {study.title}",
        f"`nntk-bench study {study.name}{quick}{seed}`",
        f"**Setting.** {study.about}",
        f"Numbers: {settings}.",
        f"**Seen.** {seen}",
        f"In brackets are Student's 95 % intervals over {content['settings']['seeds']} seeds, of geometric means where "
        f"they are ratios. All rows: [{study.name}.json]({study.name}.json).",
        *(f"![{_plain(caption)}]({name}.svg)\n\n{caption}" for name, caption in figures),
        f"{device['name']}, PyTorch's threads {device['threads']}, torch {versions['torch']}, "
        f"rows of commit {(content['commit'] or 'unknown')[:10]}{changes}, {content['elapsed_s']:.0f} s.\n",
    ])  # fmt: skip


def _reservation(claim: Claim) -> str:
    return {
        "supported": "",
        "open": " (The interval leaves this open.)",
        "contradicted": " (This run contradicts it.)",
    }[claim.verdict]


def _plain(text: str) -> str:
    return re.sub(r"[\[\]`*]", "", text.split(". ")[0])


def _written(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "(" + ", ".join(_written(part) for part in value) + ")"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Write the file as JSON with one line for each row, so that versions of it can be compared."""
    head = json.dumps({key: value for key, value in content.items() if key != "rows"}, indent=1, allow_nan=False)
    rows = "".join(f",\n  {json.dumps(row, allow_nan=False)}" for row in content["rows"]).removeprefix(",")
    with keeping(text := f'{head[:-2]},\n "rows": [{rows}\n ]\n}}\n', path):
        write_text(path, text)


def _csv(rows: Rows) -> str:
    """Return the numbers and names of rows as CSV, without lists, which only the JSON holds."""
    flat = [{key: value for key, value in row.items() if not isinstance(value, list)} for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row if name != "table"))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def _facts(study: Study, quick: bool, device: torch.device, seed: int) -> dict[str, Any]:
    size = study.quick if quick else study.full
    # Converted to JSON and back, so that they compare equal to the facts in a file.
    facts: dict[str, Any] = json.loads(
        json.dumps(
            {
                "schema": SCHEMA,
                "study": study.name,
                **environment.describe(device),
                "seed": seed,
                "quick": quick,
                "settings": asdict(size),
            }
        )
    )
    return facts


def _initial_content(partial: Path, facts: dict[str, Any], console: Console) -> dict[str, Any]:
    """Return the content of a new study, or of one that was stopped, if it has the same facts."""
    new = {
        **facts,
        "status": "running",
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "elapsed_s": 0.0,
        "finished": [],
        "claims": [],
        "rows": [],
    }
    try:
        old = read(partial)
    except StudyError:
        return new
    old_facts, new_facts = ({key: source.get(key) for key in _FACTS} for source in (old, facts))
    changed = [name for name, *_ in differences(old_facts, new_facts)]
    if facts["uncommitted_changes"] is not False:
        changed.append("sources of no commit")
    if changed:
        console.print(f"{partial} is of another study ({', '.join(changed)}): this one begins anew", **_PLAIN)
        return new
    return {**old, "rows": [row for row in old["rows"] if row["seed"] in old["finished"]]}


def _replicate(
    study: Study, quick: bool, device: torch.device, content: dict[str, Any], path: Path, console: Console
) -> None:
    """Add the rows of the seeds that are missing, and write the file after each seed."""
    size = study.quick if quick else study.full
    seeds = range(content["seed"], content["seed"] + size.seeds)
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("seeds")
    with Progress(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(study.name, total=size.seeds, completed=len(content["finished"]))
        for seed in seeds:
            if seed in content["finished"]:
                continue
            start, rows = time.perf_counter(), []
            for item in study.replicate(Setting(size, device, seed, seed == content["seed"])):
                if isinstance(item, str):
                    progress.update(task, description=f"{study.name}: {item}")
                else:
                    rows.append(prepare_row(item, seed))
            content["rows"] += rows
            content["finished"].append(seed)
            content["elapsed_s"] = round(content["elapsed_s"] + time.perf_counter() - start, 1)
            _write(path, content)
            progress.advance(task)
            if not console.is_terminal:
                console.print(f"{study.name}: seed {seed}, {content['elapsed_s']:.0f} s", highlight=False)


def prepare_row(row: Row, seed: int) -> Row:
    """Return a row as it is written to the file: curves have six digits, enough for a figure.

    Args:
        row: Row with its table.
        seed: Seed of the row.

    Returns:
        The row: table, seed, settings and figures.

    Raises:
        ValueError: If a figure is not finite.
    """
    rounded: Row = {"table": row["table"], "seed": seed}
    for key, value in row.items():
        numbers = value if isinstance(value, list) else [value]
        if not all(math.isfinite(number) for number in numbers if isinstance(number, float)):
            raise ValueError(f"{key} of table {row['table']!r}, seed {seed}, must be finite, got {value}.")
        rounded[key] = [float(f"{number:.6g}") for number in value] if isinstance(value, list) else value
    return rounded
