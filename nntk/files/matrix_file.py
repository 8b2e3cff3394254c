"""Kernel matrices that do not fit in memory: written tile by tile to a file, and resumed after an interruption."""

import errno
import logging
import math
import shutil
from collections.abc import Callable, Collection, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nntk.estimators.memory import format_bytes
from nntk.files.fingerprint import fingerprint
from nntk.files.hashing import hash_tensors
from nntk.files.journal import (
    Checksums,
    checksum,
    journal_path,
    merge_journals,
    ranks_with_journals,
    write_journal,
)
from nntk.files.lock import locked
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
        OSError: If the path is neither a regular file nor new, another run writes it, the file cannot be written, or
            the disk has no room for it.

    Example:
        >>> import tempfile
        >>> kernel, x = NonlocalNTK(torch.nn.Linear(3, 1), samples=8), torch.randn(5, 3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     matrix = torch.tensor(np.array(write_kernel(f"{folder}/k.npy", kernel, x, tile=2)))
        >>> torch.allclose(matrix, kernel(x), rtol=1e-4, atol=1e-5)
        True
    """
    matrix = MatrixFile(path, kernel, x1, x2, tile)
    with locked(matrix.path):
        checksums = matrix.verified(matrix.begin())
        total = len(matrix.tiles)
        finished = total - checksums.count(None)
        for index, value in matrix.write_tiles([index for index, value in enumerate(checksums) if value is None]):
            checksums[index] = value
            write_journal(matrix.path, matrix.identity, checksums)
            finished += 1
            if progress:
                progress(finished, total)
        return matrix.read()


class MatrixFile:
    """File of a kernel matrix that is written tile by tile, by one process or by several ranks.

    Args:
        path: The file.
        kernel: The kernel, nonlocal or local, traced or averaged over outputs.
        x1: Inputs of the rows, [N1, ...], or a stream of them.
        x2: Inputs of the columns; None for a symmetric kernel.
        tile: Number of rows and of columns of a tile; None for tiles of 256 MiB.

    Attributes:
        path: The file, where a symbolic link leads to.
        identity: Fingerprint of the kernel, hash of the inputs, and size of the tiles.
        tiles: Rows and columns of each tile.

    Raises:
        ValueError: If an argument or the inputs do not fit.
        TypeError: If an argument has the wrong type.
        OSError: If the path is neither a regular file nor new.
    """

    def __init__(
        self,
        path: str | Path,
        kernel: NonlocalNTK | LocalNTK,
        x1: SourceValue,
        x2: SourceValue | None,
        tile: int | None,
    ) -> None:
        self.path = file_to_replace(path, "path", "since a matrix is written and read tile by tile")
        if kernel.outputs not in ("trace", "mean"):
            raise ValueError(f"outputs must be 'trace' or 'mean' for a matrix, got {kernel.outputs!r}.")
        # Checked before a file is created, which would else belong to inputs that have no kernel.
        self._kernel, self._x1 = kernel, _checked(kernel, "x1", x1)
        self._x2 = None if x2 is None else _checked(kernel, "x2", x2)
        self._shape = len(self._x1), len(self._x1 if self._x2 is None else self._x2)
        self._dtype = _numpy_dtype(kernel)
        self._tile = (
            int((TILE_BYTES / self._dtype.itemsize) ** 0.5) if tile is None else checks.integer("tile", tile, 1)
        )
        inputs = hash_tensors(identity_of("x1", self._x1) | ({} if self._x2 is None else identity_of("x2", self._x2)))
        self.identity: dict[str, Any] = {**fingerprint(kernel), "inputs": inputs, "tile": self._tile}
        self.tiles = list(tile_places(*self._shape, self._tile, self._x2 is None))

    def begin(self) -> Checksums:
        """Create the file, or check the one of an interrupted call; no other process may write it now.

        Returns:
            Checksums of the finished tiles by the journals, and None for the others.

        Raises:
            MismatchError: If the existing file belongs to something else, or was changed.
            OSError: If the disk has no room.
        """
        path = self.path
        for file in (path, journal_path(path), *(journal_path(path, rank) for rank in ranks_with_journals(path))):
            remove_partial_files(file)
        if not path.exists():
            checksums: Checksums = [None] * len(self.tiles)
            _create(path, self.identity, self._shape, self._dtype, checksums)
            return checksums
        if not journal_path(path).exists():
            raise MismatchError(
                f"{path} is there without {journal_path(path).name}: no call of write_kernel began it; remove it, or "
                "write to another path."
            )
        checksums = merge_journals(path, self.identity, len(self.tiles))
        _check_matrix(path, self._shape, self._dtype)
        _check_room(path, self._shape, self._dtype)
        return checksums

    def is_right(self, index: int, expected: str) -> bool:
        """Return whether a tile and its mirror image have a checksum."""
        rows, cols = self.tiles[index]
        parts = [self._matrix[rows, cols]]
        if self._x2 is None and rows != cols:
            parts.append(self._matrix[cols, rows].T)
        return all(checksum(part) == expected for part in parts)

    def verified(self, checksums: Checksums) -> Checksums:
        """Return the checksums of the finished tiles that are as they were written; None stands for all others.

        Args:
            checksums: Checksums by the journal.

        Raises:
            MismatchError: If no finished tile is right.
        """
        result = [
            value if value is not None and self.is_right(index, value) else None
            for index, value in enumerate(checksums)
        ]
        self.report_damage(len(checksums) - checksums.count(None), result.count(None) - checksums.count(None))
        return result

    def report_damage(self, finished: int, damaged: int) -> None:
        """Warn of damaged tiles, or refuse a file in which every finished tile is damaged.

        Args:
            finished: Number of finished tiles.
            damaged: Number of those whose checksum is wrong.

        Raises:
            MismatchError: If all are.
        """
        if damaged and damaged == finished:
            raise MismatchError(
                f"{self.path} must hold the tiles that write_kernel finished, but the checksum of none of {finished} "
                f"is right; remove it and {journal_path(self.path).name}, or write to another path."
            )
        if damaged:
            _log.warning("%s: %d of %d finished tiles are damaged and computed again.", self.path, damaged, finished)

    def write_tiles(self, indices: Collection[int]) -> Iterator[tuple[int, str]]:
        """Compute tiles and write them to disk.

        Args:
            indices: Numbers of the tiles.

        Yields:
            The number of a tile that is on disk, and its checksum.
        """
        for index, x1, x2 in tile_inputs(self._x1, self._x2, self._tile, self.tiles, indices):
            rows, cols = self.tiles[index]
            block = self._kernel(x1, x2).cpu().numpy()
            self._matrix[rows, cols] = block
            if self._x2 is None:
                self._matrix[cols, rows] = block.T
            self._matrix.flush()
            yield index, checksum(block)

    def read(self) -> np.memmap[Any, Any]:
        """Return the matrix in the file, read-only."""
        result: np.memmap[Any, Any] = np.load(self.path, mmap_mode="r")
        return result

    @cached_property
    def _matrix(self) -> np.memmap[Any, Any]:
        return np.lib.format.open_memmap(self.path, mode="r+")


def _checked(kernel: NonlocalNTK | LocalNTK, name: str, x: SourceValue) -> Source:
    """Return inputs or a stream of them, checked; the batches of a stream are moved to the device of the model."""
    source: Any = as_source(name, x)
    kernel.check_inputs(name, source)
    return source.to(kernel.device) if isinstance(source, Stream) else source


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


def _numpy_dtype(kernel: NonlocalNTK | LocalNTK) -> np.dtype[Any]:
    return np.dtype(np.float64 if kernel.dtype == torch.float64 else np.float32)
