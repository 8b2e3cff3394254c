"""Sum of kernels over chunks of displacements, before the sums of the softmax are known."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nntk.kernels.attention.reference import finite
from nntk.kernels.fixed_weights.softmax import merge, share
from nntk.kernels.philox.slabs import tile_of


@dataclass
class StreamingSum:
    r"""Kernel under attention, summed chunk by chunk.

    The kernel of a chunk is relative to the largest exponents of its inputs in that chunk, and so is the total. Adding
    a chunk brings both to the larger of the two, by factors :math:`e^{(\max - \max') / 2}` of rows and of columns. No
    accuracy is lost by not knowing the sums beforehand.

    Attributes:
        kernel: [N1, N2] with the axes of the outputs; None before the first chunk.
        statistics1: Softmax statistics of the inputs of the rows, [3, N1].
        statistics2: Softmax statistics of the inputs of the columns, [3, N2]; None for a symmetric kernel.

    Example:
        >>> total = StreamingSum()
        >>> for largest in (0.0, 5.0):
        ...     statistics = torch.tensor([[largest], [1.0], [1.0]], dtype=torch.float64)
        ...     total.add(torch.ones(1, 1, dtype=torch.float64), statistics, None)
        >>> f"{float(total.result()):.12f}"
        '1.000000000000'
    """

    kernel: Tensor | None = None
    statistics1: Tensor | None = None
    statistics2: Tensor | None = None

    def add(self, kernel: Tensor, statistics1: Tensor, statistics2: Tensor | None) -> None:
        """Add the kernel of a chunk, relative to the statistics of the chunk. The kernel is overwritten.

        Raises:
            ValueError: If the statistics have other shapes than those of earlier chunks.
        """
        if self.kernel is None or self.statistics1 is None:
            self.kernel, self.statistics1, self.statistics2 = kernel, statistics1, statistics2
            return
        merged1 = merge(self.statistics1, statistics1)
        merged2 = None
        if statistics2 is not None and self.statistics2 is not None:
            merged2 = merge(self.statistics2, statistics2)
        for part, part1, part2 in (
            (self.kernel, self.statistics1, self.statistics2),
            (kernel, statistics1, statistics2),
        ):
            _scale(part, _factor(part1, merged1), None if merged2 is None or part2 is None else _factor(part2, merged2))
        self.kernel += kernel
        self.statistics1, self.statistics2 = merged1, merged2

    def result(self) -> Tensor:
        """Return the normalised kernel. The sum must not be used afterwards.

        Returns:
            [N1, N2] with the axes of the outputs.

        Raises:
            ValueError: If nothing was added.
        """
        if self.kernel is None or self.statistics1 is None:
            raise ValueError("a sum of no chunks has no result; add a chunk first.")
        second = None if self.statistics2 is None else share(self.statistics2[1]).sqrt()
        return _scale(self.kernel, share(self.statistics1[1]).sqrt(), second)


def _factor(statistics: Tensor, merged: Tensor) -> Tensor:
    return ((statistics[0] - finite(merged[0])) / 2).exp()


def _scale(kernel: Tensor, row_factors: Tensor, column_factors: Tensor | None) -> Tensor:
    """Multiply rows and columns of a kernel in place; with equal factors it stays exactly symmetric."""
    columns = row_factors if column_factors is None else column_factors
    # A block of rows at a time: the products are float64, one for each entry of the kernel.
    block = max(1, tile_of(kernel.device) // max(1, len(columns)))
    for first in range(0, len(kernel), block):
        part = kernel[first : first + block]
        products = torch.outer(row_factors[first : first + block], columns).to(kernel.dtype)
        part.mul_(products.view(*products.shape, *[1] * (kernel.dim() - 2)))
    return kernel
