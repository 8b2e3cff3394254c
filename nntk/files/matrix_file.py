"""A kernel matrix that does not fit in memory: written tile by tile to a file, and gone on with after a stop."""

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

from nntk.estimators.memory import in_words
from nntk.files.storage import MismatchError, described, hash_of
from nntk.kernel import NonlocalNTK
from nntk.kernels import checks

TILE_BYTES = 256 * 2**20
"""Of a tile, unless one is asked for: every tile makes its noise anew, so that few large ones are faster."""


def write_kernel(
    path: str | Path,
    kernel: NonlocalNTK,
    x1: Tensor,
    x2: Tensor | None = None,
    *,
    tile: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> np.memmap[Any, Any]:
    """Write a kernel matrix to a NumPy file, tile by tile; the same call goes on with what was stopped.

    A tile is on disk before ``path`` + ``.progress`` says so: whatever stops the call, what is finished is whole. The
    matrix will have the bits of one that was never stopped.

    Args:
        path: The file, for ``numpy.load(path, mmap_mode="r")``.
        kernel: The kernel, traced or averaged over outputs.
        x1: The rows' inputs, [N1, ...].
        x2: The columns' inputs, [N2, ...]; None for the symmetric kernel, of which each tile is made once.
        tile: Lines and columns of a tile; None for tiles of 256 MiB.
        progress: Is given the numbers of finished tiles and of all, after each.

    Returns:
        The matrix [N1, N2] in the file, read-only.

    Raises:
        ValueError: If outputs are neither traced nor averaged, ``tile`` is out of range, or inputs do not fit the model
            or are not finite, or for what a call of the kernel raises one.
        TypeError: If inputs have another dtype than the model, ``tile`` is no integer, or as a call does.
        MismatchError: If the file that was begun is of another kernel, of other inputs or tiles, or was not begun here.
        OSError: If the file cannot be written, or the disk has no room for it.

    Example:
        >>> import tempfile
        >>> kernel, x = NonlocalNTK(torch.nn.Linear(3, 1), samples=8), torch.randn(5, 3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     made = torch.tensor(np.array(write_kernel(f"{folder}/k.npy", kernel, x, tile=2)))
        >>> torch.allclose(made, kernel(x), rtol=1e-5)
        True
    """
    if kernel.outputs not in ("trace", "mean"):
        raise ValueError(f"outputs must be 'trace' or 'mean' for a matrix, got {kernel.outputs!r}.")
    # Before the file is begun, which would then be of inputs that have no kernel.
    for name, x in (("x1", x1), ("x2", x2)):
        if x is not None:
            kernel.check_inputs(name, x)
    path, columns = Path(path), x1 if x2 is None else x2
    itemsize = x1.element_size() if x1.is_floating_point() else 8
    tile = int((TILE_BYTES / itemsize) ** 0.5) if tile is None else checks.integer("tile", tile, 1)
    inputs = hash_of({"x1": x1} if x2 is None else {"x1": x1, "x2": x2})
    about = {**described(kernel), "inputs": inputs, "tile": tile}
    matrix, journal = _begun(path, about, (len(x1), len(columns)), _dtype(kernel))
    tiles = list(_tiles(len(x1), len(columns), tile, x2 is None))
    for number, (rows, cols) in enumerate(tiles):
        if number < journal["finished"]:
            continue
        diagonal = x2 is None and rows == cols
        block = (kernel(x1[rows]) if diagonal else kernel(x1[rows], columns[cols])).cpu().numpy()
        matrix[rows, cols] = block
        if x2 is None:
            matrix[cols, rows] = block.T
        matrix.flush()
        journal["finished"] = number + 1
        _write(_journal(path), journal)
        if progress:
            progress(number + 1, len(tiles))
    made: np.memmap[Any, Any] = np.load(path, mmap_mode="r")
    return made


def _tiles(lines: int, columns: int, tile: int, symmetric: bool) -> Iterator[tuple[slice, slice]]:
    for i in range(0, lines, tile):
        for j in range(0, min(i + 1, columns) if symmetric else columns, tile):
            yield slice(i, min(i + tile, lines)), slice(j, min(j + tile, columns))


def _begun(
    path: Path, about: dict[str, Any], shape: tuple[int, int], dtype: np.dtype[Any]
) -> tuple[np.memmap[Any, Any], dict[str, Any]]:
    """The file and its journal: those of a call before, or new ones."""
    if path.exists() and _journal(path).exists():
        journal = json.loads(_journal(path).read_text())
        differing = [name for name in about if journal["about"].get(name) != json.loads(json.dumps(about[name]))]
        if differing:
            raise MismatchError(
                f"{path} was begun with another {', '.join(differing)}; remove it, or write to another path."
            )
        return np.lib.format.open_memmap(path, mode="r+"), journal
    if path.exists():
        raise MismatchError(f"{path} is there without {_journal(path).name}: no call of write_kernel began it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    size, free = math.prod(shape) * dtype.itemsize, shutil.disk_usage(path.parent).free
    if size > free:
        # A file that is mapped is not written until it is, and a full disk then kills the process.
        raise OSError(errno.ENOSPC, f"a kernel of {in_words(size)} does not fit in {in_words(free)} of disk", str(path))
    journal = {"about": about, "finished": 0}
    matrix = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    matrix.flush()
    _write(_journal(path), journal)
    return matrix, journal


def _dtype(kernel: NonlocalNTK) -> np.dtype[Any]:
    return np.dtype(np.float64 if kernel.dtype == torch.float64 else np.float32)


def _journal(path: Path) -> Path:
    return path.with_name(f"{path.name}.progress")


def _write(path: Path, content: dict[str, Any]) -> None:
    partial = path.with_name(f"{path.name}.tmp")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(json.dumps(content))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
