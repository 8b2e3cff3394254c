"""Draws of a stochastic model's random numbers, the same ones at every displacement."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor


@dataclass(frozen=True)
class Draws:
    """Range of draws: a stochastic model is replaced by the mean of its outputs over them.

    Attributes:
        seed: Seed of the kernel.
        first: Number of the first draw.
        count: Number of draws.
    """

    seed: int
    first: int
    count: int

    def __iter__(self) -> Iterator[int]:
        """Yield the seed of each draw, in [0, 2**63): a function of the kernel's seed and the draw's number alone."""
        for number in range(self.first, self.first + self.count):
            word = hashlib.sha256(f"nntk draw {self.seed} {number}".encode()).digest()[:8]
            yield int.from_bytes(word, "little") >> 1

    def mean(self, evaluate: Callable[[int], Tensor]) -> Tensor:
        """Return the mean of outputs over the draws.

        Args:
            evaluate: Returns the outputs for the seed of a draw.

        Returns:
            The mean, in the shape and dtype of the outputs.
        """
        # The draws are added one after another, so that no more than two outputs are held.
        return reduce(torch.add, map(evaluate, self)) / self.count
