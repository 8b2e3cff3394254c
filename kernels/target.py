"""Which machine code a kernel may use: the only place that asks."""

import os
from dataclasses import dataclass

import torch
import triton


@dataclass(frozen=True)
class Target:
    """What the kernels must know of a device.

    Attributes:
        arch: ``"sm_80"``, ``"sm_90"``, ``"sm_100"``, ``"gfx942"`` or a neighbour, or ``"interpreter"``.
        processors: Number of multiprocessors.
    """

    arch: str
    processors: int = 132

    @property
    def ptx(self) -> bool:
        """Whether inline PTX runs there."""
        return self.arch.startswith("sm_")

    @property
    def wgmma(self) -> bool:
        """Whether products run asynchronously for four warps at once."""
        return self.arch == "sm_90"


def interpreted() -> bool:
    """Whether Triton interprets its kernels on the CPU (TRITON_INTERPRET=1 when they were imported)."""
    return bool(triton.knobs.runtime.interpret)


def target_of(device: torch.device) -> Target:
    """The target of a device that a tensor is on; asks the driver, so only from an op that has such a tensor."""
    if interpreted():
        return Target("interpreter", os.cpu_count() or 1)
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        return Target(properties.gcnArchName.partition(":")[0], properties.multi_processor_count)
    return Target(f"sm_{properties.major}{properties.minor}", properties.multi_processor_count)
