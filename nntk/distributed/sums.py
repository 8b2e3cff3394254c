r"""Sums of products of features over displacements, and over a ring of ranks that hold different inputs.

Rank s holds the features of its inputs, and computes its rows of the kernel. The features of other ranks pass by along
a ring. For a symmetric kernel each goes half way round: a rank computes the tile with the ranks behind it, and sends
it, transposed, to them when all displacements are in it. The kernel is then symmetric to the last bit.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from nntk.distributed.ranks.mesh import Axis
from nntk.kernels.assemble import StreamingSum, assemble
from nntk.kernels.assemble.reference import mirror
from nntk.kernels.attention.reference import finite
from nntk.kernels.fixed_weights import merge


class Sums(Protocol):
    """Sums over displacements of products of features."""

    def add(self, features: Tensor, statistics: Tensor | None = None) -> None:
        """Add the products of some displacements.

        Args:
            features: [m, n, C] at the inputs of this rank, those of the rows followed by those of the columns.
            statistics: Statistics of the softmax that the features are relative to, [3, n]; None where they are
                relative to the same ones in each call.
        """

    @property
    def statistics(self) -> Tensor | None:
        """Statistics of all that was added, [3, n]."""


def products(a: Tensor, b: Tensor | None, outputs: str) -> Tensor:
    """Return the products of features [m, n1, C] and [m, n2, C], summed over displacements; symmetric without b."""
    if not len(a) or not a.shape[1] or b is not None and not b.shape[1]:
        axes = {"diagonal": a.shape[2:], "full": 2 * a.shape[2:]}.get(outputs, ())
        return a.new_zeros(a.shape[1], a.shape[1] if b is None else b.shape[1], *axes)
    ones = a.new_ones(len(a), dtype=torch.float64)
    return assemble(a, ones, ones, 1, d2=b, outputs=outputs)


class TileSums:
    """Rows of a kernel: one tile for each rank that holds inputs of the columns.

    Args:
        ring: Ranks with other inputs.
        rows: Numbers of inputs of the rows on the ranks of the ring.
        columns: Numbers of inputs of the columns on these ranks; None for a symmetric kernel.
        outputs: Treatment of outputs.
    """

    def __init__(self, ring: Axis, rows: Sequence[int], columns: Sequence[int] | None, outputs: str) -> None:
        self._ring, self._rows, self._outputs = ring, rows, outputs
        self._symmetric, self._columns = columns is None, rows if columns is None else columns
        self._tiles: dict[int, Tensor] = {}
        self._streams: dict[int, StreamingSum] = {}
        self._statistics: Tensor | None = None

    def fresh(self) -> "TileSums":
        """Return sums of the same tiles without terms."""
        columns = None if self._symmetric else self._columns
        return TileSums(self._ring, self._rows, columns, self._outputs)

    @property
    def statistics(self) -> Tensor | None:
        """Statistics of all that was added, [3, n]."""
        return self._statistics

    def add(self, features: Tensor, statistics: Tensor | None = None) -> None:
        """Add the products of some displacements; see :class:`Sums`."""
        if statistics is not None:
            self._statistics = statistics if self._statistics is None else merge(self._statistics, statistics)
        count, here, size = self._rows[self._ring.index], self._ring.index, self._ring.size
        own, own_statistics = features[:, :count], None if statistics is None else statistics[:, :count]
        passing = features if self._symmetric else features[:, count:]
        passing_statistics = statistics
        if statistics is not None and not self._symmetric:
            passing_statistics = statistics[:, count:]
        steps = size // 2 + 1 if self._symmetric else size
        for step in range(steps):
            source = (here - step) % size
            if self._owns(source):
                is_diagonal = self._symmetric and source == here
                tile = products(own, None if is_diagonal else passing, self._outputs)
                self._add_tile(source, tile, own_statistics, None if is_diagonal else passing_statistics)
            if step + 1 < steps:
                following, before = (here + 1) % size, (here - 1) % size
                arriving = self._columns[(source - 1) % size]
                shape = (len(passing), arriving, passing.shape[2])
                passing = self._ring.swap(passing, following, before, shape)
                if passing_statistics is not None:
                    passing_statistics = self._ring.swap(passing_statistics, following, before, (3, arriving))

    def finish(self, factors: Tensor, reduce: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the rows of this rank.

        Args:
            factors: Factors of the features at the inputs of this rank, [n] or [1].
            reduce: Sum over the ranks that have the same inputs and other displacements.

        Returns:
            [N1, N2] with the axes of the outputs, float64, where N2 counts the inputs of all ranks.
        """
        count, here = self._rows[self._ring.index], self._ring.index
        first = factors if len(factors) == 1 else factors[:count]
        second = factors if len(factors) == 1 or self._symmetric else factors[count:]
        passed = self._ring.gather(second)
        for source in sorted({*self._tiles, *self._streams}):
            tile = self._tiles[source] if source in self._tiles else self._streams[source].kernel
            assert tile is not None, "a tile was added"
            scale = torch.outer(first, passed[source])
            tile = reduce(tile.double().mul_(scale.view(*scale.shape, *[1] * (tile.dim() - 2))))
            self._tiles[source] = mirror(tile) if self._symmetric and source == here else tile
        if self._symmetric:
            self._mirror_tiles()
        return (
            self._tiles[0] if self._ring.size == 1 else torch.cat([self._tiles[k] for k in range(self._ring.size)], 1)
        )

    def _mirror_tiles(self) -> None:
        """Send each tile, transposed, to the rank that holds the inputs of its columns."""
        here, size = self._ring.index, self._ring.size
        axes = self._tiles[here].shape[2:]
        for step in range(1, size // 2 + 1):
            behind, ahead = (here - step) % size, (here + step) % size
            tile = self._tiles[behind] if self._owns(behind) else self._tiles[here].new_zeros(0)
            sent = _transposed(tile) if tile.numel() else tile
            arrives = _computes(ahead, here, size)
            shape = (self._rows[here], self._rows[ahead], *axes) if arrives else (0,)
            received = self._ring.swap(sent, behind, ahead, shape)
            if arrives:
                self._tiles[ahead] = received

    def _owns(self, source: int) -> bool:
        """Return whether this rank computes the tile with the inputs of another rank."""
        return not self._symmetric or _computes(self._ring.index, source, self._ring.size)

    def _add_tile(self, source: int, tile: Tensor, rows: Tensor | None, columns: Tensor | None) -> None:
        if rows is not None:
            self._streams.setdefault(source, StreamingSum()).add(tile, rows, columns)
        elif source in self._tiles:
            self._tiles[source] += tile
        else:
            self._tiles[source] = tile


class DiagonalSums:
    """Kernel of each input of this rank with itself.

    Args:
        outputs: Treatment of outputs.
    """

    def __init__(self, outputs: str) -> None:
        self._outputs = outputs
        self._total: Tensor | None = None
        self._statistics: Tensor | None = None

    def fresh(self) -> "DiagonalSums":
        """Return sums of the same kind without terms."""
        return DiagonalSums(self._outputs)

    @property
    def statistics(self) -> Tensor | None:
        """Statistics of all that was added, [3, n]."""
        return self._statistics

    def add(self, features: Tensor, statistics: Tensor | None = None) -> None:
        """Add the products of some displacements; see :class:`Sums`."""
        a = features.double()
        if self._outputs == "full":
            entries = torch.einsum("mnc,mnk->nck", a, a)
        else:
            entries = a.square().sum(0)
            if self._outputs != "diagonal":
                entries = entries.mean(1) if self._outputs == "mean" else entries.sum(1)
        if self._total is None:
            self._total, self._statistics = entries, statistics
            return
        if statistics is not None and self._statistics is not None:
            merged = merge(self._statistics, statistics)
            old, new = (by_input((s[0] - finite(merged[0])).exp(), entries) for s in (self._statistics, statistics))
            self._total, entries, self._statistics = self._total * old, entries * new, merged
        self._total = self._total + entries

    def finish(self, factors: Tensor, reduce: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the diagonal of this rank, [n] with the axes of the outputs, float64; see :class:`TileSums`."""
        assert self._total is not None, "something was added"
        return reduce(self._total * by_input(factors.square(), self._total))


def by_input(values: Tensor, entries: Tensor) -> Tensor:
    """Return values of inputs, [n] or [1], with further axes of size 1, to multiply entries [n, ...]."""
    return values.view(-1, *[1] * (entries.dim() - 1))


def _computes(rank: int, source: int, size: int) -> bool:
    """Return whether a rank computes the tile with the inputs of ``source``, of a symmetric kernel on a ring."""
    distance = (rank - source) % size
    return 2 * distance < size or 2 * distance == size and rank > source


def _transposed(tile: Tensor) -> Tensor:
    """Return a tile with inputs of rows and columns exchanged, and with them their outputs."""
    return tile.permute(1, 0, 3, 2) if tile.dim() == 4 else tile.transpose(0, 1)
