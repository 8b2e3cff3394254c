"""Clock and temperature of a GPU beside the samples, and the reasons for which it slowed down."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

_MINIMUM_CLOCK = 0.75
"""Share of the highest clock below which a sample is discarded: the roofs were measured at a higher clock."""
_SLOWDOWNS = {"hardware": 0x08, "hot": 0x20, "hot, hardware": 0x40, "power brake": 0x80}
"""Reasons of NVML for a lower clock that do not depend on the work. A power cap is none: it belongs to the card."""


@dataclass(frozen=True)
class State:
    """State that a GPU reports.

    Attributes:
        sm_mhz: Clock of the multiprocessors.
        highest_mhz: Highest clock of the multiprocessors.
        celsius: Temperature.
        slowdowns: Reasons for a lower clock that do not depend on the work.
    """

    sm_mhz: int
    highest_mhz: int
    celsius: int
    slowdowns: tuple[str, ...] = ()

    @property
    def throttled(self) -> bool:
        """True if a sample taken now must be discarded."""
        return bool(self.slowdowns) or self.sm_mhz < _MINIMUM_CLOCK * self.highest_mhz


def state(device: torch.device) -> State | None:
    """Return the state of a GPU.

    Args:
        device: The device.

    Returns:
        The state; None on a CPU, on an AMD card, and where nvidia-ml-py is not installed or not permitted.
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
    except Exception:  # No package, no library, no permission, a part of a card: measurements work without a state.
        return None


@lru_cache
def _handle(uuid: str) -> tuple[Any, Any]:
    """Return NVML and its handle of a card, by identity: its indices may differ from PyTorch's."""
    import pynvml

    pynvml.nvmlInit()
    return pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode())
