"""Sources of normals and signs: plain torch, which defines them, and the compiled kernels of a CPU."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from nntk.kernels import cpu
from nntk.kernels.philox import noise
from nntk.kernels.philox.slabs import Slab


class Generator(Protocol):
    """Function that generates noise, with the interface of :func:`nntk.kernels.philox.noise.normals`."""

    def __call__(
        self, sample_ids: Tensor, slabs: Sequence[Slab], key: tuple[int, int], dtype: torch.dtype
    ) -> list[Tensor]:
        """Return the noise of each slab."""


@dataclass(frozen=True)
class Source:
    """Functions that generate normals and signs of slabs."""

    normals: Generator
    signs: Generator


PLAIN = Source(noise.normals, noise.signs)
"""Plain torch on any device: the definition."""


def with_fastest_noise(reference: Callable[..., Any]) -> Callable[..., Any]:
    """Return an op's reference with the fastest source of a CPU, for a CPU without kernels of the op's own."""
    return lambda *arguments: reference(*arguments, source=source_of(torch.device("cpu")))


def source_of(device: torch.device) -> Source:
    """Return the fastest source for a device."""
    if device.type != "cpu" or not cpu.serves():
        return PLAIN
    compiled = importlib.import_module("nntk.kernels.philox.cpu.noise")
    return Source(compiled.normals, compiled.signs)
