"""Kernel matrices in files, written by all ranks: each computes other tiles of one file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nntk.distributed.inputs import kernel_facts
from nntk.distributed.ranks.mesh import Mesh
from nntk.distributed.sharded import Sharded
from nntk.files.hashing import hash_tensors
from nntk.files.journal import Checksums, merge_journals, read_journal, write_journal
from nntk.files.lock import RunLock
from nntk.files.matrix_file import MatrixFile


def write_kernel(
    path: str | Path,
    kernel: Sharded,
    x1: Tensor,
    x2: Tensor | None = None,
    *,
    tile: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> np.memmap[Any, Any]:
    """Write a kernel matrix to a NumPy file by all ranks; the same call by any number of ranks resumes it.

    Every tile is computed by one rank, which evaluates all displacements at the inputs of the tile: the matrix has the
    bits of :func:`nntk.write_kernel`, which resumes it too. A rank writes its tiles into the file, and has a journal of
    its own, ``path`` + ``.progress.`` + its number. A tile is on disk before it is in a journal, so that whatever
    ends a rank, no tile is lost that is in one. The next run merges the journals. A run holds the lock ``path`` +
    ``.lock`` until its last rank has ended, and another run on the same file is refused.

    All ranks must see one file. Ranks on several machines need a file system whose caches agree (Lustre, GPFS, BeeGFS);
    NFS may lose writes of two machines to one page, which a further call finds by the checksums.

    Args:
        path: The file, the same on all ranks.
        kernel: The kernel on all ranks, traced or averaged over outputs. Its mesh counts the ranks; over inputs, the
            inputs of all ranks are gathered on every rank.
        x1: Inputs of the rows on this rank, [N1, ...].
        x2: Inputs of the columns on this rank; None for the symmetric kernel of ``x1``.
        tile: Number of rows and of columns of a tile; None for tiles of 256 MiB.
        progress: Function that is called on every rank with the numbers of finished tiles and of all tiles, after each
            round in which every rank computes a tile.

    Returns:
        The matrix [N1, N2] in the file, read-only.

    Raises:
        RankError: If ranks differ, or one raised an error or does not answer.
        ValueError: For the reasons of :func:`nntk.write_kernel`, on all ranks.
        TypeError: For the reasons of :func:`nntk.write_kernel`, on all ranks.

    Example:
        >>> import tempfile
        >>> import torch.distributed as dist
        >>> from nntk import NonlocalNTK
        >>> dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())  # torchrun: no arguments
        >>> kernel, x = NonlocalNTK(torch.nn.Linear(3, 1), samples=8), torch.randn(5, 3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     matrix = torch.tensor(np.array(write_kernel(f"{folder}/k.npy", Sharded(kernel), x, tile=2)))
        >>> torch.allclose(matrix, kernel(x), rtol=1e-4, atol=1e-5)
        True
        >>> dist.destroy_process_group()
    """
    mesh, agreement = kernel.mesh, kernel.mesh.agreement
    with agreement.together("preparing write_kernel"):
        facts = {**kernel_facts(kernel.kernel), "call": "write_kernel", "tile": tile, "shape of the mesh": mesh.shape}
        own = {"x1": x1} if x2 is None else {"x1": x1, "x2": x2}
        for name, x in own.items():
            kernel.kernel.check_inputs(name, x)
            column = "" if mesh.shape[1] == 1 else f" in column {mesh.inputs.index}"
            facts[f"{name}{column}"] = f"{len(x)} inputs, {hash_tensors({name: x})[:16]}"
    agreement.exchange(facts)
    everything = [torch.cat(mesh.inputs.gather(x)) for x in own.values()]
    with agreement.together("preparing write_kernel"):
        matrix = MatrixFile(path, kernel.kernel, everything[0], None if x2 is None else everything[1], tile)
    lock = RunLock(matrix.path)
    try:
        checksums = _begin(mesh, matrix, lock)
        _write_tiles(mesh, matrix, checksums, progress)
    finally:
        lock.release()
    return matrix.read()


def _begin(mesh: Mesh, matrix: MatrixFile, lock: RunLock) -> Checksums:
    """Lock and open the file on rank 0, then on all; return the checksums of the tiles that are right."""
    agreement, is_first = mesh.agreement, mesh.rank == 0
    with agreement.together("opening the matrix"):
        if is_first:
            lock.acquire()
            matrix.begin()
            lock.acquire(shared=True)
    with agreement.together("reading the journal"):
        if not is_first:
            if not matrix.path.exists():
                raise FileNotFoundError(
                    f"path must be one file that all ranks see, but rank {mesh.rank} has no {matrix.path}."
                )
            lock.acquire(shared=True)
        checksums = read_journal(matrix.path, matrix.identity, len(matrix.tiles))
        finished = [index for index, value in enumerate(checksums) if value is not None]
        # Each rank reads a part of the tiles.
        damaged = torch.zeros(len(checksums), dtype=torch.float64)
        for index in finished[mesh.rank :: mesh.size]:
            damaged[index] = not matrix.is_right(index, checksums[index] or "")
    damaged = mesh.everyone.sum(damaged.to(mesh.device)).cpu()
    with agreement.together("checking the matrix"):
        if is_first or int(damaged.sum()) == len(finished):
            matrix.report_damage(len(finished), int(damaged.sum()))
        checksums = [None if bool(bad) else value for value, bad in zip(checksums, damaged, strict=True)]
        if is_first and bool(damaged.any()):
            write_journal(matrix.path, matrix.identity, checksums)
    return checksums


def _write_tiles(
    mesh: Mesh, matrix: MatrixFile, checksums: Checksums, progress: Callable[[int, int], None] | None
) -> None:
    """Compute the tiles that remain, one on each rank at a time, and merge the journals of the ranks."""
    agreement, total = mesh.agreement, len(checksums)
    remaining = [index for index, value in enumerate(checksums) if value is None]
    written: Checksums = [None] * total
    for first in range(0, len(remaining), mesh.size):
        mine = remaining[first : first + mesh.size][mesh.rank : mesh.rank + 1]
        with agreement.together("computing tiles"):
            for index, value in matrix.write_tiles(mine):
                written[index] = value
                write_journal(matrix.path, matrix.identity, written, mesh.rank)
        if progress:
            progress(total - max(0, len(remaining) - first - mesh.size), total)
    with agreement.together("merging journals"):
        if mesh.rank == 0:
            merge_journals(matrix.path, matrix.identity, total)
