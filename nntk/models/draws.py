"""Draws of a stochastic model's random numbers, the same at every displacement."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Draws:
    """Some draws: a model is seen as the mean of its outputs over them.

    Attributes:
        seed: Seed of the kernel.
        first: Number of the first draw.
        count: How many.
    """

    seed: int
    first: int
    count: int

    def __iter__(self) -> Iterator[int]:
        """Seeds of the draws, in [0, 2**63): functions of the kernel's seed and the draw's number alone."""
        for number in range(self.first, self.first + self.count):
            word = hashlib.sha256(f"nntk draw {self.seed} {number}".encode()).digest()[:8]
            yield int.from_bytes(word, "little") >> 1

    def mean(self, evaluate: Callable[[int], Tensor]) -> Tensor:
        """Mean of outputs over the draws, each evaluated with its seed."""
        # One after the other, so that no two need be held.
        return reduce(torch.add, map(evaluate, self)) / self.count


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """PyTorch's random numbers from a seed; what they were before goes on afterwards."""
    devices: list[Any] = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
