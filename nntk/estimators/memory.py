"""Memory of a device: how much is free, and a refusal of what does not fit."""

from pathlib import Path

import torch

_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def format_bytes(size: float) -> str:
    """Return a number of bytes as text.

    Args:
        size: The bytes.

    Returns:
        Three digits and a unit.

    Example:
        >>> format_bytes(3 * 2**29)
        '1.5 GiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} TiB"


def free_bytes(device: torch.device) -> int | None:
    """Return the free memory of a device in bytes.

    Args:
        device: The device.

    Returns:
        For a CPU the least of what the machine and the container leave; None where it is not known.
    """
    if device.type == "cuda":
        # Memory that PyTorch holds of earlier tensors serves the next ones.
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    limits = []
    if _MEMINFO.exists():
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines() if ":" in line)
        if "MemAvailable" in lines:
            limits.append(1024 * int(lines["MemAvailable"].split()[0]))
    container_limit = _CGROUP / "memory.max"
    if container_limit.exists() and container_limit.read_text().strip() != "max":
        # The system gives up cached files where memory is needed.
        statistics = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        used = int((_CGROUP / "memory.current").read_text()) - int(statistics.get("inactive_file", 0))
        limits.append(max(0, int(container_limit.read_text()) - used))
    return min(limits, default=None)


def check_room(subject: str, size: int, device: torch.device, advice: str) -> None:
    """Check that something fits in the free memory of a device, before any work.

    Args:
        subject: Name of what is to fit, in the plural, for the message.
        size: Its bytes.
        device: The device.
        advice: Sentence that says what would fit.

    Raises:
        MemoryError: If it does not fit.
    """
    free = free_bytes(device)
    if free is not None and size > free:
        raise MemoryError(f"{subject} take {format_bytes(size)}, and {format_bytes(free)} are free. {advice}")
