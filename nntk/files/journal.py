"""Journal of a matrix that is written tile by tile: what it belongs to, and a checksum of each finished tile."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from nntk.files.fingerprint import SCHEMA
from nntk.files.output import replacing
from nntk.files.storage import MismatchError, refuse_schema

Checksums = list[str | None]
"""A checksum for each finished tile, and None for each one that remains."""


def journal_path(path: Path, rank: int | None = None) -> Path:
    """Return the path of the journal of a matrix.

    Args:
        path: The file of the matrix.
        rank: Rank whose own journal it is, where several write one matrix; None for the journal of all tiles.

    Returns:
        The path with ``.progress`` appended, and the number of the rank.
    """
    return path.with_name(f"{path.name}.progress{'' if rank is None else f'.{rank}'}")


def ranks_with_journals(path: Path) -> list[int]:
    """Return the ranks that left journals of their own beside a matrix.

    Args:
        path: The file of the matrix.

    Returns:
        Their numbers in rising order.
    """
    stem = f"{journal_path(path).name}."
    names = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
    ends = [name.removeprefix(stem) for name in names if name.startswith(stem)]
    return sorted(int(end) for end in ends if end.isascii() and end.isdecimal())


def checksum(tile: np.ndarray[Any, Any]) -> str:
    """Return a checksum of the bytes of a tile.

    Args:
        tile: Part of the matrix, [n1, n2].

    Returns:
        16 hexadecimal digits.
    """
    return hashlib.blake2b(np.ascontiguousarray(tile).reshape(-1).view(np.uint8).data, digest_size=8).hexdigest()


def read_journal(path: Path, identity: dict[str, Any], number: int, rank: int | None = None) -> Checksums:
    """Read the journal of a matrix, after checking that it has the same identity.

    Args:
        path: The file of the matrix.
        identity: Fingerprint of the kernel, hash of the inputs, and size of the tiles.
        number: Number of tiles of the matrix.
        rank: Rank whose own journal is read; None for the journal of all tiles.

    Returns:
        Checksums of the tiles in their order, [number].

    Raises:
        MismatchError: If the journal is broken, is of another program or version, or has another identity.
    """
    journal = _parse(path, rank)
    about, checksums = journal["about"], journal.get("tiles")
    if about.get("schema") != SCHEMA:
        refuse_schema(path, about.get("schema"), f"Remove it and {journal_path(path).name}")
    expected = json.loads(json.dumps(identity))
    differing = [name for name in sorted({*about, *expected}) if about.get(name) != expected.get(name)]
    if differing:
        raise MismatchError(
            f"{path} was begun with another {', '.join(differing)}; remove it, or write to another path."
        )
    if not isinstance(checksums, list) or len(checksums) != number:
        raise MismatchError(_broken(path, f"lists no checksums of {number} tiles"))
    if not all(isinstance(value, str | None) for value in checksums):
        raise MismatchError(_broken(path, f"lists no checksums of {number} tiles"))
    return checksums


def write_journal(path: Path, identity: dict[str, Any], checksums: Checksums, rank: int | None = None) -> None:
    """Replace the journal as a whole, so that it is complete whatever interrupts the call.

    Args:
        path: The file of the matrix, whose finished tiles are on disk.
        identity: Fingerprint of the kernel, hash of the inputs, and size of the tiles.
        checksums: Checksums of the tiles in their order.
        rank: Rank whose own journal is written; None for the journal of all tiles.
    """
    with replacing(journal_path(path, rank)) as partial:
        partial.write_text(json.dumps({"about": identity, "tiles": checksums}), encoding="utf-8")


def merge_journals(path: Path, identity: dict[str, Any], number: int) -> Checksums:
    """Read the journal of a matrix with those that ranks left beside it, which are then removed.

    Args:
        path: The file of the matrix, which no other process writes now.
        identity: Fingerprint of the kernel, hash of the inputs, and size of the tiles.
        number: Number of tiles of the matrix.

    Returns:
        Checksums of the tiles in their order, [number].

    Raises:
        MismatchError: If a journal is broken, is of another program or version, or has another identity.
    """
    checksums, ranks = read_journal(path, identity, number), ranks_with_journals(path)
    for rank in ranks:
        for index, value in enumerate(read_journal(path, identity, number, rank)):
            checksums[index] = checksums[index] if value is None else value
    if ranks:
        # All tiles are in one journal before any other is removed.
        write_journal(path, identity, checksums)
        for rank in ranks:
            journal_path(path, rank).unlink(missing_ok=True)
    return checksums


def _parse(path: Path, rank: int | None = None) -> dict[str, Any]:
    """Return the journal of a matrix as a dictionary with a dictionary ``"about"``."""
    try:
        journal = json.loads(journal_path(path, rank).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise MismatchError(_broken(path, f"is no JSON ({error})")) from error
    if not isinstance(journal, dict) or not isinstance(journal.get("about"), dict):
        raise MismatchError(_broken(path, "describes no kernel"))
    return journal


def _broken(path: Path, reason: str) -> str:
    return (
        f"{journal_path(path)} must be the journal of a call of write_kernel, but {reason}; remove it and {path.name}, "
        "or write to another path."
    )
