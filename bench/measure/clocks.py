"""Clock and temperature of a GPU beside the samples, and whether it slowed itself down while one was taken."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

_LEAST_CLOCK = 0.75
"""Share of the highest clock below which a sample does not count: the card was not what its roofs were measured on."""
_SLOWDOWNS = {"hardware": 0x08, "hot": 0x20, "hot, hardware": 0x40, "power brake": 0x80}
"""Reasons of NVML for a lower clock that say nothing of the work. A power cap does: it belongs to the card."""


@dataclass(frozen=True)
class State:
    """What a GPU tells of itself.

    Attributes:
        sm_mhz: Clock of its multiprocessors.
        highest_mhz: The highest they can have.
        celsius: Its temperature.
        slowdowns: Why it runs slower than it could, if for reasons of its own.
    """

    sm_mhz: int
    highest_mhz: int
    celsius: int
    slowdowns: tuple[str, ...] = ()

    @property
    def throttled(self) -> bool:
        """Whether a sample taken now counts for nothing."""
        return bool(self.slowdowns) or self.sm_mhz < _LEAST_CLOCK * self.highest_mhz


def state(device: torch.device) -> State | None:
    """Ask a GPU.

    Args:
        device: The device.

    Returns:
        Its state; None on a CPU, on an AMD card, and where nvidia-ml-py is not installed or may not ask.
    """
    if device.type != "cuda":
        return None
    try:
        nvml, handle = _handle(str(torch.cuda.get_device_properties(device).uuid))
        reasons = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
        return State(
            nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
            nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            tuple(name for name, bit in _SLOWDOWNS.items() if reasons & bit),
        )
    except Exception:  # No package, no library, no right to ask, a part of a card: a measurement needs none of them.
        return None


@lru_cache
def _handle(uuid: str) -> tuple[Any, Any]:
    """NVML and its handle of a card. By identity: its numbers may be others than PyTorch's."""
    import pynvml

    pynvml.nvmlInit()
    return pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode())
