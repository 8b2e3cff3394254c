"""Kernel matrices that do not fit in memory: written tile by tile to a file, and resumed after an interruption."""

import errno
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nntk.estimators.memory import format_bytes
from nntk.files.fingerprint import fingerprint, hash_tensors
from nntk.files.storage import MismatchError
from nntk.kernel import NonlocalNTK
from nntk.kernels import checks

TILE_BYTES = 256 * 2**20
"""Default size of a tile in bytes. Every tile generates its noise again, so that few large tiles are faster."""


def write_kernel(
    path: str | Path,
    kernel: NonlocalNTK,
    x1: Tensor,
    x2: Tensor | None = None,
    *,
    tile: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> np.memmap[Any, Any]:
    """Write a kernel matrix to a NumPy file, tile by tile; the same call resumes a matrix that was interrupted.

    The file ``path`` + ``.progress`` counts the finished tiles. A tile is on disk before it is counted, so that
    finished tiles are complete whatever interrupts the call. A resumed matrix has the bits of an uninterrupted one.

    Args:
        path: The file, for ``numpy.load(path, mmap_mode="r")``.
        kernel: The kernel, traced or averaged over outputs.
        x1: Inputs of the rows, [N1, ...].
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
        MismatchError: If the existing file belongs to another kernel, other inputs or tiles, or was not written by this
            function.
        OSError: If the file cannot be written, or the disk has no room for it.

    Example:
        >>> import tempfile
        >>> kernel, x = NonlocalNTK(torch.nn.Linear(3, 1), samples=8), torch.randn(5, 3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     matrix = torch.tensor(np.array(write_kernel(f"{folder}/k.npy", kernel, x, tile=2)))
        >>> torch.allclose(matrix, kernel(x), rtol=1e-5)
        True
    """
    if kernel.outputs not in ("trace", "mean"):
        raise ValueError(f"outputs must be 'trace' or 'mean' for a matrix, got {kernel.outputs!r}.")
    # Checked before a file is created, which would else belong to inputs that have no kernel.
    for name, x in (("x1", x1), ("x2", x2)):
        if x is not None:
            kernel.check_inputs(name, x)
    path, symmetric = Path(path), x2 is None
    columns = x1 if x2 is None else x2
    itemsize = x1.element_size() if x1.is_floating_point() else 8
    tile = int((TILE_BYTES / itemsize) ** 0.5) if tile is None else checks.integer("tile", tile, 1)
    inputs = hash_tensors({"x1": x1} if x2 is None else {"x1": x1, "x2": x2})
    identity = {**fingerprint(kernel), "inputs": inputs, "tile": tile}
    matrix, finished = _open_or_create(path, identity, (len(x1), len(columns)), _numpy_dtype(kernel))
    tiles = list(_tiles(len(x1), len(columns), tile, symmetric))
    for index, (rows, cols) in enumerate(tiles[finished:], start=finished):
        is_diagonal = symmetric and rows == cols
        block = (kernel(x1[rows]) if is_diagonal else kernel(x1[rows], columns[cols])).cpu().numpy()
        matrix[rows, cols] = block
        if symmetric:
            matrix[cols, rows] = block.T
        matrix.flush()
        _write_journal(path, identity, index + 1)
        if progress:
            progress(index + 1, len(tiles))
    result: np.memmap[Any, Any] = np.load(path, mmap_mode="r")
    return result


def _tiles(num_rows: int, num_columns: int, tile: int, symmetric: bool) -> Iterator[tuple[slice, slice]]:
    """Yield the rows and columns of each tile; of a symmetric matrix only tiles on and below the diagonal."""
    for i in range(0, num_rows, tile):
        for j in range(0, min(i + 1, num_columns) if symmetric else num_columns, tile):
            yield slice(i, min(i + tile, num_rows)), slice(j, min(j + tile, num_columns))


def _open_or_create(
    path: Path, identity: dict[str, Any], shape: tuple[int, int], dtype: np.dtype[Any]
) -> tuple[np.memmap[Any, Any], int]:
    """Open the matrix of an interrupted call, or create a new one; return it with its number of finished tiles."""
    journal = _journal_path(path)
    if path.exists() and journal.exists():
        return np.lib.format.open_memmap(path, mode="r+"), _read_journal(path, identity)
    if path.exists():
        raise MismatchError(f"{path} is there without {journal.name}: no call of write_kernel began it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    size, free = math.prod(shape) * dtype.itemsize, shutil.disk_usage(path.parent).free
    if size > free:
        # The disk blocks of a mapped file are allocated at its first writing, and a full disk then kills the process.
        raise OSError(
            errno.ENOSPC, f"a kernel of {format_bytes(size)} does not fit in {format_bytes(free)} of disk", str(path)
        )
    matrix = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    matrix.flush()
    _write_journal(path, identity, 0)
    return matrix, 0


def _numpy_dtype(kernel: NonlocalNTK) -> np.dtype[Any]:
    return np.dtype(np.float64 if kernel.dtype == torch.float64 else np.float32)


def _journal_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.progress")


def _read_journal(path: Path, identity: dict[str, Any]) -> int:
    """Return the number of finished tiles, after checking that the file has the same identity."""
    journal = json.loads(_journal_path(path).read_text())
    differing = [name for name in identity if journal["about"].get(name) != json.loads(json.dumps(identity[name]))]
    if differing:
        raise MismatchError(
            f"{path} was begun with another {', '.join(differing)}; remove it, or write to another path."
        )
    finished: int = journal["finished"]
    return finished


def _write_journal(path: Path, identity: dict[str, Any], finished: int) -> None:
    """Replace the journal as a whole, so that it is complete whatever interrupts the call."""
    journal = _journal_path(path)
    partial = journal.with_name(f"{journal.name}.tmp")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(json.dumps({"about": identity, "finished": finished}))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(journal)
