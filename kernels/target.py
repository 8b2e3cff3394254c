"""Architecture of a device and the machine code that kernels may use there. No other module queries the device."""

import importlib.util
import logging
import os
import re
from dataclasses import dataclass
from functools import cache

import torch

_log = logging.getLogger("nntk")

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
    properties = torch.cuda.get_device_properties(device)
    hip = torch.version.hip is not None
    arch = properties.gcnArchName.partition(":")[0] if hip else f"sm_{properties.major}{properties.minor}"
    return Target(arch, properties.multi_processor_count, slug(properties.name))


def serves(device: torch.device) -> bool:
    """Return True if kernels serve a device; else the references do, and a log line says so once for a kind of card.

    In tracing, without a card to query, the answer is True.
    """
    if device.type != "cuda":
        return False
    if not torch.cuda.is_available():
        return _TRITON
    if not _TRITON:
        _report("Triton is not installed")
        return False
    target = target_of(device)
    if not target.supported:
        _report(
            f"{target.device or 'the card'} is {target.arch}, and the kernels require compute capability 8.0 (sm_80) "
            f"or later, or {', '.join(AMD)}"
        )
    return target.supported


@cache
def _report(reason: str) -> None:
    """Log once for each reason that references serve a card."""
    _log.warning("%s: tensors on the GPU are served by plain torch, which is several times slower.", reason)


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
