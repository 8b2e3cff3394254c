"""Layout of a table of tuned configurations; see tuned/README.md."""

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError


class LayoutError(ValueError):
    """Error of a table of another layout: the place in it, what is wrong, its content there."""


class _Layout(BaseModel):
    """Part of a table. Fields that only readers of the measurements need stand beside these."""

    model_config = ConfigDict(extra="allow", strict=True)


class Entry(_Layout):
    """Fastest configuration of one choice at one key."""

    key: dict[str, str | bool | int] = {}
    config: dict[str, Any] = {}


class KernelEntries(_Layout):
    """Entries of one choice, and the hash of the sources that they were measured with."""

    sources: str | None = None
    entries: list[Entry] = []


class Table(_Layout):
    """Layout of a device's table, see tuned/README.md."""

    kernels: dict[str, KernelEntries]


def parse_table(content: dict[str, Any]) -> Table:
    """Return the content of a table, checked against the layout.

    Args:
        content: Content of the JSON file.

    Returns:
        The table.

    Raises:
        LayoutError: If the content has another layout.
    """
    try:
        return Table.model_validate(content)
    except ValidationError as error:
        problem = error.errors()[0]
        place = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in problem["loc"]).lstrip(".")
        raise LayoutError(f"{place}: {problem['msg']}; got {problem['input']!r}") from None
