"""Tables of configurations that were measured on a device; they take precedence over the rule of its architecture.

``nntk-bench tune`` measures the configurations and writes ``tuned/<device>.json``; this module only reads the tables.
It queries no device and measures nothing, so that the same call uses the same configuration in every process.
"""

import hashlib
import importlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar

from nntk.kernels.target import Target

TUNED = Path(__file__).resolve().parent / "tuned"
"""Folder of the tables."""
SCHEMA = 1
"""Version of the layout that tuned/README.md documents."""

LONGEST = 4096
"""Longest length that a key distinguishes; all longer lengths share its configuration."""

Key = tuple[str | int, ...]
"""Values that a configuration depends on: names, truth values and lengths."""
Config = TypeVar("Config")


@dataclass(frozen=True)
class _Forced:
    config: Any
    keys: list[Key]


_forced: dict[tuple[str, Key], _Forced] = {}
_registered: "dict[str, Tunable[Any]]" = {}


class TableError(ValueError):
    """Error of a table that cannot be used: the file, the place in it, its content there, what is allowed."""


@dataclass(frozen=True)
class Tunable(Generic[Config]):
    """Choice that can be measured. It registers itself under its name when it is made.

    Attributes:
        name: Name in tables: the kernel, or the object of the choice.
        config: Dataclass of the configurations.
        axes: Names of the key's parts.
        sources: Files under kernels/ that the speed of a configuration depends on.
    """

    name: str
    config: type[Config]
    axes: tuple[str, ...]
    sources: tuple[str, ...]

    def __post_init__(self) -> None:
        _registered[self.name] = self

    def pick(self, target: Target, key: Key, rule: Callable[[], Config]) -> Config:
        """Choose the configuration that is forced for the key, else the measured one of this device, else the rule's.

        Args:
            target: The device.
            key: Values that the choice depends on, in the order of ``axes``.
            rule: Function that returns the choice of the architecture.

        Returns:
            The configuration.

        Raises:
            TableError: If the device's table is broken.
        """
        place = (self.name, rounded(key))
        if place in _forced:
            _forced[place].keys.append(key)
            config: Config = _forced[place].config
            return config
        measured = _configs(target.device).get(place) if target.device else None
        return rule() if measured is None else self.config(**measured)

    @contextmanager
    def forced(self, key: Key, config: Config) -> Iterator[list[Key]]:
        """Use a configuration for a key, whatever the table says, in order to measure it. For one thread.

        Args:
            key: Values that the choice depends on.
            config: The configuration.

        Yields:
            The keys that the configuration was used for so far.
        """
        place = (self.name, rounded(key))
        outer = _forced.get(place)
        _forced[place] = forced = _Forced(config, [])
        revise()
        try:
            yield forced.keys
        finally:
            revise()
            del _forced[place]
            if outer:
                _forced[place] = outer

    def digest(self) -> str:
        """Return the hash of the sources; a table with another hash is stale."""
        digest = hashlib.sha256()
        for name in self.sources:
            digest.update((Path(__file__).resolve().parent / name).read_bytes())
        return digest.hexdigest()


@lru_cache(maxsize=1024)
def rounded(key: Key) -> Key:
    """Round the lengths of a key up to powers of two, as tiles are; one measurement serves the lengths in between.

    Args:
        key: The key.

    Returns:
        The rounded key, equal for all keys that share a configuration. Lengths beyond ``LONGEST`` are many tiles, and
        share one configuration.

    Example:
        >>> rounded(("gaussian", 784, 10**6, True))
        ('gaussian', 1024, 4096, True)
    """
    return tuple(part if isinstance(part, str | bool) else _power_of_two(part) for part in key)


def _power_of_two(length: int) -> int:
    return min(LONGEST, 1 << max(0, length - 1).bit_length())


def tunables() -> dict[str, Tunable[Any]]:
    """Return every choice that can be measured, sorted by name; each registers itself when its module is imported."""
    for path in Path(__file__).resolve().parent.glob("*/triton/config.py"):
        importlib.import_module(f"{__package__}.{path.parts[-3]}.triton.config")
    return dict(sorted(_registered.items()))


def path_of(device: str) -> Path:
    """Return the path of a device's table, which need not exist."""
    return TUNED / f"{device}.json"


def read(path: Path) -> dict[str, Any]:
    """Read and check a table.

    Args:
        path: Its file.

    Returns:
        Its content, see tuned/README.md; without entries where there is no file.

    Raises:
        TableError: If it is no table.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"schema": SCHEMA, "kernels": {}}
    except (OSError, ValueError) as error:
        raise TableError(f"{path}: cannot be read: {error}") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise TableError(f"{path}: schema must be {SCHEMA}; nntk-bench tune --again makes a new one")
    # Imported where there is a table: importing the package takes no time for pydantic, and works without it.
    from nntk.kernels.tuned_table import LayoutError, parse_table

    try:
        table = parse_table(content)
    except LayoutError as error:
        raise TableError(f"{path}: {error}") from None
    known = tunables()
    for name, kernel in table.kernels.items():
        if name not in known:
            raise TableError(f"{path}: kernels must be of {', '.join(known)}; got {name!r}")
        for index, entry in enumerate(kernel.entries):
            place = f"{path}: {name}.entries[{index}]"
            _check_names(f"{place}.key", entry.key, known[name].axes)
            _check_names(f"{place}.config", entry.config, [field.name for field in fields(known[name].config)])
    return content


def _check_names(place: str, value: Mapping[str, Any], names: Sequence[str]) -> None:
    if sorted(value) != sorted(names):
        raise TableError(f"{place}: must have {', '.join(names)}; got {', '.join(value)}")


def stale(content: Mapping[str, Any]) -> list[str]:
    """Return the kernels of a table that were measured with other sources than these."""
    known = tunables()
    return [name for name, kernel in content["kernels"].items() if kernel.get("sources") != known[name].digest()]


@lru_cache(maxsize=8)
def _configs(device: str) -> dict[tuple[str, Key], dict[str, Any]]:
    """Return the measured configurations of a device by name and key, without kernels that have changed since."""
    path = path_of(device)
    content = read(path)
    old = stale(content)
    if old:
        warnings.warn(
            f"{path.name}: {', '.join(old)} changed since it was measured; the rule of the architecture is used. "
            f"`nntk-bench tune {' '.join(old)}` measures again.",
            stacklevel=2,
        )
    axes = {name: tunable.axes for name, tunable in tunables().items()}
    return {
        (name, tuple(entry["key"][axis] for axis in axes[name])): entry["config"]
        for name, kernel in content["kernels"].items()
        if name not in old
        for entry in kernel["entries"]
    }


def forget() -> None:
    """Forget the tables that were read, for a process that wrote one."""
    _configs.cache_clear()
    revise()


_revision = 0


def revision() -> int:
    """Return a number that changes with the choice of configurations; a recorded call holds for one of them."""
    return _revision


def revise() -> None:
    """Note that calls are divided, or their kernels configured, in another way from now on."""
    global _revision
    _revision += 1
