"""Architecture of a device and the machine code that kernels may use there. No other module queries the device."""

import importlib.util
import os
import re
from dataclasses import dataclass
from functools import cache

import torch

AMD = ("gfx942",)
"""AMD architectures that the kernels are compiled for. No other AMD architecture has products of TF32."""
_TRITON = importlib.util.find_spec("triton") is not None


@dataclass(frozen=True)
class Target:
    """Properties of a device that the kernels depend on.

    Attributes:
        arch: Architecture: ``"sm_80"``, ``"sm_90"``, ``"sm_100"``, ``"gfx942"`` or a neighbour, or ``"interpreter"``.
        processors: Number of multiprocessors.
        device: Name of the device's table of tuned configurations, e.g. ``"nvidia-h200"``; empty if it has none.
    """

    arch: str
    processors: int = 132
    device: str = ""

    @property
    def ptx(self) -> bool:
        """True if inline PTX runs on the device."""
        return self.arch.startswith("sm_")

    @property
    def wgmma(self) -> bool:
        """True if products run asynchronously for four warps together (the ``wgmma`` instruction)."""
        return self.arch == "sm_90"

    @property
    def has_float64_products(self) -> bool:
        """True if ``tl.dot`` multiplies float64; for AMD, Triton 3.6 and 3.7 stop there."""
        return self.ptx or self.arch == "interpreter"

    @property
    def supported(self) -> bool:
        """True if the kernels run on the device: NVIDIA cards have bfloat16 and TF32 from capability 8.0 on."""
        return int(self.arch[3:]) >= 80 if self.ptx else self.arch in (*AMD, "interpreter")


def interpreted() -> bool:
    """Return True if Triton interprets its kernels on the CPU (TRITON_INTERPRET=1 when they were imported)."""
    import triton

    return bool(triton.knobs.runtime.interpret)


def slug(name: str) -> str:
    """Convert the name of a device to a name for files.

    Args:
        name: Name given by the manufacturer.

    Returns:
        The name in lower case, with a hyphen for every run of characters other than letters and digits.

    Example:
        >>> slug("NVIDIA H200")
        'nvidia-h200'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def target_of(device: torch.device) -> Target:
    """Return the target of a device. It queries the driver, so only an op with a tensor on that device may call it."""
    if interpreted():
        return Target("interpreter", os.cpu_count() or 1)
    is_current = device.type == "cuda" and device.index is None
    return _query(device) if is_current else _queried(device)


def _query(device: torch.device) -> Target:
    properties = torch.cuda.get_device_properties(device)
    hip = torch.version.hip is not None
    arch = properties.gcnArchName.partition(":")[0] if hip else f"sm_{properties.major}{properties.minor}"
    return Target(arch, properties.multi_processor_count, slug(properties.name))


_queried = cache(_query)
"""Target of a device with a number, which is asked for once."""


def obstacle_of(device: torch.device) -> str:
    """Return why the kernels cannot serve a GPU; an empty string if they can, or if no card can be asked (tracing)."""
    if not _TRITON:
        return "Triton is not installed"
    if not torch.cuda.is_available() or target_of(device).supported:
        return ""
    arch = target_of(device).arch
    if arch.startswith("sm_"):
        return f"the GPU is {arch}, and the kernels need sm_80 (compute capability 8.0) or newer"
    return f"the GPU is {arch}, and the kernels for AMD are written for {', '.join(AMD)}"


def serves(device: torch.device) -> bool:
    """Return True if kernels, not references, serve a device; also True in tracing, without a card to query."""
    return device.type == "cuda" and not obstacle_of(device)


def memory_of(device: torch.device) -> int:
    """Return the bytes of a GPU's memory; 0 for other devices, and in tracing, without a card to query."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return 0
    return int(torch.cuda.get_device_properties(device).total_memory)


def family_of(arch: str) -> str:
    """Return the architecture whose configurations serve ``arch``: itself, or the nearest of those compiled for."""
    if arch.startswith("gfx"):
        return "gfx942"
    if arch.startswith("sm_"):
        # Consumer cards (sm_86, sm_89, sm_120) have the products of sm_80, and 99 KB of shared memory instead of 163.
        # The configurations use 69 KB at most. On sm_120 the compiler needs more registers for float32.
        near = {"sm_103": "sm_100", "sm_121": "sm_120"}
        return near.get(arch, arch if arch in ("sm_90", "sm_100", "sm_120") else "sm_80")
    return arch


def input_precision(precision: str, arch: str) -> str:
    """Return Triton's name of the precision of a product; operands of ``"tf32"`` are rounded where they are written."""
    if precision == "tf32":
        return "tf32"
    return "tf32x3" if precision == "fp32" and arch.startswith("sm_") else "ieee"
