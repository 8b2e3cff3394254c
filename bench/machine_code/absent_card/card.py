"""Puts the driver that launches nothing in the place of NVIDIA's, for the rest of a process."""

import atexit
import ctypes
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.driver import CudaDriver
from triton.runtime import driver

from nntk.bench.machine_code.machines import MACHINES

_LIBRARY = "libcuda.so.1"
_SOURCE = Path(__file__).with_name("driver.c")


class NoCompilerError(RuntimeError):
    """No C compiler builds the driver."""


@dataclass(frozen=True)
class Counts:
    """What a card was asked for.

    Attributes:
        launches: Number of launches by Triton.
        maps: Number of tensor maps that were encoded: descriptors of tensors in the form that the hardware reads.
    """

    launches: int
    maps: int

    def __sub__(self, other: "Counts") -> "Counts":
        return Counts(self.launches - other.launches, self.maps - other.maps)


class AbsentCard:
    """Card that launches nothing, which Triton takes for the current one from now on.

    Grids, shared memory and tensor maps beyond what the card or the CUDA driver API allows raise ``RuntimeError`` with
    the rule and the value. A process has at most one such card, and no other card afterwards.

    Args:
        arch: Architecture of NVIDIA, e.g. ``"sm_90"``.
        processors: Number of multiprocessors.
        memory: Bytes of the card's memory.

    Raises:
        NoCompilerError: If no C compiler builds the driver; Triton needs one on any card.
        ValueError: If the architecture is not one of NVIDIA's.
    """

    def __init__(self, arch: str, processors: int = 132, memory: int = 80 * 10**9) -> None:
        if not arch.startswith("sm_"):
            raise ValueError(f"arch must be an architecture of NVIDIA such as 'sm_90', got {arch!r}.")
        self._capability = divmod(int(arch[3:]), 10)
        self._library = _load()
        for name, value in zip(("absent_major", "absent_minor"), self._capability, strict=True):
            ctypes.c_int.in_dll(self._library, name).value = value
        ctypes.c_int.in_dll(self._library, "absent_processors").value = processors
        ctypes.c_uint.in_dll(self._library, "absent_shared").value = MACHINES[arch].shared
        properties: Any = SimpleNamespace(
            name="", major=self._capability[0], minor=self._capability[1], multi_processor_count=processors,
            total_memory=memory,
        )  # fmt: skip
        # The launchers ask PyTorch what the card is.
        torch.cuda.get_device_properties = lambda device=None: properties
        driver.set_active(_Driver(self._capability))

    @property
    def counts(self) -> Counts:
        """What the card was asked for since the process began."""
        return Counts(*(ctypes.c_long.in_dll(self._library, f"absent_{name}").value for name in ("launches", "maps")))


class _Driver(CudaDriver):  # type: ignore[misc] # Triton has no types.
    """Triton's driver for NVIDIA, told what PyTorch would say of the current device."""

    def __init__(self, capability: tuple[int, int]) -> None:
        super().__init__()
        self._target = GPUTarget("cuda", 10 * capability[0] + capability[1], 32)
        self.get_device_capability = lambda device=None: capability
        self.get_current_device = lambda: 0
        self.set_current_device = lambda device: None
        self.get_current_stream = lambda device: 0

    def get_current_target(self) -> GPUTarget:
        """Return the card's architecture."""
        return self._target


def _load() -> ctypes.CDLL:
    """Build the driver, and load it under the name by which Triton looks for NVIDIA's."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise NoCompilerError(
            "the driver that launches nothing needs a C compiler, as Triton does on any card: install gcc or clang, or "
            "name one in the environment variable CC"
        )
    folder = tempfile.mkdtemp(prefix="nntk-absent-card-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    include = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
    command = [compiler, "-shared", "-fPIC", "-O2", f"-I{include}", f"-Wl,-soname,{_LIBRARY}", "-o",
               f"{folder}/{_LIBRARY}", str(_SOURCE)]  # fmt: skip
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NoCompilerError(
            f"{compiler} did not build the driver that launches nothing: {getattr(error, 'stderr', '') or error}"
        ) from error
    triton.knobs.nvidia.libcuda_path = folder
    return ctypes.CDLL(f"{folder}/{_LIBRARY}", mode=ctypes.RTLD_GLOBAL)
