"""Layout of a run's file: its fields, what each may hold, and the message for a file that differs."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError

SCHEMA = 2
"""Version of the layout that results/README.md documents."""

Status = Literal["running", "complete", "interrupted", "failed"]
STATUSES: tuple[str, ...] = get_args(Status)

SETTINGS = (
    "network",
    "directions",
    "propagation",
    "precision",
    "estimator",
    "method",
    "gamma",
    "samples",
    "inputs",
    "outputs",
    "parameters",
    "seed",
    "seeds",
    "training",
    "held_out",
    "ridge",
)
"""Entries of a row that say *what* was measured. They are part of the row's key; another list is another SCHEMA."""

FACTS = ("device", "versions", "commit", "uncommitted_changes", "stream_version", "seed")
"""Names of the facts that all figures of a run depend on."""

Row = dict[str, Any]

DRY_RUN = "dry run"
"""Mark of files and rows of a rehearsal, whose figures are of no device: no file of results may hold them."""


class ResultsError(ValueError):
    """Error of a results file that cannot be used: the file, the place in it, its content there, what is allowed."""


Text = Annotated[StrictStr, Field(min_length=1)]
Count = Annotated[StrictInt, Field(ge=1)]
Seconds = Annotated[float, Field(ge=1e-12, le=1e9, strict=True)]


class _Layout(BaseModel):
    """Part of a file. The description of each field completes the sentence "the value must be"."""

    model_config = ConfigDict(extra="allow", strict=True)


class Device(_Layout):
    """Device of a run."""

    kind: Text = Field(description="text")
    name: Text = Field(description="text")
    threads: Count = Field(description="an integer from 1")
    processors: Count = Field(description="an integer from 1")


class SelectedDevice(Device):
    """Device of a run since schema 2, with the value of ``--device``."""

    selected: Text = Field(description="text")


class Section(_Layout):
    """Table of a run. Since schema 2 its title, caption and columns stand beside these fields."""

    name: Text = Field(description="text")
    finished: StrictBool = Field(description="true or false")


class RowLayout(_Layout):
    """Row of a run: its settings and figures stand beside these fields."""

    section: Text = Field(description="text")
    case: Text = Field(description="text")
    samples_s: Annotated[list[Seconds], Field(min_length=1)] = Field(
        default=[1.0], description="a list of seconds, from 1e-12 to 1e9"
    )
    failure: Text = Field(default="none", description="text")


class NamedRow(RowLayout):
    """Row since schema 2."""

    key: Text = Field(description="text")
    attempt: Count = Field(description="an integer from 1")
    elapsed_s: float = Field(description="seconds")


class FirstRunFile(_Layout):
    """File of a run in schema 1."""

    suite: Text = Field(description="text")
    started: Text = Field(description="text")
    status: Status = Field(description=f"one of {', '.join(STATUSES)}")
    seed: Annotated[StrictInt, Field(ge=0)] = Field(description="an integer from 0")
    stream_version: Count = Field(description="an integer from 1")
    device: Device = Field(description="an object")
    versions: dict[str, Any] = Field(description="an object of versions by package")
    commit: Text | None = Field(description="text or null")
    uncommitted_changes: StrictBool | None = Field(description="true, false or null")
    rows: Sequence[RowLayout] = Field(description="a list of rows")


class RunFile(FirstRunFile):
    """File of a run in schema 2."""

    device: SelectedDevice = Field(description="an object")
    resumed: list[Any] = Field(description="a list of times")
    sections: list[Section] = Field(description="a list of sections")
    rows: list[NamedRow] = Field(description="a list of rows")


def key(section: str, row: Mapping[str, Any]) -> str:
    """Return the name of a row, the same in every run: ``section / case / gamma=0.1, samples=32``."""
    settings = ", ".join(f"{name}={row[name]}" for name in SETTINGS if row.get(name) is not None)
    return " / ".join(part for part in (section, row["case"], settings) if part)


def load(path: Path) -> dict[str, Any]:
    """Load the JSON object of a file, in which every number is finite.

    Args:
        path: The file.

    Returns:
        Its content, unchecked.

    Raises:
        ResultsError: If the file cannot be read or holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_finite, parse_float=_finite)
    except OSError as error:
        raise ResultsError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ResultsError(f"{path}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ResultsError(f"{path}: must hold one object, the record of a run; got {shown(content)}")
    return content


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not finite")
    return value


def check(path: Path, content: dict[str, Any]) -> None:
    """Check the content of a file. A run of schema 1 is given the keys and the sections of schema 2.

    Args:
        path: The file, for messages.
        content: Its content, which is completed in place.

    Raises:
        ResultsError: If the layout does not allow the content.
    """
    rows = content.get("rows")
    if DRY_RUN in content or isinstance(rows, list) and any(DRY_RUN in row for row in rows if isinstance(row, dict)):
        raise ResultsError(f"{path}: is a {DRY_RUN}: nothing was measured")
    version = content.get("schema")
    if version not in (1, SCHEMA):
        state = f"got {shown(version)}" if "schema" in content else "is missing"
        raise ResultsError(f"{path}: schema: {state}, must be 1 or {SCHEMA}, the layouts this version knows")
    layout = FirstRunFile if version == 1 else RunFile
    try:
        layout.model_validate(content)
    except ValidationError as error:
        _reject(path, layout, content, error.errors()[0]["loc"])
    if version == 1:
        for row in content["rows"]:
            row["key"] = key(row["section"], row)
        names = dict.fromkeys(row["section"] for row in content["rows"])
        content["sections"] = [{"name": name, "finished": content["status"] == "complete"} for name in names]
    _check_names(path, content)


def _check_names(path: Path, content: Mapping[str, Any]) -> None:
    """Check that keys are unique, and that the file has every row's section."""
    sections, keys = {section["name"] for section in content["sections"]}, set()
    for index, row in enumerate(content["rows"]):
        if row["key"] in keys:
            raise ResultsError(f"{path}: rows[{index}].key: must be unique, got {row['key']!r} again")
        keys.add(row["key"])
        if row["section"] not in sections:
            raise ResultsError(
                f"{path}: rows[{index}].section: got {shown(row['section'])}, "
                f"must be one of {', '.join(sorted(sections))}"
            )


def _reject(path: Path, layout: type[BaseModel], content: Any, location: Sequence[str | int]) -> NoReturn:
    """Raise the error of one place: the file, the place, its content, and the description of its field."""
    place, allowed = "", "an object"
    for step in location:
        if isinstance(step, int):
            place, content, allowed = f"{place}[{step}]", content[step], "an object"
            continue
        field = layout.model_fields[step]
        place, allowed = f"{place}.{step}".lstrip("."), str(field.description)
        if step not in content:
            raise ResultsError(f"{path}: {place}: is missing, must be {allowed}")
        content = content[step]
        nested = _nested_layout(field.annotation)
        if nested is None:
            break
        layout = nested
    if allowed == "an object":
        raise ResultsError(f"{path}: {place}: must be an object, got {shown(content)}")
    raise ResultsError(f"{path}: {place}: got {shown(content)}, must be {allowed}")


def _nested_layout(annotation: Any) -> type[BaseModel] | None:
    """Return the layout of a field that holds an object or a list of objects."""
    for candidate in (annotation, *get_args(annotation)):
        if get_origin(candidate) is None and isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def shown(value: object) -> str:
    """Return a value as JSON, cut to 60 characters."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Find the facts that differ.

    Args:
        before: Facts of one run, nested or not.
        after: Facts of another run.

    Yields:
        Dotted name of a fact, and its value in each run; None for a missing one.
    """
    for name in [*before, *(name for name in after if name not in before)]:
        old, new = before.get(name), after.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from ((f"{name}.{inner}", *values) for inner, *values in differences(old, new))
        elif old != new:
            yield name, old, new
