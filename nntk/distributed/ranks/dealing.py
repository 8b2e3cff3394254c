"""Dealing of work to ranks: which part each of them computes, and in which order the parts are added.

By default a rank has one part, consecutive and about as large as that of any other, and parts are added in the order
that the backend likes. In a deterministic deal the parts are fixed chunks, whatever the number of ranks. They are dealt
in rounds, chunk after chunk, and after each round they are added in their order: rank k adds block k of their rows, and
the blocks are gathered in the end. The sum has the same bits for any number of ranks, one included.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from nntk.distributed.ranks.mesh import Axis

_LEAST_CHUNK, _CHUNKS = 16, 64
"""Least length of a fixed chunk, and number of chunks of what is longer."""


class Deal:
    """Parts of a range for the ranks of an axis.

    Args:
        axis: The ranks.
        total: Length of the range.
        deterministic: Cut fixed chunks, and add in a fixed order.

    Attributes:
        parts: Parts of this rank, one for each round; the last one may be empty.
        deterministic: As given.
    """

    def __init__(self, axis: Axis, total: int, deterministic: bool) -> None:
        self._axis, self.deterministic = axis, deterministic
        if not deterministic:
            self.parts = [axis.part(total)]
            return
        size = max(_LEAST_CHUNK, -(-total // _CHUNKS))
        chunks = [range(first, min(first + size, total)) for first in range(0, total, size)]
        rounds = max(1, -(-len(chunks) // axis.size))
        chunks += [range(total, total)] * (rounds * axis.size - len(chunks))
        self.parts = chunks[axis.index :: axis.size]

    def gather(self, tensors: Iterable[Tensor]) -> Tensor:
        """Return the tensors of all parts in their order, joined along the first axis; one is given for each round."""
        return torch.cat([piece for tensor in tensors for piece in self._axis.gather(tensor)])

    def gather_each(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """Return the tensors of all parts in their order, those of parts that fill up the last round included."""
        return [piece for tensor in tensors for piece in self._axis.gather(tensor)]

    def sum(self, tensors: Iterable[Tensor]) -> Tensor:
        """Return the sum of tensors of one shape, float64; one is given for each round, zeros for an empty part."""
        if not self.deterministic:
            (tensor,) = tensors
            return self._axis.sum(tensor)
        total: Tensor | None = None
        length = 0

        def add(blocks: Sequence[Tensor]) -> None:
            nonlocal total
            for block in blocks:
                total = block.double() if total is None else total.add_(block)

        for tensor in tensors:
            length = len(tensor)
            add(self.blocks_of_rows(tensor))
        assert total is not None, "there is a round"
        return self.rows_of_blocks(total, length)

    def blocks_of_rows(self, tensor: Tensor) -> list[Tensor]:
        """Return this rank's block of the rows of the tensors of one round, in the order of their parts."""
        count = -(-len(tensor) // self._axis.size)
        padded = tensor.new_zeros(self._axis.size * count, *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        return list(self._axis.transpose(padded.view(self._axis.size, count, *tensor.shape[1:])))

    def rows_of_blocks(self, block: Tensor, length: int) -> Tensor:
        """Return the rows of all ranks from the blocks of each."""
        return torch.cat(self._axis.gather(block))[:length]

    def block(self, length: int) -> slice:
        """Return the rows that this rank adds, of a matrix of a number of rows; the last ones may not exist."""
        count = -(-length // self._axis.size)
        return slice(self._axis.index * count, (self._axis.index + 1) * count)
