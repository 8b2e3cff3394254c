"""Tiles of a kernel matrix: their places, and the inputs of those that are to be computed."""

from collections.abc import Collection, Iterator, Sequence

from nntk.models.data.inputs import Batch
from nntk.models.data.streams import Source, blocks_of

Tile = tuple[slice, slice]
"""Rows and columns of a tile."""


def tile_places(num_rows: int, num_columns: int, tile: int, symmetric: bool) -> Iterator[Tile]:
    """Yield the rows and columns of each tile; of a symmetric matrix only tiles on and below the diagonal."""
    for i in range(0, num_rows, tile):
        for j in range(0, min(i + 1, num_columns) if symmetric else num_columns, tile):
            yield slice(i, min(i + tile, num_rows)), slice(j, min(j + tile, num_columns))


def tile_inputs(
    x1: Source, x2: Source | None, tile: int, tiles: Sequence[Tile], missing: Collection[int]
) -> Iterator[tuple[int, Batch, Batch | None]]:
    """Yield the inputs of tiles; of a stream only a block of rows and a block of columns is held.

    Args:
        x1: Inputs of the rows.
        x2: Inputs of the columns; None for a symmetric matrix.
        tile: Number of rows and columns of a tile.
        tiles: Places of all tiles, from :func:`tile_places`.
        missing: Numbers of the tiles that are to be computed.

    Yields:
        Number of a tile, and inputs of its rows and columns; None in place of the latter on the diagonal.

    Raises:
        ValueError: If a stream is not the same at every pass, or has inputs of several shapes.
    """
    wanted = {(tiles[index][0].start, tiles[index][1].start): index for index in missing}
    for row_place, rows in blocks_of(x1, tile, one_kind=True):
        columns = {column: index for (row, column), index in wanted.items() if row == row_place.start}
        if x2 is None and (index := columns.pop(row_place.start, None)) is not None:
            yield index, rows, None
        # A pass over the columns ends where no tile is missing.
        for column_place, cols in blocks_of(x1 if x2 is None else x2, tile, one_kind=True) if columns else ():
            if (index := columns.pop(column_place.start, None)) is not None:
                yield index, rows, cols
            if not columns:
                break
