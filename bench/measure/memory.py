"""Peak memory of a call: in a fresh process on a CPU, by the allocator on a GPU."""

import contextlib
import multiprocessing
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor


def peak(make: Callable[..., Callable[[], Tensor]], *arguments: object, device: torch.device) -> int:
    """Measure the peak memory of a call, beyond its result and the memory in use before.

    Args:
        make: Function of a module (its name is sent to another process) that prepares a call and returns it.
        *arguments: Arguments of ``make``.
        device: Device of the call.

    Returns:
        The bytes. On a CPU they are the resident memory of the process.
    """
    if device.type == "cuda":
        call = make(*arguments)
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before - result.nbytes
    with multiprocessing.get_context("spawn").Pool(1) as process:
        return process.apply(_peak_of_process, (make, arguments))


@contextlib.contextmanager
def watched(device: torch.device) -> Iterator[Callable[[], int]]:
    """Watch the peak memory of a block, beyond the memory in use before; the yielded function returns it afterwards."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield lambda: torch.cuda.max_memory_allocated(device) - before
    else:
        start = _reset_peak()
        peaks: list[int] = []
        yield lambda: peaks[0]
        peaks.append(max(0, _status("VmHWM") - start))


def _peak_of_process(make: Callable[..., Callable[[], Tensor]], arguments: tuple[object, ...]) -> int:
    call = make(*arguments)
    before = _reset_peak()
    result = call()
    return max(0, _status("VmHWM") - before - result.nbytes)


def _reset_peak() -> int:
    """Reset the peak of this process, and return its resident memory."""
    # Neither psutil nor getrusage will do: one has no peak, the other counts the parent that forked this process.
    # Writing 5 resets the peak.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(key: str) -> int:
    """Return one entry of the kernel's status of this process, in bytes."""
    match = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(match[1]) if match else 0
