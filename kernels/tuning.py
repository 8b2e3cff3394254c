"""Configurations measured on a device, before the rule of its architecture.

``nntk-bench tune`` measures them and writes ``tuned/<device>.json``; here they are only read. No device is asked and
nothing is measured, so that the same call takes the same configuration in every process.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
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
"""Longest length that a key tells from others."""

Key = tuple[str | int, ...]
"""What a configuration depends on: names as they are, truth, and lengths."""
Config = TypeVar("Config")


@dataclass(frozen=True)
class _Forced:
    config: Any
    taken: list[Key]


_forced: dict[tuple[str, Key], _Forced] = {}


class TableError(ValueError):
    """A table of tuned configurations that cannot be used: which, where in it, what is there, what may be."""


@dataclass(frozen=True)
class Tunable(Generic[Config]):
    """A choice that can be measured.

    Attributes:
        name: Its name in tables: that of the kernel, or what is chosen.
        config: Dataclass of the configurations.
        axes: Names of the key's parts.
        sources: Files under kernels/ that the speed of a configuration depends on.
    """

    name: str
    config: type[Config]
    axes: tuple[str, ...]
    sources: tuple[str, ...]

    def pick(self, target: Target, key: Key, rule: Callable[[], Config]) -> Config:
        """Choose: what is forced for the key, else what was measured on this very device, else by the rule.

        Args:
            target: The device.
            key: What the choice depends on, in the order of ``axes``.
            rule: The choice of the architecture.

        Returns:
            The configuration.

        Raises:
            TableError: If the device's table is broken.
        """
        place = (self.name, rounded(key))
        if place in _forced:
            _forced[place].taken.append(key)
            config: Config = _forced[place].config
            return config
        measured = _configs(target.device).get(place) if target.device else None
        return rule() if measured is None else self.config(**measured)

    @contextmanager
    def forced(self, key: Key, config: Config) -> Iterator[list[Key]]:
        """Take a configuration for a key, whatever was measured: to measure it. For one thread.

        Args:
            key: What the choice depends on.
            config: What is taken.

        Yields:
            The keys that it was taken for, as they come.
        """
        place = (self.name, rounded(key))
        before = _forced.get(place)
        _forced[place] = forced = _Forced(config, [])
        try:
            yield forced.taken
        finally:
            del _forced[place]
            if before:
                _forced[place] = before

    def digest(self) -> str:
        """Hash of the sources: a table of another one is stale."""
        found = hashlib.sha256()
        for name in self.sources:
            found.update((Path(__file__).resolve().parent / name).read_bytes())
        return found.hexdigest()


def rounded(key: Key) -> Key:
    """Round the lengths of a key up to powers of two, as tiles are: a measurement serves those in between.

    Args:
        key: The key.

    Returns:
        The same for all that share a configuration. Beyond ``LONGEST`` a length is many tiles, and all are one.

    Example:
        >>> rounded(("gaussian", 784, 10**6, True))
        ('gaussian', 1024, 4096, True)
    """
    return tuple(part if isinstance(part, str | bool) else _power_of_two(part) for part in key)


def _power_of_two(length: int) -> int:
    return min(LONGEST, 1 << max(0, length - 1).bit_length())


def tunables() -> dict[str, Tunable[Any]]:
    """Every choice that can be measured, by name."""
    from nntk.kernels.assemble.triton.config import RANK_UPDATE
    from nntk.kernels.local_ntk.triton.config import LAYER_PAIR
    from nntk.kernels.perturb.triton.config import LAYER_PATH, LAYER_STEP

    return {one.name: one for one in (LAYER_STEP, LAYER_PATH, RANK_UPDATE, LAYER_PAIR)}


def path_of(device: str) -> Path:
    """The table of a device, whether it is there or not."""
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
    except (OSError, ValueError) as wrong:
        raise TableError(f"{path}: cannot be read: {wrong}") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise TableError(f"{path}: schema must be {SCHEMA}; nntk-bench tune --again makes a new one")
    known = tunables()
    for name, kernel in _mapping(path, "kernels", content.get("kernels")).items():
        if name not in known:
            raise TableError(f"{path}: kernels must be of {', '.join(known)}; got {name!r}")
        for number, entry in enumerate(_mapping(path, name, kernel).get("entries", ())):
            where = f"{name}.entries[{number}]"
            _named(path, f"{where}.key", entry.get("key"), known[name].axes)
            _named(path, f"{where}.config", entry.get("config"), [field.name for field in fields(known[name].config)])
    return content


def _mapping(path: Path, where: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise TableError(f"{path}: {where}: must be an object, got {value!r}")
    return value


def _named(path: Path, where: str, value: object, names: Any) -> None:
    found = _mapping(path, where, value)
    if sorted(found) != sorted(names):
        raise TableError(f"{path}: {where}: must have {', '.join(names)}; got {', '.join(found)}")


def stale(content: Mapping[str, Any]) -> list[str]:
    """Which kernels of a table were measured with other sources than these."""
    known = tunables()
    return [name for name, kernel in content["kernels"].items() if kernel.get("sources") != known[name].digest()]


@lru_cache(maxsize=8)
def _configs(device: str) -> dict[tuple[str, Key], dict[str, Any]]:
    """What was measured on a device, by name and key; nothing of kernels that have changed since."""
    path = path_of(device)
    content = read(path)
    old = stale(content)
    if old:
        warnings.warn(
            f"{path.name}: {', '.join(old)} changed since it was measured; the rule of the architecture is used. "
            f"`nntk-bench tune {' '.join(old)}` measures again.",
            stacklevel=2,
        )
    axes = {name: one.axes for name, one in tunables().items()}
    return {
        (name, tuple(entry["key"][axis] for axis in axes[name])): entry["config"]
        for name, kernel in content["kernels"].items()
        if name not in old
        for entry in kernel["entries"]
    }


def forget() -> None:
    """Read tables again: for a process that wrote one."""
    _configs.cache_clear()
