"""Kernels that add up over chunks of displacements whose softmax sums are not yet known."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nntk.kernels.attention.reference import finite
from nntk.kernels.fixed_weights.softmax import merge, share
from nntk.kernels.philox.reference import TILE


@dataclass
class StreamingSum:
    r"""A kernel under attention, chunk by chunk.

    A chunk's kernel is relative to the largest exponents of its own inputs, and so is the total: adding a chunk brings
    both to the larger of the two, by factors :math:`e^{(\max - \max') / 2}` of lines and of entries. What is lost by
    not knowing the sums beforehand is nothing.

    Attributes:
        kernel: [N1, N2] with the axes of the outputs; None before the first chunk.
        statistics1: Of the lines' inputs, [3, N1].
        statistics2: Of the entries' inputs, [3, N2]; None for a symmetric kernel.

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
        """Add a chunk's kernel, relative to its own statistics; it is overwritten.

        Raises:
            ValueError: If the statistics have other shapes than those of the chunks before.
        """
        if self.kernel is None or self.statistics1 is None:
            self.kernel, self.statistics1, self.statistics2 = kernel, statistics1, statistics2
            return
        merged1 = merge(self.statistics1, statistics1)
        merged2 = None
        if statistics2 is not None and self.statistics2 is not None:
            merged2 = merge(self.statistics2, statistics2)
        for part, own1, own2 in (
            (self.kernel, self.statistics1, self.statistics2),
            (kernel, statistics1, statistics2),
        ):
            _scale(part, _factor(own1, merged1), None if merged2 is None or own2 is None else _factor(own2, merged2))
        self.kernel += kernel
        self.statistics1, self.statistics2 = merged1, merged2

    def result(self) -> Tensor:
        """The kernel, normalised; the total is of no use any more.

        Returns:
            [N1, N2] with the axes of the outputs.

        Raises:
            ValueError: If nothing was added.
        """
        if self.kernel is None or self.statistics1 is None:
            raise ValueError("a total of no chunks has no result; add one first.")
        second = None if self.statistics2 is None else share(self.statistics2[1]).sqrt()
        return _scale(self.kernel, share(self.statistics1[1]).sqrt(), second)


def _factor(own: Tensor, merged: Tensor) -> Tensor:
    return ((own[0] - finite(merged[0])) / 2).exp()


def _scale(kernel: Tensor, lines: Tensor, entries: Tensor | None) -> Tensor:
    """Multiply lines and entries of a kernel in place; with the same factors it stays exactly symmetric."""
    entries = lines if entries is None else entries
    # Some lines at a time: the products are float64, and as many as the kernel has entries.
    at_once = max(1, TILE // max(1, len(entries)))
    for first in range(0, len(kernel), at_once):
        part = kernel[first : first + at_once]
        both = torch.outer(lines[first : first + at_once], entries).to(kernel.dtype)
        part.mul_(both.view(*both.shape, *[1] * (kernel.dim() - 2)))
    return kernel
