"""Environment of a measurement: device, versions, commit."""

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from nntk.kernels import target
from nntk.kernels.philox import STREAM_VERSION

_PACKAGES = ("nntk", "torch", "triton", "numba", "numpy", "scipy", "scikit-learn", "matplotlib")
_SOURCES = tuple(f":(top){name}" for name in ("nntk", "kernels", "bench", "pyproject.toml"))
"""Paths of the sources that figures depend on; changed results or notes do not count as uncommitted sources."""


def describe(device: torch.device) -> dict[str, Any]:
    """Describe the machine and the software that a figure depends on."""
    commit = _git("rev-parse", "HEAD")
    return {
        "device": {
            "kind": device.type,
            "name": device_name(device),
            "driver": driver(device),
            "threads": torch.get_num_threads(),
            "processors": len(os.sched_getaffinity(0)),
        },
        "versions": {"python": platform.python_version(), **{name: package_version(name) for name in _PACKAGES}},
        "commit": commit,
        "uncommitted_changes": bool(_git("status", "--porcelain", "--", *_SOURCES)) if commit else None,
        "stream_version": STREAM_VERSION,
    }


def device_name(device: torch.device) -> str:
    """Return the maker's name of the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        models = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        models = []
    return models[0] if models else platform.processor() or platform.machine()


def driver(device: torch.device) -> str | None:
    """Return the version of the kernel driver of an NVIDIA GPU; None for other devices, and where it is unknown."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text() if device.type == "cuda" else ""
    except OSError:
        text = ""
    match = re.search(r"Kernel Module.*?\s([0-9]+(?:\.[0-9]+)+)", text)
    return match[1] if match else None


def slug(device: torch.device) -> str:
    """Return the name of the device's folder under results/, e.g. ``nvidia-h200`` or ``cpu-amd-epyc``."""
    return target.slug(device_name(device) if device.type == "cuda" else f"cpu {device_name(device)}")


def package_version(package: str) -> str | None:
    """Return the version of a package; None if it is not installed. PyTorch's names its build, e.g. ``+cu130``."""
    if package == "torch":
        return torch.__version__
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """Return the output of a git command on the sources; None outside of a checkout."""
    try:
        completed = subprocess.run(
            ["git", "-C", str(Path(__file__).resolve().parent), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return completed.stdout.strip()
