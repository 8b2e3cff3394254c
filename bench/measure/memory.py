"""Peak memory of a call, measured where nothing else was: in a fresh process on a CPU, by the allocator on a GPU."""

import contextlib
import multiprocessing
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor


def peak(make: Callable[..., Callable[[], Tensor]], *arguments: object, device: torch.device) -> int:
    """Bytes that a call takes at most, beyond its result and what was there before.

    Args:
        make: A function of a module (it is sent to another process by name) that prepares a call and returns it.
        *arguments: Its arguments.
        device: Where the call works.

    Returns:
        The bytes. On a CPU they are the process's resident memory, in pages that were touched.
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
    """Peak memory of what runs inside, beyond what was there before; asked for afterwards."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield lambda: torch.cuda.max_memory_allocated(device) - before
    else:
        start = _begin()
        found: list[int] = []
        yield lambda: found[0]
        found.append(max(0, _status("VmHWM") - start))


def _peak_of_process(make: Callable[..., Callable[[], Tensor]], arguments: tuple[object, ...]) -> int:
    call = make(*arguments)
    before = _begin()
    result = call()
    return max(0, _status("VmHWM") - before - result.nbytes)


def _begin() -> int:
    """Reset the peak of this process, and give what it has now."""
    # Of this process alone: getrusage would count the memory of the parent that forked it. The 5 resets the peak.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found[1]) if found else 0
