"""Which machine code a kernel may use: the only place that asks."""

import importlib.util
import os
import re
from dataclasses import dataclass

import torch

AMD = ("gfx942",)
"""Architectures of AMD that the kernels are compiled for; it alone has products of TF32."""
_TRITON = importlib.util.find_spec("triton") is not None


@dataclass(frozen=True)
class Target:
    """What the kernels must know of a device.

    Attributes:
        arch: ``"sm_80"``, ``"sm_90"``, ``"sm_100"``, ``"gfx942"`` or a neighbour, or ``"interpreter"``.
        processors: Number of multiprocessors.
        device: Name of the device's table of tuned configurations, e.g. ``"nvidia-h200"``; empty for none.
    """

    arch: str
    processors: int = 132
    device: str = ""

    @property
    def ptx(self) -> bool:
        """Whether inline PTX runs there."""
        return self.arch.startswith("sm_")

    @property
    def wgmma(self) -> bool:
        """Whether products run asynchronously for four warps at once."""
        return self.arch == "sm_90"

    @property
    def served(self) -> bool:
        """Whether the kernels run there: bfloat16 and TF32 are on NVIDIA's cards from capability 8.0 on."""
        return int(self.arch[3:]) >= 80 if self.ptx else self.arch in (*AMD, "interpreter")


def interpreted() -> bool:
    """Whether Triton interprets its kernels on the CPU (TRITON_INTERPRET=1 when they were imported)."""
    import triton

    return bool(triton.knobs.runtime.interpret)


def slug(name: str) -> str:
    """Make a device's name a file's.

    Args:
        name: As its maker calls it.

    Returns:
        The same in lower case, with a hyphen for everything that is no letter or digit.

    Example:
        >>> slug("NVIDIA H200")
        'nvidia-h200'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def target_of(device: torch.device) -> Target:
    """The target of a device that a tensor is on; asks the driver, so only from an op that has such a tensor."""
    if interpreted():
        return Target("interpreter", os.cpu_count() or 1)
    properties = torch.cuda.get_device_properties(device)
    hip = torch.version.hip is not None
    arch = properties.gcnArchName.partition(":")[0] if hip else f"sm_{properties.major}{properties.minor}"
    return Target(arch, properties.multi_processor_count, slug(properties.name))


def serves(device: torch.device) -> bool:
    """Whether the kernels serve a device, not the references; true where there is no card to ask, in tracing."""
    return _TRITON and device.type == "cuda" and (not torch.cuda.is_available() or target_of(device).served)
