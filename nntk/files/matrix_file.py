"""Kernel matrices that do not fit in memory: written tile by tile to a file, and resumed after an interruption."""

import errno
import logging
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nntk.estimators.memory import format_bytes
from nntk.files.fingerprint import fingerprint
from nntk.files.hashing import hash_tensors
from nntk.files.journal import Checksums, checksum, journal_path, read_journal, write_journal
from nntk.files.output import remove_partial_files, replacing
from nntk.files.paths import file_to_replace
from nntk.files.storage import MismatchError
from nntk.files.tiles import tile_inputs, tile_places
from nntk.kernel import NonlocalNTK
from nntk.kernels import checks
from nntk.local.kernel import LocalNTK
from nntk.models.data.streams import Source, SourceValue, Stream, as_source, identity_of

_log = logging.getLogger("nntk")

TILE_BYTES = 256 * 2**20
"""Default size of a tile in bytes. Every tile generates its noise again, so that few large tiles are faster."""


def write_kernel(
    path: str | Path,
    kernel: NonlocalNTK | LocalNTK,
    x1: SourceValue,
    x2: SourceValue | None = None,
    *,
    tile: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> np.memmap[Any, Any]:
    """Write a kernel matrix to a NumPy file, tile by tile; the same call resumes a matrix that was interrupted.

    The file ``path`` + ``.progress``, the journal, has the identity of the call (all that :func:`nntk.load` compares,
    with the inputs and the tiles) and a checksum of each finished tile. A tile is on disk before it is in the journal,
    and the journal is replaced as a whole: whatever interrupts the call, only the tile in work is lost. A resumed
    matrix has the bits of an uninterrupted one.

    A call that finds the files of an earlier one checks them. It refuses a matrix of another identity, size, shape,
    dtype or order of bytes, a broken journal, and files of earlier versions of nntk, whose journals do not tell models
    apart. It reads all finished tiles: one whose checksum is wrong is computed again, with a warning of the logger
    ``nntk``; if none is right, the matrix belongs to something else and is refused.

    Args:
        path: The file, for ``numpy.load(path, mmap_mode="r")``. Where it is a symbolic link, the matrix and its journal
            are where the link leads to. A pipe, a terminal or any other device is refused.
        kernel: The kernel, nonlocal or local, traced or averaged over outputs.
        x1: Inputs of the rows, as for a call of the kernel. A stream is read once for each row of tiles.
        x2: Inputs of the columns, [N2, ...]; None for the symmetric kernel of ``x1``, of which half the tiles are
            computed.
        tile: Number of rows and of columns of a tile; None for tiles of 256 MiB.
        progress: Function that is called after each tile with the numbers of finished tiles and of all tiles.

    Returns:
        The matrix [N1, N2] in the file, read-only.

    Raises:
        ValueError: If outputs are neither traced nor averaged, ``tile`` is out of range, inputs do not fit the model
            or are not finite, or for any reason that a call of the kernel names.
        TypeError: If inputs have another dtype than the model, ``tile`` is no integer, or for any reason that a call of
            the kernel names.
        MismatchError: If the existing file belongs to another kernel, other inputs or tiles, was changed or damaged,
            has a broken journal, or was written by another program or version.
        OSError: If the path is neither a regular file nor new, the file cannot be written, or the disk has no room for
            it.

    Example:
        >>> import tempfile
        >>> kernel, x = NonlocalNTK(torch.nn.Linear(3, 1), samples=8), torch.randn(5, 3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     matrix = torch.tensor(np.array(write_kernel(f"{folder}/k.npy", kernel, x, tile=2)))
        >>> torch.allclose(matrix, kernel(x), rtol=1e-4, atol=1e-5)
        True
    """
    path = file_to_replace(path, "path", "since a matrix is written and read tile by tile")
    if kernel.outputs not in ("trace", "mean"):
        raise ValueError(f"outputs must be 'trace' or 'mean' for a matrix, got {kernel.outputs!r}.")
    # Checked before a file is created, which would else belong to inputs that have no kernel.
    rows_x, symmetric = _checked(kernel, "x1", x1), x2 is None
    columns_x = rows_x if x2 is None else _checked(kernel, "x2", x2)
    dtype = _numpy_dtype(kernel)
    tile = int((TILE_BYTES / dtype.itemsize) ** 0.5) if tile is None else checks.integer("tile", tile, 1)
    inputs = hash_tensors(identity_of("x1", rows_x) | ({} if symmetric else identity_of("x2", columns_x)))
    journal = {**fingerprint(kernel), "inputs": inputs, "tile": tile}
    tiles = list(tile_places(len(rows_x), len(columns_x), tile, symmetric))
    matrix, checksums = _open_or_create(path, journal, (len(rows_x), len(columns_x)), dtype, tiles, symmetric)
    finished = len(tiles) - checksums.count(None)
    missing = [index for index, value in enumerate(checksums) if value is None]
    for index, rows_of_tile, columns_of_tile in tile_inputs(
        rows_x, None if symmetric else columns_x, tile, tiles, missing
    ):
        rows, cols = tiles[index]
        block = kernel(rows_of_tile, columns_of_tile).cpu().numpy()
        matrix[rows, cols] = block
        if symmetric:
            matrix[cols, rows] = block.T
        matrix.flush()
        checksums[index] = checksum(block)
        write_journal(path, journal, checksums)
        finished += 1
        if progress:
            progress(finished, len(tiles))
    result: np.memmap[Any, Any] = np.load(path, mmap_mode="r")
    return result


def _checked(kernel: NonlocalNTK | LocalNTK, name: str, x: SourceValue) -> Source:
    """Return inputs or a stream of them, checked; the batches of a stream are moved to the device of the model."""
    source: Any = as_source(name, x)
    kernel.check_inputs(name, source)
    return source.to(kernel.device) if isinstance(source, Stream) else source


def _open_or_create(
    path: Path,
    identity: dict[str, Any],
    shape: tuple[int, int],
    dtype: np.dtype[Any],
    tiles: Sequence[tuple[slice, slice]],
    symmetric: bool,
) -> tuple[np.memmap[Any, Any], Checksums]:
    """Open the matrix of an interrupted call, or create a new one; return it with the checksums of finished tiles."""
    for file in (path, journal_path(path)):
        remove_partial_files(file)
    if path.exists() and not journal_path(path).exists():
        raise MismatchError(
            f"{path} is there without {journal_path(path).name}: no call of write_kernel began it; remove it, or write "
            "to another path."
        )
    checksums: Checksums
    if path.exists():
        checksums = read_journal(path, identity, len(tiles))
        _check_matrix(path, shape, dtype)
        _check_room(path, shape, dtype)
        matrix = np.lib.format.open_memmap(path, mode="r+")
        return matrix, _verified(path, matrix, checksums, tiles, symmetric)
    checksums = [None] * len(tiles)
    _create(path, identity, shape, dtype, checksums)
    return np.lib.format.open_memmap(path, mode="r+"), checksums


def _create(
    path: Path, identity: dict[str, Any], shape: tuple[int, int], dtype: np.dtype[Any], checksums: Checksums
) -> None:
    """Create an empty matrix with its journal; the matrix has its name when both are complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _check_room(path, shape, dtype)
    with replacing(path) as partial:
        np.lib.format.open_memmap(partial, mode="w+", dtype=dtype, shape=shape).flush()
        write_journal(path, identity, checksums)


def _check_room(path: Path, shape: tuple[int, int], dtype: np.dtype[Any]) -> None:
    """Check that the disk has room for what of the matrix is not on it yet."""
    # The disk blocks of a mapped file are allocated at its first writing, and a full disk then kills the process.
    allocated = getattr(path.stat(), "st_blocks", 0) * 512 if path.exists() else 0
    size, free = max(0, math.prod(shape) * dtype.itemsize - allocated), shutil.disk_usage(path.parent).free
    if size > free:
        raise OSError(
            errno.ENOSPC, f"a kernel of {format_bytes(size)} does not fit in {format_bytes(free)} of disk", str(path)
        )


def _check_matrix(path: Path, shape: tuple[int, int], dtype: np.dtype[Any]) -> None:
    """Check that the file of an interrupted call holds a matrix of this shape and dtype, and all of it."""
    try:
        # Opened for reading, because a mapping for writing would lengthen a file that was cut.
        matrix = np.lib.format.open_memmap(path, mode="r")
        actual = f"holds an array of shape {matrix.shape}, {matrix.dtype}"
        is_whole = matrix.shape == shape and matrix.dtype == dtype and matrix.flags.c_contiguous
        offset = getattr(matrix, "offset", 0)
        if is_whole and path.stat().st_size != offset + matrix.nbytes:
            is_whole, actual = False, f"has {path.stat().st_size} bytes in place of {offset + matrix.nbytes}"
    except (ValueError, OSError, SyntaxError, EOFError) as error:
        is_whole, actual = False, f"is broken or cut ({error})"
    if not is_whole:
        raise MismatchError(
            f"{path} must hold the kernel of shape {shape}, {dtype}, that write_kernel began, but it {actual}; remove "
            f"it and {journal_path(path).name}, or write to another path."
        )


def _verified(
    path: Path,
    matrix: np.memmap[Any, Any],
    checksums: Checksums,
    tiles: Sequence[tuple[slice, slice]],
    symmetric: bool,
) -> Checksums:
    """Return the checksums of the finished tiles that are as they were written; None stands for all others."""
    verified: Checksums = []
    for (rows, cols), expected in zip(tiles, checksums, strict=True):
        parts = [matrix[rows, cols]] + ([matrix[cols, rows].T] if symmetric and rows != cols else [])
        is_right = expected is not None and all(checksum(part) == expected for part in parts)
        verified.append(expected if is_right else None)
    finished, damaged = len(tiles) - checksums.count(None), verified.count(None) - checksums.count(None)
    if damaged and damaged == finished:
        raise MismatchError(
            f"{path} must hold the tiles that write_kernel finished, but the checksum of none of {finished} is right; "
            f"remove it and {journal_path(path).name}, or write to another path."
        )
    if damaged:
        _log.warning("%s: %d of %d finished tiles are damaged and computed again.", path, damaged, finished)
    return verified


def _numpy_dtype(kernel: NonlocalNTK | LocalNTK) -> np.dtype[Any]:
    return np.dtype(np.float64 if kernel.dtype == torch.float64 else np.float32)
