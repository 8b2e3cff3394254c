"""What a call takes of memory, known before it begins."""

from dataclasses import dataclass
from pathlib import Path

import torch

_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that a kernel of some inputs takes, and how it is cut.

    ``print(kernel.plan(x))`` shows it; the logger ``"nntk"`` notes it at level INFO whenever a kernel begins.

    Attributes:
        result: The kernel matrix.
        held: What is held beside it: differences of the displacements that are assembled together, and of the inner
            forms their products.
        temporary: The budget of the evaluation, ``max_memory``.
        displacements: Displacements that are assembled together.
        samples: All of them.
        free: Free memory of the device; None where nobody knows.
    """

    result: int
    held: int
    temporary: int
    displacements: int
    samples: int
    free: int | None

    @property
    def total(self) -> int:
        """All together."""
        return self.result + self.held + self.temporary

    def __str__(self) -> str:
        free = "" if self.free is None else f" of {in_words(self.free)} that are free"
        return (
            f"{in_words(self.total)}{free}: the kernel {in_words(self.result)}, differences {in_words(self.held)} "
            f"({self.displacements} of {self.samples} displacements at a time), evaluation {in_words(self.temporary)}"
        )


def in_words(size: float) -> str:
    """Bytes for a reader.

    Args:
        size: The bytes.

    Returns:
        Three digits and a unit.

    Example:
        >>> in_words(3 * 2**29)
        '1.5 GiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} TiB"


def free_bytes(device: torch.device) -> int | None:
    """Free memory of a device; of a CPU also by the limits of the container. None where nobody knows."""
    if device.type == "cuda":
        # What PyTorch holds of earlier tensors serves the next ones.
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    known = []
    if _MEMINFO.exists():
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines() if ":" in line)
        if "MemAvailable" in lines:
            known.append(1024 * int(lines["MemAvailable"].split()[0]))
    limit = _CGROUP / "memory.max"
    if limit.exists() and limit.read_text().strip() != "max":
        # Files that are cached are given up where memory is wanted.
        statistics = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        used = int((_CGROUP / "memory.current").read_text()) - int(statistics.get("inactive_file", 0))
        known.append(max(0, int(limit.read_text()) - used))
    return min(known, default=None)


def check_room(what: str, size: int, device: torch.device, advice: str) -> None:
    """Check that some things fit in the memory that is free, before any work.

    Raises:
        MemoryError: If they do not; the message says what would.
    """
    free = free_bytes(device)
    if free is not None and size > free:
        raise MemoryError(f"{what} take {in_words(size)}, and {in_words(free)} are free. {advice}")
